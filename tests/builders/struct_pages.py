"""
Build arrays of ``struct page`` as kernels from 5.10 to 7.x have them.

Written from ``include/linux/mm_types.h``, ``include/linux/page-flags.h`` and
what ``kernel/vmcore_info.c`` (before 6.9 ``kernel/crash_core.c``) exports of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from tests.builders.vmcoreinfo import VmcoreinfoBuilder

POISON = 0xDEAD000000000122
FLAGS, HEAD, MAPPING, PRIVATE, MAPCOUNT, REFCOUNT = 0, 8, 24, 40, 48, 52


@dataclass(frozen=True)
class PageForm:
    """How one range of kernel versions lays a page out; *order*, *hugetlb* and *slab* name where each is kept."""

    name: str
    lru: int = 4
    private: int = 13
    swapcache: int = 10
    swapbacked: int = 19
    head: int = 16
    slab_flag: int | None = 9
    hwpoison: int | None = 23
    buddy: int = -129
    offline: int = -257
    table: int = -513
    slab: int | None = None
    hugetlb: int | None = None
    unaccepted: int | None = None
    order: str = "page.compound_order"
    hugetlb_kind: str = "dtor"
    hugetlb_flag: int = 8
    tail: str = "compound_head"
    size: int = 64


_OLD = PageForm("5.10", table=-1025)
_V63 = replace(_OLD, name="6.3", table=-513, order="folio._folio_order", hugetlb_kind="folio-dtor")
_V66 = replace(_V63, name="6.6", order="flags", hugetlb_kind="flag")
_V69 = replace(_V66, name="6.9", hugetlb_kind="type", hugetlb=-2049)
_V610 = replace(_V69, name="6.10", slab_flag=None, slab=-4097)
_V611 = replace(
    _V610,
    name="6.11",
    lru=5,
    private=14,
    swapbacked=17,
    head=6,
    hwpoison=20,
    buddy=~0x40000000,
    offline=~0x20000000,
    table=~0x10000000,
    hugetlb=~0x04000000,
    slab=~0x02000000,
)
_V612 = replace(
    _V611,
    name="6.12",
    buddy=(0xF0 << 24) - (1 << 32),
    offline=(0xF1 << 24) - (1 << 32),
    table=(0xF2 << 24) - (1 << 32),
    hugetlb=(0xF4 << 24) - (1 << 32),
    slab=(0xF5 << 24) - (1 << 32),
)
_V616 = replace(_V612, name="6.16", unaccepted=(0xF7 << 24) - (1 << 32))
_V71 = replace(_V616, name="7.1", hwpoison=21, tail="compound_info")

FORMS = {
    form.name: form
    for form in (_OLD, replace(_OLD, name="6.1", table=-513), _V63, _V66, _V69, _V610, _V611, _V612, _V616, _V71)
}

FOLIO_DTOR, FOLIO_ORDER = 80, 81
COMPOUND_DTOR, COMPOUND_ORDER = 16, 17
HUGETLB_DTOR, COMPOUND_PAGE_DTOR = 2, 1
FREE_ORDERS = 11


def add_entries(info: VmcoreinfoBuilder, form: PageForm) -> VmcoreinfoBuilder:
    """Add what such a kernel exports of struct page."""
    info.size("page", form.size).offset("page.flags", FLAGS).offset("page._refcount", REFCOUNT)
    info.offset("page.mapping", MAPPING).offset("page._mapcount", MAPCOUNT).offset("page.private", PRIVATE)
    info.offset(f"page.{form.tail}", HEAD).length("zone.free_area", FREE_ORDERS)
    if form.order == "page.compound_order":
        info.offset("page.compound_dtor", COMPOUND_DTOR).offset("page.compound_order", COMPOUND_ORDER)
    elif form.order == "folio._folio_order":
        info.offset("folio._folio_dtor", FOLIO_DTOR).offset("folio._folio_order", FOLIO_ORDER)
    for name, bit in (
        ("lru", form.lru),
        ("private", form.private),
        ("swapcache", form.swapcache),
        ("swapbacked", form.swapbacked),
        ("slab", form.slab_flag),
        ("hwpoison", form.hwpoison),
        ("head_mask", 1 << form.head),
        ("hugetlb", form.hugetlb_flag if form.hugetlb_kind == "flag" else None),
    ):
        if bit is not None:
            info.number(f"PG_{name}", bit)
    if form.hugetlb_kind in {"dtor", "folio-dtor"}:
        info.number("HUGETLB_PAGE_DTOR", HUGETLB_DTOR)
    for name, number in (
        ("BUDDY", form.buddy),
        ("OFFLINE", form.offline),
        ("SLAB", form.slab),
        ("HUGETLB", form.hugetlb),
        ("UNACCEPTED", form.unaccepted),
    ):
        if number is not None:
            info.number(f"PAGE_{name}_MAPCOUNT_VALUE", number)
    return info


@dataclass
class StructPageArray:
    """The struct pages of the frames ``[first, first + count)``; all are the kernel's own to begin with."""

    form: PageForm
    count: int
    first: int = 0
    vaddr: int = 0xFFFFEA0000000000
    """Of the struct page of frame 0."""
    data: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.data = bytearray(self.form.size * self.count)
        for pfn in range(self.first, self.first + self.count):
            self.set_mapcount(pfn, -1)

    def at(self, pfn: int) -> int:
        return (pfn - self.first) * self.form.size

    def set_word(self, pfn: int, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.data, self.at(pfn) + offset, value & (1 << 64) - 1)

    def get_word(self, pfn: int, offset: int) -> int:
        return int(struct.unpack_from("<Q", self.data, self.at(pfn) + offset)[0])

    def set_byte(self, pfn: int, offset: int, value: int) -> None:
        self.data[self.at(pfn) + offset] = value

    def set_mapcount(self, pfn: int, value: int) -> None:
        struct.pack_into("<I", self.data, self.at(pfn) + MAPCOUNT, value & 0xFFFFFFFF)

    def set_flag(self, pfn: int, bit: int) -> None:
        self.set_word(pfn, FLAGS, self.get_word(pfn, FLAGS) | 1 << bit)

    def compound(self, pfn: int, order: int, *, hugetlb: bool = False) -> None:
        """``prep_compound_page()``, and what hugetlb adds to it; tails beyond the array are left out."""
        form = self.form
        if not order:
            return
        self.set_flag(pfn, form.head)
        for tail in range(pfn + 1, min(pfn + (1 << order), self.first + self.count)):
            self.set_word(tail, MAPPING, 0xDEAD000000000400)
            if form.tail == "compound_info":
                self.set_word(tail, HEAD, -(form.size << order) | 1)
            else:
                self.set_word(tail, HEAD, self.vaddr + pfn * form.size | 1)
        second = pfn + 1
        if form.tail == "compound_info":
            # The word at the place of mapping counts mappings of a large folio, from -1 on.
            self.set_word(second, MAPPING, 0xFFFFFFFF)
        if form.order == "flags":
            self.set_word(second, FLAGS, self.get_word(second, FLAGS) & ~0xFF | order)
            if hugetlb and form.hugetlb_kind == "flag":
                self.set_flag(second, form.hugetlb_flag)
        elif form.order == "folio._folio_order":
            self.set_byte(pfn, FOLIO_ORDER, order)
            self.set_byte(pfn, FOLIO_DTOR, HUGETLB_DTOR if hugetlb else COMPOUND_PAGE_DTOR)
        else:
            self.set_byte(second, COMPOUND_ORDER, order)
            self.set_byte(second, COMPOUND_DTOR, HUGETLB_DTOR if hugetlb else COMPOUND_PAGE_DTOR)
        if hugetlb and form.hugetlb is not None:
            self.set_mapcount(pfn, form.hugetlb)

    def free(self, pfn: int, order: int) -> None:
        self.set_mapcount(pfn, self.form.buddy)
        self.set_word(pfn, PRIVATE, order)

    def slab(self, pfn: int, order: int = 0) -> None:
        self.compound(pfn, order)
        if self.form.slab is not None:
            self.set_mapcount(pfn, self.form.slab)
        else:
            self.set_flag(pfn, self.form.slab_flag or 0)
            # Objects in use, at the place of _mapcount.
            self.set_mapcount(pfn, self.form.buddy & 0xFFFFFFFF)
        # A pointer or a count of the slab's own at the place of mapping.
        self.set_word(pfn, MAPPING, 0x8001000F)

    def cache(self, pfn: int, order: int = 0, *, private: bool = False) -> None:
        self.compound(pfn, order)
        self.set_flag(pfn, self.form.lru)
        self.set_word(pfn, MAPPING, 0xFFFF888000123400)
        if private:
            self.set_flag(pfn, self.form.private)
            self.set_word(pfn, PRIVATE, 0xFFFF888000567800)

    def swap_cache(self, pfn: int) -> None:
        """Shared memory on its way to swap, taken from the LRU list."""
        self.set_flag(pfn, self.form.swapcache)
        self.set_flag(pfn, self.form.swapbacked)
        self.set_word(pfn, MAPPING, 0xFFFF888000123400)

    def anon(self, pfn: int, order: int = 0, *, ksm: bool = False, lru: bool = True) -> None:
        self.compound(pfn, order)
        if lru:
            self.set_flag(pfn, self.form.lru)
        self.set_flag(pfn, self.form.swapbacked)
        self.set_word(pfn, MAPPING, 0xFFFF888000123400 | (3 if ksm else 1))
        self.set_mapcount(pfn, 0)

    def hugetlb(self, pfn: int, order: int) -> None:
        self.compound(pfn, order, hugetlb=True)

    def table(self, pfn: int) -> None:
        self.set_mapcount(pfn, self.form.table)

    def offline(self, pfn: int) -> None:
        self.set_mapcount(pfn, self.form.offline)

    def unaccepted(self, pfn: int) -> None:
        self.set_mapcount(pfn, self.form.unaccepted or 0)

    def poison(self, pfn: int) -> None:
        self.set_flag(pfn, self.form.hwpoison or 0)
