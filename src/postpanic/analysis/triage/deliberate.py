"""A crash that somebody asked for."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_request"]


@detector(
    "deliberate",
    needs=(Need.REPORT,),
    about="a crash that was asked for by sysrq",
    depth=60,
    kinds=(Kind.SYSRQ,),
)
def find_request(scene: Scene) -> Iterator[Finding]:
    """Find a crash by sysrq: the kernel says itself that it was asked to."""
    report = scene.first
    if report is None or report.kind is not Kind.SYSRQ:
        return
    who = f"{report.comm} (PID {report.pid})" if report.comm else "somebody"
    writes = any(
        "proc" in frame.function and "write" in frame.function for trace in report.traces for frame in trace.frames
    )
    way = "by writing c to /proc/sysrq-trigger" if writes else "by the sysrq key"
    yield Finding(
        detector="deliberate",
        role=Role.CAUSE,
        cause=Cause.DELIBERATE,
        sentence=f"The crash was asked for: {who} triggered it {way}.",
        confidence=Confidence.PROVEN,
        function="sysrq_handle_crash",
        module="vmlinux",
        subject=Subject("task", "", report.comm),
        evidence=(Evidence("the kernel says that the crash was asked for", "log", report.message),),
        refuted_by="a report before it that it was asked for because of: a machine that hung is often crashed by hand",
        next_steps=("ps -S", "foreach UN bt"),
    )
