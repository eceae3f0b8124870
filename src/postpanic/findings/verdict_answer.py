"""A verdict as an answer: tables of typed cells, for the terminal, JSON and the page."""

from __future__ import annotations

from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Shape, Table
from postpanic.findings.verdict import Evidence, Finding, Verdict

__all__ = ["SHAPES", "answer_of"]

VERDICT = Shape(
    "verdict",
    (
        Column("kind", title="KIND", help="what the kernel met first: a kind of report"),
        Column("cause", title="CAUSE", help="why it came to that; see Cause"),
        Column("sentence", title="WHAT HAPPENED"),
        Column("confidence", title="CONFIDENCE", help="proven, likely, possible, unknown"),
        Column("function", title="FUNCTION", help="at fault"),
        Column("module", title="MODULE", help="of the function; vmlinux: the kernel itself"),
        Column("subject", title="SUBJECT", help="the object, lock or task that it is about"),
        Column("subject_type", hidden=True, help="C type, or kind of lock"),
        Column("subject_name", hidden=True),
        Column("subject_vaddr", Kind.ADDRESS, hidden=True),
        Column("panic_message", title="PANIC"),
        Column("release", title="KERNEL"),
        Column("signature", title="SIGNATURE", help="the same for the same crash on every machine and build"),
        Column("source", title="READ FROM", help="dump or log"),
    ),
    Layout.FIELDS,
)
EVIDENCE = Shape(
    "evidence",
    (
        Column("what", help="what it says"),
        Column("command", prefix="  [", suffix="]", help="the line of the prompt that shows it"),
        Column("shows", prefix="\n    ", help="what stands in its output"),
        Column("vaddr", Kind.ADDRESS, hidden=True),
    ),
    Layout.LINES,
    "- {what}{command}{shows}",
    indent=2,
)
CHAIN = Shape(
    "chain",
    (
        Column("source"),
        Column("relation", prefix=" ", suffix=" "),
        Column("target"),
        Column("mark", help="? where it is a guess, and not in the kernel's own records"),
    ),
    Layout.LINES,
    "> {source}{relation}{target}{mark}",
    indent=2,
)
FINDINGS = Shape(
    "findings",
    (
        Column("role", help="cause, symptom, consequence or background"),
        Column("confidence", prefix=", "),
        Column("detector", hidden=True),
        Column("cause", hidden=True),
        Column("sentence"),
        Column("function", hidden=True),
        Column("module", hidden=True),
        Column("subject", hidden=True),
        Column("evidence", Kind.ROWS, shape=EVIDENCE),
        Column("chain", Kind.ROWS, shape=CHAIN),
        Column("refuted_by", hidden=True, help="what would show that it is wrong"),
        Column("time_s", Kind.REAL, hidden=True, help="when it began, seconds since boot"),
    ),
    Layout.LINES,
    "{role}{confidence}: {sentence}",
    title="Findings:",
    gap=True,
)
VICTIMS = Shape(
    "victims",
    (
        Column("pid", Kind.NUMBER, title="PID"),
        Column("comm", title="COMM"),
        Column("why", title="WHY IT IS NOT AT FAULT"),
    ),
    title="Victims:",
)
NOT_TO_BLAME = Shape("not_to_blame", (Column("who"),), Layout.LINES, "- {who}", title="Not to blame:")
NEXT_STEPS = Shape("next_steps", (Column("command"),), Layout.LINES, "  {command}", title="Look further with:")
MISSING = Shape(
    "missing",
    (
        Column("what"),
        Column("why", prefix=": "),
        Column("how", prefix="\n    ", help="how to get it next time"),
    ),
    Layout.LINES,
    "- {what}{why}{how}",
    title="Not seen:",
)
SHAPES = (VERDICT, FINDINGS, VICTIMS, NOT_TO_BLAME, NEXT_STEPS, MISSING)
"""Of all tables of the answer."""


def answer_of(verdict: Verdict, command: str = "triage") -> Answer:
    """Turn a verdict into an answer."""
    tables = [VERDICT.table([_verdict_row(verdict)])]
    tables += _filled(FINDINGS, [_finding_row(finding) for finding in verdict.findings])
    tables += _filled(VICTIMS, [(each.pid, each.comm, each.why or None) for each in verdict.victims])
    tables += _filled(NOT_TO_BLAME, [(who,) for who in verdict.not_to_blame])
    tables += _filled(NEXT_STEPS, [(step,) for step in verdict.next_steps])
    tables += _filled(MISSING, [(each.what, each.why or None, each.how or None) for each in verdict.missing])
    return Answer(command, tuple(tables))


def _filled(shape: Shape, rows: list[tuple[Cell, ...]]) -> list[Table]:
    return [shape.table(rows)] if rows else []


def _verdict_row(verdict: Verdict) -> tuple[Cell, ...]:
    subject = verdict.subject
    return (
        verdict.kind or None,
        verdict.cause.value,
        verdict.sentence or None,
        verdict.confidence.value,
        verdict.function or None,
        verdict.module or None,
        _subject_text(verdict) or None,
        subject.type or None if subject is not None else None,
        subject.name or None if subject is not None else None,
        subject.vaddr if subject is not None else None,
        verdict.panic_message or None,
        verdict.release or None,
        verdict.signature or None,
        verdict.source,
    )


def _subject_text(claim: Verdict | Finding) -> str:
    subject = claim.subject
    if subject is None:
        return ""
    # An object of a cache is called after it.
    words = [subject.type or subject.category, subject.name if subject.name != subject.type else ""]
    words += [f"at {subject.vaddr:#x}"] if subject.vaddr is not None else []
    words += [f"({subject.detail})"] if subject.detail else []
    return " ".join(word for word in words if word)


def _finding_row(finding: Finding) -> tuple[Cell, ...]:
    evidence = EVIDENCE.table([_evidence_row(each) for each in finding.evidence])
    chain = CHAIN.table(
        [(link.source, link.relation, link.target, None if link.is_certain else " (?)") for link in finding.chain]
    )
    return (
        finding.role.value,
        finding.confidence.value,
        finding.detector,
        finding.cause.value,
        finding.sentence,
        finding.function or None,
        finding.module or None,
        _subject_text(finding) or None,
        evidence,
        chain,
        finding.refuted_by or None,
        finding.time_s,
    )


def _evidence_row(evidence: Evidence) -> tuple[Cell, ...]:
    return evidence.what, evidence.command or None, evidence.shows or None, evidence.vaddr
