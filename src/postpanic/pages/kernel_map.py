"""
What a debugger cannot do without, as the kernel's own page tables tell it.

No symbol is asked: the frames that are mapped as the kernel image, those in the
vmalloc area (stacks of tasks, modules), the array of struct page, and the page
tables themselves. The direct map, which maps everything, tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump
from postpanic.errors import AbsentError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import NOT_MAPPED
from postpanic.pages.mem_map import MemMap
from postpanic.pages.selection import SECTION_FRAMES
from postpanic.pages.verdict import Verdict
from postpanic.units import VirtAddr

__all__ = ["KernelMap", "find_kernel_map"]

_WORD = (1 << 64) - 1
_MAX_TABLES = 8192
"""Of each level: at the last, they map 16 GiB of vmalloc area."""
_TABLES_PER_READ = 1024
_LONG_RUN = 256
_RUNS_AT_ONCE = 4096
_NO_ROWS = np.empty(0, dtype=np.uint16)
_KERNEL, _UNKNOWN = np.uint8(Verdict.KERNEL), np.uint8(Verdict.UNKNOWN)


_Part = tuple[np.uint8, list[tuple[int, int]], NDArray[np.uint16]]
"""Of a unit: a verdict, long runs of its rows, and other rows of it."""


@dataclass(frozen=True)
class KernelMap:
    """
    Frames of which the page tables tell the worth.

    Attributes
    ----------
    runs : dict of Verdict to ndarray of int64, shape (n, 2)
        Frames ``[start, end)``, sorted and disjoint. What comes first in the
        dictionary counts.
    notes : tuple of str
    """

    runs: dict[Verdict, NDArray[np.int64]]
    notes: tuple[str, ...] = ()

    def apply(self, unit: int, verdicts: NDArray[np.uint8]) -> None:
        """
        Give the frames of a unit their worth, of which the struct pages say only that the kernel has them.

        Parameters
        ----------
        verdicts : ndarray of uint8, shape (SECTION_FRAMES,)
            Changed.
        """
        for verdict, spans, rows in self._parts.get(unit, ()):
            for start, end in spans:
                view = verdicts[start:end]
                np.putmask(view, _is_plain(view), verdict)
            verdicts[rows[_is_plain(verdicts[rows])]] = verdict

    @cached_property
    def _parts(self) -> dict[int, list[_Part]]:
        """What there is in each unit, in the order in which it counts."""
        parts: dict[int, list[_Part]] = {}
        for verdict, runs in self.runs.items():
            value, pieces = np.uint8(int(verdict)), _split(runs)
            is_long = pieces[:, 1] - pieces[:, 0] >= _LONG_RUN
            for start, end in pieces[is_long].tolist():
                unit, row = divmod(start, SECTION_FRAMES)
                parts.setdefault(unit, []).append((value, [(row, row + end - start)], _NO_ROWS))
            short = pieces[~is_long]
            for first in range(0, len(short), _RUNS_AT_ONCE):
                frames = _expand(short[first : first + _RUNS_AT_ONCE])
                units, rows = frames // SECTION_FRAMES, (frames % SECTION_FRAMES).astype(np.uint16)
                for unit in np.unique(units).tolist():
                    low, high = units.searchsorted((unit, unit + 1)).tolist()
                    parts.setdefault(unit, []).append((value, [], rows[low:high]))
        return parts


def _is_plain(verdicts: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which frames are the kernel's, with nothing more known of them."""
    return np.asarray((verdicts == _KERNEL) | (verdicts == _UNKNOWN))


def find_kernel_map(dump: Dump, kernel: KernelMemory, mem_map: MemMap | None, frame_limit: int) -> KernelMap:
    """
    Walk the kernel's page tables, all tables of a level at a time.

    Never raises for what cannot be read: less is known then.
    """
    walker = _Walker(dump, kernel, mem_map, frame_limit)
    walker.walk()
    page_shift = dump.page_size_bytes.bit_length() - 1
    order = (Verdict.IMAGE, Verdict.TABLE, Verdict.MEMMAP, Verdict.STACK)
    runs = {verdict: _merge(walker.found[verdict], page_shift, frame_limit) for verdict in order}
    return KernelMap(runs, tuple(walker.notes))


@dataclass(frozen=True)
class _Tables:
    """Tables of one level: what they map, and where they are."""

    vaddrs: NDArray[np.uint64]
    paddrs: NDArray[np.uint64]


