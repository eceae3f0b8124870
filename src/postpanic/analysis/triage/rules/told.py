"""
A checker's line as a finding.

A checker knows which rule was broken and prints it in one line; what that
means, and how sure it is, stands in a table of :class:`Rule`. Who broke it is
the innermost function of the report that does not only serve. Where the report
has lines of another, its trace names nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from postpanic.analysis.triage.faults.reports import find_line
from postpanic.analysis.triage.faults.uses import find_culprit, frames_of
from postpanic.analysis.triage.faults.wording import who
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["Rule", "is_mixed", "limit", "tell"]


@dataclass(frozen=True, slots=True)
class Rule:
    """
    What one line of a checker means.

    Attributes
    ----------
    pattern : re.Pattern
        Of the line; its groups are words for *sentence*.
    cause : Cause
    confidence : Confidence
    sentence : str
        With ``{who}`` for the function, and the pattern's groups.
    refuted_by : str
        What would show that it is not so.
    subject : str
        A group: what the rule is about.
    more : tuple of re.Pattern
        Of further lines, whose groups are words, too; empty where there is no such line.
    """

    pattern: re.Pattern[str]
    cause: Cause
    confidence: Confidence
    sentence: str
    refuted_by: str = ""
    subject: str = ""
    more: tuple[re.Pattern[str], ...] = ()


def tell(
    scene: Scene,
    detector: str,
    rules: Iterable[Rule],
    *,
    reword: Callable[[dict[str, str]], None] = lambda _: None,
) -> Iterator[Finding]:
    """
    Tell the first rule that was broken.

    Parameters
    ----------
    reword : callable
        Changes the words of a sentence in place.
    """
    report = scene.first
    if report is None:
        return
    culprit = None if is_mixed(report) and not frames_of(scene) else find_culprit(scene)
    for rule in rules:
        match = find_line(scene, rule.pattern)
        if match is None:
            continue
        matches = [match, *(found for pattern in rule.more if (found := find_line(scene, pattern)) is not None)]
        words = dict.fromkeys((name for pattern in rule.more for name in pattern.groupindex), "")
        for found in matches:
            words |= {name: value for name, value in found.groupdict().items() if value}
        words |= {name: "" for name in rule.pattern.groupindex if name not in words}
        words["who"] = who(culprit)
        name = words.get(rule.subject, "")
        reword(words)
        sentence = rule.sentence.format(**words)
        yield Finding(
            detector=detector,
            role=Role.CAUSE,
            cause=rule.cause,
            sentence=f"{sentence[:1].upper() if culprit is None else sentence[:1]}{sentence[1:]}",
            confidence=limit(report, rule.confidence),
            function=culprit.function if culprit is not None else "",
            module=culprit.module if culprit is not None else "",
            subject=Subject("object", name, "", None, "") if name else None,
            evidence=tuple(Evidence("the kernel's check", "log", found[0].strip()) for found in matches),
            refuted_by=rule.refuted_by,
            next_steps=("log | tail -n 100",),
            explains=("reported", "assertion"),
            time_s=report.time_s,
        )
        return


def is_mixed(report: Report) -> bool:
    """Tell whether lines of another report or task are in it."""
    return any("mixed" in reason for reason in report.damage)


def limit(report: Report, confidence: Confidence) -> Confidence:
    """Say how sure a finding may be that rests on a report: no more than possible if that is damaged."""
    return max(confidence, Confidence.POSSIBLE, key=lambda each: each.rank) if report.damage else confidence
