"""
Maps from one linear space to another, made of extents that may overlap.

Two formats need the same answer: program headers map physical memory to file
offsets, records of a flattened stream map a dump's offsets to the stream's.
Both may hold many thousands of extents, and both may say the same thing twice.
"""

from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError

__all__ = ["MAX_OVERLAPPING", "resolve_overlaps"]

MAX_OVERLAPPING = 1 << 20
"""Extents that take part in an overlap: they are settled one by one, so their number is bounded."""


def resolve_overlaps(
    starts: NDArray[np.int64], ends: NDArray[np.int64], *, where: str = ""
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """
    Cut overlapping extents into disjoint pieces; the later extent wins.

    Parameters
    ----------
    starts, ends : ndarray of int64
        ``[start, end)`` of each extent, in order of rising precedence. Empty
        extents are left out.

    Returns
    -------
    starts, ends, owners : ndarray of int64
        The pieces, sorted; *owners* are indices into the input.

    Raises
    ------
    CorruptError
        If more than :data:`MAX_OVERLAPPING` extents overlap others.
    """
    order = np.argsort(starts, kind="stable")
    order = order[ends[order] > starts[order]]
    if len(order) == 0:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty.copy(), empty.copy()
    sorted_starts, sorted_ends = starts[order], ends[order]
    reach = np.maximum.accumulate(sorted_ends)
    first = np.empty(len(order), dtype=bool)
    first[0] = True
    first[1:] = sorted_starts[1:] >= reach[:-1]
    cluster = np.cumsum(first) - 1
    sizes = np.bincount(cluster)
    shared = sizes[cluster] > 1
    count = int(np.count_nonzero(shared))
    if count == 0:
        return sorted_starts, sorted_ends, order
    if count > MAX_OVERLAPPING:
        raise CorruptError(f"{count} extents overlap, at most {MAX_OVERLAPPING} are allowed", where=where)
    pieces = _sweep(sorted_starts[shared], sorted_ends[shared], order[shared])
    all_starts = np.concatenate([sorted_starts[~shared], pieces[0]])
    all_ends = np.concatenate([sorted_ends[~shared], pieces[1]])
    all_owners = np.concatenate([order[~shared], pieces[2]])
    final = np.argsort(all_starts, kind="stable")
    return all_starts[final], all_ends[final], all_owners[final]


def _sweep(
    starts: NDArray[np.int64], ends: NDArray[np.int64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Settle extents sorted by start, by walking over every point where one begins or ends."""
    points = np.unique(np.concatenate([starts, ends])).tolist()
    start_list, end_list, owner_list = starts.tolist(), ends.tolist(), owners.tolist()
    out_starts: list[int] = []
    out_ends: list[int] = []
    out_owners: list[int] = []
    active: list[tuple[int, int]] = []
    upcoming = 0
    for point, following in pairwise(points):
        while upcoming < len(start_list) and start_list[upcoming] <= point:
            heapq.heappush(active, (-owner_list[upcoming], end_list[upcoming]))
            upcoming += 1
        while active and active[0][1] <= point:
            heapq.heappop(active)
        if not active:
            continue
        owner = -active[0][0]
        if out_owners and out_owners[-1] == owner and out_ends[-1] == point:
            out_ends[-1] = following
        else:
            out_starts.append(point)
            out_ends.append(following)
            out_owners.append(owner)
    return (
        np.array(out_starts, dtype=np.int64),
        np.array(out_ends, dtype=np.int64),
        np.array(out_owners, dtype=np.int64),
    )
