"""A set of page frames in memory: one bit for each frame number, and quick counts of those before one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.bitmap import count_bits, find_edges

__all__ = ["FrameSet"]

_WORDS_OF_BLOCK = 8
_BLOCK_BITS = _WORDS_OF_BLOCK * 64
_BLOCK_BYTES = _BLOCK_BITS // 8
_SCAN_BYTES = 1 << 20


class FrameSet:
    """
    A set of frame numbers from 0 up to a limit.

    Parameters
    ----------
    bits : ndarray of uint8, shape ((limit + 7) // 8,)
        Frame n is bit ``n & 7`` of byte ``n >> 3``, the order of the kdump
        format's bitmaps. Bits from *limit* on are clear.
    limit : int
        One more than the highest frame number that there may be.
    """

    def __init__(self, bits: NDArray[np.uint8], limit: int) -> None:
        size = (limit + 7) // 8
        if len(bits) != size:
            raise ValueError(f"{len(bits)} bytes for {limit} frames, must be {size}")
        padded = np.zeros(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES, dtype=np.uint8)
        padded[:size] = bits
        self._words = padded.view("<u8")
        self.bits = padded[:size]
        """The bits, packed; not to be changed."""
        self.bits.flags.writeable = False
        self.limit = limit
        # How many are before each block, and within it before each word: less than half a bit for each frame.
        totals = np.empty(len(padded) // _BLOCK_BYTES, dtype=np.int64)
        self._inside = np.empty((len(totals), _WORDS_OF_BLOCK), dtype=np.uint16)
        step = _SCAN_BYTES // _BLOCK_BYTES
        for start in range(0, len(totals), step):
            words = self._words[start * _WORDS_OF_BLOCK : (start + step) * _WORDS_OF_BLOCK]
            counts = count_bits(words).reshape(-1, _WORDS_OF_BLOCK)
            sums = np.cumsum(counts, axis=1, dtype=np.uint16)
            self._inside[start : start + step] = sums - counts
            totals[start : start + step] = sums[:, -1]
        self._before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(totals)])
        self.count = int(self._before[-1])
        """Frames in the set."""

    @classmethod
    def from_runs(cls, runs: NDArray[np.int64], limit: int) -> FrameSet:
        """Make a set of ``[start, end)`` runs of frames, shape (n, 2)."""
        bits = np.zeros((limit + 7) // 8, dtype=np.uint8)
        for start, end in runs.tolist():
            end = min(end, limit)
            if start >= end:
                continue
            first, last = start >> 3, (end - 1) >> 3
            head, tail = 0xFF << (start & 7) & 0xFF, 0xFF >> (7 - (end - 1 & 7))
            if first == last:
                bits[first] |= head & tail
            else:
                bits[first] |= head
                bits[first + 1 : last] = 0xFF
                bits[last] |= tail
        return cls(bits, limit)

    def contains(self, pfns: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell for each frame number, all below the limit, whether it is in the set."""
        bits = self.bits[pfns >> np.uint64(3)] >> (pfns & np.uint64(7)).astype(np.uint8)
        return np.asarray(bits & 1, dtype=np.bool_)

    def ranks(self, pfns: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Count for each frame number, all below the limit, the frames of the set before it."""
        words = (pfns >> np.uint64(6)).astype(np.int64)
        below = (np.uint64(1) << (pfns & np.uint64(63))) - np.uint64(1)
        ranks = self._before[words // _WORDS_OF_BLOCK]
        ranks += self._inside.reshape(-1)[words]
        ranks += count_bits(self._words[words] & below)
        return ranks

    def find_nth(self, number: int) -> int:
        """Find the frame that has *number* others of the set before it; the limit where there are not so many."""
        if number >= self.count:
            return self.limit
        block = int(np.searchsorted(self._before, number, side="right")) - 1
        members = self.members(block * _BLOCK_BITS, (block + 1) * _BLOCK_BITS)
        return int(members[number - int(self._before[block])])

    def runs(self) -> NDArray[np.int64]:
        """Find all runs of frames: shape (n, 2), ``[start, end)``, sorted."""
        edges: list[NDArray[np.int64]] = []
        carry = 0
        for start in range(0, len(self.bits), _SCAN_BYTES):
            places, carry = find_edges(self.bits[start : start + _SCAN_BYTES], carry)
            edges.append(start * 8 + places)
        flat = np.concatenate(edges) if edges else np.empty(0, dtype=np.int64)
        if len(flat) % 2:
            flat = np.append(flat, self.limit)
        return flat.reshape(-1, 2)

    def members(self, start: int, end: int) -> NDArray[np.uint64]:
        """List the frames of the set from *start* up to, not including, *end*."""
        end = min(end, self.limit)
        first = start & ~7
        if end <= start:
            return np.empty(0, dtype=np.uint64)
        flags = np.unpackbits(self.bits[first >> 3 : (end + 7) >> 3], bitorder="little")[: end - first]
        flags[: start - first] = 0
        return (np.flatnonzero(flags) + first).astype(np.uint64)
