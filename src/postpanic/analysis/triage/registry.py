"""
Declare a detector: a function that looks at the scene of a crash for one kind of cause.

A detector is small, says what it needs, and yields findings: claims with
evidence that anyone can check. What it cannot see it reports by
:meth:`~postpanic.analysis.triage.scene.Scene.miss`, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.findings.verdict import Finding

__all__ = ["Detector", "Find", "Need", "declared_detectors", "detector"]

Find = Callable[[Scene], Iterable[Finding]]


class Need(StrEnum):
    """What a detector cannot do without."""

    LOG = "the kernel's log"
    MEMORY = "the dump's memory"
    TYPES = "types"
    TASKS = "the list of tasks"
    REPORT = "a report in the log"
    FAULT = "registers of the moment of the fault"


@dataclass(frozen=True, slots=True)
class Detector:
    """
    A declared detector; called, it looks.

    Parameters
    ----------
    name : str
        Lower case, words joined by ``-``; it stands in findings.
    find : callable
    needs : tuple of Need
        It is not asked where one of them is missing.
    about : str
        What it looks for, one line, for the documents.
    depth : int
        How near to the root of things its causes are, 0 to 100: of two findings
        equally sure the deeper one is the verdict. What only repeats a report
        has 10, what names a bad value 40, what says how the value came to be
        bad 70, what proves who did it 90.
    kinds, families : frozenset
        Of the first report, for which it is asked; both empty: for all, and without a report.
    """

    name: str
    find: Find
    needs: tuple[Need, ...]
    about: str
    depth: int
    kinds: frozenset[Kind]
    families: frozenset[Family]

    def __call__(self, scene: Scene) -> Iterable[Finding]:
        """Look."""
        return self.find(scene)

    def concerns(self, scene: Scene) -> bool:
        """Tell whether the crash is of a kind that it knows something about."""
        if not self.kinds and not self.families:
            return True
        return any(report.kind in self.kinds or report.family in self.families for report in scene.suspects)


_DECLARED: dict[str, Detector] = {}


def detector(
    name: str,
    *,
    needs: Iterable[Need],
    about: str,
    depth: int,
    kinds: Collection[Kind] = (),
    families: Collection[Family] = (),
) -> Callable[[Find], Detector]:
    """
    Make a detector of a function; the parameters are those of :class:`Detector`.

    ``analysis/triage/catalog.py`` imports its module.
    """

    def declare(find: Find) -> Detector:
        if name in _DECLARED:
            raise ValueError(f"two detectors are called {name}")
        declared = Detector(name, find, tuple(needs), about, depth, frozenset(kinds), frozenset(families))
        _DECLARED[name] = declared
        return declared

    return declare


def declared_detectors() -> tuple[Detector, ...]:
    """Return all detectors, the deepest first, then by name."""
    return tuple(sorted(_DECLARED.values(), key=lambda each: (-each.depth, each.name)))
