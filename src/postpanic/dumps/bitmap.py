"""
A bitmap of page frames on disk: which bits are set, and how many before a bit.

The bitmap of a machine with 1 TiB of RAM takes 32 MiB. It is read in chunks,
of which a few are kept, and counted once; the counts (8 bytes for every 2048
frames, 1 MiB for 1 TiB) answer "how many before this one" at once.
Bit order is the kernel's: frame n is bit ``n & 7`` of byte ``n >> 3``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError
from postpanic.units import KIB

__all__ = ["MAX_RUNS", "Bitmap", "count_bits", "find_edges"]

MAX_RUNS = 1 << 20
"""Runs of set bits that :meth:`Bitmap.runs` gives; RAM has a few hundred at most."""

_CHUNK_BYTES = 32 * KIB
_CHUNK_SHIFT = (_CHUNK_BYTES * 8).bit_length() - 1
_CHUNK_MASK = (1 << _CHUNK_SHIFT) - 1
_KEPT_CHUNKS = 64
_FEW = 32
"""Up to this many, bits are counted one by one: cheaper than a whole chunk."""
_BLOCK_BYTES = 256
_BLOCK_SHIFT = (_BLOCK_BYTES * 8).bit_length() - 1
_SCAN_BYTES = 32 * _CHUNK_BYTES

_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)
_LOWER_BITS = np.array([(1 << bit) - 1 for bit in range(8)], dtype=np.uint8)


class Bitmap:
    """
    Random access to a bitmap in a file.

    Parameters
    ----------
    read : callable
        Reads ``size`` bytes at an offset of the file, short where they are not there.
    offset : int
        Of the bitmap in the file, in bytes.
    bit_count : int
        Bits that count; what follows is padding.

    Attributes
    ----------
    known_bits : int
        Bits that the file holds; fewer than *bit_count* where it is cut.
        Those beyond read as clear.
    """

    def __init__(self, read: Callable[[int, int], bytes], offset: int, bit_count: int) -> None:
        self._read = read
        self._offset = offset
        self.bit_count = bit_count
        self._chunks: dict[int, bytes] = {}
        self.known_bits, self._before = self._count()
        self._before_view = self._before.data

    @property
    def total(self) -> int:
        """Number of set bits."""
        return int(self._before[-1])

    def test(self, bit: int) -> bool:
        """Whether one bit is set."""
        if not 0 <= bit < self.known_bits:
            return False
        chunk = self._chunk(bit >> _CHUNK_SHIFT)
        return bool(chunk[(bit & _CHUNK_MASK) >> 3] >> (bit & 7) & 1)

    def rank(self, bit: int) -> int:
        """Count the set bits before *bit*."""
        if bit >= self.known_bits:
            return self.total
        chunk = self._chunk(bit >> _CHUNK_SHIFT)
        end = (bit & _CHUNK_MASK) >> 3
        start = end & ~(_BLOCK_BYTES - 1)
        count: int = self._before_view[bit >> _BLOCK_SHIFT]
        count += int.from_bytes(chunk[start:end], "little").bit_count()
        return count + (chunk[end] & (1 << (bit & 7)) - 1).bit_count()

    def test_many(self, bits: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each bit is set."""
        result = np.zeros(len(bits), dtype=bool)
        for rows, chunk in self._grouped(bits):
            within = bits[rows] & _CHUNK_MASK
            result[rows] = (chunk[within >> 3] >> (within & 7).astype(np.uint8) & 1).astype(bool)
        return result

    def rank_many(self, bits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the set bits before each bit."""
        result = np.full(len(bits), self.total, dtype=np.int64)
        for rows, chunk in self._grouped(bits):
            wanted = bits[rows]
            if len(rows) <= _FEW:
                result[rows] = [self.rank(bit) for bit in wanted.tolist()]
                continue
            within = wanted & _CHUNK_MASK
            byte = within >> 3
            before = np.zeros(len(chunk) + 1, dtype=np.int64)
            np.cumsum(_BITS_OF_BYTE[chunk], out=before[1:])
            start: int = self._before_view[int(wanted[0]) >> _CHUNK_SHIFT << (_CHUNK_SHIFT - _BLOCK_SHIFT)]
            partial = chunk[byte] & _LOWER_BITS[within & 7]
            result[rows] = start + before[byte] + _BITS_OF_BYTE[partial]
        return result

    def runs(self) -> NDArray[np.int64]:
        """
        Find all runs of set bits.

        Returns
        -------
        ndarray of int64, shape (n, 2)
            ``[start, end)`` of each, sorted.

        Raises
        ------
        CorruptError
            If there are more than :data:`MAX_RUNS`.
        """
        edges: list[NDArray[np.int64]] = []
        count = 0
        carry = 0
        for start, raw in self._scan():
            places, carry = find_edges(np.frombuffer(raw, dtype=np.uint8), carry)
            edges.append(start + places)
            count += len(places)
            if count > 2 * MAX_RUNS:
                raise CorruptError(f"the bitmap of RAM has more than {MAX_RUNS} runs of frames")
        flat = np.concatenate(edges) if edges else np.empty(0, dtype=np.int64)
        if len(flat) % 2:
            flat = np.append(flat, self.known_bits)
        return np.minimum(flat, self.known_bits).reshape(-1, 2)

    def _count(self) -> tuple[int, NDArray[np.int64]]:
        """Count set bits for every block; the bits the file holds, and the sums."""
        sums: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
        known = 0
        self.known_bits = self.bit_count
        for start, raw in self._scan():
            known = min(start + len(raw) * 8, self.bit_count)
            padded = raw + bytes(-len(raw) % _BLOCK_BYTES)
            counts = count_bits(np.frombuffer(padded, dtype=np.uint64)).reshape(-1, _BLOCK_BYTES // 8)
            sums.append(counts.sum(axis=1, dtype=np.int64))
        return known, np.cumsum(np.concatenate(sums))

    def _scan(self) -> Iterator[tuple[int, bytes]]:
        """Read the bitmap from end to end: number of the first bit, bytes with the padding cleared."""
        total = (self.known_bits + 7) // 8
        for start in range(0, total, _SCAN_BYTES):
            wanted = min(_SCAN_BYTES, total - start)
            raw = self._read(self._offset + start, wanted)
            if not raw:
                return
            if start + len(raw) == total and self.known_bits & 7:
                raw = raw[:-1] + bytes([raw[-1] & (1 << (self.known_bits & 7)) - 1])
            yield start * 8, raw
            if len(raw) < wanted:
                return

    def _chunk(self, number: int) -> bytes:
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._read(self._offset + number * _CHUNK_BYTES, _CHUNK_BYTES)
            # Bytes that were there when the bits were counted may be gone by now.
            chunk += bytes(_CHUNK_BYTES - len(chunk))
            if len(self._chunks) >= _KEPT_CHUNKS:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[number] = chunk
        return chunk

    def _grouped(self, bits: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Give the rows of all bits in one chunk, and the chunk; bits not known are in no group."""
        numbers = bits >> _CHUNK_SHIFT
        known = (bits >= 0) & (bits < self.known_bits)
        rows = np.flatnonzero(known)
        if len(rows) == 0:
            return
        order = rows if np.all(np.diff(numbers[rows]) >= 0) else rows[np.argsort(numbers[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(numbers[order])) + 1
        for group in np.split(order, edges):
            yield group, np.frombuffer(self._chunk(int(numbers[group[0]])), dtype=np.uint8)


def find_edges(chunk: NDArray[np.uint8], carry: int) -> tuple[NDArray[np.int64], int]:
    """
    Find where runs of set bits begin and end in a piece of a bitmap.

    Parameters
    ----------
    carry : int
        The last bit of the piece before.

    Returns
    -------
    places : ndarray of int64
        Numbers of the bits that differ from the one before, counted from the piece's first.
    carry : int
        The last bit of this piece.
    """
    above = np.empty_like(chunk)
    above[0] = carry
    above[1:] = chunk[:-1] >> 7
    changed: NDArray[np.uint8] = np.bitwise_xor(chunk, chunk << 1 | above, dtype=np.uint8)
    busy = np.flatnonzero(changed)
    places = np.flatnonzero(np.unpackbits(changed[busy], bitorder="little"))
    return (busy[places >> 3] << 3) + (places & 7), int(chunk[-1]) >> 7


def count_bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count the bits of each word; numpy has a call for it since 2.0."""
    counter = getattr(np, "bitwise_count", None)
    if counter is not None:
        return np.asarray(counter(words), dtype=np.uint8)
    counts: NDArray[np.uint8] = _BITS_OF_BYTE[words.view(np.uint8)].reshape(-1, 8).sum(axis=1, dtype=np.uint8)
    return counts
