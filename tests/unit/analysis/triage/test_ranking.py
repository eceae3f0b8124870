"""Which finding becomes the verdict, and how sure it may be."""

from __future__ import annotations

from typing import Any

from postpanic.analysis.triage.ranking import rank_findings, settle_confidence
from postpanic.findings.verdict import Cause, Confidence, Finding, Role

DEPTHS = {"shallow": 10, "deep": 70, "deepest": 90, "asked": 60}


def finding(detector: str, cause: Cause = Cause.NULL_POINTER, confidence: Confidence = Confidence.LIKELY,
            role: Role = Role.CAUSE, **more: object) -> Finding:  # fmt: skip
    values: dict[str, Any] = {"role": role, "cause": cause, "confidence": confidence, **more}
    return Finding(detector=detector, sentence=detector, **values)


def names(findings: list[Finding]) -> list[str]:
    return [each.detector for each in rank_findings(findings, DEPTHS)]


def test_causes_come_before_all_else_whatever_their_confidence() -> None:
    order = names([
        finding("deep", role=Role.BACKGROUND, confidence=Confidence.PROVEN),
        finding("deepest", role=Role.SYMPTOM, confidence=Confidence.PROVEN),
        finding("shallow", confidence=Confidence.POSSIBLE),
    ])  # fmt: skip
    assert order == ["shallow", "deepest", "deep"]


def test_the_surer_wins_then_the_deeper_then_the_one_with_a_culprit() -> None:
    assert names([finding("deepest"), finding("shallow", confidence=Confidence.PROVEN)]) == ["shallow", "deepest"]
    assert names([finding("shallow"), finding("deep")]) == ["deep", "shallow"]
    unnamed, named = finding("deep"), finding("deep", function="culprit")
    assert [each.function for each in rank_findings([unnamed, named], DEPTHS)] == ["culprit", ""]


def test_what_another_explains_is_its_symptom() -> None:
    ranked = rank_findings(
        [finding("shallow", confidence=Confidence.PROVEN), finding("deep", explains=("shallow",))], DEPTHS
    )
    assert [(each.detector, each.role) for each in ranked] == [("deep", Role.CAUSE), ("shallow", Role.SYMPTOM)]


def test_a_guess_explains_nothing_that_is_much_surer() -> None:
    guess = finding("deep", confidence=Confidence.POSSIBLE, explains=("shallow",))
    ranked = rank_findings([finding("shallow", confidence=Confidence.PROVEN), guess], DEPTHS)
    assert [(each.detector, each.role) for each in ranked] == [("shallow", Role.CAUSE), ("deep", Role.CAUSE)]


def test_two_that_explain_each_other_both_stay_causes() -> None:
    one, other = finding("deep", explains=("shallow",)), finding("shallow", explains=("deep",))
    assert {each.role for each in rank_findings([one, other], DEPTHS)} == {Role.CAUSE}


def test_a_crash_that_was_asked_for_gives_way_to_the_reason_for_asking() -> None:
    asked = finding("asked", Cause.DELIBERATE, Confidence.PROVEN)
    ranked = rank_findings([asked, finding("deep", Cause.DEADLOCK, Confidence.LIKELY)], DEPTHS)
    assert [(each.detector, each.role) for each in ranked] == [("deep", Role.CAUSE), ("asked", Role.SYMPTOM)]


def test_a_crash_that_was_asked_for_stays_so_beside_guesses_and_what_it_explains() -> None:
    asked = finding("asked", Cause.DELIBERATE, Confidence.PROVEN, explains=("shallow",))
    guess = finding("deep", Cause.DEADLOCK, Confidence.POSSIBLE)
    made_by_it = finding("shallow", Cause.NULL_POINTER, Confidence.PROVEN)
    ranked = rank_findings([guess, made_by_it, asked], DEPTHS)
    assert (ranked[0].detector, ranked[0].role) == ("asked", Role.CAUSE)


def test_an_equal_rival_takes_the_certainty_away() -> None:
    first = finding("deep", Cause.NULL_POINTER, Confidence.PROVEN)
    assert settle_confidence([first]) is Confidence.PROVEN
    assert settle_confidence([first, finding("shallow", Cause.DEADLOCK, Confidence.PROVEN)]) is Confidence.LIKELY
    likely = finding("deep")
    assert settle_confidence([likely, finding("shallow", Cause.DEADLOCK)]) is Confidence.POSSIBLE


def test_who_agrees_who_is_explained_and_who_only_surrounds_is_no_rival() -> None:
    first = finding("deep", confidence=Confidence.PROVEN, explains=("shallow",))
    others = [
        finding("deepest", Cause.NULL_POINTER, Confidence.PROVEN),
        finding("shallow", Cause.DEADLOCK, Confidence.PROVEN),
        finding("asked", Cause.DEADLOCK, Confidence.PROVEN, Role.BACKGROUND),
        finding("other", Cause.DEADLOCK, Confidence.LIKELY),
    ]
    assert settle_confidence([first, *others]) is Confidence.PROVEN


def test_nothing_is_claimed_of_nothing() -> None:
    assert settle_confidence([]) is Confidence.UNKNOWN
    assert settle_confidence([finding("deep", Cause.UNKNOWN, Confidence.LIKELY)]) is Confidence.UNKNOWN
    assert settle_confidence([finding("deep", role=Role.SYMPTOM)]) is Confidence.UNKNOWN
