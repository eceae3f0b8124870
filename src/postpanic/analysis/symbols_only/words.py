"""Memory as ``rd`` of crash shows it: 16 bytes per line, as numbers, letters or symbols."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from postpanic.analysis.symbols_only.kernel import SymbolsOnly
from postpanic.errors import UsageError

__all__ = ["WordStyle", "format_letters", "format_words", "read_letter_lines", "read_word_lines"]

_LINE_BYTES = 16
_CHUNK_BYTES = 64 << 10
_LIMIT_BYTES = 1 << 30
_LETTERS_LIMIT_BYTES = 1 << 20
_LETTERS_PER_LINE = 60
_PRINTABLE = frozenset((string.ascii_letters + string.digits + string.punctuation + " ").encode())
_SKIPPED = frozenset(b"\t\r\x0b\x0c")
_NEWLINE = 0x0A


@dataclass(frozen=True, slots=True)
class WordStyle:
    """How numbers are shown."""

    unit_bytes: int = 8
    """1, 2, 4 or 8."""
    base: str = "x"
    """``x`` hexadecimal, ``d`` signed, ``u`` unsigned decimal."""
    letters: bool = True
    """Whether a column of letters follows; with hexadecimal numbers only."""

    @property
    def width(self) -> int:
        """Characters of the widest number."""
        if self.base == "x":
            return 2 * self.unit_bytes
        return len(str(-(1 << 8 * self.unit_bytes - 1) if self.base == "d" else (1 << 8 * self.unit_bytes) - 1))


def format_words(
    vaddr: int, data: bytes, style: WordStyle, annotate: Callable[[int], str | None] = lambda _: None
) -> Iterator[str]:
    """
    Lay memory out in lines of 16 bytes.

    Parameters
    ----------
    vaddr : int
        Address of the first byte; lines start there, aligned or not.
    annotate : callable
        Gives the text to show in place of a number, or None.

    >>> next(format_words(0x10, bytes(range(0x41, 0x49)), WordStyle()))
    '              10:  4847464544434241                    ABCDEFGH'
    """
    width = style.width
    per_line = _LINE_BYTES // style.unit_bytes
    letters = style.letters and style.base == "x"
    for at in range(0, len(data), _LINE_BYTES):
        line = data[at : at + _LINE_BYTES]
        cells = []
        for start in range(0, len(line), style.unit_bytes):
            number = int.from_bytes(line[start : start + style.unit_bytes], "little", signed=style.base == "d")
            text = annotate(number)
            if text is None:
                text = f"{number:0{width}x}" if style.base == "x" else f"{number:{width}}"
            cells.append(f"{text:{width}}")
        shown = f"{vaddr + at:16x}:  {' '.join(cells)}"
        if letters:
            shown += " " * (per_line - len(cells)) * (width + 1) + "   "
            shown += "".join(chr(byte) if byte in _PRINTABLE else "." for byte in line)
        yield shown


def format_letters(vaddr: int, data: bytes) -> Iterator[str]:
    r"""
    Lay a text out up to its first byte that is not printable; a new line at each newline, and after 60 letters.

    >>> list(format_letters(0x10, b"one\ntwo\0three"))
    ['              10:  one', '              14:  two']
    """
    start, line = 0, ""
    for at, byte in enumerate(data):
        if byte != _NEWLINE and byte not in _PRINTABLE and byte not in _SKIPPED:
            break
        if byte == _NEWLINE or len(line) >= _LETTERS_PER_LINE:
            yield f"{vaddr + start:16x}:  {line}"
            start, line = at + (byte == _NEWLINE), ""
        if byte in _PRINTABLE:
            line += chr(byte)
    if line:
        yield f"{vaddr + start:16x}:  {line}"


def read_word_lines(
    kernel: SymbolsOnly, vaddr: int, count: int, style: WordStyle, *, symbolic: bool = False
) -> Iterator[str]:
    """
    Read memory and lay it out.

    Parameters
    ----------
    count : int
        Numbers, not bytes.
    symbolic : bool
        Whether numbers that are addresses in the kernel image are shown as ``symbol+offset``.

    Raises
    ------
    UsageError
        If *count* is not positive or asks for more than 1 GiB, or symbols are
        asked for in place of numbers that are no hexadecimal 64-bit ones.
    AbsentError
        At the first part that is not in the dump, after the lines before it.
    """
    size = count * style.unit_bytes
    if count <= 0 or size > _LIMIT_BYTES:
        raise UsageError(f"a count of {count} cannot be shown, it must be 1 to {_LIMIT_BYTES // style.unit_bytes}")
    if symbolic and style.base == "x" and style.unit_bytes != 8:
        raise UsageError("symbols can only be shown in place of 64-bit values")
    annotate = _annotator(kernel) if symbolic and style.base == "x" else lambda _: None
    for at in range(0, size, _CHUNK_BYTES):
        data = kernel.memory.read(vaddr + at, min(_CHUNK_BYTES, size - at))
        yield from format_words(vaddr + at, data, style, annotate)


def read_letter_lines(kernel: SymbolsOnly, vaddr: int, count: int | None) -> Iterator[str]:
    """
    Read a text of at most *count* bytes (1 MiB) and lay it out.

    Raises
    ------
    AbsentError
        If its first byte is not in the dump.
    """
    limit = min(count if count is not None else _LETTERS_LIMIT_BYTES, _LETTERS_LIMIT_BYTES)
    kernel.memory.read(vaddr, 1)
    data, present = kernel.memory.read_available(vaddr, min(limit, (1 << 64) - vaddr))
    missing = present.argmin() if not present.all() else len(present)
    yield from format_letters(vaddr, data[:missing].tobytes())


def _annotator(kernel: SymbolsOnly) -> Callable[[int], str | None]:
    def annotate(number: int) -> str | None:
        found = kernel.symbol_at(number)
        return f"{found[0].name}+{found[1]}" if found is not None else None

    return annotate
