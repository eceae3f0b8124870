"""The frames of the moment that a report is of, and the object that an argument of a reporting function was."""

from __future__ import annotations

import re

from postpanic.analysis.triage.faults.code_paths import code_graphs
from postpanic.analysis.triage.faults.effects import ARGUMENTS, CALLEE_SAVED
from postpanic.analysis.triage.faults.origin import Origin
from postpanic.analysis.triage.faults.trace_back import Tracer
from postpanic.analysis.triage.faults.uses import frames_of, full_registers
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import plain_name

__all__ = ["find_line", "trace_argument"]

_MOST_LINE = 400
_BEFORE_BYTES = 600


def find_line(scene: Scene, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """Find the first line of the first report, or right before it, that matches."""
    report = scene.first
    if report is None:
        return None
    before = scene.text[max(0, report.offset - _BEFORE_BYTES) : report.offset].decode("utf-8", "replace").splitlines()
    for line in (*report.lines, *reversed(before)):
        match = pattern.search(line[:_MOST_LINE])
        if match is not None:
            return match
    return None


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
        written = {effect.register for one in graph.instructions.values() for effect in graphs.effects(graph, one)}
        kept = CALLEE_SAVED[graphs.machine] - written
        values = {name: value for name, value in full_registers(fault.registers).items() if name in kept}
    tracer = Tracer(scene.dump, graphs, frames[place:])
    return tracer.trace(arguments[number], graph.start, values)
