"""``rd``: the contents of memory, as numbers, text, symbols and objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number, parse_vaddr
from postpanic.analysis.memory.object_names import ObjectNames
from postpanic.analysis.memory.spaces import AddressKind, Space, is_kernel_vaddr, open_space
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, OutputError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape
from postpanic.units import GIB, MIB

__all__ = ["WORDS", "rd", "word_rows"]

_VALUES = Shape(
    "values",
    (
        Column("address", Kind.HEX, help="Address of the value."),
        Column("value", Kind.HEX, help="The value; signed with -d."),
        Column("symbol", help="Symbol that it points to (-s, -S)."),
        Column("cache", help="Slab cache of the object that it points to (-S)."),
    ),
)
WORDS = Shape(
    "words",
    (
        Column("address", Kind.HEX, format="16x", help="Address of the first value of the line."),
        Column("words", help="The values as text."),
        Column("text", help="The bytes as ASCII, a dot for each that is not printable."),
        Column("values", Kind.ROWS, shape=_VALUES, hidden=True, help="Each value."),
    ),
    Layout.LINES,
    "{address}:  {words}  {text}",
)
_TEXT = Shape(
    "text",
    (
        Column("address", Kind.HEX, format="16x", help="Address of the first character of the line."),
        Column("text", help="Printable ASCII."),
    ),
    Layout.LINES,
    "{address}:  {text}",
)
_SAVED = Shape(
    "saved",
    (
        Column("bytes", Kind.NUMBER, help="Bytes that were copied."),
        Column("address", Kind.HEX, help="From where."),
        Column("file", help="To which file."),
    ),
    Layout.LINES,
    "{bytes} bytes copied from 0x{address} to {file}",
)

_ASCII_PER_LINE = 60
_ASCII_LIMIT_BYTES = MIB
_LIMIT_BYTES = 256 * MIB
_SAVE_LIMIT_BYTES = GIB
_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 16
_DECIMAL_WIDTHS = {1: 3, 2: 5, 4: 12, 8: 19}
_PRINTABLE = range(0x20, 0x7F)


@dataclass(frozen=True)
class _Request:
    """What is to be shown, and how."""

    space: Space
    address: int
    size_bytes: int
    count: int
    style: str
    """``hex``, ``signed`` or ``unsigned``."""
    symbols: bool = False
    objects: int = 0
    """How many times -S was given."""
    swapped: bool = False
    ascii: bool = True


@command(
    "rd",
    summary="read memory",
    description=(
        "Show memory, by default as 64-bit hexadecimal numbers with the same bytes as text beside them. What cannot be "
        "read is shown as question marks, and said; the rest of the range is shown all the same."
    ),
    options=(
        Option("-p", "physical", "the address is a physical address"),
        Option("-u", "user", "the address is a user address of the current task"),
        Option("-k", "kernel", "the address is a kernel address"),
        Option("-m", "machine", "machine address", refused="dumps of a Xen hypervisor are not read"),
        Option("-f", "file", "the address is an offset in the dump file"),
        Option("-d", "signed", "signed decimal numbers"),
        Option("-D", "unsigned", "unsigned decimal numbers"),
        Option("-s", "symbolic", "show addresses of the kernel as symbols"),
        Option("-S", "objects", "as -s, and slab objects as [cache]; twice: as [address:cache]"),
        Option("-x", "plain", "no text beside the numbers"),
        Option("-8", "width8", "8-bit numbers"),
        Option("-16", "width16", "16-bit numbers"),
        Option("-32", "width32", "32-bit numbers"),
        Option("-64", "width64", "64-bit numbers"),
        Option("-a", "ascii", "text; without a count, up to the first byte that is not printable"),
        Option("-N", "network", "network byte order (16 and 32 bits)"),
        Option("-R", "reverse", "end with the address instead of beginning with it"),
        Option("-o", "offset", "add this to the address", value="BYTES"),
        Option("-e", "end", "show memory up to this address", value="ADDRESS"),
        Option("-r", "raw", "copy the bytes into a file; the count is in bytes", value="FILE"),
    ),
    operands=(
        Operand("address", "address or symbol", required=True),
        Operand("count", "how many values, decimal; 1 without it"),
    ),
    shapes=(WORDS, _TEXT, _SAVED),
    examples=(
        Example("rd -a linux_banner", "the kernel's version as text"),
        Example("rd -s init_task 28", "words, those that point to symbols by their names"),
        Example("rd jiffies -d", "one number in decimal"),
    ),
)
def rd(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show memory."""
    size = _choose_width(arguments)
    space, address = _choose_space(workspace, arguments)
    offset = arguments.get("offset")
    if offset is not None:
        address += parse_number(offset, "rd -o")
    count = _choose_count(workspace, arguments, address, size)
    if arguments.has("raw"):
        return _save(space, address, count, arguments.get("raw") or "")
    if arguments.has("ascii"):
        return _show_ascii(space, address, count)
    if count is None:
        count = 1
    if arguments.has("reverse"):
        if count < 2:
            raise UsageError("rd -R: needs a count above 1")
        address -= (count - 1) * size
    symbols = arguments.has("symbolic") or arguments.has("objects")
    if symbols and size != 8:
        raise UsageError("rd: -s and -S show 64-bit numbers only")
    style = "signed" if arguments.has("signed") else "unsigned" if arguments.has("unsigned") else "hex"
    request = _Request(
        space,
        address,
        size,
        count,
        style,
        symbols,
        arguments.count("objects"),
        arguments.has("network"),
        ascii=style == "hex" and not symbols and not arguments.has("plain"),
    )
    problems: list[Problem] = []
    table = WORDS.table(list(_lines(request, problems)))
    is_missing = all(isinstance(value, Absent) for values in table.column("values") for value in values.column("value"))
    return Answer("rd", (table,), tuple(problems), is_missing)


