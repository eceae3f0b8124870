"""What becomes of each kind of page, in each range of kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from postpanic.dumps.memory import PageState
from postpanic.errors import UnsupportedError
from postpanic.pages.classify import select_pages
from postpanic.pages.selection import Selection
from postpanic.pages.verdict import Verdict
from tests.builders.struct_pages import FORMS, MAPPING, PRIVATE, StructPageArray
from tests.unit.kernel.memories import PAGE
from tests.unit.pages.machines import MODELS, Machine, list_dropped, list_worth

COUNT = 4096
V = Verdict


def fill(array: StructPageArray) -> None:
    """Put pages of all kinds into the first 1024 frames; the rest is the kernel's."""
    array.free(0, 5)
    array.free(32, 0)
    array.cache(40)
    array.cache(41, private=True)
    array.swap_cache(42)
    array.anon(43)
    array.anon(44, ksm=True)
    array.anon(45, lru=False)
    array.slab(46)
    array.slab(48, 3)
    array.table(60)
    array.offline(61)
    array.cache(64, 4)
    array.anon(128, 6)
    array.compound(200, 3)
    array.hugetlb(512, 9)
    array.poison(62)


FREE = {*range(32), 32}
CACHE = {40, 42, *range(64, 80)}
PRIVATE_CACHE = {41}
USER = {43, 44, 45, *range(128, 192), *range(512, 1024)}
ALWAYS = {61, 62}
SLABS = [46, *range(48, 56)]


def expect(level: int) -> set[int]:
    dropped = set(ALWAYS)
    if level & 16:
        dropped |= FREE
    if level & 6:
        dropped |= CACHE
    if level & 4:
        dropped |= PRIVATE_CACHE
    if level & 8:
        dropped |= USER
    return dropped


def select(array: StructPageArray, level: int, **options: object) -> Selection:
    dump, kernel = Machine([array], **options).build()  # type: ignore[arg-type]
    return select_pages(dump, kernel, level)


def select_all(arrays: list[StructPageArray], level: int, **options: object) -> Selection:
    dump, kernel = Machine(arrays, **options).build()  # type: ignore[arg-type]
    return select_pages(dump, kernel, level)


@pytest.mark.parametrize("name", FORMS)
def test_every_kind_of_page_in_every_kernel_at_every_level(name: str) -> None:
    array = StructPageArray(FORMS[name], COUNT)
    fill(array)
    dump, kernel = Machine([array]).build()
    for level in range(32):
        selection = select_pages(dump, kernel, level)
        assert list_dropped(selection) == expect(level), level
        assert sum(selection.counts.values()) == selection.ram.count == COUNT
        assert selection.notes == ()
        assert list_worth(selection, V.SLAB) == SLABS
        assert list_worth(selection, V.TABLE) == [60]
    assert selection.counts == {
        V.SLAB: len(SLABS),
        V.TABLE: 1,
        V.KERNEL: COUNT - len(expect(31)) - len(SLABS) - 1,
        V.CACHE: len(CACHE),
        V.CACHE_PRIVATE: 1,
        V.USER: len(USER),
        V.FREE: len(FREE),
        V.HWPOISON: 1,
        V.OFFLINE: 1,
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["5.10", "7.1"])
def test_memory_model_makes_no_difference(name: str, model: str) -> None:
    array = StructPageArray(FORMS[name], COUNT)
    fill(array)
    selection = select(array, 31, model=model)
    assert list_dropped(selection) == expect(31)
    assert selection.notes == ()


def test_what_the_level_keeps_is_written_last() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    fill(array)
    assert set(list_worth(select(array, 0), V.USER_KEPT)) == FREE | CACHE | PRIVATE_CACHE | USER


@pytest.mark.parametrize("size", [56, 64, 80, 96])
def test_struct_page_of_any_size_even_across_pages(size: int) -> None:
    form = FORMS["6.12"].__class__(**{**FORMS["6.12"].__dict__, "size": size})
    array = StructPageArray(form, COUNT)
    fill(array)
    assert list_dropped(select(array, 31)) == expect(31)


@pytest.mark.parametrize("bits", [22, 24, 30])
def test_blocks_reach_across_the_kernels_own_sections(bits: int) -> None:
    array = StructPageArray(FORMS["6.1"], 8192)
    array.free(2048, 11 - 1)
    array.hugetlb(4096, 12)
    selection = select(array, 24, section_bits=bits)
    assert list_dropped(selection) == {*range(2048, 3072), *range(4096, 8192)}


