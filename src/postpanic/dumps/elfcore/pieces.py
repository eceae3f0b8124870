"""Divide RAM among the virtual ranges that map it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import VirtualSegment

__all__ = ["find_pieces"]

_VADDR_LIMIT = 1 << 64


def find_pieces(ram: FrameSet, segments: Sequence[VirtualSegment], page_size_bytes: int) -> list[tuple[int, int, int]]:
    """
    Find the runs of RAM that each have one virtual range, or none.

    Returns
    -------
    list of (int, int, int)
        First frame, one after the last, virtual address of the first (0: not
        mapped), by rising virtual address from the highest range down, as the kernel
        orders /proc/vmcore: its image first. Runs overlap where ranges do.
    """
    runs = [(int(start), int(end)) for start, end in ram.runs().tolist()]
    starts = [start for start, _ in runs]
    pieces: list[tuple[int, int, int]] = []
    covered: list[tuple[int, int]] = []
    for first, last, vaddr in _join_segments(segments, page_size_bytes):
        index = max(bisect_right(starts, first) - 1, 0)
        while index < len(runs) and runs[index][0] < last:
            start, end = max(first, runs[index][0]), min(last, runs[index][1])
            if start < end:
                pieces.append((start, end, vaddr + (start - first) * page_size_bytes))
                covered.append((start, end))
            index += 1
    pieces += [(start, end, 0) for start, end in _subtract(runs, sorted(covered))]
    return pieces


def _join_segments(segments: Sequence[VirtualSegment], page_size_bytes: int) -> list[tuple[int, int, int]]:
    """
    Round segments to frames, and join those that go on from one another.

    An earlier filter may have cut one range into thousands.
    """
    rounded: list[tuple[int, int, int]] = []
    for segment in segments:
        first = segment.paddr // page_size_bytes
        vaddr = segment.vaddr - segment.paddr % page_size_bytes
        last = -(-(segment.paddr + segment.size_bytes) // page_size_bytes)
        if segment.size_bytes > 0 and vaddr > 0 and vaddr + (last - first) * page_size_bytes <= _VADDR_LIMIT:
            rounded.append((vaddr - first * page_size_bytes, first, last))
    joined: list[list[int]] = []
    for shift, first, last in sorted(rounded):
        if joined and joined[-1][0] == shift and first <= joined[-1][2]:
            joined[-1][2] = max(joined[-1][2], last)
        else:
            joined.append([shift, first, last])
    return [
        (first, last, shift + first * page_size_bytes)
        for shift, first, last in sorted(joined, key=lambda entry: (-entry[0], entry[1]))
    ]


def _subtract(runs: list[tuple[int, int]], covered: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Give what is left of sorted runs when sorted ranges are taken away."""
    index = 0
    for start, end in runs:
        while index < len(covered) and covered[index][1] <= start:
            index += 1
        at = index
        while start < end and at < len(covered) and covered[at][0] < end:
            if covered[at][0] > start:
                yield start, covered[at][0]
            start = max(start, covered[at][1])
            at += 1
        if start < end:
            yield start, end
