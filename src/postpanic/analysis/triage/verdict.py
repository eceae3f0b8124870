"""Ask the detectors, rank what they found, and say what happened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.triage.catalog import all_detectors
from postpanic.analysis.triage.ranking import rank_findings, settle_confidence
from postpanic.analysis.triage.registry import Detector, Need
from postpanic.analysis.triage.scene import Scene, scene_of_dump, scene_of_log
from postpanic.analysis.workspace import Workspace
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Finding, Role, Verdict

__all__ = ["judge", "triage_dump", "triage_log"]

_MOST_FINDINGS = 64
"""Of one detector: a dump that is damaged may look like anything."""
_NOTICED_BY: dict[Kind, str] = {
    Kind.HUNG_TASK: "khungtaskd: it only noticed that tasks do not run",
    Kind.SOFT_LOCKUP: "the watchdog: it only noticed that a CPU does not come back",
    Kind.HARD_LOCKUP: "the watchdog: it only noticed that a CPU does not come back",
    Kind.RCU_STALL: "RCU: it only noticed that a CPU or task does not come to rest",
    Kind.WORKQUEUE_LOCKUP: "the workqueue watchdog: it only noticed that work is not done",
    Kind.SYSRQ: "sysrq_handle_crash: it crashed the kernel because it was told to",
}


def triage_dump(workspace: Workspace) -> Verdict:
    """
    Say what happened, from a dump.

    Nothing is raised for what the dump holds: what could not be seen is in the
    verdict's ``missing``.
    """
    return judge(scene_of_dump(workspace))


def triage_log(text: bytes) -> Verdict:
    """
    Say what happened, from a log in any form; the same structure with less in it.

    Parameters
    ----------
    text : bytes
    """
    return judge(scene_of_log(text))


def judge(scene: Scene) -> Verdict:
    """Ask all detectors that concern the scene, and make a verdict of what they find."""
    detectors = all_detectors()
    findings: list[Finding] = []
    for each in detectors:
        findings += _ask(each, scene)
    ranked = rank_findings(findings, {each.name: each.depth for each in detectors})
    return _verdict(scene, ranked)


def _ask(detector: Detector, scene: Scene) -> list[Finding]:
    found: list[Finding] = []
    try:
        if not detector.concerns(scene) or not _has_needs(detector.needs, scene):
            return []
        for finding in detector(scene):
            found.append(finding)
            if len(found) >= _MOST_FINDINGS:
                break
    except UNREADABLE as exc:
        scene.miss(f"what {detector.name} looks for: {detector.about}", describe_error(exc))
    except Exception as exc:  # noqa: BLE001 - drgn raises the bare class; damage must not take the other detectors along
        scene.miss(f"what {detector.name} looks for: {detector.about}", f"it failed: {exc!r}")
    return found


def _has_needs(needs: Iterable[Need], scene: Scene) -> bool:
    for need in needs:
        match need:
            case Need.LOG:
                has = bool(scene.text)
            case Need.REPORT:
                has = scene.first is not None
            case Need.FAULT:
                has = scene.fault is not None
            case Need.TYPES:
                has = scene.workspace is not None and scene.workspace.opened.has_types
            case Need.MEMORY:
                has = scene.workspace is not None
            case Need.TASKS:
                has = bool(scene.tasks)
        if not has:
            return False
    return True


def _verdict(scene: Scene, ranked: Sequence[Finding]) -> Verdict:
    chosen = ranked[0] if ranked and ranked[0].role is Role.CAUSE else None
    report, final = scene.first, scene.final
    blamed = [_NOTICED_BY[each.kind] for each in (report, final) if each is not None and each.kind in _NOTICED_BY]
    blamed += [who for finding in ranked for who in finding.not_to_blame]
    steps = [step for finding in ranked if finding.role in {Role.CAUSE, Role.SYMPTOM} for step in finding.next_steps]
    return Verdict(
        kind=report.kind.value if report is not None else "",
        cause=chosen.cause if chosen is not None else Cause.UNKNOWN,
        sentence=chosen.sentence if chosen is not None else "",
        confidence=settle_confidence(ranked) if chosen is not None else Confidence.UNKNOWN,
        function=chosen.function if chosen is not None else "",
        module=chosen.module if chosen is not None else "",
        subject=chosen.subject if chosen is not None else None,
        findings=tuple(ranked),
        victims=tuple(dict.fromkeys(victim for finding in ranked for victim in finding.victims)),
        not_to_blame=tuple(dict.fromkeys(blamed)),
        next_steps=tuple(dict.fromkeys(steps)),
        missing=tuple(scene.missing),
        signature=report.signature if report is not None else "",
        source="dump" if scene.workspace is not None else "log",
        release=_release(scene),
        panic_message=final.panic_message if final is not None else "",
    )


def _release(scene: Scene) -> str:
    if scene.workspace is not None:
        return scene.workspace.memory.vmcoreinfo.osrelease or ""
    return next((report.release for report in scene.reports if report.release), "")
