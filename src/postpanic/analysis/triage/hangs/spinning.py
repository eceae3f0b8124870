"""CPUs that spin: who has the lock, and why it is not given back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.hangs.circles import find_circle
from postpanic.analysis.triage.hangs.cpu_words import (
    cpu_evidence,
    evidence_of,
    lock_name,
    lock_subject,
    name_cpu,
    spin_victims,
    where,
)
from postpanic.analysis.triage.hangs.cpus import Cpu, Mode
from postpanic.analysis.triage.hangs.leaks import find_leak_in, find_takers, holds
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.sleeping import is_own
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role

__all__ = ["EXPLAINS", "explain_spinning", "find_culprit"]

EXPLAINS = ("reported", "deliberate", "log-hang", "blocked-chain", "blocked-tasks", "stuck-work")


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who has a lock that a CPU spins on."""

    cpu: Cpu | None
    frame: Frame
    is_same: bool = False
    task: int = 0


def explain_spinning(picture: Picture, cpus: Sequence[Cpu], spinning: Sequence[Cpu]) -> Iterator[Finding]:
    """Tell who has the locks that CPUs spin on."""
    holders = {cpu.number: _find_holder(picture, cpus, cpu) for cpu in spinning}
    for cpu in spinning:
        holder = holders[cpu.number]
        if holder is not None and holder.is_same:
            yield _self_deadlock(picture, cpu, holder, spinning)
            return
    circle = _find_circle_of_cpus(spinning, holders)
    if circle:
        yield _spin_deadlock(picture, circle, holders, spinning)
        return
    for cpu in spinning:
        holder = holders[cpu.number]
        if holder is not None and (holder.cpu is None or not holder.cpu.spin_kind):
            yield _kept(picture, cpu, holder, spinning)
            return
    yield _leaked(picture, cpus, spinning)


def _find_holder(picture: Picture, cpus: Sequence[Cpu], spinner: Cpu) -> _Holder | None:
    """Find whose code holds the lock that a CPU spins on: its own behind an interrupt, another CPU's, a sleeper's."""
    if not spinner.spins_on:
        return None
    own = _holds(picture, spinner, spinner, start=spinner.index + 1)
    if own is not None:
        return _Holder(spinner, own, is_same=True)
    for cpu in cpus:
        if cpu.number != spinner.number and cpu.mode is Mode.KERNEL:
            frame = _holds(picture, cpu, spinner, start=cpu.index)
            if frame is not None:
                return _Holder(cpu, frame)
    for task, sleep in picture.sleeping.items():
        frame = holds(picture, sleep.trace, spinner.spin_kind, spinner.spins_on)
        if frame is not None:
            return _Holder(None, frame, task=task)
    return None


def _holds(picture: Picture, cpu: Cpu, spinner: Cpu, *, start: int) -> Frame | None:
    try:
        return holds(picture, cpu.trace, spinner.spin_kind, spinner.spins_on, start=start)
    except UNREADABLE:
        return None


def _find_circle_of_cpus(spinning: Sequence[Cpu], holders: dict[int, _Holder | None]) -> list[Cpu]:
    """Find CPUs that spin for each other's locks."""
    by_number = {cpu.number: cpu for cpu in spinning}
    for start in spinning:
        path: list[Cpu] = []
        current: Cpu | None = start
        while current is not None and current not in path:
            path.append(current)
            holder = holders.get(current.number)
            current = by_number.get(holder.cpu.number) if holder is not None and holder.cpu is not None else None
        if current is not None:
            return path[path.index(current) :]
    return []


def _self_deadlock(picture: Picture, cpu: Cpu, holder: _Holder, spinning: Sequence[Cpu]) -> Finding:
    position = next(index for index, frame in enumerate(cpu.trace.frames) if frame is holder.frame)
    between = cpu.trace.frames[cpu.index : position]
    interrupted = any(frame.saved is not None for frame in between)
    lock = lock_name(picture, cpu)
    how = "was interrupted in" if interrupted else "came from"
    taker = next((frame for frame in between if function_of(frame) == function_of(cpu.own)), cpu.own)
    culprit = holder.frame
    return Finding(
        detector="cpu-stuck",
        role=Role.CAUSE,
        cause=Cause.DEADLOCK,
        sentence=f"Deadlock with itself: {name_cpu(picture, cpu)} spins in {where(taker)} on {lock}, which it holds "
        f"since {where(holder.frame)}, which it {how}.",
        confidence=Confidence.LIKELY,
        function=function_of(culprit),
        module=module_of(culprit),
        subject=lock_subject(picture, cpu),
        evidence=(
            *evidence_of(picture, [cpu]),
            Evidence(
                f"the code of {where(culprit)} holds {lock} there", f"dis -r {culprit.pc:x}", function_of(culprit)
            ),
        ),
        chain=(
            Link(name_cpu(picture, cpu), f"spins in {where(taker)} for", f"{lock}, held by itself in {where(culprit)}"),
        ),
        victims=spin_victims(picture, spinning, [cpu.number]),
        refuted_by="a way through the function that releases the lock before",
        next_steps=(f"bt -c {cpu.number}",),
        explains=EXPLAINS,
    )