@pytest.mark.parametrize("level", [8, 0])
def test_hugetlb_page_of_1_gib_spans_eight_units(level: int) -> None:
    form = FORMS["6.12"]
    arrays = [StructPageArray(form, 64, 0x40000), StructPageArray(form, 64, 0x48000), StructPageArray(form, 8, 0x80000)]
    arrays[0].hugetlb(0x40000, 18)
    for pfn in range(0x48000, 0x48040):
        arrays[1].set_word(pfn, 8, arrays[0].vaddr + 0x40000 * 64 | 1)
    selection = select_all(arrays, level)
    everything = {pfn for array in arrays[:2] for pfn in range(array.first, array.first + 64)}
    if level:
        assert list_dropped(selection) == everything
    else:
        assert list_dropped(selection) == set()
        assert set(list_worth(selection, V.USER_KEPT)) == everything
    assert list_worth(selection, V.KERNEL) == list(range(0x80000, 0x80008))


def test_copies_of_a_hugetlb_pages_head_are_not_complained_about() -> None:
    # hugetlb_vmemmap_optimize() maps the first page of struct pages again in place of the others.
    array = StructPageArray(FORMS["6.1"], COUNT)
    array.hugetlb(512, 9)
    first = bytes(array.data[array.at(512) : array.at(576)])
    for pfn in range(576, 1024, 64):
        array.data[array.at(pfn) : array.at(pfn + 64)] = first
    assert list_dropped(select(array, 8)) == set(range(512, 1024))
    assert select(array, 8).notes == ()
    assert select(array, 16).notes == ()
    assert set(list_worth(select(array, 16), V.USER_KEPT)) == set(range(512, 1024))


def test_copies_of_a_huge_hugetlb_pages_head_begin_units_too() -> None:
    form = FORMS["6.1"]
    arrays = [StructPageArray(form, 128, unit << 15) for unit in (8, 9, 15, 16)]
    arrays[0].hugetlb(8 << 15, 18)
    for array in arrays[1:3]:
        array.data[:] = arrays[0].data
    dropped = list_dropped(select_all(arrays, 8))
    assert dropped == {pfn for array in arrays[:3] for pfn in range(array.first, array.first + 128)}
    assert select_all(arrays, 8).notes == ()
    assert list_dropped(select_all(arrays, 16)) == set()


def test_copies_of_the_head_of_a_poisoned_hugetlb_page_that_is_gone_are_dropped_alone() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    array.hugetlb(512, 9)
    array.poison(512)
    for pfn in range(513, 1024):
        array.set_word(pfn, 8, 0)
    first = bytes(array.data[array.at(512) : array.at(576)])
    for pfn in range(576, 1024, 64):
        array.data[array.at(pfn) : array.at(pfn + 64)] = first
    selection = select(array, 31)
    assert list_dropped(selection) == set(range(512, 1024, 64))
    assert selection.notes == ()


def test_unaccepted_memory_is_dropped_with_free_memory() -> None:
    array = StructPageArray(FORMS["6.16"], COUNT)
    array.unaccepted(1024)
    assert list_dropped(select(array, 16)) == set(range(1024, 2048))
    assert select(array, 16).counts[V.UNACCEPTED] == 1024
    assert list_dropped(select(array, 15)) == set()


@pytest.mark.parametrize("name", ["6.12", "7.1"])
def test_poisoned_page_of_a_compound_is_dropped_though_the_rest_is_kept(name: str) -> None:
    array = StructPageArray(FORMS[name], COUNT)
    array.cache(64, 4)
    array.poison(70)
    array.slab(128, 3)
    array.poison(128)
    assert list_dropped(select(array, 8)) == {70, *range(128, 136)}
    selection = select(array, 31)
    assert list_dropped(selection) == {*range(64, 80), *range(128, 136)}
    assert selection.counts[V.CACHE] == 16


def test_page_that_is_cache_and_poisoned_counts_as_cache() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    array.cache(5)
    array.poison(5)
    assert select(array, 2).counts[V.CACHE] == 1
    assert select(array, 8).counts[V.HWPOISON] == 1


