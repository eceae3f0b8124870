"""
A crash that somebody asked for.

Asking is one thing, why somebody did is another: a machine that hung is often
crashed by hand. So a crash that was asked for comes with the list of what was
looked at and found in order; and where something was not, it may have been a reaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from drgn import TypeKind

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory import totals
from postpanic.analysis.triage.registry import Need, declared_detectors, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.memory_report import find_memory_reports
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.evidence.troubles import TroubleKind, find_troubles
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["Check", "find_provocation", "find_request", "find_untouched", "look_for_reasons"]

_REACTION_S = 1800.0
"""So long after a trouble somebody may still be reacting to it."""
_BLOCKED_S = 120.0
"""``kernel.hung_task_timeout_secs`` as it is by default."""
_LITTLE = 0.02
_NO_CPU = -1
"""``PANIC_CPU_INVALID`` of include/linux/panic.h."""
_GRAVE = frozenset({TroubleKind.IO, TroubleKind.TIMEOUT, TroubleKind.OFFLINE, TroubleKind.FILE_SYSTEM,
                    TroubleKind.NETWORK, TroubleKind.INTERRUPT, TroubleKind.MEDIUM})  # fmt: skip


@dataclass
class Check:
    """What was looked at: in order, and not."""

    fine: list[Evidence] = field(default_factory=list)
    wrong: list[Evidence] = field(default_factory=list)

    def sentence(self, *, is_dump: bool) -> str:
        """Say whether there was a reason to crash the machine."""
        if self.wrong:
            return f"It may have been a reaction: {'; '.join(one.what for one in self.wrong[:3])}."
        return "Nothing wrong was found." if is_dump else "In the log there is nothing wrong before."


@detector(
    "deliberate",
    needs=(Need.REPORT,),
    about="a crash that was asked for by sysrq, and whether there was a reason to",
    depth=60,
    kinds=(Kind.SYSRQ,),
)
def find_request(scene: Scene) -> Iterator[Finding]:
    """Find a crash by sysrq: the kernel says itself that it was asked to."""
    report = scene.first
    if report is None or report.kind is not Kind.SYSRQ:
        return
    who = f"{report.comm} (PID {report.pid})" if report.comm else "somebody"
    way = _way(report)
    check = look_for_reasons(scene, report)
    rest = check.sentence(is_dump=scene.workspace is not None)
    by_key = "the sysrq key" in way or "remote" in way
    yield Finding(
        detector="deliberate",
        role=Role.CAUSE,
        cause=Cause.DELIBERATE,
        sentence=f"The crash was asked for: {'somebody' if by_key else who} triggered it {way}. {rest}",
        # That it was asked for is beyond doubt; that it was not for a reason is not.
        confidence=Confidence.LIKELY if check.wrong else Confidence.PROVEN,
        subject=Subject("task", "", "" if by_key else report.comm),
        evidence=(
            Evidence("the kernel says that the crash was asked for", "log", report.message),
            *check.wrong,
            *check.fine,
        ),
        not_to_blame=(f"{report.comm}: the key was pressed while it ran",) if by_key and report.comm else (),
        refuted_by="a report before it that it was asked for because of: a machine that hung is often crashed by hand",
        next_steps=("ps -S", "foreach UN bt"),
        explains=("reported", "called-panic"),
    )


def _way(report: Report) -> str:
    names = {frame.function for trace in report.traces for frame in trace.frames}
    if any(name.startswith("write_sysrq_trigger") for name in names):
        return "by writing c to /proc/sysrq-trigger"
    if any("sysrq_filter" in name or "sysrq_reinject" in name or "kbd" in name for name in names):
        return "by the sysrq key of a keyboard"
    if any("uart" in name or "serial" in name or "hvc" in name for name in names):
        return "by the sysrq key over a serial line"
    if any("proc" in name and "write" in name for name in names):
        return "by writing c to /proc/sysrq-trigger"
    return "by the sysrq key"


def look_for_reasons(scene: Scene, report: Report | None) -> Check:
    """Look at what makes people crash machines."""
    check = Check()
    _look_at_log(scene, report, check)
    if scene.workspace is None:
        return check
    for look in (_look_at_tasks, _look_at_memory):
        try:
            look(scene, check)
        except UNREADABLE as exc:
            scene.miss("whether there was a reason to crash the machine", str(exc))
    return check


def _look_at_log(scene: Scene, report: Report | None, check: Check) -> None:
    time_s = report.time_s if report is not None else None
    earlier = [
        one
        for one in scene.reports
        if (report is None or one.offset < report.offset)
        and one.kind is not Kind.WARNING
        and _is_near(one.time_s, time_s)
    ]
    if earlier:
        check.wrong += [Evidence(f"the kernel had reported: {one.title}", "log", one.message) for one in earlier[:4]]
    else:
        check.fine.append(Evidence("no report of the kernel before it", "log"))
    kills = [one for one in find_memory_reports(scene.text) if one.victim and _is_near(one.time_s, time_s)]
    if kills:
        what = f"memory had run out, and {kills[-1].victim} was killed to make room"
        check.wrong.append(Evidence(what, "log", kills[-1].lines.get("killed", "")))
    troubles = [one for one in find_troubles(scene.text) if one.kind in _GRAVE and _is_near(one.last_s, time_s)]
    if troubles:
        check.wrong += [
            Evidence(f"the log has {one.kind.value} of {one.device} ({one.count})", "log", one.line)
            for one in troubles[:4]
        ]
    else:
        check.fine.append(Evidence("no errors of disks, networks and file systems in the log before it", "log"))


def _is_near(earlier_s: float | None, later_s: float | None) -> bool:
    if earlier_s is None or later_s is None:
        return True
    return later_s - earlier_s <= _REACTION_S


def _look_at_tasks(scene: Scene, check: Check) -> None:
    now, sleepers = 0, []
    for task in scene.tasks:
        try:
            now = max(now, task.last_run_ns)
            if task.state == "UN":
                sleepers.append((task.last_run_ns, task.comm, task.pid))
        except UNREADABLE:
            continue
    asleep = sorted((((now - last) / 1e9, comm, pid) for last, comm, pid in sleepers), reverse=True)
    longest = asleep[0] if asleep else None
    if longest is not None and longest[0] >= _BLOCKED_S:
        count = sum(1 for seconds, _, _ in asleep if seconds >= _BLOCKED_S)
        what = (
            f"{count} task{'s' if count != 1 else ''} had not come on for {longest[0]:.0f} s, among them {longest[1]}"
        )
        check.wrong.append(Evidence(what, f"bt {longest[2]}"))
        return
    what = f"{len(scene.tasks)} tasks, {len(asleep)} in uninterruptible sleep"
    what += f", the longest of them for {longest[0]:.0f} s" if longest is not None else ""
    check.fine.append(Evidence(what, "ps -S"))


def _look_at_memory(scene: Scene, check: Check) -> None:
    total = totals.total_pages(scene.prog)
    free = totals.free_pages(scene.prog) + totals.cached_pages(scene.prog, 0)
    share = free / total if total else 0.0
    what = f"{share:.0%} of memory is free, or cache"
    (check.wrong if share < _LITTLE else check.fine).append(Evidence(what, "kmem -i", "FREE"))


@detector(
    "not-crashed",
    needs=(Need.TASKS,),
    about="a dump of a kernel that had not crashed: somebody took it from outside",
    depth=20,
)
def find_untouched(scene: Scene) -> Iterator[Finding]:
    """Say that the kernel had not panicked, where no CPU has and no report says so (a hypervisor's dump)."""
    if _panic_cpu(scene) != _NO_CPU or (scene.final is not None and scene.final.is_panic):
        return
    check = look_for_reasons(scene, None)
    yield Finding(
        detector="not-crashed",
        role=Role.CAUSE if scene.first is None else Role.BACKGROUND,
        cause=Cause.DELIBERATE,
        sentence="The kernel had not crashed: the dump was taken from outside, by its host or a debugger. "
        + check.sentence(is_dump=True),
        confidence=Confidence.LIKELY,
        evidence=(Evidence("no CPU had panicked", "p panic_cpu", "-1"), *check.wrong, *check.fine),
        refuted_by="a panic whose beginning the dump does not hold",
        next_steps=("ps -S", "foreach UN bt", "bt -a"),
    )


def _panic_cpu(scene: Scene) -> int | None:
    """Read ``panic_cpu`` of kernel/panic.c, an ``atomic_t``; None where it cannot be read."""
    try:
        value = scene.prog["panic_cpu"]
        return int((value.counter if value.type_.kind is not TypeKind.INT else value).value_())
    except UNREADABLE:
        return None


@detector(
    "provoked",
    needs=(Need.REPORT,),
    about="a crash that a test of the kernel made on purpose (lkdtm and its like)",
    depth=95,
)
def find_provocation(scene: Scene) -> Iterator[Finding]:
    """
    Find the module whose purpose is to crash kernels, in the trace of the first report.

    ``drivers/misc/lkdtm``: all entries pass through ``lkdtm_do_action``; the functions that do it
    are called ``lkdtm_*``. ``lib/test_lockup.c`` locks up on purpose.
    """
    report = scene.first
    if report is None or report.family is Family.DELIBERATE:
        return
    frames = [
        frame
        for trace in report.traces
        if trace.section in {Section.MAIN, Section.TASK, Section.CPU}
        for frame in trace.frames
        if frame.is_reliable
    ]
    chosen = next((one for one in frames if _provokes(one.function, one.module)), None)
    if chosen is None:
        return
    function = plain_name(chosen.function)
    yield Finding(
        detector="provoked",
        role=Role.CAUSE,
        cause=Cause.DELIBERATE,
        sentence=f"The crash was asked for: {report.comm or 'somebody'} had {function}() of "
        f"{chosen.module or 'the kernel'} make it, which is there to test crashes.",
        confidence=Confidence.PROVEN if scene.workspace is not None else Confidence.LIKELY,
        function=function,
        module=chosen.module or "vmlinux",
        subject=Subject("task", "", report.comm),
        evidence=(Evidence(f"{function} is in the trace", "log", chosen.function),),
        explains=tuple(each.name for each in declared_detectors() if each.name != "provoked"),
        next_steps=("bt",),
        time_s=report.time_s,
    )


def _provokes(function: str, module: str) -> bool:
    name = plain_name(function)
    if module in {"lkdtm", "test_lockup", "test_panic"}:
        return True
    return not module and name.startswith("lkdtm_")
