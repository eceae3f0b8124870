"""
Decide for every page frame whether a dump keeps it: ``struct page`` in, verdicts out.

One pass over the struct pages, in units of
:data:`~postpanic.pages.selection.SECTION_FRAMES`. Reading a unit
(:mod:`~postpanic.pages.struct_pages`) is one long call, done ahead by other
threads where there are any; deciding (:mod:`~postpanic.pages.rules`) is many short
ones, for which threads would only wait for each other: it stays with the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import Dump, PageState
from postpanic.errors import PostpanicError, UnsupportedError
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.blocks import LaterBlocks, fill_blocks
from postpanic.pages.free_groups import GROUP_FRAMES, FreeTest
from postpanic.pages.huge_blocks import HugeTest
from postpanic.pages.kernel_map import KernelMap, find_kernel_map
from postpanic.pages.layout import find_page_layout
from postpanic.pages.mem_map import find_mem_map
from postpanic.pages.rules import Judgement, Rules
from postpanic.pages.selection import SECTION_FRAMES, Selection, SelectionBuilder
from postpanic.pages.struct_pages import Extent, FilledRun, StructPageReader, StructPages
from postpanic.pages.verdict import FIRST_DROPPED, Verdict
from postpanic.units import MIB, format_size

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Progress", "select_pages"]

DEFAULT_MEMORY_BYTES = 64 * MIB
_LARGEST_BITMAP_BYTES = 1 << 30
_UNIT_BYTES = SECTION_FRAMES // 8
_GROUP_BYTES = GROUP_FRAMES // 8
_UNITS_PER_THREAD = 16
_UNITS_PER_PLAN = 16
_FREED_BYTES = 2 * MIB

_UNKNOWN, _FREE, _HWPOISON = np.uint8(Verdict.UNKNOWN), np.uint8(Verdict.FREE), np.uint8(Verdict.HWPOISON)

Progress = Callable[[int, int], None]
"""Called with the frames that are done, and with how many there are."""


def select_pages(
    dump: Dump,
    kernel: KernelMemory | None,
    level: int,
    *,
    threads: int = 1,
    memory_limit_bytes: int = DEFAULT_MEMORY_BYTES,
    by_worth: bool = True,
    progress: Progress | None = None,
) -> Selection:
    """
    Decide for every page of a dump whether it is kept.

    Where the struct pages cannot be found at all, every page is kept and a note
    of the selection says why.

    Parameters
    ----------
    kernel : KernelMemory or None
        The kernel in the dump; None keeps all pages.
    level : int
        makedumpfile's ``-d`` number, see :class:`~postpanic.pages.verdict.DumpLevel`.
        Zero pages, its lowest bit, are not looked for here.
    threads : int
        How many threads read and decide; a small memory is not worth more than one.
    memory_limit_bytes : int
        What the buffers may take, 5 MiB and more for each thread: fewer threads
        are used where it is small, and less is read at a time, down to 1.5 MiB. The
        result comes on top: two bits for each frame up to the highest, and half a byte
        where neighbours are not alike.
    by_worth : bool
        Find out which pages are the most valuable, so that they can be written first; without,
        the half byte is saved, and the kernel's page tables are not read.

    Raises
    ------
    UnsupportedError
        If a physical address is so high that its bitmap cannot be held.
    """
    ram = _find_ram(dump)
    notes: list[str] = []
    source, kernel_map = _make_source(dump, kernel, level, ram, notes, by_worth=by_worth)
    builder = SelectionBuilder(level, ram, by_worth)
    later = LaterBlocks()
    tally = _Tally()
    for unit in source.units(_busy_units(ram), threads, memory_limit_bytes):
        later.apply(unit.number, unit.verdicts, unit.found.blocks)
        tally.finish(unit)
        kernel_map.apply(unit.number, unit.verdicts)
        _mark_left_out(dump, ram, unit)
        builder.add(unit.number, unit.verdicts)
        if progress is not None:
            progress(min((unit.number + 1) * SECTION_FRAMES, ram.limit), ram.limit)
    return builder.finish((*notes, *tally.describe()))


def _find_ram(dump: Dump) -> FrameSet:
    """
    Make the set of frames that are RAM.

    A frame of which the dump describes only a part is one, as its bytes can be
    read. makedumpfile does not agree with itself here: with its bitmap in memory
    (the default) it leaves out a last frame that is not whole, with the bitmap in a
    file it takes it.
    """
    shift = dump.page_size_bytes.bit_length() - 1
    ranges = dump.ram_ranges
    starts = (ranges[:, 0] >> np.uint64(shift)).astype(np.int64)
    ends = ((ranges[:, 1] + np.uint64(dump.page_size_bytes - 1)) >> np.uint64(shift)).astype(np.int64)
    limit = int(ends.max()) if len(ends) else 0
    if limit // 8 > _LARGEST_BITMAP_BYTES:
        raise UnsupportedError(
            f"memory up to physical address {limit << shift:#x} needs bitmaps of {format_size(limit // 8)}, "
            f"at most {format_size(_LARGEST_BITMAP_BYTES)} are possible",
            where=", ".join(dump.description.paths[:1]),
        )
    return FrameSet.from_runs(np.column_stack([starts, ends]), limit)


def _busy_units(ram: FrameSet) -> list[int]:
    """List the units that have any RAM."""
    whole = len(ram.bits) // _UNIT_BYTES
    busy = np.flatnonzero(ram.bits[: whole * _UNIT_BYTES].reshape(whole, _UNIT_BYTES).any(axis=1)).tolist()
    return [*busy, whole] if ram.bits[whole * _UNIT_BYTES :].any() else busy


@dataclass
class _Unit:
    """What became of the frames of one unit."""

    number: int
    verdicts: NDArray[np.uint8]
    found: Judgement = field(default_factory=Judgement)
    unreadable: int = 0
    """Frames of RAM with a struct page that the dump does not hold."""
    bare: int = 0
    """Frames of RAM without a struct page."""


@dataclass
class _Tally:
    """Puts the last touches to units, and counts what the notes tell."""

    impossible_blocks: int = 0
    unreadable: int = 0
    bare: int = 0

    def finish(self, unit: _Unit) -> None:
        """Decide what depends on blocks that began in earlier units."""
        verdicts = unit.verdicts
        for rows in unit.found.doubtful:
            # Copies of a hugetlb page's first struct pages look like heads in the middle of it, where
            # hugetlb_vmemmap_optimize() has mapped them again: those are dropped with the real one.
            self.impossible_blocks += int(np.count_nonzero(verdicts[rows] == _UNKNOWN))
        poisoned = unit.found.poisoned
        verdicts[poisoned[verdicts[poisoned] < FIRST_DROPPED]] = _HWPOISON
        self.unreadable += unit.unreadable
        self.bare += unit.bare

    def describe(self) -> list[str]:
        """Give one phrase for each thing that was met."""
        phrases = (
            (self.impossible_blocks, "compounds or free blocks of an impossible order: they are kept"),
            (self.unreadable, "pages whose struct page cannot be read: they are kept"),
            (self.bare, "pages that no struct page describes: they are kept"),
        )
        return [f"{count} {phrase}" for count, phrase in phrases if count]


def _mark_left_out(dump: Dump, ram: FrameSet, unit: _Unit) -> None:
    """Mark what the dump that is read does not hold."""
    if not dump.description.has_holes and not dump.description.is_paged:
        return
    first = unit.number * SECTION_FRAMES
    pfns = ram.members(first, first + SECTION_FRAMES)
    states = dump.page_states(pfns)
    left_out = pfns[(states == PageState.EXCLUDED) | (states == PageState.HOLE)]
    unit.verdicts[(left_out - np.uint64(first)).astype(np.int64)] = Verdict.NOT_IN_SOURCE


class _NothingKnown:
    """Gives units of which no struct page is known."""

    def units(self, numbers: list[int], threads: int, memory_limit_bytes: int) -> Iterator[_Unit]:
        del threads, memory_limit_bytes
        for number in numbers:
            yield _Unit(number, np.full(SECTION_FRAMES, _UNKNOWN))


def _make_source(
    dump: Dump, kernel: KernelMemory | None, level: int, ram: FrameSet, notes: list[str], *, by_worth: bool
) -> tuple[_StructPageUnits | _NothingKnown, KernelMap]:
    """Prepare for struct pages and what the page tables tell, or say why there are none."""
    if kernel is None:
        notes.append("all pages are kept: the kernel in the dump is not known")
        return _NothingKnown(), KernelMap({})
    if kernel.page_size_bytes != dump.page_size_bytes:
        sizes = f"the kernel's pages are of {kernel.page_size_bytes} bytes, the dump's of {dump.page_size_bytes}"
        notes.append(f"all pages are kept: {sizes}")
        return _NothingKnown(), KernelMap({})
    try:
        layout = find_page_layout(kernel.vmcoreinfo)
        mem_map = find_mem_map(kernel, layout.size_bytes, ram.limit)
    except PostpanicError as error:
        notes.append(f"all pages are kept: {error.message}")
        return _NothingKnown(), find_kernel_map(dump, kernel, None, ram.limit) if by_worth else KernelMap({})
    applied, reasons = layout.limit_level(level)
    kernel_map = find_kernel_map(dump, kernel, mem_map, ram.limit) if by_worth else KernelMap({})
    notes.extend((*reasons, *mem_map.notes, *kernel_map.notes))
    free_test = FreeTest(layout, applied)
    reader = StructPageReader(dump, kernel, layout, mem_map, free_test)
    huge_test, rules = HugeTest(layout, applied), Rules(layout, applied)
    return _StructPageUnits(reader, rules, huge_test, ram, free_test.is_possible), kernel_map


@dataclass(frozen=True, slots=True)
class _Task:
    """A unit that is to be read: where its struct pages are, and frames of which they are not needed."""

    number: int
    extents: list[Extent]
    free: list[tuple[int, int]]


def _keep_freed_memory() -> None:
    """
    Make the C library keep what numpy frees, so that not every unit's arrays are memory fresh from the kernel.

    glibc gives back what is free at the end of the heap beyond twice the size of
    the largest block that it ever freed (``mallopt(3)``, ``M_MMAP_THRESHOLD``). Nothing is touched.
    """
    np.empty(_FREED_BYTES, dtype=np.uint8)


class _StructPageUnits:
    """Gives units as their struct pages tell."""

    def __init__(
        self, reader: StructPageReader, rules: Rules, huge_test: HugeTest, ram: FrameSet, may_leave_out: bool
    ) -> None:
        self._reader = reader
        self._rules = rules
        self._huge_test = huge_test
        self._ram = ram
        self._may_leave_out = may_leave_out

    def units(self, numbers: list[int], threads: int, memory_limit_bytes: int) -> Iterator[_Unit]:
        """Decide on units, in the order in which they are given."""
        frames = self._choose_slice(memory_limit_bytes)
        if frames < SECTION_FRAMES:
            yield from self._units_by_slices(numbers, frames)
            return
        _keep_freed_memory()
        buffer = self._reader.make_buffer(SECTION_FRAMES)
        # A buffer, the columns of one unit, and what numpy takes meanwhile.
        threads = min(threads, memory_limit_bytes // (buffer.nbytes + MIB), len(numbers) // _UNITS_PER_THREAD)
        if threads < 2:
            for task in self._plan(numbers, [buffer]):
                yield self._decide(task, self._read(task, buffer), buffer)
            return
        # The capture kernel has one processor, and no room for what it does not use.
        from concurrent.futures import ThreadPoolExecutor

        free = [buffer, *(self._reader.make_buffer(SECTION_FRAMES) for _ in range(threads - 1))]
        ahead = self._plan(numbers, free)
        waiting: deque[tuple[_Task, NDArray[np.uint8], Future[list[FilledRun]]]] = deque()
        with ThreadPoolExecutor(threads - 1, thread_name_prefix="struct-pages") as pool:
            while True:
                for coming in islice(ahead, len(free)):
                    buffer = free.pop()
                    waiting.append((coming, buffer, pool.submit(self._read, coming, buffer)))
                if not waiting:
                    return
                task, buffer, future = waiting.popleft()
                unit = self._decide(task, future.result(), buffer)
                free.append(buffer)
                yield unit

    def _choose_slice(self, memory_limit_bytes: int) -> int:
        """Choose how many frames are read at a time: a unit's, or as many as there is memory for."""
        frames = SECTION_FRAMES
        while frames > GROUP_FRAMES and self._reader.measure_buffer(frames) + MIB > memory_limit_bytes:
            frames //= 2
        return frames

    def _units_by_slices(self, numbers: list[int], frames: int) -> Iterator[_Unit]:
        """Decide on units that are read in parts; blocks of pages may go on from one into the next, as with units."""
        buffer = self._reader.make_buffer(frames)
        for task in self._plan(numbers, [buffer]):
            unit = self._judge(task, self._read_slices(task, buffer, frames))
            if task.free and unit.found.may_go_on:
                task = _Task(task.number, task.extents, [])
                unit = self._judge(task, self._read_slices(task, buffer, frames))
            yield unit

    def _read_slices(self, task: _Task, buffer: NDArray[np.uint8], frames: int) -> Iterator[FilledRun]:
        """Read the struct pages of a unit slice by slice; what the last one gave is not valid any more."""
        first = task.number * SECTION_FRAMES
        for start in range(first, first + SECTION_FRAMES, frames):
            busy = np.flatnonzero(self._ram.bits[start // 8 : (start + frames) // 8])
            if len(busy):
                begin, end = start + int(busy[0]) * 8, start + int(busy[-1]) * 8 + 8
                yield from self._reader.fill(task.extents, begin, end, task.free, buffer)

    def _plan(self, numbers: list[int], buffers: list[NDArray[np.uint8]]) -> Iterator[_Task]:
        """
        Find out what is to be read of units, for several at a time: that takes many short calls.

        Parameters
        ----------
        buffers : list of ndarray
            Those that are not in use, one at least whenever a unit is asked for: it is written to.
        """
        for _, batch in groupby(numbers, lambda number: number // _UNITS_PER_PLAN):
            units = list(batch)
            extents = self._reader.locate(units[0] * SECTION_FRAMES, (units[-1] + 1) * SECTION_FRAMES)
            groups = [self._list_groups(number) for number in units] if self._may_leave_out else []
            free = np.empty(0, dtype=np.int64)
            if groups:
                free = self._reader.find_free(extents, np.concatenate(groups), buffers[-1])
            for number in units:
                mine = free[free // SECTION_FRAMES == number].tolist()
                yield _Task(number, extents, [(start, start + GROUP_FRAMES) for start in mine])

    def _list_groups(self, number: int) -> NDArray[np.int64]:
        """List the groups of a unit that are all RAM."""
        bits = self._bits(number)
        whole = bits[: len(bits) // _GROUP_BYTES * _GROUP_BYTES].reshape(-1, _GROUP_BYTES)
        return number * SECTION_FRAMES + np.flatnonzero((whole == 0xFF).all(axis=1)) * GROUP_FRAMES

    def _read(self, task: _Task, buffer: NDArray[np.uint8]) -> list[FilledRun]:
        """Read the struct pages of a unit, from its first frame of RAM to its last."""
        bits, start = self._bits(task.number), task.number * SECTION_FRAMES
        end = start + len(bits) * 8
        if not (bits[0] and bits[-1]):
            busy = np.flatnonzero(bits)
            start, end = start + int(busy[0]) * 8, start + int(busy[-1]) * 8 + 8
        return self._reader.fill(task.extents, start, end, task.free, buffer)

    def _decide(self, task: _Task, runs: list[FilledRun], buffer: NDArray[np.uint8]) -> _Unit:
        """Decide on a unit as it was read; once more with all of it read, where what was left out might matter."""
        unit = self._judge(task, runs)
        if task.free and unit.found.may_go_on:
            task = _Task(task.number, task.extents, [])
            unit = self._judge(task, self._read(task, buffer))
        return unit

    def _judge(self, task: _Task, runs: Iterable[FilledRun]) -> _Unit:
        number = task.number
        first = number * SECTION_FRAMES
        verdicts = np.full(SECTION_FRAMES, _UNKNOWN)
        unit = _Unit(number, verdicts)
        is_ram = self._ram_mask(number)
        unit.bare = SECTION_FRAMES if is_ram is None else int(np.count_nonzero(is_ram))
        for start, end in task.free:
            verdicts[start - first : end - first] = _FREE
            unit.bare -= end - start
        for run in runs:
            offset = run.first - first
            inside = slice(offset, offset + run.count)
            mask = None if is_ram is None else is_ram[inside]
            count = run.count if mask is None else int(np.count_nonzero(mask))
            if count == run.count:
                mask = None
            unit.bare -= count
            pages = self._reader.lift(run, self._huge_test if mask is None else None)
            if pages is None:
                unit.unreadable += count
                continue
            if pages.is_known is not None:
                unit.unreadable += int(np.count_nonzero(~pages.is_known if mask is None else mask & ~pages.is_known))
            unit.found.extend(self._judge_run(pages, offset, mask, verdicts[inside]))
        fill_blocks(verdicts, unit.found.blocks)
        return unit

    def _judge_run(
        self, pages: StructPages, offset: int, mask: NDArray[np.bool_] | None, verdicts: NDArray[np.uint8]
    ) -> Judgement:
        """Judge what is to be looked at of a run; the rest is of blocks that this finds."""
        if pages.parts is None:
            return self._rules.judge(pages, offset, mask, verdicts)
        own = np.empty(len(pages), dtype=np.uint8)
        found = self._rules.judge(pages, offset, mask, own)
        pages.parts.put(own, verdicts)
        return found

    def _bits(self, number: int) -> NDArray[np.uint8]:
        return self._ram.bits[number * _UNIT_BYTES : (number + 1) * _UNIT_BYTES]

    def _ram_mask(self, number: int) -> NDArray[np.bool_] | None:
        """Tell which frames of a unit are RAM; None for all."""
        bits = self._bits(number)
        if len(bits) == _UNIT_BYTES and (bits == 0xFF).all():
            return None
        mask = np.zeros(SECTION_FRAMES, dtype=np.bool_)
        unpacked = np.unpackbits(bits, bitorder="little")
        mask[: len(unpacked)] = unpacked.view(np.bool_)
        return mask
