"""
The pages that are kept are makedumpfile's, page by page, on dumps of real kernels.

Where they are not, the difference is named by the kernel's own structures, and
nothing else may differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.pages.classify import select_pages
from postpanic.pages.selection import SECTION_FRAMES, Selection
from postpanic.pages.verdict import Verdict
from postpanic.process import run
from tests.vm.lab import Crash, Lab

SCENARIOS = [
    ("6.1", "sysrq-c"),
    ("6.12", "sysrq-c"),
    ("newest", "sysrq-c"),
    ("6.1", "memory-kinds"),
    ("6.12", "memory-kinds"),
    pytest.param("newest", "memory-kinds", marks=pytest.mark.matrix),
]
"""Kernels and scenarios that are compared at all levels."""
FEW = [("5.10", "sysrq-c")]
"""Those that are compared at some."""
SOME_LEVELS = (0, 2, 4, 8, 16, 31)

COUNTED = {
    "Non-private cache pages": Verdict.CACHE,
    "Private cache pages": Verdict.CACHE_PRIVATE,
    "User process data pages": Verdict.USER,
    "Free pages": Verdict.FREE,
    "Hwpoison pages": Verdict.HWPOISON,
    "Offline pages": Verdict.OFFLINE,
}


@contextmanager
def filtered_by_makedumpfile(lab: Lab, raw: Path, level: int, directory: Path) -> Iterator[tuple[Dump, str]]:
    """Let makedumpfile filter a dump; what it made and what it said."""
    target = directory / f"level{level}"
    command: list[str | Path] = [
        *lab.makedumpfile.command,
        "--message-level",
        "31",
        "-l",
        "-d",
        str(level),
        raw,
        target,
    ]
    finished = run(command)
    try:
        with open_dump([target]) as dump:
            yield dump, ((finished.stdout or b"") + finished.stderr).decode(errors="replace")
    finally:
        target.unlink()


def explain(kernel: KernelMemory, selection: Selection, level: int) -> NDArray[np.uint64]:
    """
    List the pages that are kept here and dropped by makedumpfile, and why that is wrong.

    Since 7.1 struct page has ``compound_info`` where ``compound_head`` was, and
    VMCOREINFO calls it so. makedumpfile up to 1.7.8 knows the old name alone, so it
    takes tail pages for pages of their own. At level 8 it then drops the second page
    of each compound that is kept: the word that is ``mapping`` in other pages holds
    ``_large_mapcount`` and ``_nr_pages_mapped`` there, -1 to begin with, of which bit 0
    reads as ``PAGE_MAPPING_ANON`` (``prep_compound_head()`` in ``mm/internal.h``).
    """
    info = kernel.vmcoreinfo
    if not level & 8 or info.get_offset("page.compound_head") is not None:
        return np.empty(0, dtype=np.uint64)
    pfns = selection.ram.members(0, selection.ram.limit)
    tail, mapping = (
        read_words(kernel, info, pfns, info.offset(f"page.{name}")) for name in ("compound_info", "mapping")
    )
    second = pfns[(tail & np.uint64(1) == 1) & (mapping & np.uint64(1) == 1)]
    # Only the second page of a compound has such a word.
    before = read_words(kernel, info, second - np.uint64(1), info.offset("page.flags"))
    assert (before & np.uint64(info.number("PG_head_mask")) != 0).all()
    return np.asarray(second[selection.kept.contains(second)])


def read_words(kernel: KernelMemory, info: Vmcoreinfo, pfns: NDArray[np.uint64], offset: int) -> NDArray[np.uint64]:
    """Read a word of the struct page of each frame, by the vmemmap alone."""
    size, start = info.size("page"), int(pfns[0]) if len(pfns) else 0
    count = int(pfns[-1]) - start + 1 if len(pfns) else 0
    maps = read_section_maps(kernel, start + 1)
    vmemmap = int(maps[-1]) & ~0xFFF
    data, _ = kernel.read_available(vmemmap + start * size, count * size)
    words = np.ascontiguousarray(data.reshape(count, size)[:, offset : offset + 8]).view("<u8")[:, 0]
    return np.asarray(words[(pfns - np.uint64(start)).astype(np.int64)])


def compare(lab: Lab, crash: Crash, level: int, directory: Path) -> None:
    with open_dump([crash.raw]) as dump:
        kernel = open_kernel_memory(dump)
        ours = select_pages(dump, kernel, level)
        threaded = select_pages(dump, kernel, level, threads=2)
        explained = explain(kernel, ours, level)
        askew = find_askew_compounds(kernel, ours.ram.limit)
        counted_twice = len(find_counted_twice(kernel, ours.ram.limit)) if level & 8 else 0
        with filtered_by_makedumpfile(lab, crash.raw, level, directory) as (theirs, said):
            pfns = ours.ram.members(0, ours.ram.limit)
            states = theirs.page_states(pfns)
            assert (theirs.ram_ranges == dump.ram_ranges).all()
    assert set(np.unique(states).tolist()) <= {PageState.PRESENT, PageState.EXCLUDED}
    is_kept = ours.kept.contains(pfns)
    differ = pfns[is_kept != (states == PageState.PRESENT)]
    if level & ~1 == 0 and kernel.vmcoreinfo.get_number("PG_hwpoison") is None:
        # makedumpfile looks at struct pages for a bit of the level or for poisoned pages: with neither it
        # keeps what a balloon has given back to the hypervisor, which is left out here at every level.
        assert (states == PageState.PRESENT).all()
        assert len(differ) == ours.counts.get(Verdict.OFFLINE, 0) == ours.ram.count - ours.kept.count
        return
    is_askew = np.isin(differ, askew)
    assert differ[~is_askew].tolist() == explained.tolist()
    if len(askew):
        # Of the whole page makedumpfile sees hardly anything, least of all that it is one.
        assert level & 8 == 0 or not ours.kept.contains(askew).any()
        assert np.count_nonzero(is_askew) in ((len(askew) - 1, len(askew)) if level & 8 else (0, 1))
    assert ours.notes == ()
    assert (threaded.kept.bits == ours.kept.bits).all()
    if len(askew):
        they_keep = int(np.count_nonzero(~is_kept & (states == PageState.PRESENT)))
        they_drop = int(np.count_nonzero(is_kept & (states != PageState.PRESENT)))
        theirs_in_all = sum(read_count(said, name) for name in COUNTED)
        assert theirs_in_all == sum(ours.counts.get(verdict, 0) for verdict in COUNTED.values()) + they_drop - they_keep
        return
    for name, verdict in COUNTED.items():
        wrongly = len(explained) + counted_twice if verdict is Verdict.USER else 0
        assert read_count(said, name) == ours.counts.get(verdict, 0) + wrongly, name


def read_count(said: str, name: str) -> int:
    """Find in makedumpfile's report how many pages it left out for a reason."""
    found = re.search(rf"{name}\s*: 0x([0-9a-f]+)", said)
    assert found, name
    return int(found[1], 16)


