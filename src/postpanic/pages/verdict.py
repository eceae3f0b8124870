"""
What is to become of each page frame: dropped, and why; or kept, and how soon.

One byte per frame. Values below :data:`FIRST_DROPPED` are kept pages in order
of worth: what a debugger cannot do without comes first, so that a dump that
is cut short still opens.
"""

from __future__ import annotations

import enum

__all__ = ["FIRST_DROPPED", "LEVEL_BITS", "DumpLevel", "Verdict"]


class DumpLevel(enum.IntFlag):
    """The bits of makedumpfile's ``-d``: what to leave out."""

    ZERO = 1
    CACHE = 2
    """Page cache without private data."""
    CACHE_PRIVATE = 4
    """All page cache: this bit implies :attr:`CACHE`."""
    USER = 8
    """Anonymous memory of processes, and hugetlb pages."""
    FREE = 16


class Verdict(enum.IntEnum):
    """What is to become of a page frame."""

    IMAGE = 0
    """Kept: the kernel image's text and data."""
    TABLE = 1
    """Kept: page tables."""
    STACK = 2
    """Kept: mapped by vmalloc: stacks of tasks, modules' text and data, and the rest of the vmalloc area."""
    SLAB = 3
    """Kept: objects of the slab allocator."""
    KERNEL = 4
    """Kept: the rest of what the kernel allocated, its boot-time memory (per-CPU areas) included."""
    MEMMAP = 5
    """Kept: the array of struct page."""
    UNKNOWN = 6
    """Kept: no readable ``struct page`` tells what it is."""
    USER_KEPT = 7
    """Kept because the level says so: user memory, page cache, free pages."""

    CACHE = 16
    """Dropped by bit 2 (or 4) of the level: page cache without private data."""
    CACHE_PRIVATE = 17
    """Dropped by bit 4: page cache with private data."""
    USER = 18
    """Dropped by bit 8: anonymous or hugetlb."""
    FREE = 19
    """Dropped by bit 16: in the buddy allocator."""
    UNACCEPTED = 20
    """Dropped by bit 16: memory that the guest of a confidential machine has not accepted yet."""
    HWPOISON = 21
    """Dropped always: the hardware reported an error there, reading it may crash the capture kernel."""
    OFFLINE = 22
    """Dropped always: logically offline, a balloon's or a memory device's (``PageOffline``)."""
    NOT_IN_SOURCE = 23
    """Not in the dump that is read: an earlier filter left it out."""


FIRST_DROPPED = 16

LEVEL_BITS: dict[Verdict, DumpLevel] = {
    Verdict.CACHE: DumpLevel.CACHE,
    Verdict.CACHE_PRIVATE: DumpLevel.CACHE_PRIVATE,
    Verdict.USER: DumpLevel.USER,
    Verdict.FREE: DumpLevel.FREE,
    Verdict.UNACCEPTED: DumpLevel.FREE,
}
"""Which bit of the level drops what; the verdicts that are not here need none."""