def _spin_deadlock(
    picture: Picture, circle: Sequence[Cpu], holders: dict[int, _Holder | None], spinning: Sequence[Cpu]
) -> Finding:
    links, parts = [], []
    for cpu in circle:
        holder = holders[cpu.number]
        other = holder.cpu if holder is not None and holder.cpu is not None else cpu
        text = f"{lock_name(picture, cpu)}, held by {name_cpu(picture, other)}"
        links.append(Link(name_cpu(picture, cpu), f"spins in {where(cpu.own)} for", text, is_certain=False))
        parts.append(f"{name_cpu(picture, cpu)} spins in {where(cpu.own)} on {text}")
    culprit = min(circle, key=lambda cpu: module_of(cpu.own) in {"", "vmlinux"})
    return Finding(
        detector="cpu-stuck",
        role=Role.CAUSE,
        cause=Cause.DEADLOCK,
        sentence=f"Deadlock: {'; '.join(parts)}.",
        confidence=Confidence.LIKELY,
        function=function_of(culprit.own),
        module=module_of(culprit.own),
        subject=lock_subject(picture, circle[0]),
        evidence=evidence_of(picture, circle),
        chain=tuple(links),
        victims=spin_victims(picture, spinning, [cpu.number for cpu in circle]),
        refuted_by="a way through one of the functions that releases its lock before",
        next_steps=("bt -a",),
        explains=EXPLAINS,
    )


def _kept(picture: Picture, spinner: Cpu, holder: _Holder, spinning: Sequence[Cpu]) -> Finding:
    """Tell of a lock whose holder is known, and does not come to its end."""
    lock = lock_name(picture, spinner)
    if holder.cpu is None:
        return _slept_with(picture, spinner, holder, spinning)
    cpu = holder.cpu
    own = cpu.own_inside(holder.frame) or holder.frame
    circle = find_circle(picture, cpu)
    extra = f"; it walks {circle.text}" if circle is not None else ""
    inside = "" if own is holder.frame else f", which {where(holder.frame)} called"
    return Finding(
        detector="cpu-stuck",
        role=Role.CAUSE,
        cause=Cause.ENDLESS_LOOP,
        sentence=f"{name_cpu(picture, cpu)} does not come out of {where(own)}{inside}, with {lock} held{extra}; "
        f"{name_cpu(picture, spinner)} spins on it in {where(spinner.own)}.",
        confidence=Confidence.LIKELY,
        function=function_of(own),
        module=module_of(own),
        subject=lock_subject(picture, spinner),
        evidence=(
            *evidence_of(picture, [spinner]),
            cpu_evidence(
                picture,
                cpu,
                f"{name_cpu(picture, cpu)} holds the lock since {where(holder.frame)} and was in {cpu.innermost}()",
            ),
            *(circle.evidence if circle is not None else ()),
        ),
        chain=(
            Link(
                name_cpu(picture, spinner),
                f"spins in {where(spinner.own)} for",
                f"{lock}, held by {name_cpu(picture, cpu)}",
            ),
            Link(name_cpu(picture, cpu), "runs without end in", where(own), is_certain=False),
        ),
        victims=spin_victims(picture, spinning, []),
        refuted_by="work that is only much, and ends",
        next_steps=(
            f"bt -c {cpu.number}",
            f"bt -c {spinner.number}",
            f"dis -r {cpu.pc:x}",
        ),
        explains=EXPLAINS,
    )


