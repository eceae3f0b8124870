"""Lists that are linked by pointers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Program

from postpanic.analysis.cells import LIMIT, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem

__all__ = ["ListWalk", "Loop"]


@dataclass(frozen=True, slots=True)
class Loop:
    """Where a list comes back to an element that is not its end."""

    start: int
    """The element that is reached a second time."""
    length: int
    """Elements in the loop."""
    last: int
    """The element whose link leads back."""


class ListWalk:
    """
    Walks a list.

    Parameters
    ----------
    prog : Program
    first : int
        Address of the first link: what is shown first.
    offset : int
        From a link to the pointer to the next one, bytes.
    ends : set of int
        Links that are not shown: the list ends before them. So it does at NULL.
    problems : list of Problem
        Gets one more where the list breaks off or loops.
    closing : int
        Place, counted from 0, of the last element that the list may come back
        to as its end: a ring without a head of its own ends where it began.
    """

    def __init__(
        self,
        prog: Program,
        first: int,
        offset: int,
        ends: frozenset[int],
        problems: list[Problem],
        *,
        closing: int = -1,
    ) -> None:
        self._read = prog.read_word
        self._first = first
        self._offset = offset
        self._ends = ends
        self._problems = problems
        self._closing = closing
        self.loop: Loop | None = None
        """Set behind the last element, if the list loops."""

    def __iter__(self) -> Iterator[int]:
        places: dict[int, int] = {}
        link = self._first
        last = 0
        while link and link not in self._ends:
            if link in places:
                self._find_loop(link, last, places)
                return
            if len(places) >= LIMIT:
                self._problems.append(Problem(f"the list stops after {LIMIT}: no kernel has more", Reason.DAMAGED))
                return
            places[link] = len(places)
            yield link
            try:
                link, last = self._read(link + self._offset), link
            except UNREADABLE as exc:
                self._problems.append(problem(f"the list stops after {len(places)}, at {link:x}", exc))
                return

    def _find_loop(self, link: int, last: int, places: dict[int, int]) -> None:
        start = places[link]
        if start <= self._closing:
            return
        self.loop = Loop(link, len(places) - start, last)
        self._problems.append(
            Problem(
                f"the list loops: {last:x} leads back to {link:x}, the loop has {self.loop.length} of "
                f"{len(places)} elements",
                Reason.DAMAGED,
            )
        )
