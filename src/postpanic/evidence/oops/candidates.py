"""
Places of a text where a report may begin, found at the speed of memory.

Logs are full of words that reports have too. What follows (or precedes) such a word
in a report is looked at in the bytes, before a line is decoded: so a log with
alarming words in every line goes by nearly as fast as one without any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from mmap import mmap
from re import Pattern
from typing import TypeAlias

from postpanic.evidence.oops.rules import NEEDLES

__all__ = ["Candidates", "Text"]

Text: TypeAlias = "bytes | mmap"

_WINDOW = 1 << 20
_CONTEXT_BYTES = 400
"""Behind a window, for what follows a word at its end."""

# Each begins with letters, for which the search is as fast as bytes.find().
_IN_REPORTS = (
    rb"BUG: (?<![\w\"'`=/]BUG: )\S",
    rb"BUG (?:at |\[#|[\w:. -]{1,80} \((?:Not t|T)ainted)",
    rb"ernel BUG at \S",
    rb"ernel stack (?:overflow(?:\.| in)|pointer invalid)",
    rb"machine check \((?<=: machine check \()",
    rb"EEH: Fr",
    rb"PCIe Bus Error: severity=Uncorrect",
    rb"EDAC MC",
    rb"LBUG",
    rb"PANIC at ",
    (
        rb"INFO: (?:task [^\n]{1,100} (?:blocked|can't die) |\w{1,30} (?:self-|expedited |)(?:detected"
        rb"|stall)|(?:Freed|Allocated) in |(?:Slab|Object) 0x)"
    ),
    (
        rb"WARNING: (?:CPU: \d|at \S{1,200}:\d|at \S{1,255}, CPU#|\[|[\w./+-]{1,200}:\d{1,7} at "
        rb"|kernel stack|stack |can't |unrecognized )"
    ),
    rb"UBSAN: [\w -]{1,60}? in ",
    rb"ODEBUG: ",
    rb"PANIC: (?:double|early|Unsupp)",
    rb"\[#\d{1,6}\]",
    rb"Oops(?<!\wOops)(?:(?:: | - )[^\[\n]{0,100})? ?\[#\d",
    rb"ernel panic - not syncing",
    rb"nable to handle (?:kernel|user)",
    rb"nhandled (?:fault|prefetch abort|[\w() -]{1,60} exception on CPU)",
    rb"Alignment trap: not handling",
    rb"Bad mode in ",
    rb"SError Interrupt on",
    rb"Insufficient stack space",
    rb"overran stack, or",
    rb"Kernel bug detected",
    rb"sercopy: (?:[kK]ernel memory|Bad )",
    rb"list_(?:add|del) corruption",
    rb"detected buffer overflow",
    rb"refcount_t: ",
    rb"rust_kernel: panicked",
    rb"CFI failure",
    rb"etected (?:\*?[hH]ard\*?) LOCKUP",
    rb"Hard LOCKUP",
    rb"blocked for more than \d",
    rb"CSD lock",
    rb"unregister_netdevice: waiting",
    rb"unreferenced object 0x",
    rb"page allocation failure",
    rb"invoked oom-killer",
    rb"ut of memory(?: \(\w{1,40}\))?: Kill",
    rb"Machine Check",
    rb"HARDWARE ERROR",
    rb"Hardware error from APEI",
    rb"NMI: (?:PCI system|IOCK|memory parity)",
    rb"NMI received",
    rb"An NMI occurred",
    rb"rigger a crash",
    rb"file count is (?:0|zero)",
    rb"Busy inodes",
    rb"Kernel Offset: ",
    rb"Kernel relocated by ",
    rb"Linux version \S",
    # What the lock checker and the scheduler say behind BUG, INFO or WARNING.
    rb"possible (?:circular|recursive|irq lock)",
    rb"circular locking deadlock",
    rb"lock order detected",
    rb"Nested lock was not",
    rb"inconsistent lock state",
    rb"bad unlock balance",
    rb"bad contention",
    rb"held lock freed",
    rb"still has locks held",
    rb"lock held (?:when returning|at task exit)",
    rb"nvalid wait context",
    rb"uspicious (?:RCU usage|rcu_dereference)",
    rb"trying to register non",
    rb" too low!",
    rb"scheduling while atomic",
    rb"sleeping function called",
    rb"in preemptible",
)
_SOUGHT: tuple[Pattern[bytes], ...] = tuple(map(re.compile, _IN_REPORTS))
_COLOURED: tuple[Pattern[bytes], ...] = tuple(re.compile(re.escape(needle)) for needle in NEEDLES)
"""Where a terminal's escape sequences may stand between the words."""


class Candidates:
    """Places where a report may begin, found window by window."""

    def __init__(self, data: Text) -> None:
        self._data = data
        self._size = len(data)
        self._places: list[int] = []
        self._next = 0
        self._until = 0

    def at_or_after(self, position: int) -> int | None:
        """Return the first place at or behind a position; positions must not go back."""
        while True:
            places = self._places
            while self._next < len(places) and places[self._next] < position:
                self._next += 1
            if self._next < len(places):
                return places[self._next]
            if self._until >= self._size:
                return None
            self._fill(max(self._until, position))

    def _fill(self, start: int) -> None:
        end = min(start + _WINDOW, self._size)
        is_coloured = self._data.find(b"\x1b", start, end) >= 0
        self._places = sorted(self._find(_COLOURED if is_coloured else _SOUGHT, start, end))
        self._next = 0
        self._until = end

    def _find(self, patterns: Iterable[Pattern[bytes]], start: int, end: int) -> set[int]:
        data, limit = self._data, min(end + _CONTEXT_BYTES, self._size)
        found: set[int] = set()
        for pattern in patterns:
            for match in pattern.finditer(data, start, limit):
                place = match.start()
                if place >= end:
                    break
                found.add(place)
        return found
