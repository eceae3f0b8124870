"""Triage of machines that faulted: what detectors say, and that every piece of evidence is shown by its command."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from postpanic import open_dump
from postpanic.analysis.open_dump import OpenDump
from postpanic.analysis.triage import faults, judge, scene_of_dump
from postpanic.analysis.triage.registry import declared_detectors
from postpanic.errors import PostpanicError
from postpanic.findings.verdict import Cause, Confidence, Finding, Verdict
from postpanic.report.text import render_text
from tests.vm.lab import Crash

SCENARIOS = ("module-null", "irq-null", "module-recursion")
EXPECTED = {
    "module-null": (Cause.NULL_POINTER, "dummy_xmit", "dummy", ("NULL pointer", "constant")),
    "irq-null": (Cause.NULL_POINTER, "skb_recv_done", "virtio_net", ("NULL pointer", "constant")),
    "module-recursion": (Cause.STACK_OVERFLOW, "dummy_xmit", "dummy", ("recursion", "called itself")),
}


@pytest.fixture(scope="module", params=SCENARIOS)
def dump(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Iterator[OpenDump]:
    with open_dump(crashed("6.1", scenario=request.param).filtered, debuginfo="synth") as opened:
        yield opened


@pytest.fixture(scope="module")
def verdict(dump: OpenDump) -> Verdict:
    return judge(scene_of_dump(dump.workspace))


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["dump"])


def _own(verdict: Verdict) -> list[Finding]:
    names = {
        each.name
        for each in declared_detectors()
        if each.find.__module__.startswith("postpanic.analysis.triage.faults.")
    }
    return [finding for finding in verdict.findings if finding.detector in names]


def test_the_verdict_names_the_pointer_or_the_recursion(verdict: Verdict, scenario: str) -> None:
    cause, function, module, words = EXPECTED[scenario]
    assert (verdict.cause, verdict.function, verdict.module) == (cause, function, module)
    assert verdict.confidence is Confidence.PROVEN
    assert all(word in verdict.sentence for word in words)


def test_every_piece_of_evidence_is_shown_by_its_command(dump: OpenDump, verdict: Verdict) -> None:
    checked = 0
    for finding in _own(verdict):
        for evidence in finding.evidence:
            if not evidence.command or not evidence.shows:
                continue
            try:
                shown = "\n".join(render_text(dump.run(evidence.command)))
            except PostpanicError as exc:
                pytest.fail(f"{finding.detector}: {evidence.command}: {exc}")
            assert " ".join(evidence.shows.split()) in " ".join(shown.split()), (evidence, shown[:2000])
            checked += 1
    assert checked >= 2


def test_each_module_of_detectors_is_imported() -> None:
    found = {each.find.__module__.rpartition(".")[2] for each in declared_detectors()}
    assert set(faults.__all__) <= found
