"""How much of what a debugger needs is in a dump that was written, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState
from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import NOT_MAPPED
from postpanic.units import GIB, VirtAddr, format_size

__all__ = ["Coverage", "Surveyor", "VirtualRange"]

VirtualRange = tuple[int, int]
"""Address and size in bytes."""

_LIMIT_BYTES = GIB
_WORD = (1 << 64) - 1
_PAGES_TOGETHER = 256
_LEAST_SAMPLE = 2

_WHY = {
    PageState.EXCLUDED: "left out by the filter",
    PageState.HOLE: "left out by the filter",
    PageState.ABSENT: "no RAM of this dump",
    PageState.LOST: "lost: never written, cut or corrupt",
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of some ranges a written dump holds, in pages of the kernel."""

    pages: int
    """That must be there: those that the source had."""
    lost: int = 0
    maybe_zero: int = 0
    """Left out, and all zero or excluded: the file does not tell, and there is no source to ask."""
    first_lost: int = 0
    """Virtual address."""
    why: str = ""
    """Of the first that is lost, as one phrase."""

    def __add__(self, other: Coverage) -> Coverage:
        first = self if self.lost else other
        return Coverage(
            self.pages + other.pages,
            self.lost + other.lost,
            self.maybe_zero + other.maybe_zero,
            first.first_lost,
            first.why,
        )

    @property
    def text(self) -> str:
        """In words: ``12 of 3,410 pages, first at 0xffffffff81000000 (left out by the filter)``."""
        if self.lost:
            return f"{self.lost:,} of {_pages(self.pages)}, first at {self.first_lost:#x} ({self.why})"
        if self.maybe_zero:
            return f"{_pages(self.pages)}, {self.maybe_zero:,} of them zero or excluded: the file does not tell"
        return _pages(self.pages)


