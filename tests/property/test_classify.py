"""Random struct pages, judged against the rules written out one page at a time."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.pages.classify import select_pages
from tests.builders.struct_pages import (
    COMPOUND_DTOR,
    COMPOUND_ORDER,
    FLAGS,
    FORMS,
    FREE_ORDERS,
    HEAD,
    HUGETLB_DTOR,
    MAPCOUNT,
    MAPPING,
    PRIVATE,
    PageForm,
    StructPageArray,
)
from tests.unit.pages.machines import MODELS, Machine, list_dropped

COUNT = 512


@dataclass
class Page:
    flags: int
    head: int
    mapping: int
    private: int
    mapcount: int
    raw: bytes


def read_pages(array: StructPageArray) -> list[Page]:
    pages = []
    for number in range(array.count):
        raw = bytes(array.data[number * array.form.size : (number + 1) * array.form.size])
        flags, head, mapping, private = (
            int(struct.unpack_from("<Q", raw, offset)[0]) for offset in (FLAGS, HEAD, MAPPING, PRIVATE)
        )
        pages.append(Page(flags, head, mapping, private, int(struct.unpack_from("<I", raw, MAPCOUNT)[0]), raw))
    return pages


def has_type(form: PageForm, page: Page, number: int | None) -> bool:
    if number is None:
        return False
    value = number & 0xFFFFFFFF
    if form.name in {"6.12", "6.16", "7.1"}:
        return page.mapcount >> 24 == value >> 24
    base = 0x80000000 if form.name == "6.11" else 0xF0000000
    return page.mapcount & (base | ~value & 0xFFFFFFFF) == base


def read_compound(form: PageForm, pages: list[Page], pfn: int) -> tuple[int, bool]:
    """Give order and whether it is hugetlb, of a head with a second page."""
    second = pages[pfn + 1]
    if form.order == "page.compound_order":
        return second.raw[COMPOUND_ORDER], second.raw[COMPOUND_DTOR] == HUGETLB_DTOR
    if form.order == "folio._folio_order":
        return second.raw[17], second.raw[16] == HUGETLB_DTOR
    order = second.flags & 0xFF
    if form.hugetlb_kind == "flag":
        return order, bool(second.flags >> form.hugetlb_flag & 1)
    return order, has_type(form, pages[pfn], form.hugetlb)


def find_dropped(array: StructPageArray, level: int) -> set[int]:
    """Decide on one page after the other, as ``__exclude_unnecessary_pages()`` does."""
    form, pages = array.form, read_pages(array)
    dropped: set[int] = set()
    pfn = 0
    while pfn < len(pages):
        wanted, size = judge(form, pages, pfn, level)
        if wanted:
            dropped.update(range(pfn, min(pfn + size, len(pages))))
            pfn += size
        else:
            pfn += 1
    dropped.update(pfn for pfn, page in enumerate(pages) if page.flags >> (form.hwpoison or 0) & 1)
    return dropped


def judge(form: PageForm, pages: list[Page], pfn: int, level: int) -> tuple[bool, int]:
    """Tell whether the block that begins with a page is dropped, and its size."""
    page = pages[pfn]
    if page.head & 1:
        return False, 1
    slab = has_type(form, page, form.slab) if form.slab_flag is None else bool(page.flags >> form.slab_flag & 1)
    free = has_type(form, page, form.buddy) and not (slab and form.slab is None)
    if level & 16 and free:
        fits = page.private < FREE_ORDERS and pfn % (1 << page.private) == 0
        return fits, 1 << page.private if fits else 1
    if level & 16 and has_type(form, page, form.unaccepted):
        return pfn % (1 << FREE_ORDERS - 1) == 0, 1 << FREE_ORDERS - 1
    size, is_hugetlb, is_sound = 1, False, True
    if page.flags >> form.head & 1:
        has_second = pfn + 1 < len(pages) and bool(pages[pfn + 1].head & 1)
        order, is_hugetlb = read_compound(form, pages, min(pfn, len(pages) - 2))
        is_hugetlb = is_hugetlb and (has_second or form.hugetlb is not None)
        last = pages[min(pfn + (1 << order) - 1, len(pages) - 1)] if order <= 40 else page
        is_sound = order == 0 or (order <= 40 and pfn % (1 << order) == 0 and has_second and bool(last.head & 1))
        size = 1 << order if is_sound else 1
    return decide(form, page, level, slab=slab, is_hugetlb=is_hugetlb, is_sound=is_sound), size


def decide(form: PageForm, page: Page, level: int, *, slab: bool, is_hugetlb: bool, is_sound: bool) -> bool:
    """Tell whether a page that is neither tail nor free is dropped."""

    def flag(bit: int | None) -> bool:
        return bit is not None and bool(page.flags >> bit & 1)

    anon = bool(page.mapping & 1) and not slab
    cache = (flag(form.lru) or (flag(form.swapcache) and flag(form.swapbacked))) and not anon
    if (
        (level & 4 and cache)
        or (level & 2 and cache and not flag(form.private))
        or (level & 8 and (anon or is_hugetlb))
    ):
        return is_sound
    return flag(form.hwpoison) or (has_type(form, page, form.offline) and not slab)


KINDS = ("free", "cache", "private", "swap", "anon", "ksm", "slab", "table", "offline", "hugetlb", "compound", "poison")


def populate(array: StructPageArray, seed: int) -> None:
    """Lay blocks of all kinds one after the other, as a kernel would."""
    source = random.Random(seed)
    pfn = 0
    while pfn < array.count:
        order = source.choice((0, 0, 0, 1, 2, 3, 4, 6))
        if pfn % (1 << order) or pfn + (1 << order) > array.count:
            order = 0
        place(array, source.choice(KINDS), pfn, order)
        pfn += 1 << order


def place(array: StructPageArray, kind: str, pfn: int, order: int) -> None:
    if kind in {"free", "cache", "slab", "compound"}:
        getattr(array, kind)(pfn, order)
    elif kind == "private":
        array.cache(pfn, order, private=True)
    elif kind in {"anon", "ksm"}:
        array.anon(pfn, order, ksm=kind == "ksm")
    elif kind == "hugetlb" and order:
        array.hugetlb(pfn, order)
    elif kind == "swap":
        array.swap_cache(pfn)
    elif kind in {"table", "offline", "poison"}:
        getattr(array, kind)(pfn)


def spoil(array: StructPageArray, seed: int, count: int) -> None:
    """Write words, bytes and types where a racing processor or a bad pointer would."""
    source = random.Random(seed)
    form = array.form
    numbers = [number for number in (form.buddy, form.offline, form.slab, form.hugetlb, form.unaccepted) if number]
    for _ in range(count):
        pfn = source.randrange(array.count)
        match source.randrange(5):
            case 0:
                array.set_word(pfn, source.choice((FLAGS, HEAD, MAPPING, PRIVATE)), source.getrandbits(64))
            case 1:
                array.set_flag(pfn, source.choice((form.head, form.lru, form.private, form.swapcache, form.swapbacked)))
            case 2:
                array.set_mapcount(pfn, source.choice(numbers))
            case 3:
                array.set_word(pfn, PRIVATE, source.randrange(12))
            case _:
                array.set_word(pfn, HEAD, 0)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMS)),
    model=st.sampled_from(MODELS),
    level=st.integers(0, 31),
    seed=st.integers(0, 1 << 32),
)
def test_kernels_pages_are_dropped_by_the_rules(name: str, model: str, level: int, seed: int) -> None:
    array = StructPageArray(FORMS[name], COUNT)
    populate(array, seed)
    dump, kernel = Machine([array], model=model).build()
    selection = select_pages(dump, kernel, level)
    assert list_dropped(selection) == find_dropped(array, level)
    assert sum(selection.counts.values()) == COUNT


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMS)),
    level=st.integers(0, 31),
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 60),
)
def test_spoilt_pages_are_dropped_by_the_rules_too(name: str, level: int, seed: int, count: int) -> None:
    array = StructPageArray(FORMS[name], COUNT)
    populate(array, seed)
    spoil(array, seed + 1, count)
    dump, kernel = Machine([array]).build()
    assert list_dropped(select_pages(dump, kernel, level)) == find_dropped(array, level)
