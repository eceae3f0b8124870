"""Huge pages of processes are judged by their heads: when, and that all is as if every struct page were looked at."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.dumps.memory import PageState
from postpanic.pages import classify
from postpanic.pages.huge_blocks import HUGE_FRAMES, HugeTest
from postpanic.pages.selection import Selection
from postpanic.pages.struct_pages import Parts, StructPageReader
from postpanic.pages.verdict import Verdict
from tests.builders.struct_pages import FLAGS, FORMS, HEAD, MAPCOUNT, MAPPING, PRIVATE, StructPageArray
from tests.unit.kernel.memories import PAGE
from tests.unit.pages.machines import Machine, list_dropped
from tests.unit.pages.test_free_groups import describe

BLOCKS = 16
COUNT = BLOCKS * HUGE_FRAMES
LAST = HUGE_FRAMES - 1


def make_array(name: str = "6.12") -> StructPageArray:
    """Make blocks of which every other one is a huge page; between them are single pages."""
    array = StructPageArray(FORMS[name], COUNT)
    for block in range(BLOCKS):
        pfn = block * HUGE_FRAMES
        if block % 2:
            array.anon(pfn, 9)
        else:
            array.anon(pfn + 1)
            array.slab(pfn + 8, 3)
            array.cache(pfn + 64)
    return array


def select_both(machine: Machine, level: int = 31) -> tuple[Selection, int]:
    """Select with and without leaving any out, which must be the same; how many were left out."""
    dump, kernel = machine.build()
    left_out = 0
    with pytest.MonkeyPatch.context() as patch:
        lift = StructPageReader.lift

        def count_rows(reader: StructPageReader, *args: object) -> object:
            nonlocal left_out
            pages = lift(reader, *args)  # type: ignore[arg-type]
            if pages is not None:
                left_out += len(pages.data) - len(pages)
            return pages

        patch.setattr(StructPageReader, "lift", count_rows)
        quick = classify.select_pages(dump, kernel, level)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HugeTest, "find", lambda *_: None)
        whole = classify.select_pages(dump, kernel, level)
    assert describe(quick) == describe(whole)
    return quick, left_out


@pytest.mark.parametrize("level", [8, 24, 31])
@pytest.mark.parametrize("name", FORMS)
def test_tail_pages_of_huge_pages_are_not_looked_at(name: str, level: int) -> None:
    selection, left_out = select_both(Machine([make_array(name)]), level)
    assert selection.counts[Verdict.USER] == BLOCKS // 2 * (HUGE_FRAMES + 1)
    assert left_out == BLOCKS // 2 * LAST


@pytest.mark.parametrize("level", [0, 7, 16, 23])
def test_all_are_looked_at_where_the_level_keeps_them(level: int) -> None:
    _, left_out = select_both(Machine([make_array()]), level)
    assert left_out == 0


def test_all_are_looked_at_where_few_are_huge() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    array.anon(HUGE_FRAMES, 9)
    selection, left_out = select_both(Machine([array]))
    assert selection.counts[Verdict.USER] == HUGE_FRAMES
    assert left_out == 0


@pytest.mark.parametrize("runs", [[(0, COUNT - 8)], [(0, 700), (708, COUNT)]])
def test_all_are_looked_at_where_not_all_is_memory(runs: list[tuple[int, int]]) -> None:
    _, left_out = select_both(Machine([make_array()], runs=runs))
    assert left_out == 0


def test_all_are_looked_at_where_some_are_lost() -> None:
    machine = Machine([make_array()])
    dump, kernel = machine.build()
    dump.states[int(kernel.translate(machine.arrays[0].vaddr)) // PAGE] = PageState.LOST  # type: ignore[arg-type]
    selection = classify.select_pages(dump, kernel, 31)
    assert selection.notes == ("64 pages whose struct page cannot be read: they are kept",)


def _break_head(array: StructPageArray, pfn: int) -> None:
    array.set_word(pfn, FLAGS, 0)


def _make_tail(array: StructPageArray, pfn: int) -> None:
    array.set_word(pfn, HEAD, array.vaddr | 1)


def _break_second(array: StructPageArray, pfn: int) -> None:
    array.set_word(pfn + 1, HEAD, 0)


def _break_last(array: StructPageArray, pfn: int) -> None:
    array.set_word(pfn + LAST, HEAD, 0)


def _make_kernel(array: StructPageArray, pfn: int) -> None:
    array.set_word(pfn, MAPPING, 0)


def _make_free(array: StructPageArray, pfn: int) -> None:
    array.set_mapcount(pfn, array.form.buddy)
    array.set_word(pfn, PRIVATE, 3)


def _make_slab(array: StructPageArray, pfn: int) -> None:
    array.set_mapcount(pfn, array.form.slab or 0)


@pytest.mark.parametrize(
    "change", [_break_head, _make_tail, _break_second, _break_last, _make_kernel, _make_free, _make_slab]
)
def test_block_in_any_doubt_is_looked_at(change: Callable[[StructPageArray, int], None]) -> None:
    array = make_array()
    change(array, 3 * HUGE_FRAMES)
    _, left_out = select_both(Machine([array]))
    assert left_out == (BLOCKS // 2 - 1) * LAST


@pytest.mark.parametrize("name", FORMS)
def test_what_is_within_a_huge_page_decides_of_nothing(name: str) -> None:
    array = make_array(name)
    array.data[array.at(COUNT - LAST + 2) : array.at(COUNT - 1)] = random.Random(5).randbytes(
        array.form.size * (LAST - 3)
    )
    array.poison(HUGE_FRAMES + 7)
    selection, left_out = select_both(Machine([array]))
    assert list_dropped(selection) >= set(range(COUNT - HUGE_FRAMES, COUNT))
    assert left_out == BLOCKS // 2 * LAST


def test_parts_find_their_rows() -> None:
    import numpy as np

    is_huge = np.array([True, False, False, True])
    parts = Parts.without(is_huge)
    rows = np.arange(4 * HUGE_FRAMES)
    taken = parts.take(rows)
    assert taken.tolist() == [*range(HUGE_FRAMES, 3 * HUGE_FRAMES), 0, 3 * HUGE_FRAMES]
    assert parts.find_rows(np.arange(len(taken))).tolist() == taken.tolist()
    assert parts.find_rows(np.array([HUGE_FRAMES, 2 * HUGE_FRAMES + 1])).tolist() == [2 * HUGE_FRAMES, 3 * HUGE_FRAMES]
    column = np.zeros(4 * HUGE_FRAMES, dtype=np.uint8)
    parts.put(np.full(len(taken), 7, dtype=np.uint8), column)
    assert np.flatnonzero(column).tolist() == sorted(taken.tolist())


def _spoil(array: StructPageArray, source: random.Random) -> None:
    """Write what a racing processor or a bad pointer would, mostly where it is looked at."""
    form = array.form
    kinds = [number for number in (form.buddy, form.offline, form.slab, form.unaccepted, form.hugetlb) if number]
    for _ in range(source.randrange(8)):
        pfn = source.randrange(BLOCKS) * HUGE_FRAMES + source.choice((0, 0, 0, 1, 2, 256, LAST))
        match source.randrange(7):
            case 0:
                array.set_word(pfn, PRIVATE, source.choice((0, 3, 9, 10, 12, 40, source.getrandbits(64))))
            case 1:
                array.set_mapcount(pfn, source.choice((*kinds, -1, 0)))
            case 2:
                array.set_word(pfn, source.choice((HEAD, MAPPING)), source.getrandbits(64))
            case 3:
                array.set_word(pfn, source.choice((FLAGS, MAPCOUNT)), source.getrandbits(64))
            case 4:
                array.set_flag(pfn, source.choice((form.head, form.lru, form.hwpoison or 0)))
                array.set_byte(min(pfn + 1, COUNT - 1), FLAGS, source.randrange(16))
            case 5:
                array.hugetlb(pfn // HUGE_FRAMES * HUGE_FRAMES, 9)
            case _:
                order = source.randrange(1, 14)
                start = pfn >> order << order
                make = source.choice((array.anon, array.slab, array.cache, array.free))
                if start + (1 << order) <= COUNT:
                    make(start, order)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(FORMS)), level=st.sampled_from((8, 10, 24, 31)), seed=st.integers(0, 1 << 32))
def test_spoilt_blocks_are_judged_as_if_all_were_looked_at(name: str, level: int, seed: int) -> None:
    source = random.Random(seed)
    array = make_array(name)
    _spoil(array, source)
    select_both(Machine([array]), level)