class _Walker:
    """Finds physical ranges ``(paddrs, size)`` for each verdict."""

    def __init__(self, dump: Dump, kernel: KernelMemory, mem_map: MemMap | None, frame_limit: int) -> None:
        self._dump = dump
        self._kernel = kernel
        self._tables = kernel.tables
        self._page_shift = dump.page_size_bytes.bit_length() - 1
        self._direct = _find_direct_map(dump, kernel, frame_limit << self._page_shift)
        self._mem_map = mem_map
        self.found: dict[Verdict, list[tuple[NDArray[np.uint64], int]]] = {
            verdict: [] for verdict in (Verdict.IMAGE, Verdict.TABLE, Verdict.MEMMAP, Verdict.STACK)
        }
        self.notes: list[str] = []

    def walk(self) -> None:
        """Go down from the root."""
        root = self._tables.levels[0]
        try:
            words = self._tables.memory.read(self._tables.root_paddr, 8 << root.index_bits)
        except AbsentError as error:
            self.notes.append(f"the kernel's page tables tell nothing: {error.message}")
            return
        base = (1 << 64) - (1 << self._tables.va_bits)
        vaddrs = np.uint64(base) + (np.arange(1 << root.index_bits, dtype=np.uint64) << np.uint64(root.shift))
        entries = np.frombuffer(words, dtype="<u8")
        busy = [row for row in np.flatnonzero(entries).tolist() if self._tables.is_canonical(int(vaddrs[row]))]
        self.found[Verdict.TABLE].append((np.array([self._tables.root_paddr], dtype=np.uint64), len(words)))
        tables = self._descend(0, vaddrs[busy], entries[busy])
        for level_index in range(1, len(self._tables.levels)):
            tables = self._walk_level(level_index, tables)

    def _walk_level(self, level_index: int, tables: _Tables) -> _Tables:
        """Look at all tables of a level; the ones below."""
        level = self._tables.levels[level_index]
        # Tables that are used again and again, as KASAN's early shadow is, are looked at once.
        _, once = np.unique(tables.paddrs, return_index=True)
        self.found[Verdict.TABLE].append((tables.paddrs[once], self._dump.page_size_bytes))
        is_last = level_index == len(self._tables.levels) - 1
        if is_last and self._direct is not None:
            once = once[~self._in_direct_map(tables.vaddrs[once], level.shift + level.index_bits)]
        if len(once) > _MAX_TABLES:
            self.notes.append(f"{len(once)} page tables of the kernel, {_MAX_TABLES} of them are looked at")
            once = once[:_MAX_TABLES]
        below = []
        entry_bits = self._page_shift - 3
        for start in range(0, len(once), _TABLES_PER_READ):
            part = once[start : start + _TABLES_PER_READ]
            pages, _ = self._dump.read_pages(tables.paddrs[part] >> np.uint64(self._page_shift))
            entries = pages.view("<u8").reshape(-1)
            busy = np.flatnonzero(entries)
            vaddrs = tables.vaddrs[part[busy >> entry_bits]]
            vaddrs += (busy & (1 << entry_bits) - 1).astype(np.uint64) << np.uint64(level.shift)
            below.append(self._descend(level_index, vaddrs, entries[busy]))
        if not below:
            return _Tables(np.empty(0, np.uint64), np.empty(0, np.uint64))
        return _Tables(np.concatenate([part.vaddrs for part in below]), np.concatenate([part.paddrs for part in below]))

    def _descend(self, level_index: int, vaddrs: NDArray[np.uint64], entries: NDArray[np.uint64]) -> _Tables:
        """Sort entries of a level into pages, which are judged, and tables."""
        level = self._tables.levels[level_index]
        if level_index == len(self._tables.levels) - 1:
            paddrs = self._tables.decode_pages(entries)
            is_leaf = paddrs != np.uint64(NOT_MAPPED)
            is_table = np.zeros(len(entries), dtype=np.bool_)
        else:
            is_table, is_leaf, paddrs = self._tables.decode_entries(level_index, entries)
        self._judge(vaddrs[is_leaf], paddrs[is_leaf], level.shift)
        return _Tables(vaddrs[is_table], paddrs[is_table])

    def _judge(self, vaddrs: NDArray[np.uint64], paddrs: NDArray[np.uint64], shift: int) -> None:
        """Say by its address what a mapped page is."""
        layout = self._kernel.layout
        start, end = (np.uint64(vaddr) for vaddr in layout.image_range)
        # An image that begins in the middle of a large page begins below the range.
        is_image = (vaddrs + np.uint64((1 << shift) - 1) >= start) & (vaddrs < end)
        is_image &= vaddrs - paddrs == np.uint64(layout.image_voffset)
        is_memmap = self._in_mem_map(vaddrs, shift) & ~is_image
        self.found[Verdict.IMAGE].append((paddrs[is_image], 1 << shift))
        self.found[Verdict.MEMMAP].append((paddrs[is_memmap], 1 << shift))
        if self._direct is not None:
            rest = ~(is_image | is_memmap | self._in_direct_map(vaddrs, shift))
            self.found[Verdict.STACK].append((paddrs[rest], 1 << shift))

    def _in_direct_map(self, vaddrs: NDArray[np.uint64], shift: int) -> NDArray[np.bool_]:
        if self._direct is None:
            return np.zeros(len(vaddrs), dtype=np.bool_)
        start, end = self._direct
        return (vaddrs + np.uint64((1 << shift) - 1) >= np.uint64(start)) & (vaddrs < np.uint64(end))

    def _in_mem_map(self, vaddrs: NDArray[np.uint64], shift: int) -> NDArray[np.bool_]:
        """Tell which pages hold struct pages."""
        arrays = self._mem_map
        if arrays is None or not len(arrays.starts) or not len(vaddrs):
            return np.zeros(len(vaddrs), dtype=np.bool_)
        sequence = np.argsort(arrays.vaddrs)
        starts = arrays.vaddrs[sequence]
        ends = starts + (arrays.ends - arrays.starts)[sequence].astype(np.uint64) * np.uint64(arrays.page_bytes)
        # The last array that begins at or below the page's end must reach beyond its start.
        index = np.searchsorted(starts, vaddrs + np.uint64((1 << shift) - 1), side="right") - 1
        return (index >= 0) & (ends[np.maximum(index, 0)] > vaddrs)


