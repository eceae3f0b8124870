"""What came before the crash: earlier reports, and devices and file systems that failed."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.uses import module_in
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.troubles import Trouble, TroubleKind, find_troubles
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_earlier", "find_lost_io", "find_trouble", "troubles_of"]

_MOST = 8
_WAITS = frozenset({Kind.HUNG_TASK, Kind.SYSRQ, Kind.NMI})
_LOST = frozenset({TroubleKind.IO, TroubleKind.TIMEOUT, TroubleKind.OFFLINE, TroubleKind.LINK, TroubleKind.MEDIUM})
_NEAR_S = 600.0
_WAITED_S = 120.0


def troubles_of(scene: Scene) -> list[Trouble]:
    """Give the troubles of the log that began before the crash; kept with the scene."""
    known: list[Trouble] | None = scene.__dict__.get("_troubles")
    if known is None:
        final = scene.final
        end = final.time_s if final is not None else None
        known = [
            trouble
            for trouble in find_troubles(scene.text)
            if end is None or trouble.first_s is None or trouble.first_s <= end
        ]
        scene.__dict__["_troubles"] = known
    return known


@detector("earlier-reports", needs=(Need.REPORT,), about="what the kernel had reported before", depth=25)
def find_earlier(scene: Scene) -> Iterator[Finding]:
    """
    Tell of reports before the one that counts: a warning of the same module may be the first sign.

    A crash report that is marked as not the first (taint D or W) says so.
    """
    first = scene.first
    if first is None:
        return
    for report in [one for one in scene.reports if one.offset < first.offset][:_MOST]:
        same = _shared_module(report, first)
        yield Finding(
            detector="earlier-reports",
            role=Role.BACKGROUND,
            cause=Cause.UNKNOWN,
            sentence=f"The kernel had reported before{_ago(report, first)}: {report.title}"
            + (f", in module {same} as well: it may be the first sign." if same else "."),
            confidence=Confidence.LIKELY if same else Confidence.POSSIBLE,
            function=report.function,
            module=same or (module_in(report, report.blame[0]) if report.blame else ""),
            evidence=(Evidence("the earlier report", "log", report.message),),
            time_s=report.time_s,
        )


def _ago(report: Report, first: Report) -> str:
    if report.time_s is None or first.time_s is None or first.time_s < report.time_s:
        return ""
    return f", {first.time_s - report.time_s:.0f} s earlier"


def _shared_module(one: Report, other: Report) -> str:
    modules = {frame.module for trace in one.traces for frame in trace.frames if frame.module}
    return next(
        (frame.module for trace in other.traces for frame in trace.frames if frame.module in modules and frame.module),
        "",
    )


@detector("troubles", needs=(Need.LOG,), about="devices, links and file systems that failed before", depth=15)
def find_trouble(scene: Scene) -> Iterator[Finding]:
    """Tell of errors in the log before the crash, one finding for each kind."""
    by_kind: dict[TroubleKind, list[Trouble]] = {}
    for trouble in troubles_of(scene):
        by_kind.setdefault(trouble.kind, []).append(trouble)
    for kind, troubles in by_kind.items():
        worst = max(troubles, key=lambda one: one.count)
        count = sum(one.count for one in troubles)
        names = ", ".join(list(dict.fromkeys(one.device for one in troubles))[:4])
        yield Finding(
            detector="troubles",
            role=Role.BACKGROUND,
            cause=_CAUSES.get(kind, Cause.UNKNOWN),
            sentence=f"Before the crash the log has {kind.value}: {count} line{'s' if count != 1 else ''}, of {names}.",
            confidence=Confidence.POSSIBLE,
            subject=Subject("device", kind.value, worst.device),
            evidence=(Evidence(f"the first of {worst.device}", "log", worst.line),),
            time_s=min((one.first_s for one in troubles if one.first_s is not None), default=None),
        )


_CAUSES = {
    TroubleKind.IO: Cause.LOST_IO,
    TroubleKind.TIMEOUT: Cause.LOST_IO,
    TroubleKind.OFFLINE: Cause.LOST_IO,
    TroubleKind.MEDIUM: Cause.HARDWARE,
    TroubleKind.THERMAL: Cause.HARDWARE,
    TroubleKind.FILE_SYSTEM: Cause.FILE_SYSTEM_DAMAGE,
}


@detector(
    "failed-device",
    needs=(Need.REPORT,),
    about="a device that failed before tasks were found that wait",
    depth=50,
    kinds=(Kind.HUNG_TASK,),
)
def find_lost_io(scene: Scene) -> Iterator[Finding]:
    """Find a device that stopped answering about when the tasks that hang began to wait: they may wait for it."""
    hung = next((report for report in scene.reports if report.kind is Kind.HUNG_TASK), None)
    if hung is None:
        return
    waited = float(hung.details.get("seconds") or _WAITED_S)
    began = hung.time_s - waited if hung.time_s is not None else None
    lost = [
        one
        for one in troubles_of(scene)
        if one.kind in _LOST and (began is None or one.first_s is None or _NEAR_S >= began - one.first_s >= -waited)
    ]
    if not lost:
        return
    worst = max(lost, key=lambda one: (one.kind is TroubleKind.TIMEOUT, one.count))
    waits_for_io = any(
        word in frame.function
        for trace in hung.traces
        for frame in trace.frames
        for word in ("io_schedule", "wait_on_page", "wait_on_buffer", "folio_wait", "submit_bio_wait", "blk_")
    ) or any(word in hung.message for word in ("I/O wait",))
    yield Finding(
        detector="failed-device",
        role=Role.CAUSE,
        cause=Cause.LOST_IO,
        sentence=f"{worst.device} had {worst.kind.value} before tasks were found waiting"
        + (", and they wait for I/O." if waits_for_io else "; whether they wait for it is not shown."),
        confidence=Confidence.LIKELY if waits_for_io else Confidence.POSSIBLE,
        subject=Subject("device", "block device", worst.device),
        evidence=(
            Evidence(f"the first of {worst.count}", "log", worst.line),
            Evidence("the first task that was found", "log", hung.message),
        ),
        refuted_by="a request of the device that is done, while the task still waits",
        next_steps=("dev -d", "foreach UN bt"),
        explains=("reported",),
        time_s=worst.first_s,
    )
