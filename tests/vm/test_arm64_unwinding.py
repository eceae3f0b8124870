"""Frame records of arm64 against DWARF: drgn, with the kernel's own debug information, judges every task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import drgn
import pytest

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.program import open_program
from postpanic.analysis.stacks.engine import backtraces
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.tasks import read_tasks
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, ProcessError
from tests.vm.arm64 import Arm64Dump, fetch_dump
from tests.vm.arm64_debug import fetch_debug_info
from tests.vm.arm64_triage import Arm64TriageLab
from tests.vm.lab import Lab
from tests.vm.oracle import open_real
from tests.vm.triage_truth import list_truths

pytestmark = pytest.mark.matrix

# DWARF has the name in the source, the symbol table that of the compiler's copy.
COPY = re.compile(r"\.(?:constprop|isra|part|cold)(?:\.\d+)?")
VECTORS = "vectors"
"""The table of exception vectors: code without unwind information, where a CPU may be stopped."""


@dataclass(frozen=True)
class Real:
    """A frame, as DWARF unwinds it; None: it could not tell."""

    pc: int
    function: str | None
    fp: int | None
    sp: int | None


@dataclass(frozen=True)
class Judged:
    """A dump with what both make of its stacks, by address of the task."""

    ours: dict[int, Trace]
    theirs: dict[int, list[Real]]


@pytest.fixture(scope="module", autouse=True)
def qemu(installed: Callable[[str], str]) -> str:
    return installed("qemu-system-aarch64")


@pytest.fixture(scope="module", params=["6.1", "6.12", "newest"], ids=lambda key: f"arm64-{key}")
def judged(request: pytest.FixtureRequest, crash_lab: Lab, qemu: str) -> Judged:
    assert qemu
    dump = fetch_dump(crash_lab, request.param)
    return _judge(dump.path, _open_real(crash_lab, request.param, dump))


def _judge(path: Path, prog: drgn.Program) -> Judged:
    with open_program([path], policy=DebugPolicy.SYNTHESIZED) as opened:
        workspace = Workspace(opened)
        ours = {facts.vaddr: trace for facts, trace in backtraces(workspace, read_tasks(workspace, []))}
        ours = {vaddr: trace for vaddr, trace in ours.items() if trace.absent is None}
        return Judged(ours, {vaddr: _unwind(prog, vaddr) for vaddr in ours})


def _open_real(lab: Lab, key: str, dump: Arm64Dump, path: Path | None = None) -> drgn.Program:
    try:
        info = fetch_debug_info(lab, key, dump)
    except (FactAbsentError, ProcessError) as exc:
        # It goes from the archive when a newer kernel comes, which a cached dump does not.
        pytest.skip(f"no debug information: {exc}")
    modules = [found for found in info.modules_dir.rglob("*.ko*") if found.is_file()]
    return open_real(path or dump.path, info.vmlinux, modules)


def _unwind(prog: drgn.Program, task: int) -> list[Real]:
    frames = prog.stack_trace(drgn.Object(prog, "struct task_struct *", task))
    return [
        Real(frame.pc, frame.name, _register(frame, "x29"), _register(frame, "sp"))
        for frame in frames
        if not frame.is_inline
    ]


def _register(frame: drgn.StackFrame, name: str) -> int | None:
    try:
        return int(frame.register(name))
    except LookupError:
        return None


def _pairs(judged: Judged) -> Iterator[tuple[Frame, Real]]:
    """Give the frames of both, where both have the same."""
    for vaddr, trace in judged.ours.items():
        theirs = judged.theirs[vaddr]
        if len(theirs) == len(trace.frames):
            yield from zip(trace.frames, theirs, strict=True)


def test_every_task_has_the_frames_that_dwarf_finds(judged: Judged) -> None:
    assert len(judged.ours) > 50
    for vaddr, trace in judged.ours.items():
        ours, theirs = [frame.pc for frame in trace.frames], [frame.pc for frame in judged.theirs[vaddr]]
        first = trace.frames[0].place
        if ours != theirs and first is not None and first.function == VECTORS:
            # What was interrupted is in x30 alone, which drgn cannot know without unwind information.
            ours.pop(1)
        assert ours == theirs
        assert trace.complete
        assert trace.problems == []


def test_functions_have_their_names(judged: Judged) -> None:
    count = 0
    for ours, theirs in _pairs(judged):
        assert ours.place is not None
        assert theirs.function is not None
        assert COPY.sub("", ours.place.function) == COPY.sub("", theirs.function)
        count += 1
    assert count > 350


def test_frame_pointers_are_those_that_dwarf_restores(judged: Judged) -> None:
    count = 0
    for ours, theirs in _pairs(judged):
        if theirs.fp is not None:
            assert ours.fp == theirs.fp
            count += 1
    assert count > 300
    # Known by unwind information alone: without it drgn has frame records too.
    assert sum(theirs.sp is not None for _, theirs in _pairs(judged)) > 300


def test_the_record_of_a_frame_lies_in_it(judged: Judged) -> None:
    """What stands in brackets is on the frame's part of the stack: not below its stack pointer, nor in its caller's."""
    for vaddr, trace in judged.ours.items():
        theirs = judged.theirs[vaddr]
        if len(theirs) != len(trace.frames):
            continue
        for number, frame in enumerate(trace.frames):
            above = trace.frames[number + 1].area if number + 1 < len(theirs) else None
            low, high = theirs[number].sp, theirs[number + 1].sp if above is frame.area else None
            assert low is None or low <= frame.slot
            assert high is None or frame.slot < high


@pytest.mark.parametrize("name", ["bad-call", "null-member", "bug-on", "recursion-pair"])
def test_callers_that_dwarf_cannot_find_are_those_that_a_register_names(
    crash_lab: Lab, arm64_triage_lab: Arm64TriageLab, name: str
) -> None:
    """A module without unwind information, or a call through a bad pointer: the caller is in x30 alone."""
    truths = {truth.name: truth for truth in list_truths()}
    path = arm64_triage_lab.crash(truths[name], "6.1").dump
    judged = _judge(path, _open_real(crash_lab, "6.1", fetch_dump(crash_lab, "6.1"), path))
    hidden = 0
    for vaddr, trace in judged.ours.items():
        theirs = [real.pc for real in judged.theirs[vaddr]]
        for number, frame in enumerate(trace.frames):
            if theirs and frame.pc == theirs[0]:
                theirs.pop(0)
                continue
            assert trace.frames[number - 1].interrupted
            hidden += 1
        assert theirs == []
        assert trace.complete
    assert hidden >= 1
