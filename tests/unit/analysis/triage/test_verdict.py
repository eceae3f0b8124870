"""The verdict: of detectors that fail, of damaged scenes, of what logs may claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from postpanic.analysis.triage import judge, scene_of_log, triage_log
from postpanic.analysis.triage import verdict as verdict_module
from postpanic.analysis.triage.registry import Detector, Find, Need
from postpanic.analysis.triage.scene import Scene
from postpanic.errors import CorruptError
from postpanic.findings.schema import answer_value
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Victim
from postpanic.findings.verdict_answer import answer_of
from postpanic.report.text import render_text
from tests.unit.evidence.texts import PAGE_FAULT

CORPUS = Path(__file__).resolve().parents[5] / "shared/corpus/oops"
PANIC = "Kernel panic - not syncing: Fatal exception\n"
# What a log shows by itself: the kernel prints how the first process ended, and that no root could be mounted.
# What a sanitizer reports it has seen itself.
PROVEN_BY_LOGS = {"init-died", "no-root", "hardware-failure", "deliberate", "sanitizer", "data-race"}
Use = Callable[..., None]


def finding(detector: str, **more: object) -> Finding:
    values: dict[str, Any] = {
        "role": Role.CAUSE, "cause": Cause.NULL_POINTER, "sentence": "It is so.", "confidence": Confidence.LIKELY,
    }  # fmt: skip
    values.update(more)
    return Finding(detector=detector, **values)


def make(name: str, find: Find, *needs: Need, depth: int = 50) -> Detector:
    return Detector(name, find, needs, "what a test looks for", depth, frozenset(), frozenset())


@pytest.fixture
def with_detectors(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(*detectors: Detector) -> None:
        monkeypatch.setattr(verdict_module, "all_detectors", lambda: detectors)

    return use


def test_a_detector_that_meets_damage_says_so_and_takes_no_other_along(with_detectors: Use) -> None:
    def damaged(_: Scene) -> Iterator[Finding]:
        yield finding("damaged", confidence=Confidence.POSSIBLE)
        raise CorruptError("the list goes round")

    def lost(_: Scene) -> Iterator[Finding]:
        yield from ()
        raise RecursionError("maximum recursion depth exceeded")

    def sound(_: Scene) -> Iterator[Finding]:
        yield finding("sound", function="culprit")

    with_detectors(make("damaged", damaged), make("lost", lost), make("sound", sound))
    verdict = triage_log(PAGE_FAULT.encode())
    assert (verdict.function, verdict.confidence) == ("culprit", Confidence.LIKELY)
    assert {each.detector for each in verdict.findings} == {"damaged", "sound"}
    said = [missing.what + missing.why for missing in verdict.missing]
    assert any("damaged" in text and "the list goes round" in text for text in said)
    assert any("lost" in text for text in said)


def test_a_detector_that_never_ends_is_stopped(with_detectors: Use) -> None:
    def endless(_: Scene) -> Iterator[Finding]:
        while True:
            yield finding("endless")

    with_detectors(make("endless", endless))
    assert len(triage_log(PAGE_FAULT.encode()).findings) == 64


@pytest.mark.parametrize("need", [Need.MEMORY, Need.TYPES, Need.TASKS])
def test_who_needs_memory_is_not_asked_about_a_log(with_detectors: Use, need: Need) -> None:
    def never(_: Scene) -> Iterator[Finding]:
        raise AssertionError("it was asked")

    with_detectors(make("never", never, need))
    verdict = triage_log(PAGE_FAULT.encode())
    assert verdict.findings == ()
    assert not any("never" in missing.what for missing in verdict.missing)


def test_a_verdict_takes_victims_steps_and_whom_not_to_blame_of_all_findings(with_detectors: Use) -> None:
    with_detectors(
        make("one", lambda _: [finding("one", victims=(Victim("cat", 7),), next_steps=("bt 7",))]),
        make("two", lambda _: [finding("two", role=Role.BACKGROUND, not_to_blame=("cron: it only ran",))]),
    )
    verdict = triage_log(PAGE_FAULT.encode())
    assert verdict.victims == (Victim("cat", 7),)
    assert "cron: it only ran" in verdict.not_to_blame
    assert verdict.next_steps == ("bt 7",)


def test_background_alone_makes_no_verdict(with_detectors: Use) -> None:
    with_detectors(make("one", lambda _: [finding("one", role=Role.BACKGROUND, confidence=Confidence.PROVEN)]))
    verdict = triage_log(PAGE_FAULT.encode())
    assert (verdict.cause, verdict.confidence, verdict.sentence) == (Cause.UNKNOWN, Confidence.UNKNOWN, "")
    assert verdict.kind == "null-dereference"


def test_a_verdict_can_be_shown_in_all_forms(with_detectors: Use) -> None:
    evidence = Evidence("RBX is 0", "rd ffff888104a5c000", "0000000000000000", 0xFFFF888104A5C000)
    with_detectors(make("one", lambda _: [finding("one", evidence=(evidence,), function="f", module="m")]))
    answer = answer_of(triage_log((PAGE_FAULT + PANIC).encode()))
    text = "\n".join(render_text(answer))
    assert "RBX is 0" in text
    assert "rd ffff888104a5c000" in text
    assert answer_value(answer)


@pytest.mark.parametrize("text", [b"", b"\n", b"nothing here", b"\0" * 4096, "Kernel panic".encode("utf-16")])
def test_a_text_without_a_crash_is_a_verdict_that_claims_nothing(text: bytes) -> None:
    verdict = triage_log(text)
    assert (verdict.kind, verdict.cause, verdict.function) == ("", Cause.UNKNOWN, "")
    assert verdict.source == "log"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of console logs is not here")
def test_all_logs_of_the_corpus_are_judged() -> None:
    files = sorted(CORPUS.glob("*.txt"))
    assert files
    for path in files:
        scene = scene_of_log(path.read_bytes())
        verdict = judge(scene)
        assert verdict.kind == (scene.first.kind.value if scene.first is not None else ""), path.name
        assert [missing for missing in verdict.missing if "it failed" in missing.why] == [], path.name
        proven = {each.detector for each in verdict.findings if each.confidence is Confidence.PROVEN}
        assert proven <= PROVEN_BY_LOGS, path.name