def _choose_width(arguments: Arguments) -> int:
    chosen = [size for size in (1, 2, 4, 8) if arguments.has(f"width{size * 8}")]
    if len(chosen) > 1:
        raise UsageError("rd: only one of -8, -16, -32 and -64")
    size = chosen[0] if chosen else 8
    if arguments.has("network") and size not in {2, 4}:
        raise UsageError("rd -N: only with -16 or -32")
    return size


def _choose_space(workspace: Workspace, arguments: Arguments) -> tuple[Space, int]:
    kinds = [name for name in ("physical", "user", "kernel", "file") if arguments.has(name)]
    if len(kinds) > 1:
        raise UsageError("rd: only one of -p, -u, -k and -f")
    address = parse_vaddr(workspace, arguments.operands[0])
    if kinds == ["file"]:
        return _FileSpace(AddressKind.PHYSICAL, workspace, None), address
    if kinds:
        return open_space(workspace, AddressKind(kinds[0])), address
    kind = AddressKind.KERNEL if is_kernel_vaddr(address) else AddressKind.USER
    return open_space(workspace, kind), address


class _FileSpace(Space):
    """The dump file itself, as bytes."""

    def read(self, address: int, size_bytes: int) -> bytes:
        with Path(self.workspace.opened.dump.description.paths[0]).open("rb") as file:
            file.seek(address)
            return file.read(size_bytes)

    def read_available(self, address: int, size_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        found = self.read(address, size_bytes)
        data = np.frombuffer(found.ljust(size_bytes, b"\0"), dtype=np.uint8)
        return data, np.arange(size_bytes) < len(found)

    def why_absent(self, address: int) -> Absent:
        return Absent(Reason.NOT_PRESENT, f"the file ends before {address:#x}")


def _choose_count(workspace: Workspace, arguments: Arguments, address: int, size: int) -> int | None:
    """Tell how many values are wanted; None where nothing says so."""
    if arguments.has("raw"):
        size = 1
    if arguments.has("end"):
        if len(arguments.operands) > 1:
            raise UsageError("rd: a count and -e contradict each other")
        end = parse_vaddr(workspace, arguments.get("end") or "")
        if end <= address:
            raise UsageError(f"rd -e: {end:#x} is not above {address:#x}")
        count = -(-(end - address) // (1 if arguments.has("ascii") else size))
    elif len(arguments.operands) > 1:
        count = parse_number(arguments.operands[1], "rd: count")
        if count < 1:
            raise UsageError(f"rd: a count of {count}, must be positive")
    else:
        return None
    limit = _SAVE_LIMIT_BYTES if arguments.has("raw") else _LIMIT_BYTES
    if count * size > limit:
        raise UsageError(f"rd: {count * size} bytes, at most {limit} are shown", hint="-r FILE copies more")
    return count


def _save(space: Space, address: int, count: int | None, file: str) -> Answer:
    if count is None:
        raise UsageError("rd -r: needs a count of bytes, or -e")
    try:
        with Path(file).open("wb") as target:
            target.writelines(
                space.read(start, min(_BLOCK_BYTES, address + count - start))
                for start in range(address, address + count, _BLOCK_BYTES)
            )
    except OSError as exc:
        raise OutputError(f"{file}: {exc.strerror}") from exc
    return Answer("rd", (_SAVED.table([(count, address, file)]),))


def _blocks(space: Space, address: int, size_bytes: int) -> Iterator[bytes]:
    for start in range(address, address + size_bytes, _BLOCK_BYTES):
        yield space.read(start, min(_BLOCK_BYTES, address + size_bytes - start))


def _show_ascii(space: Space, address: int, count: int | None) -> Answer:
    data, present = space.read_available(address, _ASCII_LIMIT_BYTES if count is None else count)
    problems: list[Problem] = []
    if not present.all():
        first = int(np.argmin(present))
        if count is not None or first == 0:
            problems.append(_absent_problem(space, address + first, len(data) - first))
        data = data[:first]
    raw = data.tobytes()
    if count is None:
        end = next((place for place, byte in enumerate(raw) if byte not in _PRINTABLE), len(raw))
        raw = raw[:end]
    rows = [
        (address + start, _printable(raw[start : start + _ASCII_PER_LINE]))
        for start in range(0, len(raw), _ASCII_PER_LINE)
    ]
    return Answer("rd", (_TEXT.table(rows),), tuple(problems))


def _printable(data: bytes) -> str:
    return data.decode("latin-1").translate(_DOTS)


_DOTS = {code: "." for code in range(256) if code not in _PRINTABLE}


def _absent_problem(space: Space, address: int, size_bytes: int) -> Problem:
    reason = space.why_absent(address)
    return Problem(f"{size_bytes} bytes from {address:#x} on cannot be read: {reason.detail}", reason.reason)


def word_rows(
    space: Space, address: int, size_bytes: int, count: int, problems: list[Problem], *, text: bool = True
) -> list[tuple[Cell, ...]]:
    """Make the rows that show *count* hexadecimal numbers of *size_bytes* each; *text*: with the bytes beside them."""
    return list(_lines(_Request(space, address, size_bytes, count, "hex", ascii=text), problems))


def _lines(request: _Request, problems: list[Problem]) -> Iterator[tuple[Cell, ...]]:
    """Make the rows, block by block."""
    size = request.size_bytes
    total = request.count * size
    names = ObjectNames(request.space.workspace) if request.symbols else None
    speller = _Speller(request, names)
    for start in range(0, total, _BLOCK_BYTES):
        length = min(_BLOCK_BYTES, total - start)
        data, present = request.space.read_available(request.address + start, length)
        if len(data) < length:
            raise FactAbsentError(f"the address space ends before {request.address + start + length:#x}")
        whole = np.asarray(present.reshape(-1, size).all(axis=1))
        if not whole.all():
            first = int(np.argmin(whole)) * size
            problems.append(_absent_problem(request.space, request.address + start + first, int((~whole).sum()) * size))
        yield from speller.lines(request.address + start, data, whole)


class _Speller:
    """Spells values in columns."""

    def __init__(self, request: _Request, names: ObjectNames | None) -> None:
        self._request = request
        self._names = names
        self._per_line = 2 if request.size_bytes == 8 else _LINE_BYTES // request.size_bytes
        size = request.size_bytes
        if request.style == "hex":
            self._width, self._format = 2 * size, f"0{2 * size}x"
        else:
            self._width = _DECIMAL_WIDTHS[size] + (request.style == "unsigned" and size == 8)
            self._format = f"{self._width}d"
        order = ">" if request.swapped else "<"
        self._dtype = np.dtype(f"{order}{'i' if request.style == 'signed' else 'u'}{size}")

    def lines(self, address: int, data: NDArray[np.uint8], whole: NDArray[np.bool_]) -> Iterator[tuple[Cell, ...]]:
        size, per_line = self._request.size_bytes, self._per_line
        values = data.view(self._dtype).tolist()
        flags = whole.tolist()
        for first in range(0, len(values), per_line):
            cells: list[tuple[Cell, ...]] = []
            words = []
            for place in range(first, min(first + per_line, len(values))):
                at = address + place * size
                word, row = self._spell(at, values[place], is_there=flags[place])
                words.append(word)
                cells.append(row)
            text: str | None = None
            if self._request.ascii:
                text = self._text(data[first * size : (first + len(words)) * size].tobytes(), flags, first)
            line = " ".join(words)
            if text is not None:
                line = line.ljust((self._width + 1) * per_line)
            yield (address + first * size, line, text, _VALUES.table(cells))

    def _text(self, data: bytes, flags: list[bool], first: int) -> str:
        size = self._request.size_bytes
        parts = []
        for number in range(len(data) // size):
            word = data[number * size : (number + 1) * size]
            parts.append(_printable(word) if flags[first + number] else "?" * size)
        return "".join(parts)

    def _spell(self, address: int, value: int, *, is_there: bool) -> tuple[str, tuple[Cell, ...]]:
        if not is_there:
            missing = self._request.space.why_absent(address)
            return "?" * self._width, (address, missing, None, None)
        symbol = cache = None
        word = format(value, self._format)
        if self._names is not None:
            symbol = self._names.symbol(value)
            cache = self._names.cache(value) if self._request.objects else None
            if cache is not None:
                word = f"[{value:x}:{cache}]" if self._request.objects > 1 else f"[{cache}]"
            elif symbol is not None:
                word = symbol
            word = word.ljust(self._width)
        return word, (address, value, symbol, cache)