def find_askew_compounds(kernel: KernelMemory, limit: int) -> NDArray[np.uint64]:
    """
    List the frames of compounds that makedumpfile up to 1.7.8 reads in the wrong place.

    It takes the low five bits of ``section_mem_map`` for flags. Kernels that set up
    a gigantic hugetlb page's struct pages while they boot have a sixth,
    ``SECTION_IS_VMEMMAP_PREINIT`` (``include/linux/mmzone.h``, since 6.15), which stays
    in its address: all struct pages of such a section are read 32 bytes late.
    """
    info = kernel.vmcoreinfo
    frames = section_frames(info)
    found = [np.empty(0, dtype=np.uint64)]
    for section in np.flatnonzero(read_section_maps(kernel, limit) & np.uint64(1 << 5)).tolist():
        head = np.array([section * frames, section * frames + 1], dtype=np.uint64)
        flags = read_words(kernel, info, head, info.offset("page.flags"))
        if flags[0] & np.uint64(info.number("PG_head_mask")):
            found.append(head[0] + np.arange(1 << (int(flags[1]) & 0xFF), dtype=np.uint64))
    return np.concatenate(found)


def find_counted_twice(kernel: KernelMemory, limit: int) -> NDArray[np.uint64]:
    """
    List the frames that makedumpfile counts twice although it drops them once.

    Up to 7.0 a hugetlb page has its first struct pages mapped again in place of
    the others (``hugetlb_vmemmap_optimize()``), so that one in 64 looks like a head.
    ``exclude_range()`` counts all pages of one that reaches into later sections of
    memory, in which these heads are then met, and counted whether they are dropped
    already or not.
    """
    info = kernel.vmcoreinfo
    frames = section_frames(info)
    place = info.get_offset("page.compound_order")
    found = [np.empty(0, dtype=np.uint64)]
    maps = read_section_maps(kernel, limit)
    for section in np.flatnonzero(maps & np.uint64(2)).tolist():
        pair = section * frames + np.arange(2, dtype=np.uint64)
        if section * frames + 1 >= limit:
            continue
        flags = read_words(kernel, info, pair, info.offset("page.flags"))
        orders = flags if place is None else read_words(kernel, info, pair, place & ~7) >> np.uint64(place % 8 * 8)
        order = int(orders[1]) & 0xFF
        if not flags[0] & np.uint64(info.number("PG_head_mask")) or section * frames % (1 << order):
            continue
        later = section * frames + np.arange(frames, max(1 << order, frames), dtype=np.uint64)
        is_head = read_words(kernel, info, later, info.offset("page.flags")) & np.uint64(info.number("PG_head_mask"))
        found.append(later[is_head != 0])
    return np.concatenate(found)


