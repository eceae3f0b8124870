"""Which finding is the verdict: what explains the others, how sure it is, how deep it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from postpanic.findings.verdict import Cause, Confidence, Finding, Role

__all__ = ["rank_findings", "settle_confidence"]


def rank_findings(findings: Sequence[Finding], depths: Mapping[str, int]) -> list[Finding]:
    """
    Put findings into the order in which they are shown; the first is the verdict if it is a cause.

    A cause that another cause explains becomes a symptom: it says in ``explains``
    which detectors' findings follow from it, and must not be less sure by more
    than one step.

    Parameters
    ----------
    depths : mapping
        Of detectors, by name.
    """
    causes = [finding for finding in findings if finding.role is Role.CAUSE]
    explained = {
        id(other)
        for finding in causes
        for other in causes
        if other is not finding
        and other.detector in finding.explains
        and finding.detector not in other.explains
        and finding.confidence.rank <= other.confidence.rank + 1
    }
    # Who asks for a crash mostly has a reason to: what was wrong then is the cause.
    reasons = [
        finding
        for finding in causes
        if finding.cause not in {Cause.DELIBERATE, Cause.UNKNOWN}
        and id(finding) not in explained
        and finding.confidence.rank <= Confidence.LIKELY.rank
    ]
    if reasons:
        explained |= {id(finding) for finding in causes if finding.cause is Cause.DELIBERATE}
    settled = [
        msgspec.structs.replace(finding, role=Role.SYMPTOM) if id(finding) in explained else finding
        for finding in findings
    ]
    roles = list(Role)
    return sorted(
        settled,
        key=lambda finding: (
            roles.index(finding.role),
            finding.confidence.rank,
            -depths.get(finding.detector, 0),
            not finding.function,
        ),
    )


def settle_confidence(ranked: Sequence[Finding]) -> Confidence:
    """
    Say how sure the first of ranked findings may be as a verdict.

    Another cause that is as sure and says something else takes the certainty away
    from both, unless one of them explains the other.
    """
    if not ranked or ranked[0].role is not Role.CAUSE or ranked[0].cause is Cause.UNKNOWN:
        return Confidence.UNKNOWN
    first = ranked[0]
    rivals = [
        other
        for other in ranked[1:]
        if other.role is Role.CAUSE
        and other.cause not in {first.cause, Cause.UNKNOWN}
        and other.confidence is first.confidence
        and other.detector not in first.explains
    ]
    if rivals and first.confidence is Confidence.PROVEN:
        return Confidence.LIKELY
    if rivals and first.confidence is Confidence.LIKELY:
        return Confidence.POSSIBLE
    return first.confidence
