"""Runs of bytes that belong together: a text, one byte again and again, a small unit repeated."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Run", "find_run"]

_SHORTEST_TEXT = 8
_UNITS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Run:
    """
    A run.

    Attributes
    ----------
    start, end : int
        ``[start, end)`` in the bytes that were looked at.
    unit : bytes
        What is repeated; empty: it is a text.
    text : str
        The run in words.
    """

    start: int
    end: int
    unit: bytes
    text: str

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.start


def find_run(data: bytes, at: int, *, size: int = 8) -> Run | None:
    """
    Find the run that a word belongs to; None: it does not belong to any.

    Zeroes are no run: memory is full of them.

    Parameters
    ----------
    data : bytes
    at : int
        Where the word begins.
    size : int
        Of the word, bytes.

    >>> find_run(b"xx" + b"AB" * 9 + b"yyyyyy", 8).text
    "'xxABABABABABABABABAByyyyyy'"
    >>> find_run(bytes(8) + bytes([1, 2]) * 12, 16).start
    8
    """
    word = data[at : at + size]
    if len(word) < size or not any(word):
        return None
    found = _text_run(data, at, size)
    if found is not None:
        return found
    for length in _UNITS:
        unit = word[:length]
        if unit * (size // length) == word and any(unit):
            run = _repeated(data, at, size, unit)
            # A single word that stands alone is no run.
            return run if run.size_bytes >= 2 * size else None
    return None


def _is_letter(byte: int) -> bool:
    return 0x20 <= byte < 0x7F or byte in {9, 10, 13}


def _text_run(data: bytes, at: int, size: int) -> Run | None:
    word = data[at : at + size].rstrip(b"\0")
    if len(word) < 4 or not all(_is_letter(byte) for byte in word):
        return None
    start, end = at, at + len(word)
    while start and _is_letter(data[start - 1]):
        start -= 1
    while end < len(data) and _is_letter(data[end]):
        end += 1
    text = data[start:end].decode("ascii")
    if end - start < _SHORTEST_TEXT:
        return None
    shown = text if len(text) <= 40 else f"{text[:24]}…{text[-12:]}"
    return Run(start, end, b"", repr(shown))


def _repeated(data: bytes, at: int, size: int, unit: bytes) -> Run:
    start, end, length = at, at + size, len(unit)
    while start >= length and data[start - length : start] == unit:
        start -= length
    while end + length <= len(data) and data[end : end + length] == unit:
        end += length
    return Run(start, end, unit, f"0x{unit[::-1].hex()} repeated")