def _find_direct_map(dump: Dump, kernel: KernelMemory, memory_bytes: int) -> tuple[int, int] | None:
    """
    Find where all of memory is mapped in one piece, ``[start, end)``.

    A table that the kernel allocated while it booted lies in it, as
    ``mem_section`` does with sparsemem extreme; an ELF dump's segments say it too.
    """
    pairs: list[tuple[int, int]] = []
    table = kernel.vmcoreinfo.get_symbol("mem_section")
    if table is not None:
        walk = kernel.walk(VirtAddr(table))
        if walk.paddr is not None:
            pairs.append((table, walk.paddr))
    pairs.extend((segment.vaddr, segment.paddr) for segment in dump.description.segments)
    low, high = kernel.layout.image_range
    for vaddr, paddr in pairs:
        base = (vaddr - paddr) & _WORD
        if not low <= vaddr < high and base != kernel.layout.image_voffset and vaddr >> 63:
            return base, min(base + memory_bytes, _WORD)
    return None


def _merge(found: list[tuple[NDArray[np.uint64], int]], page_shift: int, frame_limit: int) -> NDArray[np.int64]:
    """Turn physical ranges into runs of frames, sorted and disjoint."""
    starts = [paddrs >> np.uint64(page_shift) for paddrs, _ in found]
    ends = [start + np.uint64(max(size >> page_shift, 1)) for start, (_, size) in zip(starts, found, strict=True)]
    all_starts = np.concatenate([np.empty(0, np.uint64), *starts])
    all_ends = np.concatenate([np.empty(0, np.uint64), *ends])
    inside = all_starts < np.uint64(frame_limit)
    first = all_starts[inside].astype(np.int64)
    stop = np.minimum(all_ends[inside], np.uint64(frame_limit)).astype(np.int64)
    sequence = np.argsort(first, kind="stable")
    first, stop = first[sequence], np.maximum.accumulate(stop[sequence]) if len(sequence) else stop
    is_new = np.concatenate([[True], first[1:] > stop[:-1]])[: len(first)]
    is_end = np.concatenate([is_new[1:], [True]])[: len(first)]
    return np.column_stack([first[is_new], stop[is_end]])


def _split(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split runs where units end."""
    first, last = runs[:, 0] // SECTION_FRAMES, (runs[:, 1] - 1) // SECTION_FRAMES
    counts = last - first + 1
    units = _expand(np.column_stack([first, last + 1])) * SECTION_FRAMES
    starts, ends = np.repeat(runs[:, 0], counts), np.repeat(runs[:, 1], counts)
    return np.column_stack([np.maximum(starts, units), np.minimum(ends, units + SECTION_FRAMES)])


def _expand(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """List all numbers of runs ``[start, end)``."""
    lengths = runs[:, 1] - runs[:, 0]
    skipped = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.asarray(np.repeat(runs[:, 0] - skipped, lengths) + np.arange(int(lengths.sum())))
