"""One rehearsal after the other: kinds of crashes, targets one by one, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from postpanic.capture.config import Config
from postpanic.capture.crashing import KINDS
from postpanic.errors import FactAbsentError
from postpanic.rehearse.initramfs import can_crash
from postpanic.rehearse.job import NMI, OUT_OF_MEMORY
from postpanic.rehearse.rehearsal import Rehearsal, RehearsalOptions, RehearsalOutcome
from postpanic.rehearse.sizing import STEP_MIB, find_smallest
from postpanic.rehearse.subject import Subject
from postpanic.units import format_size

__all__ = ["Planned", "Run", "Runner", "Series", "list_runs"]

DEFAULT_CRASH = "sysrq"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Planned:
    """
    A rehearsal that is to be made.

    Attributes
    ----------
    crash : str
    target : int or None
        The only one to save to, by number; None: all, as the configuration says.
    """

    crash: str
    target: int | None = None


@dataclass(frozen=True)
class Run:
    """
    A rehearsal that was made.

    Attributes
    ----------
    crash : str
    target : int or None
    target_name : str
        Empty: all.
    outcome : RehearsalOutcome
    """

    crash: str
    target: int | None
    target_name: str
    outcome: RehearsalOutcome

    @property
    def name(self) -> str:
        """What it was, in a few words."""
        return f"{self.crash}, {self.target_name}" if self.target_name else self.crash

    @property
    def verdict(self) -> str:
        """``proven``, or the link that broke or was left out."""
        link = self.outcome.broken
        if link is None:
            return "proven"
        return "not proven" if link.state == "not proven" else f"broken at {link.name}"

    @property
    def broken(self) -> str:
        """What broke, with what is to be done about it; empty: nothing."""
        link = self.outcome.broken
        if link is None:
            return ""
        return f"{link.name} ({self.crash}): {link.evidence}" + (f"; {link.mend}" if link.mend else "")


@dataclass(frozen=True)
class Series:
    """
    All that was made of one subject.

    Attributes
    ----------
    broken : str
        The first link that broke; empty: none.
    needed_bytes : int
        The smallest reservation that works; 0: not looked for.
    host_memory_bytes : int
        As the user says; 0: as the host's kernel does.
    is_emulated : bool
        Whether the machine was emulated by software.
    """

    subject: Subject
    config: Config
    runs: tuple[Run, ...]
    broken: str
    needed_bytes: int
    host_memory_bytes: int
    is_emulated: bool


def list_runs(subject: Subject, crashes: Sequence[str], *, is_matrix: bool) -> list[Planned]:
    """List what is to be rehearsed; in a matrix every kind that the kernel can do, on every target."""
    if not is_matrix:
        return [Planned(crash) for crash in crashes or (DEFAULT_CRASH,)]
    kinds = crashes or [kind for kind in (DEFAULT_CRASH, NMI, OUT_OF_MEMORY, *KINDS) if can_crash(subject, kind)]
    return [Planned(kind, number) for kind in dict.fromkeys(kinds) for number in range(len(subject.targets))]


class Runner:
    """
    Makes rehearsals.

    Parameters
    ----------
    directory : Path
        Each has one of its own below it.
    say : callable
        Is told what begins.
    """

    def __init__(
        self, subject: Subject, directory: Path, options: RehearsalOptions, say: Callable[[str], object]
    ) -> None:
        self._subject = subject
        self._directory = directory
        self._options = options
        self._say = say
        self._last: Rehearsal | None = None

    def run(self, planned: Planned, place: str = "", *, reserved_mib: int = 0) -> Run:
        """
        Make one.

        Parameters
        ----------
        place : str
            ``2 of 9``.
        reserved_mib : int
            Instead of the subject's reservation.

        Raises
        ------
        NotReadyError, MachineError
            As :func:`postpanic.rehearse.rehearsal.rehearse`.
        """
        subject, options = self._subject, replace(self._options, crash=planned.crash, reserved_bytes=reserved_mib << 20)
        name = ""
        if planned.target is not None:
            name = subject.targets[planned.target].name
            subject, options = _narrow(subject, options, planned.target)
        size = reserved_mib << 20 or subject.reserved_bytes
        where = f" ({place})" if place and place != "1 of 1" else ""
        self._say(
            f"rehearsing {planned.crash}{f', {name},' if name else ''} with {format_size(size)} reserved{where} …"
        )
        number = "" if planned.target is None else f"-target{planned.target}"
        directory = self._directory / f"{planned.crash}{number}-{size >> 20}M"
        directory.mkdir()
        self._last = Rehearsal.build(subject, directory, options)
        outcome = self._last.run()
        (directory / "console.log").write_text(outcome.console)
        return Run(planned.crash, planned.target, name, outcome)

    def find_smallest(self, first: Run) -> int:
        """
        Find the smallest reservation that works, bytes.

        Parameters
        ----------
        first : Run
            One that has worked.
        """

        def works(size_mib: int) -> bool:
            return self.run(Planned(DEFAULT_CRASH, first.target), reserved_mib=size_mib).outcome.broken is None

        known, peak = first.outcome.reserved_bytes >> 20, first.outcome.peak_bytes >> 20
        return find_smallest(works, known_mib=known, guess_mib=peak + STEP_MIB if peak else known // 2) << 20

    def show_around(self) -> None:
        """
        Boot the last machine once more, with its console on the terminal.

        Raises
        ------
        FactAbsentError
            If there was none.
        """
        if self._last is None:
            raise FactAbsentError("nothing was rehearsed: there is no machine to look at")
        self._last.show_around()


def _narrow(subject: Subject, options: RehearsalOptions, number: int) -> tuple[Subject, RehearsalOptions]:
    """Leave one target, which becomes number 0."""

    def pick(values: Mapping[int, _T]) -> dict[int, _T]:
        return {0: values[number]} if number in values else {}

    plan = replace(subject.plan, targets=(subject.targets[number],), fallbacks=())
    faults = tuple(
        replace(fault, target=min(fault.target, 0)) for fault in options.faults if fault.target in {number, -1}
    )
    narrowed = replace(
        options,
        free_bytes=pick(options.free_bytes),
        disks=pick(options.disks),
        unreachable=frozenset({0}) if number in options.unreachable else frozenset(),
        faults=faults,
    )
    return replace(subject, plan=plan, spaces=pick(subject.spaces)), narrowed
