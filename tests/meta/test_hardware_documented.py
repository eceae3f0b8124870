"""docs/concepts/hardware-errors.md explains every severity and every verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.evidence.hardware import Severity, Verdict
from postpanic.evidence.hardware.verdict_rules import RULES

PAGE = (Path(__file__).parents[2] / "docs" / "concepts" / "hardware-errors.md").read_text()


@pytest.mark.parametrize("value", [*Severity, *Verdict], ids=lambda value: value.value)
def test_value_is_explained(value: Severity | Verdict) -> None:
    assert f"`{value.value}`" in PAGE


def test_every_pair_of_verdict_and_confidence_is_in_the_table() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 4]
    for rule in RULES:
        told = [
            row for row in rows if f"`{rule.verdict.value}`" in row and row.rstrip(" |").endswith(rule.confidence.value)
        ]
        assert told, (rule.hint, rule.verdict, rule.confidence)
