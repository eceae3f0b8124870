"""What ``postpanic status`` finds: conditions, each with its evidence and what mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["STATES", "Check", "Fact", "State", "StatusReport"]

_SHOWN = 3

State = Literal["ok", "warning", "failing", "unknown", "not applicable"]

STATES: tuple[State, ...] = ("ok", "warning", "failing", "unknown", "not applicable")
"""
``ok``: as it should be. ``warning``: a dump can be had, but less of it, or not always. ``failing``: there will be none.
``unknown``: could not be looked at. ``not applicable``: this machine has no such thing.
"""


@dataclass(frozen=True)
class Fact:
    """
    What a judgement rests on.

    Attributes
    ----------
    source : str
        A file, as from the host's own root, or what was asked: ``connect 192.0.2.1:22``.
    says : str
        What is in it, or why it could not be read.
    """

    source: str
    says: str


@dataclass(frozen=True)
class Check:
    """
    One condition.

    Attributes
    ----------
    group : str
        What it belongs to: ``reservation``.
    name : str
        Its own, unique within the group: ``size``.
    state : str
        One of :data:`STATES`.
    found : str
        What was found, in a phrase.
    evidence : tuple of Fact
    mend : str
        The command, or what else has to be done; empty where nothing has to.
    needs_root : bool
        Whether root would have seen more.
    """

    group: str
    name: str
    state: State
    found: str
    evidence: tuple[Fact, ...] = ()
    mend: str = ""
    needs_root: bool = False


@dataclass(frozen=True)
class StatusReport:
    """
    All conditions.

    Attributes
    ----------
    node, release : str
        The machine's name, and its kernel's.
    armed_by : str
        Whose capture kernel is loaded: ``postpanic``, ``kdump-tools`` …; empty: nobody's.
    checks : tuple of Check
        By group, in order.
    """

    node: str
    release: str
    armed_by: str
    checks: tuple[Check, ...] = field(default=())

    def select(self, *states: State) -> list[Check]:
        """List the checks of some states, in order."""
        return [check for check in self.checks if check.state in states]

    def find(self, group: str, name: str) -> Check:
        """
        Find one check.

        Raises
        ------
        KeyError
            If there is none.
        """
        for check in self.checks:
            if (check.group, check.name) == (group, name):
                return check
        raise KeyError(f"{group}/{name}")

    @property
    def is_ready(self) -> bool:
        """Whether a crash will be captured: something is loaded, and nothing that was seen speaks against it."""
        return self.is_loaded and not self.select("failing")

    @property
    def is_loaded(self) -> bool:
        """Whether a capture kernel is known to be loaded."""
        return any(check.state == "ok" for check in self.checks if check.group == "capture kernel")

    @property
    def verdict(self) -> str:
        """One line: whether it is ready, and if not, why."""
        failing = self.select("failing")
        warnings, unknown = self.select("warning"), self.select("unknown")
        if failing:
            shown = [f"{check.found} ({check.group}, {check.name})" for check in failing[:_SHOWN]]
            more = [f"{len(failing) - _SHOWN} more"] if len(failing) > _SHOWN else []
            return f"not ready: {'; '.join((*shown, *more))}"
        if not self.is_loaded:
            return "not known to be ready: whether a capture kernel is loaded could not be seen"
        rest = [_count(warnings, "warning")] if warnings else []
        rest += [f"{_count(unknown, 'condition')} could not be seen"] if unknown else []
        is_veiled = any(check.needs_root for check in unknown)
        claim = "ready as far as can be seen without root" if is_veiled else "ready: a crash will be captured"
        return claim + (f" ({'; '.join(rest)})" if rest else "")


def _count(checks: list[Check], word: str) -> str:
    return f"{len(checks)} {word}{'' if len(checks) == 1 else 's'}"