def section_frames(info: Vmcoreinfo) -> int:
    return 1 << info.number("SECTION_SIZE_BITS") - 12


def read_section_maps(kernel: KernelMemory, limit: int) -> NDArray[np.uint64]:
    """Read ``section_mem_map`` of all sections of sparsemem extreme, as they stand."""
    info = kernel.vmcoreinfo
    size = info.size("mem_section")
    count = -(-limit // section_frames(info))
    roots = kernel.read_array(info.symbol("mem_section"), "<u8", -(-count // (4096 // size)))
    words = [kernel.read_array(int(root), "<u8", 512)[:: size // 8] for root in roots if root]
    return np.concatenate(words)[:count]


@pytest.mark.parametrize("level", range(32))
@pytest.mark.parametrize(("kernel", "scenario"), SCENARIOS)
def test_same_pages_at_every_level(
    kernel: str, scenario: str, level: int, crashed: Callable[..., Crash], crash_lab: Lab, tmp_path: Path
) -> None:
    compare(crash_lab, crashed(kernel, scenario=scenario), level, tmp_path)


@pytest.mark.parametrize("level", SOME_LEVELS)
@pytest.mark.parametrize(("kernel", "scenario"), FEW)
def test_same_pages_at_some_levels(
    kernel: str, scenario: str, level: int, crashed: Callable[..., Crash], crash_lab: Lab, tmp_path: Path
) -> None:
    compare(crash_lab, crashed(kernel, scenario=scenario), level, tmp_path)


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "newest"])
def test_dump_that_was_filtered_before_is_filtered_again(
    kernel: str, crashed: Callable[..., Crash], crash_lab: Lab, tmp_path: Path
) -> None:
    """What level 31 leaves of level 16's output is what it leaves of the raw dump."""
    raw = crashed(kernel).raw
    with open_dump([raw]) as dump:
        first = select_pages(dump, open_kernel_memory(dump), 31)
    with filtered_by_makedumpfile(crash_lab, raw, 16, tmp_path) as (before, _):
        again = select_pages(before, open_kernel_memory(before), 31)
    assert (again.kept.bits == first.kept.bits).all()
    assert again.counts[Verdict.NOT_IN_SOURCE] == first.counts[Verdict.FREE]
    assert again.counts[Verdict.USER] == first.counts[Verdict.USER]


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "newest"])
def test_worth_of_what_a_debugger_needs_first(kernel: str, crashed: Callable[..., Crash]) -> None:
    """The kernel's text, the page tables on the way to it, and the struct pages are told from the rest."""
    with open_dump([crashed(kernel).raw]) as dump:
        memory = open_kernel_memory(dump)
        selection = select_pages(dump, memory, 31)
        assert selection.worth is not None
        info = memory.vmcoreinfo
        frames = {
            Verdict.IMAGE: [info.symbol("_stext"), info.symbol("init_uts_ns"), info.symbol("swapper_pg_dir")],
            Verdict.TABLE: [],
        }
        walk = memory.walk(info.symbol("mem_section"))
        tables = [step.entry_paddr >> 12 for step in walk.steps[1:]]
        image = [int(memory.tables.translate(vaddr)) >> 12 for vaddr in frames[Verdict.IMAGE]]
        for verdict, pfns in ((Verdict.IMAGE, image), (Verdict.TABLE, tables)):
            for pfn in pfns:
                chosen = selection.worth.select(pfn // SECTION_FRAMES, verdict, np.array([pfn], dtype=np.uint64))
                in_image = selection.worth.select(
                    pfn // SECTION_FRAMES, Verdict.IMAGE, np.array([pfn], dtype=np.uint64)
                )
                assert len(chosen) or len(in_image), (verdict.name, hex(pfn))
        assert selection.counts[Verdict.MEMMAP] >= selection.ram.count * info.size("page") // 4096
        assert selection.counts[Verdict.STACK] > 100
