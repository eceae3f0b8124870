"""
How a kernel describes its page frames: the layout of ``struct page``, as VMCOREINFO tells it.

Every decision asks whether an entry is there, never which version the kernel
has: distributions backport. Where a form changed, the newest is asked for first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.pages.verdict import DumpLevel

__all__ = ["PageLayout", "PageType", "decode_page_type", "find_page_layout"]

_U32 = 0xFFFF_FFFF
_TOP_BYTE = 0xFF00_0000
_MIN_PAGE_BYTES, _MAX_PAGE_BYTES = 32, 512
_MAX_FREE_ORDERS = 64

_OLD_TYPE_BASE = 0xF000_0000
_NEW_TYPE_BASE = 0x8000_0000


@dataclass(frozen=True, slots=True)
class PageType:
    """A test for one page type: ``_mapcount & mask == value``, as ``unsigned int``."""

    mask: int
    value: int

    @property
    def is_below_none(self) -> bool:
        """Whether all pages of the type have, as ``int``, less than -1 there, which is what pages of no type have."""
        return bool(self.value >> 31 and self.mask & ~self.value)

    def matches(self, types: NDArray[np.uint32] | NDArray[np.uint8]) -> NDArray[np.bool_]:
        """
        Tell which pages are of the type.

        Parameters
        ----------
        types : ndarray of uint32 or uint8
            ``_mapcount``, which shares its place with ``page_type``; or its top
            byte, for a test of that byte alone.
        """
        if types.dtype == np.uint8:
            return np.asarray(types == np.uint8(self.value >> 24))
        return np.asarray(types & np.uint32(self.mask) == np.uint32(self.value))


def decode_page_type(number: int) -> PageType:
    """
    Make the test that belongs to an exported ``PAGE_*_MAPCOUNT_VALUE``.

    Three encodings exist (``include/linux/page-flags.h``):

    - up to 6.10 the type's bit is cleared in -1 (6e292b9be7f4, "mm: split
      page_type out from _mapcount"); the upper four bits say that it is a type;
    - 6.11 has the bits at the top, and uses the low 16 bits for other things
      (8db00ad56461, "mm: allow reuse of the lower 16 bit of the page type with
      an actual type"); only bit 31 says that it is a type;
    - since 6.12 the top byte is a number, and the low 24 bits are the type's own
      (4ffca5a96678, "mm: support only one page type per page").

    >>> decode_page_type(-129)
    PageType(mask=4026531968, value=4026531840)
    >>> decode_page_type(-268435456)
    PageType(mask=4278190080, value=4026531840)
    """
    value = number & _U32
    if value & 0x00FF_FFFF == 0 and value >> 28 == 0xF:
        return PageType(_TOP_BYTE, value)
    cleared = ~value & _U32
    if cleared and cleared & (cleared - 1) == 0 and value >> 31:
        base = _NEW_TYPE_BASE if cleared >= 1 << 16 else _OLD_TYPE_BASE
        return PageType(base | cleared, base)
    return PageType(_U32, value)


def _derive_table_types(buddy: int) -> tuple[PageType, ...]:
    """
    Give the types of page tables, which no kernel exports, by the encoding of another type.

    Where a type's bit is cleared, tables have 0x200; up to 5.10 that was for
    pages of a memory cgroup, and tables had 0x400 (18b2db3b0385, "mm: Convert page
    kmemcg type to a page memcg flag"), which is since then for guard pages, that a
    kernel with debug_guardpage has. It decides of the worth alone, so both are taken.
    """
    tables = {0xFFFF_FF7F: (0xFFFF_FDFF, 0xFFFF_FBFF), 0xBFFF_FFFF: (0xEFFF_FFFF,), 0xF000_0000: (0xF200_0000,)}
    return tuple(decode_page_type(number) for number in tables.get(buddy & _U32, ()))


@dataclass(frozen=True, slots=True)
class PageLayout:
    """
    Where to find in a ``struct page`` what tells its use.

    Offsets are in bytes from its start; masks are of ``flags``, 0 where the
    kernel has no such flag; a type that the kernel does not have is None.
    """

    size_bytes: int
    """``sizeof(struct page)``."""
    flags: int
    mapping: int | None
    mapcount: int | None
    private: int | None
    head: int | None
    """Of ``compound_head``, since 7.1 ``compound_info``: in both, bit 0 says tail page."""
    order: int
    """From the start of the first tail page: one byte, the order of the compound."""
    lru_mask: int = 0
    private_mask: int = 0
    swapcache_mask: int = 0
    swapbacked_mask: int = 0
    slab_mask: int = 0
    hwpoison_mask: int = 0
    head_mask: int = 0
    buddy: PageType | None = None
    offline: PageType | None = None
    slab: PageType | None = None
    tables: tuple[PageType, ...] = ()
    """Types of page tables."""
    unaccepted: PageType | None = None
    hugetlb: PageType | None = None
    hugetlb_tail_mask: int = 0
    """In ``flags`` of the first tail page."""
    hugetlb_dtor: tuple[int, int] | None = None
    """Offset of a byte in the first tail page, and its value for hugetlb."""
    free_orders: int | None = None
    """``NR_PAGE_ORDERS``: free blocks are of lower orders than this."""
    missing: Mapping[DumpLevel, tuple[str, ...]] = field(default_factory=dict)
    """Entries that a bit of the level needs and VMCOREINFO does not have."""
    notes: tuple[str, ...] = ()

    @property
    def all_flags(self) -> int:
        """All bits of ``flags`` that are ever asked for."""
        masks = (self.lru_mask, self.private_mask, self.swapcache_mask, self.swapbacked_mask, self.slab_mask)
        return reduce(or_, masks, self.hwpoison_mask | self.head_mask | self.hugetlb_tail_mask)

    @property
    def has_byte_types(self) -> bool:
        """Whether the top byte of ``_mapcount`` alone tells all types."""
        kinds = (self.buddy, self.offline, self.slab, self.unaccepted, self.hugetlb, *self.tables)
        return all(kind.mask == _TOP_BYTE for kind in kinds if kind is not None)

    def limit_level(self, level: int) -> tuple[DumpLevel, tuple[str, ...]]:
        """Take the bits away from a dump level that cannot be applied; say why, one phrase each."""
        result, notes = DumpLevel(level & 31), list(self.notes)
        for bit, entries in self.missing.items():
            if result & bit:
                result &= ~bit
                notes.append(f"level {int(bit)} is not applied, VMCOREINFO has no {' and no '.join(entries)}")
        return result, tuple(notes)


class _Entries:
    """VMCOREINFO with entries that somebody else supplied."""

    def __init__(self, info: Vmcoreinfo, extra: Mapping[str, int]) -> None:
        self._info, self._extra = info, extra

    def offset(self, member: str) -> int | None:
        found = self._info.get_offset(member)
        return self._extra.get(f"OFFSET({member})") if found is None else found

    def number(self, name: str) -> int | None:
        found = self._info.get_number(name)
        return self._extra.get(f"NUMBER({name})") if found is None else found

    def size(self, name: str) -> int | None:
        found = self._info.get_size(name)
        return self._extra.get(f"SIZE({name})") if found is None else found

    def length(self, name: str) -> int | None:
        found = self._info.get_length(name)
        return self._extra.get(f"LENGTH({name})") if found is None else found

    def flag(self, name: str) -> int:
        bit = self.number(name)
        if bit is None:
            return 0
        if not 0 <= bit < 64:
            raise CorruptError(f"VMCOREINFO entry NUMBER({name}) is {bit}, must be a bit of a 64-bit word")
        return 1 << bit

    def type(self, name: str) -> PageType | None:
        number = self.number(f"PAGE_{name}_MAPCOUNT_VALUE")
        return None if number is None else decode_page_type(number)

    def member(self, name: str, size_bytes: int, page_bytes: int) -> int | None:
        offset = self.offset(name)
        if offset is not None and not 0 <= offset <= page_bytes - size_bytes:
            raise CorruptError(f"VMCOREINFO entry OFFSET({name}) is {offset}, beyond struct page of {page_bytes} bytes")
        return offset


def find_page_layout(vmcoreinfo: Vmcoreinfo, extra: Mapping[str, int] | None = None) -> PageLayout:
    """
    Find the layout of ``struct page``.

    Parameters
    ----------
    vmcoreinfo : Vmcoreinfo
        The kernel's entries.
    extra : mapping of str to int, optional
        Entries from elsewhere (BTF, say), such as ``OFFSET(page.private)``,
        which count where VMCOREINFO has none.

    Raises
    ------
    FactAbsentError
        If nothing can be told of any page: ``SIZE(page)`` or ``OFFSET(page.flags)`` is missing.
    CorruptError
        If an entry has a value that no kernel has.
    """
    entries = _Entries(vmcoreinfo, extra or {})
    size, flags = _find_basics(entries)
    # 7.1 renamed it, as it may hold a mask instead of a pointer; bit 0 has stayed (f50c015 in makedumpfile).
    head = entries.member("page.compound_info", 8, size)
    if head is None:
        head = entries.member("page.compound_head", 8, size)
    buddy = entries.number("PAGE_BUDDY_MAPCOUNT_VALUE")
    head_mask = (entries.number("PG_head_mask") or 0) & (1 << 64) - 1
    hugetlb = entries.type("HUGETLB")
    return PageLayout(
        size_bytes=size,
        flags=flags,
        mapping=entries.member("page.mapping", 8, size),
        mapcount=entries.member("page._mapcount", 4, size),
        private=entries.member("page.private", 8, size),
        head=head,
        order=_find_order(entries, flags, size),
        lru_mask=entries.flag("PG_lru"),
        private_mask=entries.flag("PG_private"),
        swapcache_mask=entries.flag("PG_swapcache"),
        swapbacked_mask=entries.flag("PG_swapbacked"),
        slab_mask=entries.flag("PG_slab"),
        hwpoison_mask=entries.flag("PG_hwpoison"),
        head_mask=head_mask,
        buddy=None if buddy is None else decode_page_type(buddy),
        offline=entries.type("OFFLINE"),
        slab=entries.type("SLAB"),
        tables=() if buddy is None else _derive_table_types(buddy),
        unaccepted=entries.type("UNACCEPTED"),
        hugetlb=hugetlb,
        hugetlb_tail_mask=0 if hugetlb else entries.flag("PG_hugetlb"),
        hugetlb_dtor=_find_dtor(entries, size) if hugetlb is None else None,
        free_orders=_find_free_orders(entries),
        missing=_find_missing(entries, head_mask),
        notes=_list_notes(entries),
    )


def _find_basics(entries: _Entries) -> tuple[int, int]:
    """Find what nothing can be told without: the size of ``struct page`` in bytes, and the offset of its flags."""
    size = entries.size("page")
    if size is None:
        raise FactAbsentError("VMCOREINFO has no SIZE(page)")
    if not _MIN_PAGE_BYTES <= size <= _MAX_PAGE_BYTES or size % 8:
        raise CorruptError(
            f"VMCOREINFO entry SIZE(page) is {size}, must be {_MIN_PAGE_BYTES} to {_MAX_PAGE_BYTES} in steps of 8"
        )
    flags = entries.member("page.flags", 8, size)
    if flags is None:
        raise FactAbsentError("VMCOREINFO has no OFFSET(page.flags)")
    return size, flags


def _find_free_orders(entries: _Entries) -> int | None:
    """Find how many orders of free blocks there are (``NR_PAGE_ORDERS``)."""
    orders = entries.length("zone.free_area")
    if orders is not None and not 0 < orders <= _MAX_FREE_ORDERS:
        raise CorruptError(f"VMCOREINFO entry LENGTH(zone.free_area) is {orders}, must be 1 to {_MAX_FREE_ORDERS}")
    return orders


def _find_order(entries: _Entries, flags: int, size: int) -> int:
    """
    Find the byte of the first tail page that holds the compound's order.

    Since 6.6 it is the lowest of ``flags`` (ebc1baf5c9b4, "mm: free up a word in
    the first tail page"), and no entry says so but those for hugetlb, which a
    kernel without hugetlb does not have: it is what is left when no entry is
    there. An order is believed only where tail pages bear it out. 6.3 to 6.5 call it
    ``folio._folio_order`` (1c5509be58f6), earlier kernels ``page.compound_order``.
    """
    if entries.number("PAGE_HUGETLB_MAPCOUNT_VALUE") is not None or entries.number("PG_hugetlb") is not None:
        return flags
    folio = _second_page_member(entries, "folio._folio_order", size)
    if folio is not None:
        return folio
    old = entries.member("page.compound_order", 1, size)
    return flags if old is None else old


def _find_dtor(entries: _Entries, size: int) -> tuple[int, int] | None:
    """Find the byte of the first tail page that tells what frees the compound (up to 6.5)."""
    value = entries.number("HUGETLB_PAGE_DTOR")
    offset = _second_page_member(entries, "folio._folio_dtor", size)
    if offset is None:
        offset = entries.member("page.compound_dtor", 1, size)
    return None if value is None or offset is None else (offset, value & 0xFF)


def _second_page_member(entries: _Entries, name: str, size: int) -> int | None:
    offset = entries.offset(name)
    if offset is not None and not size <= offset < 2 * size:
        raise CorruptError(f"VMCOREINFO entry OFFSET({name}) is {offset}, must be in the second of {size} bytes")
    return None if offset is None else offset - size


def _find_missing(entries: _Entries, head_mask: int) -> dict[DumpLevel, tuple[str, ...]]:
    """List for each bit of the level the entries that it needs and that are not there."""

    def offsets(*names: str) -> list[str]:
        return [f"OFFSET({name})" for name in names if entries.offset(name) is None]

    def numbers(*names: str) -> list[str]:
        return [f"NUMBER({name})" for name in names if entries.number(name) is None]

    tails = []
    if entries.offset("page.compound_info") is None and entries.offset("page.compound_head") is None:
        tails.append("OFFSET(page.compound_head)")
    heads = [] if head_mask else ["NUMBER(PG_head_mask)"]
    # Slabs share their place with mapping, and with _mapcount in kernels where they are no page type.
    slabs = []
    if entries.number("PG_slab") is None and entries.number("PAGE_SLAB_MAPCOUNT_VALUE") is None:
        slabs.append("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)")
    cache = [*tails, *heads, *offsets("page.mapping"), *numbers("PG_lru")]
    needs = {
        DumpLevel.CACHE: [*cache, *numbers("PG_private")],
        DumpLevel.CACHE_PRIVATE: cache,
        DumpLevel.USER: [*tails, *heads, *offsets("page.mapping"), *slabs],
        DumpLevel.FREE: [
            *tails,
            *offsets("page._mapcount", "page.private"),
            *numbers("PAGE_BUDDY_MAPCOUNT_VALUE"),
            *slabs,
        ],
    }
    return {bit: tuple(names) for bit, names in needs.items() if names}


def _list_notes(entries: _Entries) -> tuple[str, ...]:
    if entries.number("PAGE_OFFLINE_MAPCOUNT_VALUE") is None or entries.offset("page._mapcount") is None:
        return ("pages that are logically offline cannot be told: VMCOREINFO lacks what marks them",)
    return ()
