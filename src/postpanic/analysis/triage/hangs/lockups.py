"""CPUs that do not come back: who loops, who spins on a lock, and who has that lock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.hangs.circles import Circle, find_circle
from postpanic.analysis.triage.hangs.cpu_words import cpu_evidence, name_cpu, where
from postpanic.analysis.triage.hangs.cpus import Cpu, Mode, read_cpus
from postpanic.analysis.triage.hangs.leaks import open_picture
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.reports import STUCK, hang_reports, stuck_report
from postpanic.analysis.triage.hangs.resting import explain_read_sections, explain_user_code
from postpanic.analysis.triage.hangs.spinning import EXPLAINS, explain_spinning, find_culprit
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role, Subject

__all__ = ["find_lockups"]


@detector(
    "cpu-stuck",
    needs=(Need.TASKS, Need.TYPES, Need.REPORT),
    about="CPUs that loop or spin: the code that does not end, and the lock that nobody gives back",
    depth=75,
    kinds=STUCK,
)
def find_lockups(scene: Scene) -> Iterator[Finding]:
    """Find the CPU that keeps the others waiting, among those that were reported or are in kernel code."""
    first = stuck_report(scene)
    if first is None:
        return
    picture = open_picture(scene)
    cpus = read_cpus(picture)
    reported = _reported(scene, cpus)
    spinning = [cpu for cpu in cpus if cpu.spin_kind]
    found = list(explain_spinning(picture, cpus, spinning)) if spinning else []
    loops = bool(reported) and reported[0].mode is Mode.KERNEL and not reported[0].spin_kind
    if loops and all(finding.cause is Cause.LEAKED_LOCK for finding in found):
        # Another CPU may spin for a moment without being part of it.
        found = []
    yield from found or _looping(picture, cpus, reported, first)


def _reported(scene: Scene, cpus: Sequence[Cpu]) -> list[Cpu]:
    """Give the CPUs that the kernel complained about, the first complaint first."""
    found: list[Cpu] = []
    for report in hang_reports(scene):
        for number in _numbers(report):
            found += [cpu for cpu in cpus if cpu.number == number and cpu not in found]
    return found


def _numbers(report: Report) -> list[int]:
    stalled = [
        int(word.strip("{},"))
        for word in report.details.get("cpus", "").replace(",", " ").split()
        if word.strip("{},").isdigit()
    ]
    return stalled + ([report.cpu] if report.cpu is not None else [])


def _looping(picture: Picture, cpus: Sequence[Cpu], reported: Sequence[Cpu], report: Report) -> Iterator[Finding]:
    """Tell of a CPU that runs and does not end, with no lock in play; else of tasks that sleep where they must not."""
    candidates = [cpu for cpu in reported if cpu.mode is Mode.KERNEL]
    waiting = [cpu for cpu in candidates if cpu.waits_for_cpus]
    if waiting:
        # It waits for a CPU that does not answer: that one is at fault, with interrupts off.
        deaf = [
            cpu for cpu in cpus if cpu.mode is Mode.KERNEL and not cpu.waits_for_cpus and cpu.has_interrupts is False
        ]
        candidates = deaf or [cpu for cpu in candidates if not cpu.waits_for_cpus] or waiting
    if not candidates and report.kind is Kind.RCU_STALL:
        sleepers = list(explain_read_sections(picture))
        if sleepers:
            yield from sleepers
            return
    if not candidates and report.kind is Kind.WORKQUEUE_LOCKUP:
        return
    for cpu in candidates or [cpu for cpu in cpus if cpu.mode is Mode.KERNEL]:
        own = find_culprit(cpu, report)
        if own is not None:
            yield _loop(picture, cpu, own, report, [one for one in waiting if one is not cpu])
            return
    yield from explain_user_code(picture, [cpu for cpu in reported or cpus if cpu.mode is Mode.USER], report)


def _loop(picture: Picture, cpu: Cpu, own: Frame, report: Report, waiting: Sequence[Cpu]) -> Finding:
    circle: Circle | None = find_circle(picture, cpu)
    seconds = report.details.get("seconds", "") if report.cpu == cpu.number else ""
    deaf = " with interrupts off" if cpu.has_interrupts is False else ""
    answer = f"; {name_cpu(picture, waiting[0])} waits for its answer" if waiting else ""
    for_long = f" for {seconds} s" if seconds else ""
    extra = f": it walks {circle.text}" if circle is not None else ""
    same = _is_in(report, function_of(own))
    evidence = [cpu_evidence(picture, cpu), Evidence("the kernel's report", "log", report.message)]
    if same:
        evidence.append(Evidence(f"the report found it in {function_of(own)}(), too", "log", function_of(own)))
    return Finding(
        detector="cpu-stuck",
        role=Role.CAUSE,
        cause=Cause.ENDLESS_LOOP,
        sentence=f"{name_cpu(picture, cpu)} runs{for_long}{deaf} in {where(own)} and does not come out of it{extra}"
        f"{answer}.",
        confidence=Confidence.LIKELY if same or circle is not None else Confidence.POSSIBLE,
        function=function_of(own),
        module=module_of(own),
        subject=circle.subject if circle is not None else Subject("task", "", cpu.facts.comm, cpu.facts.vaddr),
        evidence=(*evidence, *(circle.evidence if circle is not None else ())),
        chain=tuple(
            Link(name_cpu(picture, one), "waits for the answer of", name_cpu(picture, cpu), is_certain=False)
            for one in waiting
        ),
        victims=tuple(picture.names.victim(one.facts, f"waits for CPU {cpu.number}") for one in waiting),
        refuted_by="work that is only much, and ends",
        next_steps=(f"bt -c {cpu.number}", f"dis -r {cpu.pc:x}"),
        explains=EXPLAINS,
    )


def _is_in(report: Report, function: str) -> bool:
    """Tell whether the kernel's report has a function in one of its traces."""
    return any(frame.function.partition(".")[0] == function for trace in report.traces for frame in trace.frames)
