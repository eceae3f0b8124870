"""Triage, judged by crashes whose truth is known: ``scenarios/triage``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest

from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence
from tests.vm.lab import Lab
from tests.vm.triage_judge import Judgement, judge_dump
from tests.vm.triage_lab import TriageLab
from tests.vm.triage_table import render
from tests.vm.triage_truth import Truth, list_truths

Judge = Callable[[str, str], Judgement]

TRUTHS = {truth.name: truth for truth in list_truths()}
# One or more of each family, the meanest first; all of them are judged with the wide matrix.
CHOSEN = (
    *("null-member", "reused-memory", "neighbour-slab", "double-add", "null-call", "stack-smash", "interrupt-null"),
    *("abba-deadlock", "lost-request", "stuck-below", "memory-hog", "busy-healthy"),
)
LEAST_BLAMES_RIGHT, LEAST_SENTENCES_RIGHT = 0.95, 0.85
WIDE = [pytest.param("6.1", tuple(TRUTHS)), pytest.param("6.12", tuple(TRUTHS))]


@pytest.fixture(scope="session")
def judged(crash_lab: Lab, fetch_kernel: Callable[[str], object]) -> Judge:
    """Return a function that makes a scenario's dump and judges what triage says of it."""
    lab = TriageLab(crash_lab)

    @cache
    def judge(key: str, name: str) -> Judgement:
        fetch_kernel(key)
        lab.build_modules([TRUTHS[each] for each in CHOSEN if name in CHOSEN] or [TRUTHS[name]], key)
        return judge_dump(lab.crash(TRUTHS[name], key))

    return judge


def explain(judgements: Sequence[Judgement]) -> str:
    """Say what is wrong about verdicts."""
    return "\n".join(
        f"{each.truth.name}: wrong {', '.join(each.faults)}: {each.verdict.kind} {each.verdict.cause} "
        f"{each.verdict.function} [{each.verdict.module}] {each.verdict.confidence}: {each.verdict.sentence}"
        for each in judgements
    )


def check_all_right(judgements: Sequence[Judgement]) -> None:
    """Fail where more verdicts are wrong than may be."""
    assert [each.truth.name for each in judgements if not each.is_kind_right] == [], explain(judgements)
    blames = [each for each in judgements if not each.is_blame_right]
    assert len(blames) <= (1 - LEAST_BLAMES_RIGHT) * len(judgements), explain(blames)
    sentences = [each for each in judgements if not each.is_sentence_right]
    assert len(sentences) <= (1 - LEAST_SENTENCES_RIGHT) * len(judgements), explain(sentences)


@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS)
def test_truth_files_use_the_words_of_verdicts(truth: Truth) -> None:
    assert {*truth.kinds} <= {kind.value for kind in Kind}
    assert {*truth.causes} <= {cause.value for cause in Cause}
    assert truth.functions
    assert not {*truth.functions} & {*truth.not_blamed}
    assert truth.recipe or truth.sources


@pytest.mark.parametrize("name", CHOSEN)
def test_no_verdict_is_proven_and_wrong(judged: Judge, name: str) -> None:
    judgement = judged("6.1", name)
    assert judgement.is_kind_right, explain([judgement])
    assert not judgement.is_overclaimed, explain([judgement])


def test_the_chosen_are_right(judged: Judge) -> None:
    check_all_right([judged("6.1", name) for name in CHOSEN])


@pytest.mark.matrix
@pytest.mark.parametrize(("key", "names"), WIDE)
def test_all_are_right(judged: Judge, key: str, names: Sequence[str]) -> None:
    judgements = [judged(key, name) for name in names]
    assert [each.truth.name for each in judgements if each.is_overclaimed] == [], explain(judgements)
    check_all_right(judgements)


@pytest.mark.matrix
@pytest.mark.parametrize(("key", "names"), WIDE)
def test_the_surer_the_righter(judged: Judge, key: str, names: Sequence[str]) -> None:
    judgements = [judged(key, name) for name in names]

    def share(*confidences: Confidence) -> float:
        those = [each for each in judgements if each.verdict.confidence in confidences]
        return sum(each.is_right for each in those) / len(those) if those else 1.0

    assert share(Confidence.PROVEN) == 1.0
    assert share(Confidence.LIKELY) >= 0.85
    assert share(Confidence.LIKELY) >= share(Confidence.POSSIBLE, Confidence.UNKNOWN)


def test_the_table_has_a_row_for_each(judged: Judge) -> None:
    judgement = judged("6.1", "null-member")
    rows = [line for line in render({"6.1": [judgement]}).splitlines() if line.startswith("| null-member")]
    assert len(rows) == 1
    assert judgement.verdict.function in rows[0]
