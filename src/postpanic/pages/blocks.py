"""
Blocks of 2^order frames: compound pages, free blocks.

A block is aligned to its size, so of two blocks one is within the other or
they do not touch. What becomes of a block is said by its first frame alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postpanic.pages.selection import SECTION_FRAMES
from postpanic.pages.verdict import FIRST_DROPPED, Verdict

__all__ = ["MAX_ORDER", "UNIT_ORDER", "Blocks", "LaterBlocks", "fill_blocks", "is_aligned"]

MAX_ORDER = 40
"""Nothing in a kernel is of more than 2^40 pages."""
_WORD_ORDER = 3
_KERNEL = np.uint8(Verdict.KERNEL)
UNIT_ORDER = SECTION_FRAMES.bit_length() - 1


@dataclass(frozen=True, slots=True)
class Blocks:
    """
    Blocks that begin in one unit of frames.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Their first frames, counted from the unit's first.
    orders : ndarray of uint8, shape (n,)
    verdicts : ndarray of uint8, shape (n,)
        Of the first frames.
    """

    rows: NDArray[np.int64]
    orders: NDArray[np.uint8]
    verdicts: NDArray[np.uint8]

    def choose(self, chosen: NDArray[np.bool_]) -> Blocks:
        """Take some of them."""
        return Blocks(self.rows[chosen], self.orders[chosen], self.verdicts[chosen])

    def by_order(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
        """Give order, numbers of the blocks of that order in their unit, and verdicts, by rising order."""
        for order in np.bincount(self.orders).nonzero()[0].tolist():
            chosen = self.orders == order
            width = min(order, UNIT_ORDER)
            yield width, self.rows[chosen] >> width, self.verdicts[chosen]


def is_aligned(pfns: NDArray[np.int64], orders: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell whether blocks that begin with these frames are aligned to their sizes."""
    spans = np.left_shift(1, np.minimum(orders, MAX_ORDER).astype(np.int64))
    return np.asarray(pfns & (spans - 1) == 0)


def fill_blocks(verdicts: NDArray[np.uint8], blocks: list[Blocks]) -> None:
    """
    Spread the verdicts of blocks over all their frames.

    A block that is dropped is dropped whole. One that is kept tells the worth of
    those of its frames of which nothing else is known.

    Parameters
    ----------
    verdicts : ndarray of uint8, shape (SECTION_FRAMES,)
        Of all frames of the unit; changed.
    """
    groups = [group for group in blocks if len(group.rows)]
    if not groups:
        return
    everything = groups[0]
    if len(groups) > 1:
        everything = Blocks(
            np.concatenate([group.rows for group in groups]),
            np.concatenate([group.orders for group in groups]),
            np.concatenate([group.verdicts for group in groups]),
        )
    is_dropped = everything.verdicts >= FIRST_DROPPED
    kernel = _KERNEL
    for order, numbers, values in everything.choose(~is_dropped & (everything.verdicts != kernel)).by_order():
        view, words = _view_blocks(verdicts, values, order)
        parts = view[numbers]
        inside = parts.view(np.uint8)
        np.copyto(inside, words.view(np.uint8), where=inside == kernel)
        view[numbers] = parts
    # The smallest first: of blocks within each other the outer one counts, whose first frame comes first.
    for order, numbers, values in everything.choose(is_dropped).by_order():
        view, words = _view_blocks(verdicts, values, order)
        view[numbers] = words


def _view_blocks(
    verdicts: NDArray[np.uint8], values: NDArray[np.uint8], order: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """View verdicts as blocks, and make values that fill some; small ones are words, so much faster than short rows."""
    if order > _WORD_ORDER:
        return verdicts.reshape(-1, 1 << order), values[:, None]
    view = verdicts.view(f"<u{1 << order}")
    ones = (1 << 8 * view.itemsize) // 0xFF
    return view, values.astype(view.dtype) * view.dtype.type(ones)


class LaterBlocks:
    """Blocks that reach beyond the unit they begin in: a hugetlb page of 1 GiB is eight units."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, int]] = []

    def apply(self, unit: int, verdicts: NDArray[np.uint8], blocks: list[Blocks]) -> None:
        """Go on with earlier blocks in this unit, and keep its own for later ones; units come in rising order."""
        first = unit * SECTION_FRAMES
        self._blocks = [block for block in self._blocks if block[0] > first]
        for _, verdict in self._blocks:
            # Their sizes are multiples of a unit's.
            if verdict >= FIRST_DROPPED:
                verdicts[:] = verdict
            else:
                verdicts[verdicts == _KERNEL] = verdict
        for group in blocks:
            for index in (group.orders > UNIT_ORDER).nonzero()[0].tolist():
                end = first + int(group.rows[index]) + (1 << int(group.orders[index]))
                self._blocks.append((end, int(group.verdicts[index])))
