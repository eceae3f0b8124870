"""Stacks that overflowed or were written over: what recursed, what was largest, whose canary is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from postpanic.analysis.code.instructions import Flow
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.faults.effects import stack_pointer
from postpanic.analysis.triage.faults.reports import find_line
from postpanic.analysis.triage.faults.runs import find_run
from postpanic.analysis.triage.faults.uses import (
    RETURN_THUNK,
    Culprit,
    fault_use,
    find_culprit,
    frames_of,
    full_registers,
)
from postpanic.analysis.triage.faults.wording import stack_command, who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import part_of, plain_name
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role, Subject

__all__ = ["find_overflow", "find_smashed"]

_LONGEST_CYCLE = 12
_FEWEST_ROUNDS = 6
_LARGE_SHARE = 4
"""A frame that takes a quarter of the stack is large."""
_OVERFLOWS = frozenset({Kind.STACK_OVERFLOW, Kind.DOUBLE_FAULT})
_CORRUPTED = re.compile(
    r"Kernel stack is corrupted in: (?:([\w.]{1,128})\+0x[0-9a-f]+/0x[0-9a-f]+)?(?: \[([\w-]{1,64}))?"
)
_LOOK_BYTES = 512
_MOST_STARTS = 256


@dataclass(frozen=True, slots=True)
class _Cycle:
    """Functions that called each other again and again."""

    names: tuple[str, ...]
    modules: tuple[str, ...]
    rounds: int
    first: int
    bytes: int


def _name(frame: Frame) -> str:
    return plain_name(frame.place.function) if frame.place is not None and frame.place.function else f"{frame.pc:#x}"


def find_cycle(frames: Sequence[Frame]) -> _Cycle | None:
    """Find the shortest sequence of functions that is repeated most often, wherever on the stack it begins."""
    names = [_name(frame) for frame in frames]
    best: _Cycle | None = None
    for period in range(1, min(_LONGEST_CYCLE, len(names) // 2) + 1):
        start = 0
        while start + period < len(names):
            end = start + period
            while end < len(names) and names[end] == names[end - period]:
                end += 1
            rounds = (end - start) // period
            if rounds >= _FEWEST_ROUNDS and (best is None or (end - start) > len(best.names) * best.rounds + period):
                part = frames[start : start + period]
                size = abs(frames[min(end, len(frames) - 1)].sp - frames[start].sp)
                modules = tuple((frame.place.module if frame.place else "") or "vmlinux" for frame in part)
                best = _Cycle(tuple(names[start : start + period]), modules, rounds, start, size)
            start = max(end - period + 1, start + 1)
    return best


@detector(
    "stack-overflow",
    needs=(Need.REPORT, Need.MEMORY),
    about="a stack that overflowed: the functions that recursed, or the one whose frame is largest",
    depth=65,
    kinds=_OVERFLOWS,
)
def find_overflow(scene: Scene) -> Iterator[Finding]:
    """Find what filled the stack."""
    report = scene.first
    if report is None or report.kind not in _OVERFLOWS:
        return
    frames = frames_of(scene)
    if scene.fault is not None and not scene.fault.frames:
        frames = _frames_above(scene)
    cycle = find_cycle(frames)
    size = scene.stacks.thread_size
    command = stack_command(scene.fault) if scene.fault is not None else "bt"
    if cycle is not None:
        yield _recursion(scene, cycle, size, command)
        return
    large = _largest(frames)
    if large is None:
        return
    frame, bytes_ = large
    place = frame.place
    if place is None or bytes_ * _LARGE_SHARE < size:
        return
    culprit = Culprit(plain_name(place.function), place.module or "vmlinux")
    others = ", ".join(
        f"{_name(each)} ({taken})"
        for each, taken in _sizes(frames)
        if each is not frame and taken * 2 * _LARGE_SHARE >= size
    )
    yield Finding(
        detector="stack-overflow",
        role=Role.CAUSE,
        cause=Cause.STACK_OVERFLOW,
        sentence=(
            f"The stack of {size} bytes overflowed: the frame of {who(culprit)} alone takes {bytes_} bytes of it"
            f"{f', beside those of {others}' if others else ''}."
        ),
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("memory", "stack", report.comm, None, f"{size} bytes"),
        evidence=(Evidence("the frames, and where each is", command, place.function, frame.sp),),
        next_steps=(f"{command} -f",),
        explains=("reported", "bad-pointer"),
        time_s=report.time_s,
    )


def _recursion(scene: Scene, cycle: _Cycle, size: int, command: str) -> Finding:
    report = scene.first
    assert report is not None  # noqa: S101 - the caller looked
    order = sorted(
        range(len(cycle.names)),
        key=lambda at: (cycle.modules[at] == "vmlinux", part_of(cycle.names[at]) is not None, at),
    )
    chosen = order[0]
    names = [who(Culprit(name, module)) for name, module in zip(cycle.names, cycle.modules, strict=True)]
    loop = " and ".join(names) if len(names) <= 2 else ", ".join(names)
    doing = "called itself" if len(names) == 1 else "called each other"
    is_proven = scene.fault is not None and scene.fault.is_from_stack and 2 * cycle.bytes >= size
    # Frames are told from inside out: each was called by the next.
    links = [Link(names[at], "was called by", names[(at + 1) % len(names)]) for at in range(len(names))]
    return Finding(
        detector="stack-overflow",
        role=Role.CAUSE,
        cause=Cause.STACK_OVERFLOW,
        sentence=(
            f"The stack overflowed by recursion: {loop} {doing} {cycle.rounds} times, {cycle.bytes} of the stack's "
            f"{size} bytes are theirs."
        ),
        confidence=Confidence.PROVEN if is_proven else Confidence.LIKELY,
        function=cycle.names[chosen],
        module=cycle.modules[chosen],
        subject=Subject("memory", "stack", report.comm, None, f"{size} bytes"),
        evidence=(
            Evidence(f"{cycle.rounds} rounds of the same functions", command, cycle.names[chosen]),
            Evidence("the kernel's report", "log", report.message),
        ),
        chain=tuple(links),
        refuted_by="data that is cyclic where it must not be: then who built it is at fault",
        next_steps=(f"{command} -f | head -n 60",),
        explains=("reported", "bad-pointer", "freed-object", "overrun"),
        time_s=report.time_s,
    )


def _frames_above(scene: Scene) -> Sequence[Frame]:
    """
    Find the frames of a stack whose pointer is beyond its end.

    The unwinder knows no stack there; what was called before is found by the
    first return address on the stack that leads to its regular end.
    """
    fault, walker = scene.fault, scene.stacks.walker
    task = fault.task if fault is not None else None
    area = scene.stacks.find_task_area(task) if task is not None else None
    if fault is None or walker is None or area is None or fault.pc is None:
        return ()
    sp = _stack_pointer(scene, fault.registers) or area.start
    own = Frame(fault.pc, sp, 0, fault.place, interrupted=True, area=area)
    for start in walker.candidates(area.start, area.end)[:_MOST_STARTS]:
        trace = walker.try_trace(start, area)
        if trace.complete:
            return (own, *trace.frames)
    return (own,)


def _stack_pointer(scene: Scene, registers: Mapping[str, int]) -> int | None:
    return full_registers(registers).get(stack_pointer(scene.dump.memory.machine))


def _largest(frames: Sequence[Frame]) -> tuple[Frame, int] | None:
    """Find the frame that takes most of the stack."""
    return max(_sizes(frames), key=itemgetter(1), default=None)


def _sizes(frames: Sequence[Frame]) -> list[tuple[Frame, int]]:
    """Give the frames with the bytes that each takes, as far as that is known."""
    return [
        (inner, outer.sp - inner.sp)
        for inner, outer in pairwise(frames)
        if inner.area == outer.area and inner.reliable and outer.reliable and outer.sp > inner.sp
    ]


@detector(
    "smashed-stack",
    needs=(Need.REPORT,),
    about="a stack that was written over: whose canary is gone, or who returned to where no code is",
    depth=66,
    kinds=(Kind.STACK_PROTECTOR,),
    families=(Family.MEMORY_ACCESS,),
)
def find_smashed(scene: Scene) -> Iterator[Finding]:
    """Find the function whose frame was written over, and with what."""
    report = scene.first
    if report is None:
        return
    if report.kind is Kind.STACK_PROTECTOR:
        yield from _canary(scene)
        return
    use = fault_use(scene)
    if use is None or use.is_call or use.instruction.flow is not Flow.RETURN or use.fault.place is None:
        return
    sp = _stack_pointer(scene, use.fault.registers)
    what = _over(scene, sp) if sp is not None else ""
    culprit = Culprit(plain_name(use.fault.place.function), use.fault.place.module or "vmlinux")
    if culprit.function.startswith(RETURN_THUNK):
        culprit = find_culprit(scene) or culprit
    yield Finding(
        detector="smashed-stack",
        role=Role.CAUSE,
        cause=Cause.STACK_CORRUPTION,
        sentence=(
            f"The stack of {who(culprit)} was written over: its return address is none"
            f"{f', {what} is there' if what else ''}."
        ),
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("memory", "stack", report.comm, sp),
        evidence=(
            Evidence("the return that failed", f"dis {use.instruction.vaddr:x}", use.text),
            *((Evidence("what lies where it would return to", f"rd {sp:x} 8", "", sp),) if sp is not None else ()),
        ),
        next_steps=(f"rd -a {sp - 128:x} 256",) if sp is not None else (),
        explains=("bad-pointer", "reported", "bit-flip"),
        time_s=report.time_s,
    )


def _canary(scene: Scene) -> Iterator[Finding]:
    report = scene.first
    assert report is not None  # noqa: S101 - the caller looked
    frames = frames_of(scene)
    culprit, sp = None, None
    for inner, frame in pairwise(frames):
        if frame.place is not None and _name(inner).startswith("__stack_chk_fail"):
            culprit = Culprit(_name(frame), frame.place.module or "vmlinux")
            sp = frame.sp
            break
    match = find_line(scene, _CORRUPTED)
    if culprit is None and match is not None and match[1]:
        culprit = Culprit(plain_name(match[1]), match[2] or "vmlinux")
    culprit = culprit or find_culprit(scene)
    if culprit is None:
        return
    what = _around(scene, sp) if sp is not None else ""
    yield Finding(
        detector="smashed-stack",
        role=Role.CAUSE,
        cause=Cause.STACK_CORRUPTION,
        sentence=(
            f"The stack frame of {who(culprit)} was written over beyond one of its local variables: the canary before "
            f"its return address is gone{f', {what} runs over it' if what else ''}."
        ),
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("memory", "stack", report.comm, sp, what),
        evidence=(
            Evidence("the kernel's check", "log", "Kernel stack is corrupted in"),
            *((Evidence("what lies in the frame", f"rd {sp:x} 32", "", sp),) if sp is not None else ()),
        ),
        refuted_by="a write from elsewhere through a pointer into this stack",
        next_steps=(f"rd -a {sp:x} 256", "bt -f") if sp is not None else ("bt -f",),
        explains=("reported",),
        time_s=report.time_s,
    )


def _over(scene: Scene, sp: int) -> str:
    """Say what run of bytes lies over a place on the stack; empty: none."""
    try:
        data = scene.prog.read(sp - _LOOK_BYTES // 2, _LOOK_BYTES)
    except UNREADABLE:
        return ""
    run = find_run(data, _LOOK_BYTES // 2)
    return f"{run.text} for {run.size_bytes} bytes" if run is not None else ""


def _around(scene: Scene, sp: int) -> str:
    """Say what run of bytes lies in the frame above the stack pointer, where its canary and return address are."""
    for at in range(sp, sp + _LOOK_BYTES // 2, 8):
        text = _over(scene, at)
        if text and int(text.rpartition(" for ")[2].split()[0]) >= 16:
            return text
    return ""
