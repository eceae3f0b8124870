"""Triage on arm64, judged by the crashes of ``scenarios/triage``, on real kernels in emulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from postpanic import open_dump
from postpanic.analysis.triage import judge as judge_scene
from postpanic.analysis.triage import scene_of_dump
from postpanic.findings.verdict import Confidence, Role
from tests.vm.arm64_triage import KERNELS, Arm64TriageLab, is_there
from tests.vm.shown_evidence import check_evidence
from tests.vm.test_triage import check_all_right, explain
from tests.vm.triage_judge import Judgement, judge_dump
from tests.vm.triage_truth import list_truths

pytestmark = pytest.mark.matrix

Judge = Callable[[str, str], Judgement]

TRUTHS = {key: {truth.name: truth for truth in list_truths() if is_there(truth, key)} for key in KERNELS}
# Of each way in which arm64 differs: registers, branches, inlined locks, stacks, loops.
SHOWN = (
    *("null-member", "bug-on", "bad-call", "recursion-pair", "stack-smash", "list-freed", "reference-underflow"),
    *("abba-deadlock", "crossed-spinlocks", "leaked-spinlock", "circle-stall", "slab-leak"),
)
# Where preemption is counted, and modules are out of the kernel's reach.
SHOWN_ON_NEWEST = ("leaked-spinlock", "atomic-sleep", "never-upped")


@pytest.fixture(scope="module")
def judged(arm64_triage_lab: Arm64TriageLab) -> Judge:
    """Return a function that makes a scenario's dump and judges what triage says of it."""

    @cache
    def judge(key: str, name: str) -> Judgement:
        arm64_triage_lab.build_modules(TRUTHS[key].values(), key)
        return judge_dump(arm64_triage_lab.crash(TRUTHS[key][name], key))

    return judge


@pytest.mark.parametrize("key", KERNELS)
def test_all_are_right(judged: Judge, key: str) -> None:
    judgements = [judged(key, name) for name in TRUTHS[key]]
    assert [each.truth.name for each in judgements if each.is_overclaimed] == [], explain(judgements)
    check_all_right(judgements)
    proven = [each for each in judgements if each.verdict.confidence is Confidence.PROVEN]
    assert [each.truth.name for each in proven if not each.is_right] == [], explain(proven)


@pytest.mark.parametrize(
    ("key", "name"), [*(("6.1", name) for name in SHOWN), *(("newest", name) for name in SHOWN_ON_NEWEST)]
)
def test_evidence_is_shown_by_its_command(arm64_triage_lab: Arm64TriageLab, key: str, name: str) -> None:
    dump = arm64_triage_lab.crash(TRUTHS[key][name], key)
    with open_dump(dump.dump, debuginfo="synth") as opened:
        verdict = judge_scene(scene_of_dump(opened.workspace))
        causes = [finding for finding in verdict.findings if finding.role is Role.CAUSE]
        assert check_evidence(opened, causes) >= 1
