"""
Blocks of 2^order frames: compound pages, free blocks.

A block is aligned to its size, so of two blocks one is within the other or
they do not touch. What becomes of a block is said by its first frame alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.pages.selection import SECTION_FRAMES
from postpanic.pages.verdict import FIRST_DROPPED, Verdict

__all__ = ["MAX_ORDER", "UNIT_ORDER", "Blocks", "LaterBlocks", "fill_blocks", "is_aligned"]

MAX_ORDER = 40
"""Nothing in a kernel is of more than 2^40 pages."""
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
        if not len(self.rows):
            return
        sequence = np.argsort(self.orders, kind="stable")
        rows, verdicts = self.rows[sequence], self.verdicts[sequence]
        end = 0
        for order, count in enumerate(np.bincount(self.orders).tolist()):
            if count:
                start, end = end, end + count
                width = min(order, UNIT_ORDER)
                yield width, rows[start:end] >> width, verdicts[start:end]


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
    if not blocks:
        return
    everything = Blocks(
        np.concatenate([group.rows for group in blocks]),
        np.concatenate([group.orders for group in blocks]),
        np.concatenate([group.verdicts for group in blocks]),
    )
    is_dropped = everything.verdicts >= FIRST_DROPPED
    kernel = np.uint8(Verdict.KERNEL)
    for order, numbers, values in everything.choose(~is_dropped & (everything.verdicts != kernel)).by_order():
        view = verdicts.reshape(-1, 1 << order)
        parts = view[numbers]
        view[numbers] = np.where(parts == kernel, values[:, None], parts)
    # The smallest first: of blocks within each other the outer one counts, whose first frame comes first.
    for order, numbers, values in everything.choose(is_dropped).by_order():
        verdicts.reshape(-1, 1 << order)[numbers] = values[:, None]


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
                verdicts[verdicts == Verdict.KERNEL] = verdict
        for group in blocks:
            for index in np.flatnonzero(group.orders > UNIT_ORDER).tolist():
                end = first + int(group.rows[index]) + (1 << int(group.orders[index]))
                self._blocks.append((end, int(group.verdicts[index])))
