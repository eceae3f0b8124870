"""
Decide for every page frame whether a dump keeps it: ``struct page`` in, verdicts out.

One pass over the struct pages (:mod:`~postpanic.pages.frame_units`), and what goes
beyond a unit of it: blocks that reach into the next, what the kernel's page tables
tell, what the dump that is read does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import Dump, PageState
from postpanic.errors import PostpanicError, UnsupportedError
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.blocks import LaterBlocks
from postpanic.pages.frame_units import UNIT_BYTES, StructPageUnits, Unit
from postpanic.pages.free_groups import FreeTest
from postpanic.pages.huge_blocks import HugeTest
from postpanic.pages.kernel_map import KernelMap, find_kernel_map
from postpanic.pages.layout import find_page_layout
from postpanic.pages.mem_map import find_mem_map
from postpanic.pages.rules import Rules
from postpanic.pages.selection import SECTION_FRAMES, Selection, SelectionBuilder
from postpanic.pages.struct_pages import StructPageReader
from postpanic.pages.verdict import FIRST_DROPPED, Verdict
from postpanic.units import MIB, format_size

__all__ = ["Progress", "select_pages"]

DEFAULT_MEMORY_BYTES = 64 * MIB
_LARGEST_BITMAP_BYTES = 1 << 30

_UNKNOWN, _HWPOISON = np.uint8(Verdict.UNKNOWN), np.uint8(Verdict.HWPOISON)

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
    whole = len(ram.bits) // UNIT_BYTES
    busy = np.flatnonzero(ram.bits[: whole * UNIT_BYTES].reshape(whole, UNIT_BYTES).any(axis=1)).tolist()
    return [*busy, whole] if ram.bits[whole * UNIT_BYTES :].any() else busy


@dataclass
class _Tally:
    """Puts the last touches to units, and counts what the notes tell."""

    impossible_blocks: int = 0
    unreadable: int = 0
    bare: int = 0

    def finish(self, unit: Unit) -> None:
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


def _mark_left_out(dump: Dump, ram: FrameSet, unit: Unit) -> None:
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

    def units(self, numbers: list[int], threads: int, memory_limit_bytes: int) -> Iterator[Unit]:
        del threads, memory_limit_bytes
        for number in numbers:
            yield Unit(number, np.full(SECTION_FRAMES, _UNKNOWN))


def _make_source(
    dump: Dump, kernel: KernelMemory | None, level: int, ram: FrameSet, notes: list[str], *, by_worth: bool
) -> tuple[StructPageUnits | _NothingKnown, KernelMap]:
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
    return StructPageUnits(reader, rules, huge_test, ram, free_test.is_possible), kernel_map
