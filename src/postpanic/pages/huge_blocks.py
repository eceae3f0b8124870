"""
Tell huge pages of processes by a few struct pages, so that the rest of them need not be looked at.

Transparent huge pages are most of the memory of many a machine, and 511 of the
512 struct pages of each say no more than that they are tail pages. What is told
so is what :mod:`~postpanic.pages.rules` would tell with all of them: the head is
judged as ever, and the whole compound is dropped with it, whatever blocks of
smaller orders its tail pages might pretend.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from postpanic.pages.layout import PageLayout
from postpanic.pages.verdict import DumpLevel

__all__ = ["HUGE_FRAMES", "HugeTest"]

_HUGE_ORDER = 9
HUGE_FRAMES = 1 << _HUGE_ORDER
"""``HPAGE_PMD_NR`` of x86-64, and of arm64 with pages of 4 KiB; others are looked at page by page."""
_WORTHWHILE = 8
"""Where fewer than one of so many blocks are huge pages, to leave them out costs more than it saves."""


class HugeTest:
    """
    Tells compounds of :data:`HUGE_FRAMES` frames of anonymous memory, which the level drops.

    Parameters
    ----------
    level : DumpLevel
        Bits that *layout* allows for.
    """

    def __init__(self, layout: PageLayout, level: DumpLevel) -> None:
        self._layout = layout
        self._is_possible = bool(level & DumpLevel.USER)
        self._slab_mask = layout.slab_mask if layout.slab is None else 0
        # Pages of these are something else before they are anonymous.
        self._other_types = [kind for kind in (layout.slab, layout.buddy, layout.unaccepted) if kind is not None]

    def find(self, data: NDArray[np.uint8], first: int) -> NDArray[np.bool_] | None:
        """
        Tell which blocks of a run of struct pages are huge pages; None where it is not worth while to know.

        Parameters
        ----------
        data : ndarray of uint8, shape (n, size)
            All of the run's struct pages, which are all known.
        first : int
            The first frame.
        """
        layout = self._layout
        if layout.mapping is None or layout.mapcount is None or layout.head is None or not self._is_possible:
            return None
        if first % HUGE_FRAMES or len(data) % HUGE_FRAMES:
            return None
        is_huge = data[1::HUGE_FRAMES, layout.order] == np.uint8(_HUGE_ORDER)
        if int(np.count_nonzero(is_huge)) * _WORTHWHILE < len(is_huge):
            return None
        flags = _member(data, 0, layout.flags, "<u8")
        is_huge &= (flags & np.uint64(layout.head_mask) != 0) & (flags & np.uint64(self._slab_mask) == 0)
        is_huge &= data[::HUGE_FRAMES, layout.head] & 1 == 0
        is_huge &= data[1::HUGE_FRAMES, layout.head] & data[HUGE_FRAMES - 1 :: HUGE_FRAMES, layout.head] & 1 == 1
        is_huge &= data[::HUGE_FRAMES, layout.mapping] & 1 == 1
        types = _member(data, 0, layout.mapcount, "<u4")
        for kind in self._other_types:
            is_huge &= ~kind.matches(types)
        return is_huge if int(np.count_nonzero(is_huge)) * _WORTHWHILE >= len(is_huge) else None


def _member(data: NDArray[np.uint8], row: int, offset: int, dtype: str) -> NDArray[Any]:
    """Copy a member of one struct page of each block."""
    return np.ascontiguousarray(data[row::HUGE_FRAMES, offset : offset + np.dtype(dtype).itemsize]).view(dtype)[:, 0]
