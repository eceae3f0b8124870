"""
Tell large free memory by a few struct pages, so that the rest of them need not be read.

A free block says of all its frames that they are free, by its first struct page
alone. On a machine with free memory most of it lies in blocks of the highest
order side by side, and to read a struct page costs more than to judge it. So the
first frames of groups of blocks are looked at before anything else is read.

What is told so is what :mod:`~postpanic.pages.rules` would tell with all of the
struct pages. Every block that begins within a free one is smaller, as blocks
are aligned, so it decides of nothing, whatever else these struct pages say; and a
compound that begins before the group ends before it, or the unit is read whole
(:attr:`~postpanic.pages.rules.Judgement.may_go_on`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from postpanic.pages.layout import PageLayout
from postpanic.pages.verdict import DumpLevel

__all__ = ["BLOCK_FRAMES", "GROUP_BLOCKS", "GROUP_FRAMES", "FreeTest"]

_BLOCK_ORDER, _GROUP_ORDER = 10, 13
BLOCK_FRAMES = 1 << _BLOCK_ORDER
"""``MAX_PAGE_ORDER`` is 10 in most kernels, and in none that has more memory than a phone's is it less."""
GROUP_FRAMES = 1 << _GROUP_ORDER
"""What is left out at a time. Every piece of a unit that is left costs as much as reading some of these blocks."""
GROUP_BLOCKS = GROUP_FRAMES // BLOCK_FRAMES


class FreeTest:
    """
    Tells the first frames of large free blocks.

    Parameters
    ----------
    level : DumpLevel
        Bits that *layout* allows for.
    """

    def __init__(self, layout: PageLayout, level: DumpLevel) -> None:
        self._layout = layout
        members = (layout.buddy, layout.private, layout.mapcount, layout.head)
        # Of free pages that are kept it matters what else they might be.
        self.is_possible = bool(level & DumpLevel.FREE) and None not in members
        self._end = min(layout.free_orders or _GROUP_ORDER + 1, _GROUP_ORDER + 1)
        masks = layout.head_mask | layout.hwpoison_mask
        self._other_flags = np.uint64(masks | (layout.slab_mask if layout.slab is None else 0))
        others = (layout.offline, layout.slab, layout.unaccepted, layout.hugetlb, *layout.tables)
        self._other_types = [kind for kind in others if kind is not None]

    def _count_blocks(self, data: NDArray[np.uint8], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Tell how many blocks of :data:`BLOCK_FRAMES` from each on are free: 0 where that is in any doubt.

        Parameters
        ----------
        data : ndarray of uint8, shape (n, size)
            Struct pages of frames ``numbers * BLOCK_FRAMES``.
        numbers : ndarray of int64, shape (n,)
        """
        layout = self._layout
        if layout.buddy is None or layout.private is None or layout.mapcount is None or layout.head is None:
            return np.zeros(len(data), dtype=np.int64)
        types = _member(data, layout.mapcount, "<u4")
        is_free = layout.buddy.matches(types) & (_member(data, layout.head, "<u8") & np.uint64(1) == 0)
        is_free &= _member(data, layout.flags, "<u8") & self._other_flags == 0
        for kind in self._other_types:
            is_free &= ~kind.matches(types)
        words = _member(data, layout.private, "<u8")
        is_free &= (words >= np.uint64(_BLOCK_ORDER)) & (words < np.uint64(self._end))
        counts = np.left_shift(1, np.where(is_free, words, np.uint64(_BLOCK_ORDER)).astype(np.int64) - _BLOCK_ORDER)
        is_free &= numbers & (counts - 1) == 0
        return np.where(is_free, counts, 0)

    def find_groups(self, data: NDArray[np.uint8], firsts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """
        Tell which groups consist of free blocks, as far as those go that are given.

        Parameters
        ----------
        data : ndarray of uint8, shape (n, blocks, size)
            Struct pages of the first frames of each group's first blocks; zeroes where they are not known.
        firsts : ndarray of int64, shape (n,)
            First frames of the groups.
        """
        inside = np.arange(data.shape[1])
        numbers = (firsts[:, None] // BLOCK_FRAMES + inside).reshape(-1)
        counts = self._count_blocks(data.reshape(len(numbers), -1), numbers).reshape(data.shape[:2])
        # A larger block covers those that would begin within it.
        ends = np.maximum.accumulate(np.where(counts, inside + counts, 0), axis=1)
        return np.asarray((ends > inside).all(axis=1))


def _member(data: NDArray[np.uint8], offset: int, dtype: str) -> NDArray[Any]:
    """Copy a member out of an array of structures."""
    return np.ascontiguousarray(data[:, offset : offset + np.dtype(dtype).itemsize]).view(dtype)[:, 0]
