"""
Read runs of ``struct page`` and lift out of them what tells the use of a page frame.

A debugger reads one structure; a filter reads all of them. Of each, four
members are wanted, so these are copied into arrays of their own, on which
numpy works at the speed of the cache; the structures stay for the few frames
of which more is wanted.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import NOT_MAPPED
from postpanic.pages.free_groups import BLOCK_FRAMES, GROUP_BLOCKS, GROUP_FRAMES, FreeTest
from postpanic.pages.huge_blocks import HUGE_FRAMES, HugeTest
from postpanic.pages.layout import PageLayout
from postpanic.pages.mem_map import MemMap
from postpanic.pages.selection import SECTION_FRAMES
from postpanic.units import VirtAddr

__all__ = ["Extent", "FilledRun", "Parts", "StructPageReader", "StructPages"]

_HALF = 1 << 32
_HUGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Parts:
    """
    Which rows of a run are looked at.

    Attributes
    ----------
    whole : ndarray of int64
        Blocks of :data:`~postpanic.pages.huge_blocks.HUGE_FRAMES` rows, all rows of which are.
    heads : ndarray of int64
        First rows of the other blocks, which come after those.
    """

    whole: NDArray[np.int64]
    heads: NDArray[np.int64]

    @classmethod
    def without(cls, is_huge: NDArray[np.bool_]) -> Parts:
        """Take blocks that are huge pages by their heads alone."""
        return cls((~is_huge).nonzero()[0], is_huge.nonzero()[0] * HUGE_FRAMES)

    def take(self, column: NDArray[Any]) -> NDArray[Any]:
        """Take these rows out of a column of all."""
        return np.concatenate([column.reshape(-1, HUGE_FRAMES)[self.whole].reshape(-1), column[self.heads]])

    def put(self, values: NDArray[np.uint8], column: NDArray[np.uint8]) -> None:
        """Put what belongs to these rows into a column of all."""
        count = len(self.whole) * HUGE_FRAMES
        column.reshape(-1, HUGE_FRAMES)[self.whole] = values[:count].reshape(-1, HUGE_FRAMES)
        column[self.heads] = values[count:]

    def find_rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the rows with these numbers among those that are looked at; the numbers rise."""
        count = len(self.whole) * HUGE_FRAMES
        edge = int(numbers.searchsorted(count))
        inside = numbers[:edge]
        rows = self.whole[inside // HUGE_FRAMES] * HUGE_FRAMES + inside % HUGE_FRAMES
        return np.concatenate([rows, self.heads[numbers[edge:] - count]])


@dataclass
class StructPages:
    """
    The struct pages of a run of frames, or those of them that are to be looked at.

    Attributes
    ----------
    first : int
        The first frame.
    data : ndarray of uint8, shape (n, layout.size_bytes)
        The structures, valid until their buffer is used again.
    flags : ndarray of uint32 or uint64, shape (m,)
        ``flags``, or its lower half where no flag that is asked for is above.
    types : ndarray of uint8 or uint32, shape (m,)
        ``_mapcount``, or its top byte where all types are told by that.
    is_odd : ndarray of bool, shape (m,)
        Bit 0 of ``mapping``: anonymous, or a slab's own data.
    is_tail : ndarray of bool, shape (m,)
        Bit 0 of ``compound_head``.
    is_known : ndarray of bool, shape (n,), or None
        False where the dump does not hold the structure; None if it holds all.
    parts : Parts or None
        Which structures the columns are of; None if of all.
    """

    first: int
    data: NDArray[np.uint8]
    flags: NDArray[Any]
    types: NDArray[Any]
    is_odd: NDArray[np.bool_]
    is_tail: NDArray[np.bool_]
    is_known: NDArray[np.bool_] | None = None
    parts: Parts | None = None

    def __len__(self) -> int:
        return len(self.flags)

    def find_rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the rows of *data* that items of the columns are of; the numbers rise."""
        return numbers if self.parts is None else self.parts.find_rows(numbers)

    def read_u8(self, rows: NDArray[np.int64], offset: int) -> NDArray[np.uint8]:
        """Give one byte of some of the structures."""
        return np.asarray(self.data[:, offset][rows])

    def read_u64(self, rows: NDArray[np.int64], offset: int) -> NDArray[np.uint64]:
        """Give one word of some of the structures."""
        return np.asarray(_column(self.data, offset, "<u8")[rows])


@dataclass(frozen=True, slots=True)
class FilledRun:
    """
    Struct pages as they were read.

    Attributes
    ----------
    data : ndarray of uint8
        From the first frame's structure on.
    skip : int
        Bytes of the first page before it.
    states : ndarray of uint8
        :class:`~postpanic.dumps.memory.PageState` of each page that holds structures.
    """

    first: int
    count: int
    data: NDArray[np.uint8]
    skip: int
    states: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Extent:
    """
    Where the struct pages of the frames ``[first, stop)`` are.

    Attributes
    ----------
    skip : int
        Bytes of the first page before them.
    paddrs : ndarray of uint64
        Of each page that holds them; :data:`~postpanic.kernel.paging.tables.NOT_MAPPED` where there is none.
    """

    first: int
    stop: int
    skip: int
    paddrs: NDArray[np.uint64]


class StructPageReader:
    """
    Reads struct pages of a dump; :meth:`fill` may be called from several threads at a time.

    Parameters
    ----------
    mem_map : MemMap
        Where they are.
    free_test : FreeTest
        Tells what need not be read.
    """

    def __init__(
        self, dump: Dump, kernel: KernelMemory, layout: PageLayout, mem_map: MemMap, free_test: FreeTest
    ) -> None:
        self._dump = dump
        self._tables = kernel.tables
        self._layout = layout
        self._mem_map = mem_map
        self._free_test = free_test
        self._page_size = dump.page_size_bytes
        self._shift = self._page_size.bit_length() - 1
        self._room: dict[str, NDArray[Any]] = {}

    def make_buffer(self, frames: int) -> NDArray[np.uint8]:
        """Make a buffer that holds the structures of that many frames, shape (pages, page size)."""
        page_count = self.measure_buffer(frames) // self._page_size
        if frames < SECTION_FRAMES:
            return np.empty((page_count, self._page_size), dtype=np.uint8)
        return _make_huge(page_count * self._page_size).reshape(page_count, self._page_size)

    def measure_buffer(self, frames: int) -> int:
        """Tell how many bytes a buffer for that many frames has."""
        return (-(-frames * self._layout.size_bytes // self._page_size) + 1) * self._page_size

    def locate(self, start: int, end: int) -> list[Extent]:
        """Find where the struct pages of the frames ``[start, end)`` are, as far as there are any."""
        extents = []
        for first, stop, vaddr in self._mem_map.extents(start, end):
            skip = vaddr & (self._page_size - 1)
            page_count = self._count_pages(skip, stop - first)
            extents.append(Extent(first, stop, skip, self._tables.translate_pages(VirtAddr(vaddr - skip), page_count)))
        return extents

    def find_free(
        self, extents: list[Extent], groups: NDArray[np.int64], scratch: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """
        Find the groups that consist of large free blocks, by the first structures of their blocks alone.

        These must begin pages, as they do where structures have their usual size: of others nothing is found.

        Parameters
        ----------
        groups : ndarray of int64
            First frames of the groups that are asked for, rising.
        scratch : ndarray of uint8, shape (pages, page size)
            A buffer that is of no other use meanwhile.
        """
        stride = BLOCK_FRAMES * self._layout.size_bytes
        found = [groups[:0]]
        for extent in extents:
            inside = groups[(groups >= extent.first) & (groups + GROUP_FRAMES <= extent.stop)]
            starts = extent.skip + (inside - extent.first) * self._layout.size_bytes
            if stride % self._page_size or (starts & (self._page_size - 1)).any():
                continue
            rows = (starts >> self._shift)[:, None] + np.arange(GROUP_BLOCKS) * (stride >> self._shift)
            # Most groups that are not free tell it at once.
            for count in (1, GROUP_BLOCKS):
                chosen = self._test_free(extent.paddrs, rows[:, :count], inside, scratch)
                rows, inside = rows[chosen], inside[chosen]
            found.append(inside)
        return np.concatenate(found)

    def _test_free(
        self,
        paddrs: NDArray[np.uint64],
        rows: NDArray[np.int64],
        groups: NDArray[np.int64],
        scratch: NDArray[np.uint8],
    ) -> NDArray[np.bool_]:
        """Look at the first blocks of groups, which *rows* tell the pages of."""
        count, size = rows.shape[1], self._layout.size_bytes
        is_free = np.zeros(len(groups), dtype=np.bool_)
        per_read = len(scratch) // count
        for start in range(0, len(groups), per_read):
            part = slice(start, start + per_read)
            wanted = rows[part].reshape(-1)
            self._read_pages(paddrs[wanted], scratch[: len(wanted)])
            data = scratch[: len(wanted), :size].reshape(-1, count, size)
            is_free[part] = self._free_test.find_groups(data, groups[part])
        return is_free

    def fill(
        self, extents: list[Extent], start: int, end: int, free: list[tuple[int, int]], buffer: NDArray[np.uint8]
    ) -> list[FilledRun]:
        """
        Read the struct pages of the frames ``[start, end)`` as they stand, as far as they were located.

        This is long, and leaves the interpreter alone meanwhile: work for another thread.

        Parameters
        ----------
        free : list of tuple of int
            Frames that are left out, each within an extent, sorted and disjoint.
        buffer : ndarray of uint8, shape (pages, page size)
            Receives the structures.
        """
        runs = []
        for extent in extents:
            first, stop = max(extent.first, start), min(extent.stop, end)
            for begin, until in _list_gaps(first, stop, [run for run in free if first <= run[0] < stop]):
                place = extent.skip + (begin - extent.first) * self._layout.size_bytes
                page, skip = place >> self._shift, place & (self._page_size - 1)
                page_count = self._count_pages(skip, until - begin)
                if page_count > len(buffer):
                    buffer = np.empty((page_count, self._page_size), dtype=np.uint8)
                states = self._read_pages(extent.paddrs[page : page + page_count], buffer[:page_count])
                runs.append(FilledRun(begin, until - begin, buffer[:page_count].reshape(-1)[skip:], skip, states))
                buffer = buffer[page_count:]
        return runs

    def _count_pages(self, skip: int, frames: int) -> int:
        """Count the pages that hold the structures of some frames, from a place in the first page on."""
        return -(-(skip + frames * self._layout.size_bytes) // self._page_size)

    def lift(self, run: FilledRun, huge_test: HugeTest | None = None) -> StructPages | None:
        """
        Lift out of a run what tells the use of its frames; None if none of its structures could be read.

        From one thread only: what the last call gave is not valid any more.

        Parameters
        ----------
        huge_test : HugeTest, optional
            Tells what need not be looked at; None where all must be.
        """
        layout = self._layout
        size = layout.size_bytes
        count, skip, states = run.count, run.skip, run.states
        data = run.data[: count * size].reshape(count, size)
        known = None
        if states.any():
            is_bad = states != PageState.PRESENT
            if is_bad.all():
                return None
            begins = skip + np.arange(count) * size
            known = ~(is_bad[begins >> self._shift] | is_bad[(begins + size - 1) >> self._shift])
        flags = _column(data, layout.flags, "<u4" if layout.all_flags < _HALF else "<u8")
        if layout.mapcount is None:
            types = np.full(count, 0xFF, dtype=np.uint8)
        elif layout.has_byte_types:
            types = data[:, layout.mapcount + 3]
        else:
            types = _column(data, layout.mapcount, "<u4")
        is_huge = None if known is not None or huge_test is None else huge_test.find(data, run.first)
        parts = None if is_huge is None else Parts.without(is_huge)
        return StructPages(
            run.first,
            data,
            self._copy("flags", flags) if parts is None else parts.take(flags),
            self._copy("types", types) if parts is None else parts.take(types),
            _low_bits(data, layout.mapping, parts),
            _low_bits(data, layout.head, parts),
            known,
            parts,
        )

    def _copy(self, name: str, column: NDArray[Any]) -> NDArray[Any]:
        """Copy a column to where the last one was: memory that is fresh from the kernel costs more than the copy."""
        room = self._room.get(name)
        if room is None or len(room) < len(column):
            room = self._room[name] = np.empty(len(column), dtype=column.dtype)
        np.copyto(room[: len(column)], column)
        return room[: len(column)]

    def _read_pages(self, paddrs: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Read whole pages, zeroes where there are none; their states."""
        pfns = paddrs >> np.uint64(self._shift)
        is_mapped = paddrs != np.uint64(NOT_MAPPED)
        if is_mapped.all():
            return self._dump.read_pages_into(pfns, pages)
        states = np.full(len(pages), PageState.ABSENT, dtype=np.uint8)
        found = np.empty((int(np.count_nonzero(is_mapped)), self._page_size), dtype=np.uint8)
        states[is_mapped] = self._dump.read_pages_into(pfns[is_mapped], found)
        pages[~is_mapped] = 0
        pages[is_mapped] = found
        return states


def _list_gaps(start: int, end: int, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """List what of ``[start, end)`` is left between runs, which are sorted and disjoint."""
    edges = [start, *(edge for run in runs for edge in run), end]
    return [(begin, until) for begin, until in zip(edges[::2], edges[1::2], strict=True) if begin < until]


def _make_huge(size_bytes: int) -> NDArray[np.uint8]:
    """
    Make an array in huge pages, if the kernel has any: it is filled and read a third faster.

    What alignment takes is never touched, so it costs no memory.
    """
    memory = mmap.mmap(-1, size_bytes + _HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without them refuses.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    start = -int(whole.ctypes.data) % _HUGE_BYTES
    return whole[start : start + size_bytes]


def _column(data: NDArray[np.uint8], offset: int, dtype: str) -> NDArray[Any]:
    """View a member of an array of structures, one after the other."""
    return np.ndarray((len(data),), dtype, data.data, offset, (data.strides[0],))


def _low_bits(data: NDArray[np.uint8], offset: int | None, parts: Parts | None) -> NDArray[np.bool_]:
    """Copy the lowest bit of a little-endian member out of an array of structures."""
    if offset is None:
        return np.zeros(len(data), dtype=np.bool_)
    column = data[:, offset] if parts is None else parts.take(data[:, offset])
    return (column & np.uint8(1)).view(np.bool_)
