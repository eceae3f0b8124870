"""Triage of machines that hung: the wait-for graph, its roots, and that evidence is shown by its command."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from drgn.helpers.linux.sched import task_cpu

from postpanic import open_dump
from postpanic.analysis.open_dump import OpenDump
from postpanic.analysis.triage import Scene, judge, scene_of_dump
from postpanic.analysis.triage.hangs.leaks import open_picture
from postpanic.analysis.triage.hangs.roots import RootKind, find_chains
from postpanic.analysis.triage.hangs.stories import Story, tell
from postpanic.analysis.triage.registry import declared_detectors
from postpanic.findings.verdict import Cause, Confidence, Finding, Role, Verdict
from tests.vm.lab import Crash
from tests.vm.shown_evidence import check_evidence

EXPECTED = {
    "locked": (Cause.DEADLOCK, Confidence.PROVEN, {"abba_one", "abba_two"}, "locked", ("locked_left", "locked_right")),
    "hung-task": (Cause.LEAKED_LOCK, Confidence.LIKELY, {"freeze_super"}, "vmlinux", ("loop0", "frozen")),
    "module-spin": (Cause.ENDLESS_LOOP, Confidence.LIKELY, {"dummy_xmit"}, "dummy", ("CPU {cpu} (packet-sender",)),
}
ROOTS = {
    "sem-writer": (Cause.BLOCKED_HOLDER, "sem_reader", "sem-reader"),
    "sem-late": (Cause.BLOCKED_HOLDER, "sem_reader", "locked_gate"),
    "pcpu-writer": (Cause.BLOCKED_HOLDER, "pcpu_reader", "locked_pcpu"),
    "never-done": (Cause.LOST_WAKEUP, "never_done", "locked_done"),
    "sem-taker": (Cause.LOST_WAKEUP, "sem_taker", "locked_count"),
    "wq-flusher": (Cause.BLOCKED_HOLDER, "stuck_work", "locked_wq"),
}
"""What each task of the scenario ``locked`` waits for in the end."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.matrix) if name == "hung-task" else name for name in EXPECTED],
)
def dump(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Iterator[OpenDump]:
    # The same crashes as others look at: each takes a minute to make.
    kernel = "6.12" if request.param == "locked" else "6.1"
    with open_dump(crashed(kernel, scenario=request.param).filtered, debuginfo="synth") as opened:
        yield opened


@pytest.fixture(scope="module")
def scene(dump: OpenDump) -> Scene:
    return scene_of_dump(dump.workspace)


@pytest.fixture(scope="module")
def verdict(scene: Scene) -> Verdict:
    return judge(scene)


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["dump"])


def _own(verdict: Verdict) -> list[Finding]:
    names = {
        each.name
        for each in declared_detectors()
        if each.find.__module__.startswith("postpanic.analysis.triage.hangs.")
    }
    return [finding for finding in verdict.findings if finding.detector in names]


def test_the_verdict_names_who_holds_the_others_up(dump: OpenDump, verdict: Verdict, scenario: str) -> None:
    cause, confidence, functions, module, words = EXPECTED[scenario]
    assert (verdict.cause, verdict.confidence, verdict.module) == (cause, confidence, module)
    assert verdict.function in functions
    cpu = task_cpu(dump.prog.crashed_thread().object)
    assert all(word.format(cpu=cpu) in verdict.sentence for word in words)


def test_every_piece_of_evidence_is_shown_by_its_command(dump: OpenDump, verdict: Verdict) -> None:
    assert check_evidence(dump, _own(verdict)) >= 2


@pytest.mark.parametrize("dump", ["locked"], indirect=True)
def test_every_chain_leads_to_its_root(scene: Scene) -> None:
    picture = open_picture(scene)
    stories: dict[str, Story] = {}
    cycles = set()
    for chain in find_chains(picture):
        comm = chain.steps[0][0].facts.comm
        if chain.root.kind is RootKind.CYCLE:
            cycles.add(comm)
        else:
            stories[comm] = tell(picture, chain)
    assert cycles == {"abba-one", "abba-two"}
    found = {comm: (story.cause, story.function) for comm, story in stories.items() if comm in ROOTS}
    assert found == {comm: (cause, function) for comm, (cause, function, _) in ROOTS.items()}
    assert all(word in stories[comm].sentence for comm, (_, _, word) in ROOTS.items())


@pytest.mark.parametrize("dump", ["locked"], indirect=True)
def test_what_hangs_unreported_is_no_cause_but_for_a_deadlock(verdict: Verdict) -> None:
    causes = {finding.detector for finding in _own(verdict) if finding.role is Role.CAUSE}
    assert causes == {"deadlock"}
    assert [victim.comm for victim in verdict.victims] == []
