"""
Go over the struct pages, unit by unit: read them, lift them out, judge them.

A unit is :data:`~postpanic.pages.selection.SECTION_FRAMES` frames. Reading one
(:mod:`~postpanic.pages.struct_pages`) is one long call, done ahead by other
threads where there are any; deciding (:mod:`~postpanic.pages.rules`) is many short
ones, for which threads would only wait for each other: it stays with the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.frames import FrameSet
from postpanic.pages.blocks import fill_blocks
from postpanic.pages.free_groups import GROUP_FRAMES
from postpanic.pages.huge_blocks import HugeTest
from postpanic.pages.rules import Judgement, Rules
from postpanic.pages.selection import SECTION_FRAMES
from postpanic.pages.struct_pages import Extent, FilledRun, StructPageReader, StructPages
from postpanic.pages.verdict import Verdict
from postpanic.units import MIB

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["UNIT_BYTES", "StructPageUnits", "Unit"]

UNIT_BYTES = SECTION_FRAMES // 8
"""Of a bitmap, for the frames of a unit."""
_GROUP_BYTES = GROUP_FRAMES // 8
_UNITS_PER_THREAD = 16
_UNITS_PER_PLAN = 16
_FREED_BYTES = 2 * MIB
_UNKNOWN, _FREE = np.uint8(Verdict.UNKNOWN), np.uint8(Verdict.FREE)


@dataclass
class Unit:
    """What became of the frames of one unit."""

    number: int
    verdicts: NDArray[np.uint8]
    found: Judgement = field(default_factory=Judgement)
    unreadable: int = 0
    """Frames of RAM with a struct page that the dump does not hold."""
    bare: int = 0
    """Frames of RAM without a struct page."""


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


class StructPageUnits:
    """Gives units as their struct pages tell."""

    def __init__(
        self, reader: StructPageReader, rules: Rules, huge_test: HugeTest, ram: FrameSet, may_leave_out: bool
    ) -> None:
        self._reader = reader
        self._rules = rules
        self._huge_test = huge_test
        self._ram = ram
        self._may_leave_out = may_leave_out

    def units(self, numbers: list[int], threads: int, memory_limit_bytes: int) -> Iterator[Unit]:
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

    def _units_by_slices(self, numbers: list[int], frames: int) -> Iterator[Unit]:
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

    def _decide(self, task: _Task, runs: list[FilledRun], buffer: NDArray[np.uint8]) -> Unit:
        """Decide on a unit as it was read; once more with all of it read, where what was left out might matter."""
        unit = self._judge(task, runs)
        if task.free and unit.found.may_go_on:
            task = _Task(task.number, task.extents, [])
            unit = self._judge(task, self._read(task, buffer))
        return unit

    def _judge(self, task: _Task, runs: Iterable[FilledRun]) -> Unit:
        number = task.number
        first = number * SECTION_FRAMES
        verdicts = np.full(SECTION_FRAMES, _UNKNOWN)
        unit = Unit(number, verdicts)
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
        return self._ram.bits[number * UNIT_BYTES : (number + 1) * UNIT_BYTES]

    def _ram_mask(self, number: int) -> NDArray[np.bool_] | None:
        """Tell which frames of a unit are RAM; None for all."""
        bits = self._bits(number)
        if len(bits) == UNIT_BYTES and (bits == 0xFF).all():
            return None
        mask = np.zeros(SECTION_FRAMES, dtype=np.bool_)
        unpacked = np.unpackbits(bits, bitorder="little")
        mask[: len(unpacked)] = unpacked.view(np.bool_)
        return mask
