"""Traces by drgn's own unwinder: where the kernel has no unwind tables that we follow ourselves."""

from __future__ import annotations

from drgn import Program, StackFrame

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.code_index import CodeIndex
from postpanic.analysis.stacks.frames import Area, Frame, Saved, Trace
from postpanic.analysis.tasks import TaskFacts

__all__ = ["trace_with_drgn"]


def trace_with_drgn(prog: Program, code: CodeIndex, facts: TaskFacts, area: Area | None) -> Trace:
    """Unwind the stack of a task as drgn does."""
    trace = Trace()
    try:
        found = [frame for frame in prog.stack_trace(facts.task) if not frame.is_inline]
    except UNREADABLE as exc:
        trace.problems.append(problem("its stack", exc))
        return trace
    return_bytes = 8 if "rsp" in (found[0].registers() if found else {}) else 0
    for frame in found:
        pc, sp = _pc(frame), _sp(frame)
        if pc is None or sp is None:
            break
        is_user = sp >> 63 == 0 and bool(trace.frames)
        if frame.interrupted and trace.frames:
            place = None if is_user else code.find(pc)
            trace.frames[-1].saved = Saved(0, frame.registers(), is_user, place)
        if is_user:
            break
        place = code.find(pc) if frame.interrupted else code.find_caller(pc)
        on = area if area is not None and sp in area else None
        trace.frames.append(Frame(pc, sp, 0, place, interrupted=frame.interrupted, area=on, return_bytes=return_bytes))
    trace.complete = bool(trace.frames)
    return trace


def _pc(frame: StackFrame) -> int | None:
    try:
        return int(frame.pc)
    except LookupError:
        return None


def _sp(frame: StackFrame) -> int | None:
    try:
        return int(frame.sp)
    except LookupError:
        return None
