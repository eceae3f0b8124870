"""In which context it happened: a task that an interrupt came to has no part in what the interrupt did."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.kinds import FAMILIES, Family, Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_context", "find_context_name"]

_STACKS = {"IRQ": "an interrupt", "SOFTIRQ": "a soft interrupt", "NMI": "a non-maskable interrupt"}
_HARD = (
    "common_interrupt",
    "sysvec_",
    "handle_irq",
    "__handle_irq_event",
    "el1_irq",
    "el1_interrupt",
    "gic_handle_irq",
)
_SOFT = (
    "__do_softirq",
    "handle_softirqs",
    "__softirqentry_text_start",
    "do_softirq",
    "tasklet_action",
    "run_timer_softirq",
)
_NOTICED = frozenset({Family.HANG, Family.DELIBERATE})
_IDLE = ("default_idle", "do_idle", "cpuidle_enter", "native_safe_halt", "arch_cpu_idle", "pv_native_safe_halt")


def find_context_name(report: Report) -> str:
    """
    Tell in which context a report was made, by its trace: ``an interrupt``, ``a soft interrupt``, or empty for a task.

    What stands below the entry of an interrupt belongs to the task that it hit.
    """
    frames = [frame for trace in report.traces if trace.section is Section.MAIN for frame in trace.frames]
    functions = [frame.function for frame in frames if frame.is_reliable]
    contexts = [frame.context for frame in frames[:4] if frame.context]
    if contexts and contexts[0].startswith("NMI"):
        return _STACKS["NMI"]
    if any(name.startswith(_SOFT) for name in functions):
        return _STACKS["SOFTIRQ"]
    if (contexts and contexts[0] == "IRQ") or any(name.startswith(_HARD) for name in functions):
        return _STACKS["IRQ"]
    return ""


@detector(
    "context",
    needs=(Need.REPORT,),
    about="in which context the kernel crashed, and who only happened to be there",
    depth=12,
)
def find_context(scene: Scene) -> Iterator[Finding]:
    """Say where the kernel was, and acquit the task that was interrupted."""
    report = scene.first
    if report is None:
        return
    where = _on_stack(scene, report) or find_context_name(report)
    is_idle = report.pid == 0 or report.comm.startswith("swapper/")
    cpu = f"CPU {report.cpu}" if report.cpu is not None else "a CPU"
    who = f"{report.comm} (PID {report.pid})" if report.comm and report.pid is not None else report.comm or "a task"
    acquitted: tuple[str, ...] = ()
    if report.family in _NOTICED:
        return
    if report.kind is Kind.NMI:
        where = _STACKS["NMI"]
    if where and is_idle:
        sentence = f"It happened in {where} on {cpu}, which was idle."
        acquitted = (f"{report.comm or 'the idle task'}: nothing ran there when {where} came",)
    elif where:
        sentence = f"It happened in {where} on {cpu}, which {who} ran on."
        acquitted = (f"{who}: {where} came while it ran",)
    elif is_idle:
        sentence = f"It happened on {cpu} while that was idle."
    elif report.comm.startswith("kworker") and report.workqueue:
        sentence = f"It happened on {cpu} in a work item ({report.workqueue}) that {who} did for somebody else."
        acquitted = (f"{who}: it does the work of whoever queued it",)
    elif report.comm:
        sentence = f"It happened on {cpu} in {who}."
    else:
        return
    yield Finding(
        detector="context",
        role=Role.BACKGROUND,
        cause=Cause.UNKNOWN,
        sentence=sentence,
        confidence=Confidence.LIKELY,
        subject=Subject("task", "", report.comm, detail=f"PID {report.pid}"),
        evidence=(Evidence("the task and the CPU", "bt" if scene.workspace is not None else "log", report.comm),),
        not_to_blame=acquitted,
    )


def _on_stack(scene: Scene, report: Report) -> str:
    """Tell the context by the stack that the fault happened on, where the dump has it."""
    if scene.workspace is None or FAMILIES.get(report.kind) is Family.HANG:
        return ""
    try:
        fault = scene.fault
    except UNREADABLE:
        return ""
    if fault is None or not fault.is_from_stack or not fault.frames:
        return ""
    area = fault.frames[0].area
    if area is None or area.name == "task":
        names = [frame.place.function for frame in fault.frames if frame.place is not None and frame.reliable]
        return _STACKS["SOFTIRQ"] if any(name.startswith(_SOFT) for name in names) else ""
    names = [frame.place.function for frame in fault.frames if frame.area is area and frame.place is not None]
    if area.name == "IRQ" and any(name.startswith(_SOFT) for name in names):
        return _STACKS["SOFTIRQ"]
    return _STACKS.get(area.name, "")
