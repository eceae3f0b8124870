"""CPUs and tasks that keep RCU and others from coming to rest, though no kernel code loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.hangs.cpu_words import cpu_evidence, name_cpu
from postpanic.analysis.triage.hangs.cpus import Cpu
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.rcu import find_rcu_blockers
from postpanic.analysis.triage.hangs.spinning import EXPLAINS
from postpanic.analysis.triage.hangs.steps import place_of, stack_evidence
from postpanic.evidence.oops import Report
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role, Subject

__all__ = ["explain_read_sections", "explain_user_code"]

_POLICIES = {1: "SCHED_FIFO", 2: "SCHED_RR", 6: "SCHED_DEADLINE"}
"""Those that keep ordinary tasks from a CPU (``include/uapi/linux/sched.h``)."""


def explain_read_sections(picture: Picture) -> Iterator[Finding]:
    """Tell of the tasks that the grace period waits for, as RCU records them: they sleep inside a read section."""
    for task, how, is_recorded in find_rcu_blockers(picture.scene):
        sleep = picture.look_at(task) if is_recorded else None
        if sleep is None:
            continue
        who = picture.names.task(sleep.facts)
        is_asleep = sleep.kind != "preempted"
        yield Finding(
            detector="cpu-stuck",
            role=Role.CAUSE,
            cause=Cause.BLOCKED_HOLDER if is_asleep else Cause.OVERLOAD,
            sentence=f"{who} {'sleeps' if is_asleep else 'was preempted and does not run'}{place_of(sleep)} inside a "
            "read section of RCU, and the grace period waits for it.",
            confidence=Confidence.LIKELY,
            function=function_of(sleep.own),
            module=module_of(sleep.own),
            subject=Subject("task", "", sleep.facts.comm, sleep.facts.vaddr, how),
            evidence=(stack_evidence(picture, sleep),),
            chain=(Link("the grace period of RCU", "waits for", f"{who}, which {how}"),),
            refuted_by="a read section that was about to end",
            next_steps=(f"bt {picture.names.pid(sleep.facts)}", f"struct task_struct.rcu_read_lock_nesting {task:x}"),
            explains=EXPLAINS,
        )


def explain_user_code(picture: Picture, cpus: Sequence[Cpu], report: Report) -> Iterator[Finding]:
    """Tell of a program that has a CPU for itself: with a real-time policy it keeps the kernel's threads from it."""
    for cpu in cpus:
        try:
            policy = _POLICIES.get(cpu.facts.number("policy"), "")
        except UNREADABLE:
            policy = ""
        if not policy:
            continue
        yield Finding(
            detector="cpu-stuck",
            role=Role.CAUSE,
            cause=Cause.OVERLOAD,
            sentence=f"{name_cpu(picture, cpu)} runs a program with the policy {policy}, which leaves the CPU "
            "to nobody else.",
            confidence=Confidence.LIKELY,
            subject=Subject("task", "", cpu.facts.comm, cpu.facts.vaddr, policy),
            evidence=(
                cpu_evidence(picture, cpu, f"{name_cpu(picture, cpu)} runs user code"),
                Evidence(f"its policy is {policy}", f"struct task_struct.policy {cpu.facts.vaddr:x}", "policy"),
                Evidence("the kernel's report", "log", report.message),
            ),
            refuted_by="a program that had only begun to run",
            next_steps=(f"ps -l {picture.names.pid(cpu.facts)}", "runq"),
            explains=EXPLAINS,
        )
        return
