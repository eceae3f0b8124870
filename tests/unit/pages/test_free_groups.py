"""Large free blocks are told by their first struct pages: how much that saves, and when it must not."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.dumps.memory import PageState
from postpanic.pages import classify
from postpanic.pages.frame_units import StructPageUnits
from postpanic.pages.free_groups import BLOCK_FRAMES, GROUP_FRAMES
from postpanic.pages.selection import Selection
from postpanic.pages.verdict import Verdict
from tests.builders.struct_pages import FLAGS, FORMS, FREE_ORDERS, HEAD, MAPCOUNT, PRIVATE, StructPageArray
from tests.unit.kernel.memories import PAGE
from tests.unit.pages.machines import Machine, SparseDump, list_dropped

COUNT = 3 * GROUP_FRAMES
GROUP_PAGES = GROUP_FRAMES // 64
"""Pages of struct pages in a group."""


def make_array(name: str = "6.12", size: int = 64) -> StructPageArray:
    """Make three groups that are free but for what a test does to them."""
    form = FORMS[name].__class__(**{**FORMS[name].__dict__, "size": size})
    array = StructPageArray(form, COUNT)
    for pfn in range(0, COUNT, BLOCK_FRAMES):
        array.free(pfn, 10)
    return array


def describe(selection: Selection) -> tuple[object, ...]:
    """Give all that a selection tells."""
    batches = [batch.tolist() for batch in selection.batches(1 << 16)]
    bits = (selection.ram.bits.tobytes(), selection.kept.bits.tobytes())
    return bits, batches, dict(selection.counts), selection.notes


def select_both(machine: Machine, level: int = 31, threads: int = 1) -> tuple[Selection, int]:
    """Select with and without leaving anything out, which must be the same; how many pages were read with it."""
    dump, kernel = machine.build()
    read = 0

    def count_pages(pfns: np.ndarray, pages: np.ndarray) -> np.ndarray:
        nonlocal read
        read += len(pfns)
        return SparseDump.read_pages_into(dump, pfns, pages)

    dump.read_pages_into = count_pages  # type: ignore[method-assign]
    quick = classify.select_pages(dump, kernel, level, threads=threads)
    pages_read, read = read, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            StructPageUnits,
            "_list_groups",
            lambda self, number: np.empty(0, dtype=np.int64),  # noqa: ARG005
        )
        whole = classify.select_pages(dump, kernel, level, threads=threads)
    assert describe(quick) == describe(whole)
    return quick, read - pages_read


@pytest.mark.parametrize("name", FORMS)
def test_free_groups_are_not_read(name: str) -> None:
    array = make_array(name)
    array.anon(GROUP_FRAMES + 3)
    array.set_mapcount(GROUP_FRAMES, -1)
    selection, saved = select_both(Machine([array]))
    assert selection.counts[Verdict.FREE] == COUNT - BLOCK_FRAMES
    # Of three groups two are left out; of these 9 pages each are looked at, of the third one.
    assert saved == 2 * GROUP_PAGES - 2 * 9 - 1


def test_larger_block_covers_those_that_would_begin_in_it() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    for pfn in range(0, COUNT, 2 * BLOCK_FRAMES):
        array.free(pfn, 11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.builders.struct_pages.FREE_ORDERS", 14)
        selection, saved = select_both(Machine([array]))
    assert selection.counts == {Verdict.FREE: COUNT}
    assert saved == 3 * GROUP_PAGES - 27


@pytest.mark.parametrize("level", [0, 15, 8])
def test_all_is_read_where_free_pages_are_kept(level: int) -> None:
    _, saved = select_both(Machine([make_array()]), level)
    assert saved == 0


@pytest.mark.parametrize("size", [56, 72, 80])
def test_blocks_whose_struct_pages_begin_no_pages_are_told_too_or_read(size: int) -> None:
    selection, _ = select_both(Machine([make_array(size=size)]))
    assert selection.counts[Verdict.FREE] == COUNT


def _break_order(array: StructPageArray) -> None:
    array.set_word(2 * BLOCK_FRAMES, PRIVATE, FREE_ORDERS)


def _misalign(array: StructPageArray) -> None:
    array.set_word(3 * BLOCK_FRAMES, PRIVATE, 12)


def _make_smaller(array: StructPageArray) -> None:
    array.set_word(2 * BLOCK_FRAMES, PRIVATE, 9)


def _make_tail(array: StructPageArray) -> None:
    array.set_word(BLOCK_FRAMES, HEAD, array.vaddr | 1)


def _make_head(array: StructPageArray) -> None:
    array.set_flag(BLOCK_FRAMES, array.form.head)


def _allocate(array: StructPageArray) -> None:
    array.set_mapcount(7 * BLOCK_FRAMES, -1)
    array.anon(7 * BLOCK_FRAMES + 5)


def _make_unaccepted(array: StructPageArray) -> None:
    array.set_mapcount(BLOCK_FRAMES, array.form.unaccepted or 0)


def _poison_first(array: StructPageArray) -> None:
    array.poison(BLOCK_FRAMES)


def _end_with_a_head(array: StructPageArray) -> None:
    # The compound's order would stand in the first struct page of the free group behind it.
    array.set_mapcount(7 * BLOCK_FRAMES, -1)
    array.anon(GROUP_FRAMES - 1)
    array.set_flag(GROUP_FRAMES - 1, array.form.head)
    array.set_byte(GROUP_FRAMES, FLAGS, 9)


@pytest.mark.parametrize(
    "change",
    [
        _break_order,
        _misalign,
        _make_smaller,
        _make_tail,
        _make_head,
        _allocate,
        _make_unaccepted,
        _poison_first,
        _end_with_a_head,
    ],
)
def test_group_in_any_doubt_is_read(change: Callable[[StructPageArray], None]) -> None:
    array = make_array()
    change(array)
    _, saved = select_both(Machine([array]))
    assert saved < 3 * GROUP_PAGES - 27


def _poison_inner(array: StructPageArray) -> None:
    array.poison(5)
    array.poison(GROUP_FRAMES - 1)


def _leave_garbage(array: StructPageArray) -> None:
    random_bytes = random.Random(3).randbytes(array.form.size * 1000)
    array.data[array.at(1) : array.at(1001)] = random_bytes


@pytest.mark.parametrize("change", [_poison_inner, _leave_garbage])
def test_what_is_within_a_free_block_decides_of_nothing(change: Callable[[StructPageArray], None]) -> None:
    array = make_array()
    change(array)
    selection, saved = select_both(Machine([array]))
    assert list_dropped(selection) == set(range(COUNT))
    assert saved == 3 * GROUP_PAGES - 27


@pytest.mark.parametrize("is_tail", [False, True])
def test_compound_that_claims_free_groups_is_judged_by_all_struct_pages(is_tail: bool) -> None:
    array = StructPageArray(FORMS["6.12"], 4 * GROUP_FRAMES)
    array.compound(0, 15)
    array.set_word(0, 24, 0x1001)
    for pfn in range(2 * GROUP_FRAMES, 3 * GROUP_FRAMES, BLOCK_FRAMES):
        array.set_word(pfn, HEAD, 0)
        array.free(pfn, 10)
    array.set_word(4 * GROUP_FRAMES - 1, HEAD, array.vaddr | is_tail)
    selection, saved = select_both(Machine([array]))
    assert selection.counts[Verdict.USER if is_tail else Verdict.FREE] >= GROUP_FRAMES
    assert saved < 0


@pytest.mark.parametrize("start", [GROUP_FRAMES + 64, GROUP_FRAMES - 64])
def test_group_with_a_hole_in_memory_is_read(start: int) -> None:
    machine = Machine([make_array()], runs=[(0, start), (start + 64, COUNT)])
    selection, saved = select_both(machine)
    assert list_dropped(selection) == {*range(start), *range(start + 64, COUNT)}
    assert saved == 2 * GROUP_PAGES - 18


def test_free_block_that_begins_in_a_hole_is_not_believed() -> None:
    machine = Machine([make_array()], runs=[(0, BLOCK_FRAMES - 1), (BLOCK_FRAMES + 1, COUNT)])
    selection, _ = select_both(machine)
    assert list_dropped(selection) == {*range(BLOCK_FRAMES - 1), *range(2 * BLOCK_FRAMES, COUNT)}


@pytest.mark.parametrize("bits", [23, 25, 27])
def test_groups_may_cross_the_ends_of_sections(bits: int) -> None:
    # Sections of 2^23 bytes are smaller than a group, and of each the array lies where it likes.
    selection, _ = select_both(Machine([make_array()], section_bits=bits, model="extreme"))
    assert selection.counts[Verdict.FREE] == COUNT


def test_struct_page_that_is_lost_is_missed_only_where_it_matters() -> None:
    array = make_array()
    dump, kernel = Machine([array]).build()
    for frame in (64, GROUP_FRAMES):
        vaddr = array.vaddr + frame * 64
        dump.states[int(kernel.translate(vaddr)) // PAGE] = PageState.LOST  # type: ignore[arg-type]
    selection = classify.select_pages(dump, kernel, 31)
    assert selection.notes == ("64 pages whose struct page cannot be read: they are kept",)
    assert len(list_dropped(selection)) == COUNT - BLOCK_FRAMES


def _spoil(array: StructPageArray, source: random.Random) -> None:
    """Write what a racing processor or a bad pointer would, mostly where it is looked at."""
    form = array.form
    kinds = [number for number in (form.buddy, form.offline, form.slab, form.unaccepted, form.hugetlb) if number]
    for _ in range(source.randrange(6)):
        pfn = source.randrange(COUNT // BLOCK_FRAMES) * BLOCK_FRAMES + source.choice((0, 0, 0, 1, 512, 1023))
        match source.randrange(6):
            case 0:
                array.set_word(pfn, PRIVATE, source.choice((0, 9, 10, 11, 12, 13, 14, 40, source.getrandbits(64))))
            case 1:
                array.set_mapcount(pfn, source.choice((*kinds, -1, 0)))
            case 2:
                array.set_word(pfn, HEAD, source.getrandbits(64))
            case 3:
                array.set_word(pfn, source.choice((FLAGS, MAPCOUNT)), source.getrandbits(64))
            case 4:
                array.set_flag(pfn, source.choice((form.head, form.lru, form.hwpoison or 0)))
                array.set_byte(min(pfn + 1, COUNT - 1), FLAGS, source.randrange(16))
            case _:
                order = source.randrange(10, 15)
                start = pfn >> order << order
                if start + (1 << order) <= COUNT:
                    array.anon(start, order)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(FORMS)), level=st.sampled_from((16, 31)), seed=st.integers(0, 1 << 32))
def test_spoilt_blocks_are_judged_as_if_all_were_read(name: str, level: int, seed: int) -> None:
    source = random.Random(seed)
    array = make_array(name)
    _spoil(array, source)
    select_both(Machine([array]), level)
