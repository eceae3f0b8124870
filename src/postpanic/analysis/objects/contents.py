"""The bytes of an object, with the parts that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drgn import FaultError, Object, Program, Type, sizeof

from postpanic.analysis.cells import absent
from postpanic.errors import AbsentError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.units import MIB, format_size

__all__ = ["Contents", "object_contents", "read_contents", "size_of"]

SIZE_LIMIT_BYTES = 64 * MIB
_PAGE = 4096
_BEYOND = Absent(Reason.NOT_APPLICABLE, "beyond the object")

Read = Callable[[int, int], bytes]
"""Reads bytes at an address; raises ``FaultError`` or ``AbsentError``."""


@dataclass(frozen=True, slots=True)
class Contents:
    """
    Bytes of memory.

    Parameters
    ----------
    data : bytes
        What cannot be read is zero.
    gaps : tuple
        First byte, end, and reason of each part that cannot be read.
    """

    data: bytes
    gaps: tuple[tuple[int, int, Absent], ...] = ()

    def missing(self, start: int, size: int) -> Absent | None:
        """Say why a part of the bytes from *start* on is missing; None if all are there."""
        for first, end, reason in self.gaps:
            if start < end and first < start + max(size, 1):
                return reason
        if start < 0 or start + size > len(self.data):
            return _BEYOND
        return None

    @property
    def is_lost(self) -> bool:
        """Whether not one byte could be read."""
        return bool(self.data) and sum(end - first for first, end, _ in self.gaps) >= len(self.data)


def read_contents(read: Read, vaddr: int, size: int) -> Contents:
    """
    Read memory, page by page where it cannot be read in one.

    Raises
    ------
    UsageError
        If it is more than :data:`SIZE_LIMIT_BYTES`.
    """
    if size > SIZE_LIMIT_BYTES:
        raise UsageError(f"{size} bytes at {vaddr:#x}: at most {format_size(SIZE_LIMIT_BYTES)} are read at once")
    try:
        return Contents(read(vaddr, size))
    except (FaultError, AbsentError):
        pass
    data = bytearray(size)
    gaps: list[tuple[int, int, Absent]] = []
    start = 0
    while start < size:
        end = min(size, start + _PAGE - (vaddr + start) % _PAGE)
        try:
            data[start:end] = read(vaddr + start, end - start)
        except (FaultError, AbsentError) as exc:
            gaps.append((start, end, absent(exc)))
        start = end
    return Contents(bytes(data), tuple(gaps))


def object_contents(prog: Program, value: Object, read: Read | None = None) -> Contents:
    """
    Read an object: from memory if it is a reference, else the bytes that it carries.

    Parameters
    ----------
    read : callable, optional
        Reads memory in place of the program: that of a process.
    """
    if value.address_ is None:
        return Contents(value.to_bytes_())
    return read_contents(read or prog.read, value.address_, size_of(value.type_))


def size_of(type_: Type) -> int:
    """Tell the size of a type in bytes; 0 where C has none: functions, ``void``, ``[]``, what is only declared."""
    try:
        return int(sizeof(type_))
    except TypeError:
        return 0