def test_swap_cache_needs_swapbacked_as_the_bit_alone_is_another_flag() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    array.set_flag(7, array.form.swapcache)
    array.set_flag(8, array.form.swapbacked)
    assert list_dropped(select(array, 31)) == set()


def _bad_free_order(array: StructPageArray) -> set[int]:
    array.free(8, 11)
    array.free(16, (1 << 63) + 2)
    return {8, 16}


def _misaligned_free_block(array: StructPageArray) -> set[int]:
    array.free(4, 3)
    return {4}


def _misaligned_compound(array: StructPageArray) -> set[int]:
    array.cache(4, 3)
    return {4}


def _compound_without_tails(array: StructPageArray) -> set[int]:
    array.cache(64, 4)
    for pfn in range(65, 80):
        array.set_word(pfn, 8, 0)
    return {64}


def _compound_of_impossible_order(array: StructPageArray) -> set[int]:
    array.cache(0, 3)
    array.set_byte(1, 0, 63)
    return {0}


@pytest.mark.parametrize(
    "damage",
    [
        _bad_free_order,
        _misaligned_free_block,
        _misaligned_compound,
        _compound_without_tails,
        _compound_of_impossible_order,
    ],
)
def test_block_whose_order_cannot_be_right_is_kept_and_counted(damage: Callable[[StructPageArray], set[int]]) -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    doubtful = damage(array)
    array.anon(2000)
    selection = select(array, 31)
    assert list_dropped(selection) == {2000}
    assert set(list_worth(selection, V.UNKNOWN)) == doubtful
    assert selection.notes == (f"{len(doubtful)} compounds or free blocks of an impossible order: they are kept",)


def test_struct_pages_that_the_dump_does_not_hold_keep_their_pages() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    for pfn in range(COUNT):
        array.anon(pfn)
    machine = Machine([array])
    dump, kernel = machine.build()
    lost = int(kernel.translate(array.vaddr + PAGE)) // PAGE  # type: ignore[arg-type]
    dump.states[lost] = PageState.LOST
    selection = select_pages(dump, kernel, 31)
    assert list_dropped(selection) == set(range(COUNT)) - set(range(64, 128))
    assert list_worth(selection, V.UNKNOWN) == list(range(64, 128))
    assert selection.notes == ("64 pages whose struct page cannot be read: they are kept",)


