"""The machine at the moment of the crash: how long it had been up, its load, what each CPU did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from drgn.helpers.linux.sched import loadavg
from drgn.helpers.linux.timekeeping import ktime_get_boottime_seconds

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import Part, part_of, plain_name
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_state", "spell_time"]

_MOST_CPUS = 8
_ENDS = (
    "panic", "vpanic", "nmi_panic", "crash_kexec", "machine_kexec", "crash_nmi_callback", "stop_this_cpu", "oops_end",
    "exc_nmi", "asm_exc_nmi", "end_repeat_nmi", "ipi_cpu_crash_stop", "die", "make_task_dead", "rewind_stack_and",
)  # fmt: skip


def spell_time(seconds: float) -> str:
    """
    Spell a length of time.

    >>> spell_time(23), spell_time(7300), spell_time(260000)
    ('23 s', '2 h 1 min', '3 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min"
    if seconds < 172800:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86400:.0f} days"


@detector("machine", needs=(Need.TASKS,), about="uptime, load, the states of all tasks, what each CPU did", depth=5)
def find_state(scene: Scene) -> Iterator[Finding]:
    """Describe the machine."""
    parts: list[str] = []
    evidence: list[Evidence] = []
    try:
        parts.append(f"up for {spell_time(int(ktime_get_boottime_seconds(scene.prog).value_()))}")
        parts.append("load " + ", ".join(f"{load:.2f}" for load in loadavg(scene.prog)))
        evidence.append(Evidence(parts[-1], "sys", parts[-1].removeprefix("load ")))
    except UNREADABLE:
        pass
    states: Counter[str] = Counter()
    for task in scene.tasks:
        try:
            states[task.state] += 1
        except UNREADABLE:
            continue
    parts.append(f"{len(scene.tasks)} tasks, {states['RU']} running or ready, {states['UN']} in uninterruptible sleep")
    evidence.append(Evidence(parts[-1], "ps -S"))
    on_cpus = [text for task in _running(scene) if (text := _doing(scene, task))]
    rest = f", and {len(on_cpus) - _MOST_CPUS} more" if len(on_cpus) > _MOST_CPUS else ""
    evidence.append(Evidence("; ".join(on_cpus[:_MOST_CPUS]) + rest, "bt -a"))
    yield Finding(
        detector="machine",
        role=Role.BACKGROUND,
        cause=Cause.UNKNOWN,
        sentence=f"The machine was {'; '.join(parts)}.",
        confidence=Confidence.LIKELY,
        evidence=tuple(evidence),
    )


def _running(scene: Scene) -> list[TaskFacts]:
    running = scene.stacks.running
    found = [task for task in scene.tasks if task.vaddr in running]
    return sorted(found, key=lambda task: running[task.vaddr])


def _before_the_end(frames: Sequence[Frame]) -> list[str]:
    """Name the functions that ran before the CPU was stopped by an NMI, or panicked."""
    last = 0
    for place, frame in enumerate(frames):
        name = plain_name(frame.place.function) if frame.place is not None else ""
        if (frame.area is not None and frame.area.name == "NMI") or name.startswith(_ENDS):
            last = place + 1
    return [frame.place.function for frame in frames[last:] if frame.place is not None and frame.reliable]


def _doing(scene: Scene, task: TaskFacts) -> str:
    try:
        cpu = scene.stacks.running[task.vaddr]
        if task.pid == 0:
            return f"CPU {cpu} was idle"
        names = _before_the_end(scene.trace(task).frames)
        telling = next((plain_name(name) for name in names if part_of(name) not in set(Part)), "")
        return f"CPU {cpu} ran {task.comm} (PID {task.pid})" + (f" in {telling}" if telling else " in user mode")
    except UNREADABLE:
        return ""
