"""What is to be erased, as ranges of physical memory, and the erasing itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ERASED_BYTE", "ByteRanges", "Erasure", "RequestRecord", "merge_ranges", "no_ranges"]

ERASED_BYTE = 0x58
"""``X``, as makedumpfile has it."""

_LONG_BYTES = 256
_FILL_RANGES = 4096
"""Short ranges are filled through an index of their bytes, for so many at a time: 16 MiB at most."""

ByteRanges = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Physical addresses: where each range starts and where it ends."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What became of one request."""

    request: str
    """As the user typed it."""
    expression: str
    """The same in the form of makedumpfile's erase information."""
    objects: int
    """How many objects it is erased in."""
    size_bytes: int
    """Bytes that are erased, in memory; what the dump leaves out anyway is counted as well."""
    notes: tuple[str, ...] = ()
    """What it touches beyond what was named, and what it does not reach by its nature."""
    gaps: tuple[str, ...] = ()
    """What should have been erased and may still be in the dump."""


@dataclass(frozen=True)
class Erasure:
    """
    Ranges of physical memory that are overwritten before they are written.

    Attributes
    ----------
    pfns : ndarray of uint64
        Frame of each range, rising; no range crosses a frame's end, none overlaps another.
    offsets, lengths : ndarray of uint32
        Bytes within the frame.
    records : tuple of RequestRecord
    """

    page_size_bytes: int
    pfns: NDArray[np.uint64]
    offsets: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    records: tuple[RequestRecord, ...] = ()
    _frames: NDArray[np.uint64] = field(init=False, repr=False, compare=False)
    _firsts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        frames, firsts = np.unique(self.pfns, return_index=True)
        object.__setattr__(self, "_frames", frames)
        object.__setattr__(self, "_firsts", np.append(firsts, len(self.pfns)).astype(np.int64))

    @classmethod
    def from_ranges(
        cls, ranges: Iterable[ByteRanges], page_size_bytes: int, records: Sequence[RequestRecord] = ()
    ) -> Erasure:
        """Join ranges of bytes, in any order and overlapping, and cut them at the ends of frames."""
        starts, ends = merge_ranges(ranges)
        size = np.uint64(page_size_bytes)
        first = starts // size
        counts = ((ends - np.uint64(1)) // size - first).astype(np.int64) + 1
        begins = np.cumsum(counts) - counts
        number = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(begins, counts)
        pfns = np.repeat(first, counts) + number.astype(np.uint64)
        low = np.maximum(np.repeat(starts, counts), pfns * size)
        high = np.minimum(np.repeat(ends, counts), (pfns + np.uint64(1)) * size)
        return cls(
            page_size_bytes,
            pfns,
            (low - pfns * size).astype(np.uint32),
            (high - low).astype(np.uint32),
            tuple(records),
        )

    def __len__(self) -> int:
        return len(self.pfns)

    @property
    def size_bytes(self) -> int:
        """Bytes of all ranges."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def gaps(self) -> tuple[str, ...]:
        """What may still be in the dump although it was to be erased, one phrase each."""
        return tuple(f"{record.request}: {gap}" for record in self.records for gap in record.gaps)

    @property
    def text(self) -> bytes:
        """
        The erase information of a kdump file: ``erase EXPRESSION size BYTES`` lines.

        makedumpfile adds up the bytes of all objects, too (``erase_info.c``).
        """
        lines = [f"erase {record.expression} size {record.size_bytes}\n" for record in self.records]
        return "".join(lines).encode()

    @property
    def record(self) -> list[dict[str, Any]]:
        """What was asked for and what became of it, for the manifest."""
        return [
            {
                "request": record.request,
                "objects": record.objects,
                "bytes": record.size_bytes,
                "notes": list(record.notes),
                "gaps": list(record.gaps),
            }
            for record in self.records
        ]

    def apply(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> int:
        """
        Overwrite what is to be erased in pages; safe from several threads, as nothing is kept.

        Parameters
        ----------
        pfns : ndarray of uint64, shape (n,)
            In any order.
        pages : ndarray of uint8, shape (n, page_size_bytes), C-contiguous
            Changed in place.

        Returns
        -------
        int
            Bytes that were overwritten.
        """
        if not len(self._frames) or not len(pfns):
            return 0
        places = np.searchsorted(self._frames, pfns)
        places[places == len(self._frames)] = 0
        rows = np.flatnonzero(self._frames[places] == pfns)
        if not len(rows):
            return 0
        firsts = self._firsts[places[rows]]
        counts = self._firsts[places[rows] + 1] - firsts
        begins = np.cumsum(counts) - counts
        ranges = np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(firsts - begins, counts)
        starts = np.repeat(rows, counts) * self.page_size_bytes + self.offsets[ranges]
        return _fill(pages.reshape(-1), starts, self.lengths[ranges].astype(np.int64))


def _fill(flat: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """Fill ranges of a flat buffer: long ones one by one, short ones many at a time."""
    total = int(lengths.sum())
    long = lengths >= _LONG_BYTES
    for start, length in zip(starts[long].tolist(), lengths[long].tolist(), strict=True):
        flat[start : start + length] = ERASED_BYTE
    starts, lengths = starts[~long], lengths[~long]
    for first in range(0, len(starts), _FILL_RANGES):
        part = lengths[first : first + _FILL_RANGES]
        shift = starts[first : first + _FILL_RANGES] - (np.cumsum(part) - part)
        flat[np.arange(int(part.sum()), dtype=np.int64) + np.repeat(shift, part)] = ERASED_BYTE
    return total


def no_ranges() -> ByteRanges:
    """Give no range at all."""
    return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)


def merge_ranges(ranges: Iterable[ByteRanges]) -> ByteRanges:
    """Sort ranges and join those that touch or overlap; empty ones are dropped."""
    columns = list(zip(no_ranges(), *ranges, strict=True))
    starts, ends = (np.concatenate(column) for column in columns)
    order = np.argsort(starts, kind="stable")
    order = order[ends[order] > starts[order]]
    if not len(order):
        return no_ranges()
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    begins = np.concatenate([[True], starts[1:] > ends[:-1]])
    lasts = np.concatenate([begins[1:], [True]])
    return starts[begins], ends[lasts]