def test_compound_whose_second_struct_page_is_lost_is_kept() -> None:
    form = FORMS["6.12"].__class__(**{**FORMS["6.12"].__dict__, "size": 128})
    array = StructPageArray(form, COUNT)
    array.cache(62, 1)
    array.cache(32, 6 - 1)
    machine = Machine([array])
    dump, kernel = machine.build()
    dump.states[int(kernel.translate(array.vaddr + PAGE)) // PAGE] = PageState.LOST  # type: ignore[arg-type]
    assert list_dropped(select_pages(dump, kernel, 31)) == {62, 63} - set(range(32, 64))


def test_frames_without_a_struct_page_are_kept() -> None:
    array = StructPageArray(FORMS["6.12"], 64)
    array.anon(3)
    selection = select(array, 31, runs=[(0, 64), (0x18000, 0x18010)])
    assert list_dropped(selection) == {3}
    assert list_worth(selection, V.UNKNOWN) == list(range(0x18000, 0x18010))
    assert selection.notes == ("16 pages that no struct page describes: they are kept",)


def test_struct_pages_of_frames_that_are_no_ram_decide_nothing() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    array.free(0, 10)
    array.anon(2048)
    selection = select(array, 31, runs=[(512, 1024), (2000, 2100)])
    assert list_dropped(selection) == {2048}
    assert selection.ram.count == 612


def test_garbage_in_all_struct_pages_ends_and_keeps_the_counts_right() -> None:
    array = StructPageArray(FORMS["6.1"], 32768)
    array.data[:] = np.random.default_rng(7).integers(0, 256, len(array.data), dtype=np.uint8).tobytes()
    selection = select(array, 31)
    assert sum(selection.counts.values()) == 32768
    assert selection.kept.count == sum(count for verdict, count in selection.counts.items() if verdict < 16)


@pytest.mark.parametrize("pattern", [b"\xff", b"\x00"])
def test_poisoned_struct_pages_drop_nothing(pattern: bytes) -> None:
    # page_init_poison() fills the struct pages of memory that is not online with ones.
    array = StructPageArray(FORMS["6.1"], COUNT)
    array.data[:] = pattern * len(array.data)
    assert list_dropped(select(array, 31)) <= (set(range(COUNT)) if pattern == b"\xff" else set())


def test_without_a_kernel_all_pages_are_kept_and_a_note_says_why() -> None:
    dump, kernel = Machine([StructPageArray(FORMS["6.1"], 64)]).build()
    selection = select_pages(dump, None, 31)
    assert selection.kept.count == 64
    assert selection.counts == {V.UNKNOWN: 64}
    assert selection.notes == ("all pages are kept: the kernel in the dump is not known",)
    del kernel.vmcoreinfo.entries["SIZE(page)"]
    assert select_pages(dump, kernel, 31).notes == ("all pages are kept: VMCOREINFO has no SIZE(page)",)


def test_missing_entry_keeps_what_its_bit_would_drop() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    fill(array)
    selection = select(array, 31, drop=("OFFSET(page.private)",))
    assert list_dropped(selection) == expect(15)
    assert selection.notes == ("level 16 is not applied, VMCOREINFO has no OFFSET(page.private)",)


def test_pages_that_the_source_lacks_are_not_kept() -> None:
    array = StructPageArray(FORMS["6.12"], COUNT)
    array.anon(5)
    dump, kernel = Machine([array]).build()
    dump.states |= {3: PageState.EXCLUDED, 4: PageState.HOLE, 5: PageState.EXCLUDED, 6: PageState.LOST}
    description = dump.description
    dump.description = type(description)(
        "test", ("test",), "x86_64", "little", PAGE, 0, vmcoreinfo=description.vmcoreinfo, is_paged=True
    )
    selection = select_pages(dump, kernel, 31)
    assert list_dropped(selection) == {3, 4, 5}
    assert selection.counts[V.NOT_IN_SOURCE] == 3
    assert selection.kept.contains(np.array([6], dtype=np.uint64)).all()


def test_address_space_that_no_bitmap_can_hold_is_refused() -> None:
    dump, kernel = Machine([StructPageArray(FORMS["6.1"], 64)], runs=[(0, 64), (1 << 40, (1 << 40) + 1)]).build()
    with pytest.raises(UnsupportedError, match="needs bitmaps of"):
        select_pages(dump, kernel, 31)


def test_threads_make_the_same_selection_and_progress_rises() -> None:
    form = FORMS["6.12"]
    arrays = [StructPageArray(form, 128, unit << 15) for unit in range(40)]
    for array in arrays:
        array.anon(array.first + 3)
        array.free(array.first + 64, 6)
    dump, kernel = Machine(arrays).build()
    seen: list[tuple[int, int]] = []
    one = select_pages(dump, kernel, 31, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (one.ram.limit, one.ram.limit)
    assert len(list_dropped(one)) == 40 * 65
    for threads, memory in ((2, 64 << 20), (4, 64 << 20), (4, 4 << 20)):
        other = select_pages(dump, kernel, 31, threads=threads, memory_limit_bytes=memory)
        assert (other.kept.bits == one.kept.bits).all()
        assert other.counts == one.counts


@pytest.mark.parametrize("form", FORMS)
def test_units_read_in_slices_make_the_same_selection(form: str) -> None:
    array = StructPageArray(FORMS[form], 1 << 17)
    fill(array)
    # Blocks that begin in one slice and end in another, and one that a slice ends in the middle of.
    array.hugetlb(1 << 15, 15)
    array.anon(8192 - 32, 5)
    array.free(8192 + 1024, 10)
    array.cache((1 << 16) - 512, 9)
    array.free(1 << 14, 10)
    dump, kernel = Machine([array]).build()
    whole = select_pages(dump, kernel, 31)
    for memory in (3 << 20, 0):
        sliced = select_pages(dump, kernel, 31, memory_limit_bytes=memory)
        assert (sliced.kept.bits == whole.kept.bits).all()
        assert sliced.counts == whole.counts
        assert sliced.notes == whole.notes


def test_mapping_of_a_slab_is_not_taken_for_anonymous_memory() -> None:
    for name in FORMS:
        array = StructPageArray(FORMS[name], COUNT)
        array.slab(8, 2)
        array.set_word(8, MAPPING, (1 << 64) - 1)
        array.set_word(8, PRIVATE, 3)
        assert list_dropped(select(array, 31)) == set(), name