@dataclass(frozen=True)
class Surveyor:
    """
    Looks at a written dump, with the source's eyes where there is a source.

    Attributes
    ----------
    written, source : Dump
    kernel : KernelMemory
        Of the source, else of the written dump: whose page tables say what is mapped where.
    own_kernel : KernelMemory, optional
        Of the written dump, whose page tables must say the same; None where it has none.
    image_end : int, optional
        End of the kernel image, which is one piece of physical memory from ``_stext`` on.
    """

    written: Dump
    source: Dump | None
    kernel: KernelMemory
    own_kernel: KernelMemory | None = None
    image_end: int | None = None

    def cover(self, ranges: Sequence[VirtualRange]) -> Coverage:
        """
        Count the pages of ranges of virtual memory that are missing.

        A page that the source does not have either, or does not map, is not demanded.

        Raises
        ------
        FactAbsentError
            If the source has none of the pages.
        CorruptError
            If the ranges are impossibly large.
        """
        vaddrs, paddrs = self._locate(ranges, self.kernel)
        mapped = paddrs != np.uint64(NOT_MAPPED)
        states = np.full(len(paddrs), PageState.ABSENT, dtype=np.uint8)
        states[mapped] = self._states(self.written, paddrs[mapped])
        reached = mapped
        if self.source is not None:
            demanded = mapped.copy()
            demanded[mapped] = self._states(self.source, paddrs[mapped]) == PageState.PRESENT
            if not demanded.any():
                raise FactAbsentError("not in the source either")
            if self.own_kernel is not None:
                reached = mapped & (self._locate(ranges, self.own_kernel)[1] == paddrs)
            vaddrs, paddrs, states, reached = vaddrs[demanded], paddrs[demanded], states[demanded], reached[demanded]
        missing, maybe_zero = self._judge_holes(states, paddrs)
        missing |= ~reached
        lost = np.flatnonzero(missing)
        if not len(lost):
            return Coverage(len(states), 0, maybe_zero)
        first = int(lost[0])
        why = _WHY[PageState(int(states[first]))] if reached[first] else "no page table leads there"
        return Coverage(len(states), len(lost), maybe_zero, int(vaddrs[first]), why)

    def _judge_holes(self, states: NDArray[np.uint8], paddrs: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], int]:
        """Tell which pages are missing, and how many more may be missing or zero."""
        missing = states != PageState.PRESENT
        hollow = states == PageState.HOLE
        if not hollow.any():
            return missing, 0
        if self.source is not None:
            missing[hollow] = ~self._are_zero(self.source, paddrs[hollow])
        elif not hollow.all():
            return missing & ~hollow, int(hollow.sum())
        return missing, 0

    def count_mapped(self, start: int, size_bytes: int) -> int:
        """Count the pages from *start* on, up to the first that is not mapped."""
        _, paddrs = self._locate([(start, size_bytes)], self.kernel)
        holes = np.flatnonzero(paddrs == np.uint64(NOT_MAPPED))
        return int(holes[0]) if len(holes) else len(paddrs)

    def find_difference(self, ranges: Sequence[VirtualRange], sample_pages: int) -> tuple[int, int | None]:
        """
        Compare pages, evenly spread over some ranges, with the source's.

        Returns
        -------
        compared : int
            Pages that both have.
        vaddr : int or None
            Of the first that differs.
        """
        if self.source is None:
            return 0, None
        vaddrs, paddrs = self._locate(ranges, self.kernel)
        mapped = np.flatnonzero(paddrs != np.uint64(NOT_MAPPED))
        count = min(max(sample_pages, _LEAST_SAMPLE), len(mapped))
        chosen = mapped[np.linspace(0, len(mapped) - 1, count).astype(np.int64)]
        compared = 0
        for start in range(0, count, _PAGES_TOGETHER):
            part = chosen[start : start + _PAGES_TOGETHER]
            pfns = self._frames(self.source, paddrs[part]).reshape(-1)
            theirs, their_states = self.source.read_pages(pfns)
            ours, our_states = self.written.read_pages(pfns)
            both = (their_states == PageState.PRESENT) & (our_states == PageState.PRESENT)
            differs = np.flatnonzero(both & (theirs != ours).any(axis=1))
            compared += int(both.sum())
            if len(differs):
                return compared, int(vaddrs[part[int(differs[0]) * len(part) // len(pfns)]])
        return compared, None

    def _locate(
        self, ranges: Sequence[VirtualRange], kernel: KernelMemory
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Give virtual and physical address of each page that ranges touch."""
        size = self.kernel.page_size_bytes
        total = sum(length for _, length in ranges)
        if not 0 <= total <= _LIMIT_BYTES or any(length < 0 for _, length in ranges):
            raise CorruptError(f"{total} bytes where at most {format_size(_LIMIT_BYTES)} can be")
        vaddrs: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        paddrs = list(vaddrs)
        for start, length in ranges:
            first = (start & _WORD) // size
            count = -(-((start & _WORD) + length) // size) - first
            if (first + count) * size > _WORD:
                raise CorruptError(f"{length} bytes at {start:#x} are beyond 64 bits")
            pages = np.arange(first, first + count, dtype=np.uint64) * np.uint64(size)
            vaddrs.append(pages)
            paddrs.append(self._translate(VirtAddr(first * size), pages, kernel))
        return np.concatenate(vaddrs), np.concatenate(paddrs)

    def _translate(self, start: VirtAddr, pages: NDArray[np.uint64], kernel: KernelMemory) -> NDArray[np.uint64]:
        if self.image_end is not None and len(pages):
            begin = kernel.vmcoreinfo.symbol("_stext")
            if begin <= start and int(pages[-1]) < self.image_end:
                # No page table is needed, and none that is damaged hides the image.
                return pages - np.uint64(kernel.layout.image_voffset)
        return kernel.tables.translate_pages(start, len(pages))

    def _states(self, dump: Dump, paddrs: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """State of each of the kernel's pages: of the frames that it has, the worst."""
        frames = self._frames(dump, paddrs)
        states = dump.page_states(frames.reshape(-1)).reshape(frames.shape)
        return np.asarray(states.max(axis=1, initial=0), dtype=np.uint8)

    def _frames(self, dump: Dump, paddrs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Give the dump's frames of each of the kernel's pages: shape (n, frames per page)."""
        per_page = max(self.kernel.page_size_bytes // dump.page_size_bytes, 1)
        frames: NDArray[np.uint64] = paddrs // np.uint64(dump.page_size_bytes)
        return np.asarray(frames[:, None] + np.arange(per_page, dtype=np.uint64), dtype=np.uint64)

    def _are_zero(self, dump: Dump, paddrs: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell of each page whether a dump has zeroes there."""
        zero = np.zeros(len(paddrs), dtype=np.bool_)
        for start in range(0, len(paddrs), _PAGES_TOGETHER):
            frames = self._frames(dump, paddrs[start : start + _PAGES_TOGETHER])
            pages, states = dump.read_pages(frames.reshape(-1))
            is_zero = (states == PageState.PRESENT) & ~pages.any(axis=1)
            zero[start : start + len(frames)] = is_zero.reshape(frames.shape).all(axis=1)
        return zero


def _pages(count: int) -> str:
    return f"{count:,} page{'' if count == 1 else 's'}"
