"""
Find the records in the stream of kallsyms' names.

Each record's place depends on the length of the one before. ``kallsyms_markers``
holds the offset of every 256th, so that many can be followed at the same time;
VMCOREINFO does not name that table, but it lies between the names and the tokens
in every layout, and the walk itself proves that it is the right one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError, TruncatedError

__all__ = ["LARGEST_BLOCK_BYTES", "SYMBOLS_PER_MARKER", "find_markers", "find_name_starts"]

SYMBOLS_PER_MARKER = 256

# A record is a length and at least one token; at most two bytes of length and KSYM_NAME_LEN (512) tokens.
_SMALLEST_BLOCK_BYTES = 2 * SYMBOLS_PER_MARKER
LARGEST_BLOCK_BYTES = 514 * SYMBOLS_PER_MARKER
"""How many bytes the records of 256 symbols can take."""

_SHORTEST_MARKERS = 8
"""The smallest kernel that boots has some thousand symbols."""
_CANDIDATES = 16

_LONG = 0x80


def find_markers(words: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """
    Yield where the markers may be in an array of 32-bit words: index and count, the longest first.

    They start with 0 and rise by what 256 records can take.
    """
    if len(words) < _SHORTEST_MARKERS:
        return
    step = words[1:] - words[:-1]
    is_step = (words[1:] > words[:-1]) & (step >= _SMALLEST_BLOCK_BYTES) & (step <= LARGEST_BLOCK_BYTES)
    starts = np.nonzero((words[:-1] == 0) & is_step)[0]
    breaks = np.append(np.nonzero(~is_step)[0], len(is_step))
    counts = breaks[np.searchsorted(breaks, starts)] - starts + 1
    order = np.argsort(-counts, kind="stable")[:_CANDIDATES]
    for start, count in zip(starts[order].tolist(), counts[order].tolist(), strict=True):
        if count >= _SHORTEST_MARKERS:
            yield start, count


def find_name_starts(names: bytes, count: int) -> tuple[NDArray[np.int64], int]:
    """
    Find where each symbol's record starts in the stream of names.

    Parameters
    ----------
    names : bytes
        The stream, and what follows it.
    count : int
        Number of symbols.

    Returns
    -------
    starts : ndarray of int64, shape (count,)
    end : int
        Offset behind the last record.

    Raises
    ------
    TruncatedError
        If the stream ends before *count* symbols.
    CorruptError
        If a record is empty.
    """
    if 2 * count > len(names):
        raise TruncatedError(f"kallsyms names are {len(names)} bytes, too few for {count} symbols")
    wanted = -(-count // SYMBOLS_PER_MARKER)
    words = np.frombuffer(names, dtype="<u4", count=len(names) // 4)
    for index, found in find_markers(words):
        if found >= wanted:
            walk = _walk_blocks(names, words[index : index + wanted].astype(np.int64), count)
            if walk is not None:
                return walk
    return _walk_records(names, count)


def _walk_blocks(names: bytes, markers: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], int] | None:
    """Follow the records of all blocks at the same time; None when they do not end where the next block starts."""
    data = np.frombuffer(names, dtype=np.uint8)
    starts = np.zeros((SYMBOLS_PER_MARKER, len(markers)), dtype=np.int64)
    in_last = count - SYMBOLS_PER_MARKER * (len(markers) - 1)
    end = 0
    position = markers
    for row in range(SYMBOLS_PER_MARKER):
        starts[row, : len(position)] = position
        length = data.take(position, mode="clip").astype(np.int64)
        is_long = length >= _LONG
        if bool(is_long.any()):
            second = data.take(position + 1, mode="clip").astype(np.int64)
            length = np.where(is_long, ((length & ~_LONG) | (second << 7)) + 1, length)
        if not length.all():
            return None
        position = position + length + 1
        if row + 1 == in_last:
            end = int(position[-1])
            position = position[:-1]
    if end > len(names) or not np.array_equal(position, markers[1:]):
        return None
    return starts.T.reshape(-1)[:count].copy(), end


def _walk_records(names: bytes, count: int) -> tuple[NDArray[np.int64], int]:
    """Follow the records one by one."""
    starts = [0] * count
    position = 0
    try:
        for number in range(count):
            starts[number] = position
            length = names[position]
            if length & _LONG:
                length = (length & ~_LONG | names[position + 1] << 7) + 1
            elif not length:
                raise CorruptError(f"kallsyms name {number} of {count} is empty, at offset {position:#x}")
            position += length + 1
    except IndexError:
        position = len(names) + 1
    if position > len(names):
        raise TruncatedError(f"kallsyms names end after {len(names)} bytes, before the last of {count} symbols")
    return np.array(starts, dtype=np.int64), position
