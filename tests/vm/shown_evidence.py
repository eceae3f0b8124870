"""What findings say that a command shows, looked for in what it shows."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from postpanic.analysis.open_dump import OpenDump
from postpanic.errors import PostpanicError
from postpanic.findings.verdict import Finding
from postpanic.report.text import render_text

__all__ = ["check_evidence"]


def check_evidence(dump: OpenDump, findings: Iterable[Finding]) -> int:
    """Run the command of each piece of evidence, and fail where its output lacks what is claimed; give their number."""
    checked = 0
    for finding in findings:
        for evidence in finding.evidence:
            if not evidence.command or not evidence.shows:
                continue
            try:
                shown = "\n".join(render_text(dump.run(evidence.command)))
            except PostpanicError as exc:
                pytest.fail(f"{finding.detector}: {evidence.command}: {exc}")
            assert " ".join(evidence.shows.split()) in " ".join(shown.split()), (evidence, shown[:2000])
            checked += 1
    return checked