def _slept_with(picture: Picture, spinner: Cpu, holder: _Holder, spinning: Sequence[Cpu]) -> Finding:
    sleep = picture.sleeping[holder.task]
    lock = lock_name(picture, spinner)
    who = picture.names.task(sleep.facts)
    return Finding(
        detector="cpu-stuck",
        role=Role.CAUSE,
        cause=Cause.SLEEP_IN_ATOMIC,
        sentence=f"{who} sleeps in {where(sleep.own)} while {where(holder.frame)} holds {lock}; "
        f"{name_cpu(picture, spinner)} spins on it in {where(spinner.own)}.",
        confidence=Confidence.LIKELY,
        function=function_of(holder.frame),
        module=module_of(holder.frame),
        subject=lock_subject(picture, spinner),
        evidence=(
            *evidence_of(picture, [spinner]),
            Evidence(f"{who} sleeps with the lock", f"bt {picture.names.pid(sleep.facts)}", function_of(holder.frame)),
        ),
        chain=(
            Link(
                name_cpu(picture, spinner), f"spins in {where(spinner.own)} for", f"{lock}, held by {who}, which sleeps"
            ),
        ),
        victims=spin_victims(picture, spinning, []),
        refuted_by="a way through the function that releases the lock before",
        next_steps=(f"bt {picture.names.pid(sleep.facts)}",),
        explains=EXPLAINS,
    )


def _slept_before(picture: Picture) -> Iterator[Evidence]:
    """Give the reports of tasks that the scheduler found with spinlocks held: one of them may have leaked it."""
    for report in picture.scene.reports:
        if report.kind is Kind.ATOMIC_SLEEP:
            who = f"{report.comm} (PID {report.pid})" if report.comm else "a task"
            yield Evidence(f"{who} gave up its CPU before, as if it held a spinlock", "log", report.message)


def _leaked(picture: Picture, cpus: Sequence[Cpu], spinning: Sequence[Cpu]) -> Finding:
    """Tell of a lock that is taken, and that nobody is seen to hold."""
    cpu = spinning[0]
    lock = lock_name(picture, cpu)
    module = picture.names.module_at(cpu.spins_on) if cpu.spins_on else ""
    own = cpu.own
    module = module or (own.place.module if own is not None and own.place is not None else "")
    leak = find_leak_in(picture, cpu.spin_kind, cpu.spins_on, module) if cpu.spins_on else None
    others = [place.function for place in find_takers(picture, cpu.spin_kind, module)] if module else []
    busy = [one for one in cpus if one.mode is Mode.KERNEL and not one.spin_kind]
    leaked = (
        f"; {leak.function}() [{leak.module}] takes it and can return without releasing it" if leak is not None else ""
    )
    possible = sorted({name.partition(".")[0] for name in others} - {function_of(own)})
    evidence = [*evidence_of(picture, [cpu]), *_slept_before(picture)]
    if leak is not None:
        evidence.append(
            Evidence(
                f"{leak.function}() can end at {leak.returns:x} with the lock",
                f"dis -r {leak.returns:x}",
                leak.function,
                leak.returns,
            )
        )
    return Finding(
        detector="cpu-stuck",
        role=Role.CAUSE,
        cause=Cause.LEAKED_LOCK,
        sentence=f"{name_cpu(picture, cpu)} spins in {where(own)} on {lock}, which is taken, and no CPU "
        f"or task is seen to hold it{leaked}.",
        confidence=Confidence.LIKELY if (leak is not None or not busy) and cpu.spins_on else Confidence.POSSIBLE,
        function=leak.function if leak is not None else possible[0] if len(possible) == 1 else "",
        module=leak.module if leak is not None else module or "vmlinux",
        subject=lock_subject(picture, cpu),
        evidence=tuple(evidence),
        chain=(Link(name_cpu(picture, cpu), f"spins in {where(own)} for", f"{lock}, held by nobody that is seen"),),
        victims=spin_victims(picture, spinning, []),
        refuted_by="a holder whose stack does not show that it took the lock",
        next_steps=("bt -a", *(f"dis {name}" for name in possible[:3])),
        explains=EXPLAINS,
    )


def find_culprit(cpu: Cpu, report: Report) -> Frame | None:
    """
    Find whose loop it is: the innermost function of its own work that the report has in its traces as well.

    Between the report and the crash the loop went on: what it had called by then is not at fault.
    """
    named = {
        frame.function.partition(".")[0]
        for trace in report.traces
        if (trace.cpu if trace.cpu is not None else report.cpu) == cpu.number
        for frame in trace.frames
        if frame.is_reliable
    }
    owns = [frame for part in cpu.contexts for frame in part if is_own(function_of(frame))]
    return next((frame for frame in owns if function_of(frame) in named), next(iter(owns), None))
