"""Trees of debugging information entries, two levels deep, as flat tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postpanic.kernel.debuginfo.dwarf import Abbreviations, Addresses, At, Shape, place

__all__ = ["VOID", "Forest"]

VOID = -1
"""Index of a type that is not there: the attribute is left out."""


@dataclass(slots=True)
class _Batch:
    shape: Shape
    owners: NDArray[np.int64]
    within: NDArray[np.int64] | None
    columns: dict[At, NDArray[np.generic] | int]


class Forest:
    """
    Top-level entries, each with at most one run of children.

    Add all entries, then all runs of children, then lay the forest out: offsets
    become known, and with them the references.
    """

    def __init__(self, count: int, abbreviations: Abbreviations) -> None:
        self.count = count
        self.abbreviations = abbreviations
        self.head: NDArray[np.int64] = np.zeros(count, dtype=np.int64)
        self.tail: NDArray[np.int64] = np.zeros(count, dtype=np.int64)
        self.batches: list[_Batch] = []

    def add(self, shape: Shape, owners: NDArray[np.int64], columns: Mapping[At, NDArray[np.generic] | int]) -> None:
        """Give these entries their shape and their attributes; ``TYPE`` columns hold indexes of types."""
        if not len(owners):
            return
        self.head[owners] = shape.size_bytes
        # A zero byte ends the children.
        self.tail[owners] += shape.children
        self.batches.append(_Batch(shape, owners, None, dict(columns)))

    def add_children(
        self,
        owners: NDArray[np.int64],
        choices: list[tuple[Shape, NDArray[np.bool_], Mapping[At, NDArray[np.generic]]]],
    ) -> None:
        """
        Add the children of many entries, in order.

        Parameters
        ----------
        owners : ndarray of int64
            The entry above each child, ascending.
        choices : list of (shape, mask, columns)
            Which children have which shape; columns are as long as *owners*.
        """
        if not len(owners):
            return
        sizes = np.zeros(len(owners), dtype=np.int64)
        for shape, mask, _ in choices:
            sizes[mask] = shape.size_bytes
        starts = np.cumsum(sizes) - sizes
        first = np.flatnonzero(np.concatenate(([True], owners[1:] != owners[:-1])))
        counts = np.diff(np.append(first, len(owners)))
        within = starts - np.repeat(starts[first], counts)
        self.tail[owners[first]] += np.add.reduceat(sizes, first)
        for shape, mask, columns in choices:
            rows = np.flatnonzero(mask)
            if len(rows):
                taken: dict[At, NDArray[np.generic] | int] = {at: column[rows] for at, column in columns.items()}
                self.batches.append(_Batch(shape, owners[rows], within[rows], taken))

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each entry with its children."""
        return self.head + self.tail

    def write(
        self,
        section: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        unit: NDArray[np.int64],
        type_offsets: NDArray[np.int64],
        addresses: Addresses | None = None,
    ) -> None:
        """
        Write every entry; *addresses* as for :func:`~postpanic.kernel.debuginfo.dwarf.place`.

        Parameters
        ----------
        offsets, unit : ndarray of int64
            Where each top-level entry begins in the section, and its unit.
        type_offsets : ndarray of int64
            Where each type's entry begins, by index of the type.
        """
        ends = offsets + self.sizes()
        for batch in self.batches:
            at = offsets[batch.owners]
            columns: dict[At, ArrayLike] = dict(batch.columns)
            if At.TYPE in columns:
                columns[At.TYPE] = type_offsets[batch.columns[At.TYPE]]
            if At.ABSTRACT_ORIGIN in columns:
                columns[At.ABSTRACT_ORIGIN] = offsets[batch.columns[At.ABSTRACT_ORIGIN]]
            if any(attribute is At.SIBLING for attribute, _ in batch.shape.attributes):
                columns[At.SIBLING] = ends[batch.owners] - unit[batch.owners]
            if batch.within is not None:
                at = at + self.head[batch.owners] + batch.within
            place(section, at, batch.shape, self.abbreviations.code(batch.shape), columns, addresses)
