"""
The rules by which a page frame is kept or dropped, in makedumpfile's order.

1. A tail page follows its head.
2. Level 16: a free block, ``1 << private`` pages; then memory not accepted yet.
3. Level 2: page cache without private data; level 4: all page cache.
4. Level 8: anonymous memory and hugetlb pages.
5. Always: poisoned memory, memory that is logically offline.

What is dropped is dropped with its whole compound. Different from makedumpfile:
a compound or free block whose order cannot be right is kept, where makedumpfile
drops the first page of such a compound and as many pages as such a free block
claims; and a poisoned tail page is dropped although its head is kept, as
``memory_failure()`` marks the very page of a compound that it could not split.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.pages.blocks import MAX_ORDER, Blocks, is_aligned
from postpanic.pages.layout import PageLayout, PageType
from postpanic.pages.struct_pages import StructPages
from postpanic.pages.verdict import FIRST_DROPPED, DumpLevel, Verdict

__all__ = ["Judgement", "Rules"]

_Mask = NDArray[np.bool_]
_FEW = 16
"""Where no more than a page of so many has a type, those are looked at alone."""
_NO_ROWS = np.empty(0, dtype=np.int64)
# An enumeration's members are made numpy's anew whenever they are used, which takes longer than using them.
_KERNEL, _UNKNOWN, _HWPOISON = np.uint8(Verdict.KERNEL), np.uint8(Verdict.UNKNOWN), np.uint8(Verdict.HWPOISON)
_TABLE, _SLAB_STEP = np.uint8(Verdict.TABLE), np.uint8(Verdict.KERNEL - Verdict.SLAB)


@dataclass
class Judgement:
    """
    What was found of a run of frames beside their own verdicts.

    Rows count from the first frame of the unit that the run is part of.
    """

    blocks: list[Blocks] = field(default_factory=list)
    poisoned: NDArray[np.int64] = field(default_factory=lambda: _NO_ROWS)
    """Frames with ``PG_hwpoison``, tail pages among them."""
    doubtful: list[NDArray[np.int64]] = field(default_factory=list)
    """First frames of blocks that would be dropped if their order could be right."""
    may_go_on: bool = False
    """Whether a compound might have tail pages beyond the run that it begins in."""

    def extend(self, other: Judgement) -> None:
        """Take in what was found of another run of the same unit."""
        self.blocks.extend(other.blocks)
        self.doubtful.extend(other.doubtful)
        self.poisoned = np.concatenate([self.poisoned, other.poisoned])
        self.may_go_on |= other.may_go_on


class Rules:
    """
    Decides on runs of frames.

    Parameters
    ----------
    level : DumpLevel
        Bits that *layout* allows for.
    """

    def __init__(self, layout: PageLayout, level: DumpLevel) -> None:
        self._layout = layout
        self._level = level
        self._free = np.uint8(Verdict.FREE if level & DumpLevel.FREE else Verdict.USER_KEPT)
        self._user = np.uint8(Verdict.USER if level & DumpLevel.USER else Verdict.USER_KEPT)
        file = level & (DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE)
        self._cache = np.uint8(Verdict.CACHE if file else Verdict.USER_KEPT)
        private = level & DumpLevel.CACHE_PRIVATE
        self._cache_private = np.uint8(Verdict.CACHE_PRIVATE if private else Verdict.USER_KEPT)

    def judge(self, pages: StructPages, offset: int, is_ram: _Mask | None, verdicts: NDArray[np.uint8]) -> Judgement:
        """
        Decide on the frames of a run.

        Parameters
        ----------
        offset : int
            Of the run's first frame in its unit.
        is_ram : ndarray of bool, shape (n,), or None
            False for frames that do not count; None if all do, as where some are not looked at.
        verdicts : ndarray of uint8, shape (m,)
            Receives what the struct page of each frame that is looked at says.
        """
        layout = self._layout
        flags, types = _Flags(pages.flags), _Types(pages.types)
        is_one = ~pages.is_tail
        for mask in (pages.is_known, is_ram):
            if mask is not None:
                is_one &= mask
        slab = flags.find(layout.slab_mask) if layout.slab is None else types.find(layout.slab)
        free = _both(types.find(layout.buddy), is_one)
        if layout.slab is None:
            free = _without(free, slab)
        heads = _Heads(layout, pages, _rows(_both(flags.find(layout.head_mask), is_one)))
        found = Judgement(may_go_on=heads.may_go_on)
        # Of what could be two things, which no page is, the larger verdict is the one that is asked for first.
        _mark_kernel(layout, types, is_one, slab, verdicts)
        self._mark_user(pages, flags, is_one, slab, verdicts)
        _mark(verdicts, free, self._free)
        self._mark_unaccepted(pages, types, is_one, offset, verdicts, found)
        huge = heads.rows[heads.is_hugetlb]
        verdicts[huge] = np.where(verdicts[huge] < FIRST_DROPPED, self._user, verdicts[huge])
        self._mark_always(
            pages, flags, _without(_both(types.find(layout.offline), is_one), slab), offset, verdicts, found
        )
        if free is not None:
            # Where the level keeps free blocks, what else such a page might be decides.
            free &= verdicts == self._free
        self._find_free_blocks(pages, _rows(free), offset, verdicts, found)
        self._find_compounds(heads, free, offset, verdicts, found)
        if pages.is_known is not None:
            verdicts[~pages.is_known] = _UNKNOWN
        return found

    def _mark_user(
        self,
        pages: StructPages,
        flags: _Flags,
        is_one: NDArray[np.bool_],
        slab: _Mask | None,
        verdicts: NDArray[np.uint8],
    ) -> None:
        """
        Mark page cache and anonymous memory.

        ``PG_swapcache`` means something with ``PG_swapbacked`` only: alone, the bit
        is another flag's (6326fec1122c, "mm: Use owner_priv bit for PageSwapCache,
        valid when PageSwapBacked"). ``PAGE_MAPPING_ANON`` is bit 0 of ``mapping``,
        KSM's pages have it too; in a slab the word is something else.
        """
        layout = self._layout
        anon = _without(pages.is_odd & is_one, slab)
        file = flags.find(layout.lru_mask)
        swap = flags.find(layout.swapcache_mask)
        if swap is not None:
            swap = _both(flags.find(layout.swapbacked_mask), swap)
            file = swap if file is None or swap is None else file | swap
        file = _without(_both(file, is_one), anon)
        _mark(verdicts, anon, self._user)
        private = None if self._cache == self._cache_private else _both(flags.find(layout.private_mask), file)
        _mark(verdicts, _without(file, private), self._cache)
        _mark(verdicts, private, self._cache_private)

    def _mark_unaccepted(
        self,
        pages: StructPages,
        types: _Types,
        is_one: NDArray[np.bool_],
        offset: int,
        verdicts: NDArray[np.uint8],
        found: Judgement,
    ) -> None:
        """Mark memory that is not accepted yet: ``accept_page()`` takes blocks of the highest order."""
        layout = self._layout
        if not self._level & DumpLevel.FREE or layout.unaccepted is None or layout.free_orders is None:
            return
        rows = _rows(_both(types.find(layout.unaccepted), is_one))
        if not len(rows):
            return
        orders = np.full(len(rows), layout.free_orders - 1, dtype=np.uint8)
        verdicts[rows] = Verdict.UNACCEPTED
        places = pages.find_rows(rows)
        can_be = is_aligned(places + pages.first, orders)
        self._keep_doubtful(rows, places + offset, can_be, orders, verdicts, found)

    def _mark_always(
        self,
        pages: StructPages,
        flags: _Flags,
        offline: _Mask | None,
        offset: int,
        verdicts: NDArray[np.uint8],
        found: Judgement,
    ) -> None:
        """Mark poisoned pages, and those that are offline: both of what is still kept."""
        poisoned = flags.find(self._layout.hwpoison_mask)
        if poisoned is not None:
            rows = _rows(poisoned if pages.is_known is None else poisoned & pages.is_known)
            found.poisoned = pages.find_rows(rows) + offset
            heads = rows[~pages.is_tail[rows] & (verdicts[rows] < FIRST_DROPPED)]
            verdicts[heads] = _HWPOISON
        if offline is not None:
            rows = _rows(offline)
            verdicts[rows[verdicts[rows] < FIRST_DROPPED]] = Verdict.OFFLINE

    def _find_free_blocks(
        self,
        pages: StructPages,
        rows: NDArray[np.int64],
        offset: int,
        verdicts: NDArray[np.uint8],
        found: Judgement,
    ) -> None:
        if not len(rows) or self._layout.private is None:
            return
        places = pages.find_rows(rows)
        words = pages.read_u64(places, self._layout.private)
        limit = self._layout.free_orders or MAX_ORDER
        orders = np.minimum(words, np.uint64(limit)).astype(np.uint8)
        can_be = (orders < limit) & is_aligned(places + pages.first, orders)
        self._keep_doubtful(rows, places + offset, can_be, orders, verdicts, found)

    def _find_compounds(
        self, heads: _Heads, free: _Mask | None, offset: int, verdicts: NDArray[np.uint8], found: Judgement
    ) -> None:
        rows, places, orders, can_be = heads.rows, heads.places, heads.orders, heads.can_be
        if len(rows) and free is not None:
            chosen = ~free[rows]
            rows, places, orders, can_be = rows[chosen], places[chosen], orders[chosen], can_be[chosen]
        if len(rows):
            self._keep_doubtful(rows, places + offset, can_be, orders, verdicts, found)

    @staticmethod
    def _keep_doubtful(
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        can_be: NDArray[np.bool_],
        orders: NDArray[np.uint8],
        verdicts: NDArray[np.uint8],
        found: Judgement,
    ) -> None:
        """Take up blocks, at their places in the unit; of those whose order cannot be right, keep the first page."""
        values = verdicts[rows]
        if not can_be.all():
            is_doubtful = ~can_be & (values >= FIRST_DROPPED) & (values < _HWPOISON)
            # These are dropped alone, whatever their order.
            is_doubtful &= ~np.isin(places, found.poisoned)
            verdicts[rows[is_doubtful]] = _UNKNOWN
            found.doubtful.append(places[is_doubtful])
        whole = can_be & (orders > 0)
        found.blocks.append(Blocks(places[whole], orders[whole], values[whole]))


class _Heads:
    """Compound heads of a run: their orders, whether those can be right, and whether they are hugetlb pages."""

    def __init__(self, layout: PageLayout, pages: StructPages, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self.places = places = pages.find_rows(rows)
        top = len(pages.data) - 1
        second = np.minimum(places + 1, top)
        has_second = _find_tails(layout, pages, second)
        if pages.is_known is not None:
            has_second = has_second & pages.is_known[second]
        self.orders = pages.read_u8(second, layout.order)
        spans = np.left_shift(1, np.minimum(self.orders, MAX_ORDER).astype(np.int64))
        last = np.minimum(places + spans - 1, top)
        is_whole = has_second & _find_tails(layout, pages, last) | (self.orders == 0)
        self.may_go_on = bool((places + np.maximum(spans, 2) > top + 1).any())
        self.can_be = (self.orders <= MAX_ORDER) & is_aligned(places + pages.first, self.orders) & is_whole
        if layout.hugetlb is not None:
            self.is_hugetlb = layout.hugetlb.matches(pages.types[rows])
        elif layout.hugetlb_tail_mask:
            flags = pages.read_u64(second, layout.flags)
            self.is_hugetlb = (flags & np.uint64(layout.hugetlb_tail_mask) != 0) & has_second
        elif layout.hugetlb_dtor is not None:
            offset, value = layout.hugetlb_dtor
            self.is_hugetlb = (pages.read_u8(second, offset) == value) & has_second
        else:
            self.is_hugetlb = np.zeros(len(rows), dtype=np.bool_)


def _find_tails(layout: PageLayout, pages: StructPages, places: NDArray[np.int64]) -> _Mask:
    """Tell which rows of a run, looked at or not, are tail pages."""
    if pages.parts is None or layout.head is None:
        return pages.is_tail[places]
    return (pages.read_u8(places, layout.head) & np.uint8(1)).view(np.bool_)


class _Flags:
    """Tests of ``flags``, a byte at a time."""

    def __init__(self, words: NDArray[np.uint32] | NDArray[np.uint64]) -> None:
        self._words = words
        self._bytes: dict[int, NDArray[np.uint8]] = {}
        self._present = int(np.bitwise_or.reduce(words))

    def find(self, mask: int) -> _Mask | None:
        """Tell of each word whether it has any bit of a mask, which all lie in one byte; None where none has."""
        if not mask & self._present:
            return None
        shift = (mask.bit_length() - 1) & ~7
        if mask & ((1 << shift) - 1):
            return np.asarray(self._words & self._words.dtype.type(mask) != 0)
        part = self._bytes.get(shift)
        if part is None:
            words = self._words >> self._words.dtype.type(shift) if shift else self._words
            part = words.astype(np.uint8)
            self._bytes[shift] = part
        return np.asarray(part & np.uint8(mask >> shift) != 0)


class _Types:
    """
    Tests of ``_mapcount`` for page types.

    Most pages have none: -1, or how often they are mapped. Every type but those
    of an unknown encoding is below -1, so one comparison tells where to look.
    """

    def __init__(self, words: NDArray[np.uint32] | NDArray[np.uint8]) -> None:
        self._words = words
        self._rows: NDArray[np.int64] | None = None
        if words.dtype != np.uint8:
            self._rows = _rows(words.view(np.int32) < -1)

    def find(self, kind: PageType | None) -> _Mask | None:
        """Tell which pages are of a type; None where none is."""
        if kind is None:
            return None
        if self._rows is None or len(self._rows) > len(self._words) // _FEW or not kind.is_below_none:
            found = kind.matches(self._words)
            return found if found.any() else None
        matched = kind.matches(self._words[self._rows])
        if not matched.any():
            return None
        found = np.zeros(len(self._words), dtype=np.bool_)
        found[self._rows] = matched
        return found


def _both(one: _Mask | None, other: _Mask | None) -> _Mask | None:
    return None if one is None or other is None else one & other


def _without(one: _Mask | None, other: _Mask | None) -> _Mask | None:
    return one if one is None or other is None else one & ~other


def _rows(chosen: _Mask | None) -> NDArray[np.int64]:
    return _NO_ROWS if chosen is None else chosen.nonzero()[0]


def _mark(verdicts: NDArray[np.uint8], chosen: _Mask | None, verdict: np.uint8) -> None:
    """Raise some verdicts; several times as fast as assigning to a choice of them."""
    if chosen is not None:
        np.maximum(verdicts, chosen.view(np.uint8) * verdict, out=verdicts)


def _mark_kernel(
    layout: PageLayout,
    types: _Types,
    is_one: NDArray[np.bool_],
    slab: _Mask | None,
    verdicts: NDArray[np.uint8],
) -> None:
    """Say of all pages that they are the kernel's, and what worth they have."""
    verdicts[:] = _KERNEL
    if slab is not None:
        verdicts -= (slab & is_one).view(np.uint8) * _SLAB_STEP
    for kind in layout.tables:
        verdicts[_rows(_without(_both(types.find(kind), is_one), slab))] = _TABLE
