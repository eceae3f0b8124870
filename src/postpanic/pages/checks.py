"""What a self-test found, as values: standard library alone, for a manifest is read where nothing else is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from postpanic.pages.json_values import clean_text

__all__ = ["CheckResult", "Outcome", "SelfTest"]


class Outcome(enum.Enum):
    """How one item of a self-test ended."""

    OK = "ok"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One item that a debugger needs."""

    name: str
    """``kernel text``, ``crashing task`` …"""
    outcome: Outcome
    detail: str
    """What is there; or what is lost, how much of it, and where it begins; or why there is nothing to check."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All items, and how long they took."""

    results: tuple[CheckResult, ...]
    duration_s: float

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The items that failed."""
        return tuple(result for result in self.results if result.outcome is Outcome.FAILED)

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was there to be checked."""
        return not self.failures and any(result.outcome is Outcome.OK for result in self.results)

    @property
    def summary(self) -> str:
        """
        Everything in one line.

        >>> SelfTest((CheckResult("BTF", Outcome.OK, "1,010 pages"),), 0.1).summary
        'passed (1 item)'
        """
        failures = self.failures
        if failures:
            return "FAILED: " + "; ".join(f"{result.name}: {result.detail}" for result in failures)
        count = sum(result.outcome is Outcome.OK for result in self.results)
        if not count:
            return "nothing to check: " + (self.results[0].detail if self.results else "no item")
        skipped = [result.name for result in self.results if result.outcome is Outcome.NOT_APPLICABLE]
        words = f"{count} item{'s' if count > 1 else ''}"
        return f"passed ({words}{'; not applicable: ' + ', '.join(skipped) if skipped else ''})"

    def to_json(self) -> dict[str, Any]:
        """Give everything as values that JSON has."""
        return {
            "passed": self.passed,
            "duration_s": round(self.duration_s, 3),
            "results": [
                {"name": result.name, "outcome": result.outcome.value, "detail": clean_text(result.detail)}
                for result in self.results
            ],
        }
