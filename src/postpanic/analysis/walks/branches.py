"""What the walks of all trees share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.cells import LIMIT, problem
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem

__all__ = ["Element", "Visits"]

_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Element:
    """
    One entry of a tree.

    Parameters
    ----------
    vaddr : int
        What the tree holds: the address of a node inside of an object, or the entry.
    position : str
        The way from the root: ``root/l/r``, ``root/1/26``.
    index : int, optional
        Of an XArray or radix tree: the entry's index; of a maple tree: its number, from 1.
    first, last : int, optional
        Of a maple tree: the range of indexes.
    """

    vaddr: int
    position: str
    index: int | None = None
    first: int | None = None
    last: int | None = None


class Visits:
    """Sees to it that each node is visited once, and keeps count of what is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._seen: set[int] = set()
        self._wrong = 0

    def enter(self, node: int, position: str) -> bool:
        """Tell whether a node may be visited: it was not yet, and there are not too many."""
        if node in self._seen:
            self._add(Problem(f"{position}: node {node:x} is in the tree twice", Reason.DAMAGED))
            return False
        if len(self._seen) >= LIMIT:
            self._add(Problem(f"{position}: the tree stops after {LIMIT} nodes, no kernel has more", Reason.DAMAGED))
            return False
        self._seen.add(node)
        return True

    def fail(self, node: int, position: str, error: Exception) -> None:
        """Note that a node cannot be read."""
        self._add(problem(f"{position}: node {node:x}", error))

    def damaged(self, position: str, what: str) -> None:
        """Note that a node cannot be true."""
        self._add(Problem(f"{position}: {what}", Reason.DAMAGED))

    def _add(self, found: Problem) -> None:
        self._wrong += 1
        if self._wrong <= _MOST_PROBLEMS:
            self._problems.append(found)
        elif self._wrong == _MOST_PROBLEMS + 1:
            self._problems.append(Problem("the tree has more that is wrong", Reason.DAMAGED))

    def __iter__(self) -> Iterator[int]:
        return iter(self._seen)
