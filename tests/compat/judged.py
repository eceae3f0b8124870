"""A dump that both answer for: crash, with the kernel's own debug information, and we, with none."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from postpanic import open_dump
from postpanic.analysis.open_dump import OpenDump
from postpanic.findings.table import Answer, Cell, Table
from tests.compat.crash_oracle import QUESTIONS, CrashOracle
from tests.vm.lab import Crash

__all__ = ["Judged", "differences", "inner", "judge", "records"]

T = TypeVar("T")
SHOWN = 12


@dataclass(frozen=True)
class Judged:
    """
    A dump, opened by us, and asked of crash.

    Attributes
    ----------
    kernel : str
        The lab's name of it: ``6.1``.
    """

    kernel: str
    crash: Crash
    oracle: CrashOracle
    dump: OpenDump
    vmlinux: Path

    def said(self, line: str) -> str:
        """Return what crash says to one of the questions that both dumps are asked."""
        return self.ask(QUESTIONS)[line]

    def ask(self, lines: Sequence[str]) -> Mapping[str, str]:
        """Return what crash says in a session of its own to these lines."""
        texts = self.oracle.ask(self.vmlinux, self.crash.filtered, lines)
        return {line: text for line, text in texts.items() if text is not None}

    def parsed(self, line: str, parse: Callable[[str], T]) -> T:
        """Return what crash says, as values."""
        return parse(self.said(line))

    def run_each(self, line: str) -> list[dict[str, Any]]:
        """Return the rows of ``foreach``, those of all tasks one after the other."""
        return [
            row
            for task in records(self.run(f"foreach {line}").table)
            for answer in inner(task["answers"])
            for row in inner(answer["rows"])
        ]

    def run(self, line: str) -> Answer:
        """Return our answer; it must be whole."""
        answer = self.dump.run(line)
        assert answer.problems == (), answer.problems
        return answer


def judge(oracle: CrashOracle, crash: Crash, kernel: str, cache: Path) -> Judged:
    """Open a dump without any debug information but what it holds itself."""
    assert crash.vmlinux is not None
    dump = open_dump(crash.filtered, debuginfo="synth", cache_directory=cache)
    return Judged(kernel, crash, oracle, dump, crash.vmlinux)


def records(table: Table) -> list[dict[str, Any]]:
    """Return the rows as dictionaries, for tests that know what each cell is."""
    return list(table.records())


def inner(cell: Cell) -> list[dict[str, Any]]:
    """Return the rows of a table in a cell."""
    assert isinstance(cell, Table), cell
    return records(cell)


def differences(ours: Iterable[Hashable], theirs: Iterable[Hashable]) -> list[str]:
    """
    Name what only one of the two has, and whether the order differs: empty, where both are the same.

    At most a dozen, so that a test's failure can be read.
    """
    mine: Sequence[Hashable] = list(ours)
    others: Sequence[Hashable] = list(theirs)
    found = [f"only ours: {item}" for item in mine if item not in set(others)]
    found += [f"only crash: {item}" for item in others if item not in set(mine)]
    if not found and mine != others:
        place = next((index for index, pair in enumerate(zip(mine, others, strict=False)) if pair[0] != pair[1]), -1)
        found = [f"other order or count: {len(mine)} against {len(others)}, from {place} on"]
    return found[:SHOWN]
