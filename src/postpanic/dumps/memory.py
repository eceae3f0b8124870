"""
The contract between dump formats and everything that reads memory.

A format gives a :class:`Dump`: physical memory in pages, and a
:class:`DumpDescription` of what the file says about itself. Nothing above this
module knows a format by name.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import PageAbsentError
from postpanic.units import PhysAddr, VirtAddr

__all__ = [
    "Dump",
    "DumpDescription",
    "PageState",
    "PhysicalMemory",
    "VirtualSegment",
    "page_absent_error",
    "ranges_from_pairs",
]


class PageState(enum.IntEnum):
    """Where the contents of one page frame are; the values fit ``uint8``."""

    PRESENT = 0
    """The contents are in the file."""
    EXCLUDED = 1
    """The frame is RAM; a filter left its contents out."""
    HOLE = 2
    """Left out: excluded by a filter or all zero, and the file does not tell which."""
    ABSENT = 3
    """No RAM that the dump describes has this frame number."""
    LOST = 4
    """The file should hold the contents and does not: cut, incomplete or corrupt."""


@dataclass(frozen=True, slots=True)
class VirtualSegment:
    """A virtual range that the file itself maps to physical memory (ELF ``p_vaddr``)."""

    vaddr: VirtAddr
    paddr: PhysAddr
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DumpDescription:
    """
    What a dump file says about itself, before any memory is looked at.

    ``machine`` is the ``uname -m`` spelling: ``x86_64``, ``aarch64``, ``i686``
    and so on; empty when the file does not tell. ``dump_level`` is
    makedumpfile's ``-d`` number, None where the file does not record it.
    ``incomplete`` is empty for a complete dump, else the reason as one phrase.
    """

    format: str
    """``ELF vmcore``, ``kdump-compressed v6``, ``flattened kdump-compressed v6`` …"""
    paths: tuple[str, ...]
    machine: str
    byte_order: str
    """``little`` or ``big``."""
    page_size_bytes: int
    file_size_bytes: int
    compression: tuple[str, ...] = ()
    """Of the pages: ``zlib``, ``lzo``, ``snappy``, ``zstd``; empty for none."""
    dump_level: int | None = None
    incomplete: str = ""
    has_holes: bool = False
    """Whether pages are left out in a way that reads as zeroes elsewhere (ELF ``p_filesz < p_memsz``)."""
    is_paged: bool = False
    """Whether the file holds single pages, those that are left out being absent (kdump-compressed)."""
    is_stream: bool = False
    """Whether the file is a flattened stream, whose records must be put in order to be read."""
    warnings: tuple[str, ...] = ()
    """Oddities that did not stop the reader, one phrase each."""
    vmcoreinfo: bytes = b""
    """The text of the VMCOREINFO note; empty when the file has none."""
    notes: bytes = b""
    """All ELF notes as they stand (``Elf64_Nhdr`` records, 4-byte aligned), or empty."""
    utsname: dict[str, str] = field(default_factory=dict)
    """``sysname nodename release version machine domainname``, where the header has them."""
    timestamp_s: int | None = None
    """Seconds since 1970 that the header carries."""
    segments: tuple[VirtualSegment, ...] = ()
    phys_base: int | None = None
    """Of the kdump format, x86 only: where VMCOREINFO and the sub header differ, VMCOREINFO's."""


class PhysicalMemory(Protocol):
    """
    Physical memory, read in pages or byte ranges.

    Implementations are safe to use from one thread at a time, keep a bounded
    cache, and never return made-up bytes: what is not in the file is an error
    (:meth:`read`) or a state (:meth:`read_pages`).
    """

    @property
    def page_size_bytes(self) -> int:
        """Bytes in a page frame, a power of two."""

    @property
    def ram_ranges(self) -> NDArray[np.uint64]:
        """All RAM the dump describes, saved or not: shape (n, 2), ``[start, end)`` physical addresses, sorted."""

    def page_states(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """State of each frame, as :class:`PageState` values; no contents are read."""

    def read_pages(self, pfns: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """
        Read whole pages in bulk.

        Returns
        -------
        pages : ndarray of uint8, shape (len(pfns), page_size_bytes)
            Contents; zeroes where the state is not ``PRESENT``.
        states : ndarray of uint8, shape (len(pfns),)
            :class:`PageState` of each; a page that turns out to be corrupt is ``LOST``.
        """

    def read(self, paddr: PhysAddr, size_bytes: int) -> bytes:
        """
        Read a range of bytes, across pages.

        Raises
        ------
        PageAbsentError
            If any byte of the range is not in the file; says which and why.
        """


class Dump(PhysicalMemory, Protocol):
    """An open dump file, a context manager."""

    @property
    def description(self) -> DumpDescription:
        """What the file says about itself."""

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """
        Read whole pages in bulk into a buffer of the caller's, which saves the cost of fresh memory.

        Unlike the other methods, this one may be called from several threads at a time.

        Parameters
        ----------
        pages : ndarray of uint8, shape (len(pfns), page_size_bytes), C-contiguous
            Receives the contents; zeroes where the state is not ``PRESENT``.

        Returns
        -------
        states : ndarray of uint8, shape (len(pfns),)
            As :meth:`read_pages` gives them.
        """

    def forget(self) -> None:
        """Forget the contents that are kept; for memory that changes, a running kernel's."""

    def close(self) -> None:
        """Let go of the files; reading afterwards is an error of the caller."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


_WHY: dict[PageState, str] = {
    PageState.EXCLUDED: "left out of the dump by its filter",
    PageState.HOLE: "left out of the dump (excluded or zero: the file does not tell)",
    PageState.ABSENT: "not RAM as the dump describes it",
    PageState.LOST: "missing although the dump should hold it (cut, incomplete or corrupt file)",
}


def page_absent_error(paddr: int, state: int, *, where: str = "") -> PageAbsentError:
    """Build the error for a page that cannot be read, with the reason in words."""
    return PageAbsentError(f"physical address {paddr:#x} is {_WHY[PageState(state)]}", paddr=paddr, where=where)


def ranges_from_pairs(pairs: Sequence[tuple[int, int]]) -> NDArray[np.uint64]:
    """
    Sort and merge ``[start, end)`` pairs into the form of ``ram_ranges``.

    Touching and overlapping ranges become one; empty ones are dropped.
    """
    merged: list[list[int]] = []
    for start, end in sorted(pair for pair in pairs if pair[0] < pair[1]):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.uint64).reshape(-1, 2)
