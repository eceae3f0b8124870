"""The frames of the moment that a report is of, and the object that an argument of a reporting function was."""

from __future__ import annotations

import re
from collections.abc import Sequence

from postpanic.analysis.code.instructions import Flow
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.faults.code_paths import code_graphs
from postpanic.analysis.triage.faults.effects import ARGUMENTS, CALLEE_SAVED
from postpanic.analysis.triage.faults.origin import Origin
from postpanic.analysis.triage.faults.trace_back import Tracer
from postpanic.analysis.triage.faults.uses import full_registers
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import plain_name

__all__ = ["find_line", "frames_of", "hidden_callee", "trace_argument"]

_MOST_LINE = 400


def find_line(scene: Scene, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """Find the first line of the first report, or right before it, that matches."""
    report = scene.first
    for line in report.lines if report is not None else ():
        match = pattern.search(line[:_MOST_LINE])
        if match is not None:
            return match
    return None


def frames_of(scene: Scene) -> Sequence[Frame]:
    """Give the frames from the moment of the report outwards; the reporting functions are among them."""
    if scene.workspace is None:
        return ()
    if scene.fault is not None and scene.fault.frames:
        return scene.fault.frames
    report = scene.first
    task = scene.find_task(report.pid, report.comm) if report is not None else None
    task = task or scene.panic_task
    if task is None:
        return ()
    try:
        return scene.trace(task).frames
    except UNREADABLE:
        return ()


def hidden_callee(scene: Scene, frames: Sequence[Frame], number: int) -> str:
    """
    Name the function between a frame and the one it called, that left no frame: it jumped on at its end.

    Empty where there is none.
    """
    if not 0 < number < len(frames):
        return ""
    caller, callee = frames[number], frames[number - 1]
    if caller.interrupted or callee.place is None:
        return ""
    graphs = code_graphs(scene.dump)
    graph = graphs.find(caller.pc - 1)
    call = graph.ending_at(caller.pc) if graph is not None else None
    if call is None or call.flow is not Flow.CALL or call.target is None or graphs.thunk_register(call.target):
        return ""
    name = graphs.name(call.target)
    return name if name and name != plain_name(callee.place.function) else ""


def trace_argument(scene: Scene, function: str, number: int) -> Origin | None:
    """
    Follow an argument back that a function on the stack was called with.

    Parameters
    ----------
    function : str
        Without suffixes; the innermost frame of that name counts.
    number : int
        Of the argument, from 0.
    """
    frames = frames_of(scene)
    graphs = code_graphs(scene.dump)
    arguments = ARGUMENTS.get(graphs.machine, ())
    place = next(
        (at for at, frame in enumerate(frames) if frame.place and plain_name(frame.place.function) == function), None
    )
    if place is None or number >= len(arguments):
        return None
    own = frames[place].place
    graph = graphs.find(own.start) if own is not None else None
    if graph is None:
        return None
    fault = scene.fault
    values: dict[str, int] = {}
    if fault is not None and fault.frames and place == 0:
        written = {
            effect.register for one in graph.instructions.values() for effect in graphs.effects(graph, one)
        }
        kept = CALLEE_SAVED[graphs.machine] - written
        values = {name: value for name, value in full_registers(fault.registers).items() if name in kept}
    tracer = Tracer(scene.dump, graphs, frames[place:])
    return tracer.trace(arguments[number], graph.start, values)
