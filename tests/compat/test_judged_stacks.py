"""Backtraces of every task, frame by frame against crash, which has the real debug information."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postpanic.findings.absent import Absent, Reason
from tests.compat.crash_oracle import CrashOracle
from tests.compat.crash_text.tasks import Frame, Stack, parse_bt, parse_raw_stack
from tests.compat.judged import Judged, differences, inner, judge, records
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat

SCENARIOS = ("module-null", "module-call", "module-recursion", "nmi")


def our_frames(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the frames of real calls; a task that has exited has no stack."""
    if isinstance(row["frames"], Absent):
        assert row["frames"].reason is Reason.NOT_PRESENT
        assert row["state"] == "ZO"
        return []
    return [frame for frame in inner(row["frames"]) if frame["kind"] == "frame"]


def place(number: int | None, sp: int, pc: int, offset: int | None, module: str) -> tuple[object, ...]:
    # Functions that the compiler found to be the same have several names, and one address.
    return number, sp, pc, pc - (offset or 0), module


def our_places(row: dict[str, Any]) -> tuple[tuple[object, ...], ...]:
    frames = our_frames(row)
    return tuple(place(one["number"], one["sp"], one["pc"], one["offset"], one["module"] or "") for one in frames)


def their_places(stack: Stack) -> tuple[tuple[object, ...], ...]:
    return tuple(place(one.number, one.sp, one.pc, one.offset, one.module) for one in stack.frames)


def their_registers(stack: Stack) -> list[dict[str, int]]:
    return [{name.lower(): value for name, value in registers.items()} for registers in stack.registers]


def our_registers(row: dict[str, Any]) -> list[dict[str, int]]:
    names = ("rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "orig_rax", "cs", "ss")
    numbered = (f"r{number}" for number in range(8, 16))
    wanted = (*names, *numbered)
    shown = [inner(frame["registers"])[0] for frame in our_frames(row) if frame["registers"] is not None]
    return [{name: registers[name] for name in wanted} for registers in shown]


def test_every_frame_of_every_task_is_crashs(judged: Judged) -> None:
    rows = judged.run_each("bt")
    ours = [(row["task"], our_places(row)) for row in rows]
    theirs = [(stack.header.task, their_places(stack)) for stack in judged.parsed("foreach bt -s", parse_bt)]
    assert differences(ours, theirs) == []
    assert sum(len(places) for _, places in ours) > 1500


def test_every_exception_frame_has_crashs_registers(judged: Judged) -> None:
    theirs = {stack.header.task: their_registers(stack) for stack in judged.parsed("foreach bt -s", parse_bt)}
    ours = {row["task"]: our_registers(row) for row in judged.run_each("bt")}
    assert ours == theirs
    assert sum(map(len, ours.values())) > 200


def test_names_are_crashs_up_to_aliases(judged: Judged) -> None:
    stacks = judged.parsed("foreach bt -s", parse_bt)
    theirs: list[Frame] = [frame for stack in stacks for frame in stack.frames]
    ours = [frame["function"] for row in judged.run_each("bt") for frame in our_frames(row)]
    others = {(mine, frame.function) for mine, frame in zip(ours, theirs, strict=True) if mine != frame.function}
    for mine, other in others:
        prog = judged.dump.prog
        assert prog.symbol(mine).address == prog.symbol(other).address, (mine, other)


def test_words_of_the_stack_are_crashs(judged: Judged) -> None:
    theirs = judged.parsed("bt -f", parse_raw_stack)
    ours: dict[int, int] = {}
    for frame in our_frames(records(judged.run("bt -f").table)[0]):
        for line in inner(frame["contents"]) if frame["contents"] is not None else ():
            ours[line["address"]] = line["word0"]
            if line["word1"] is not None:
                ours[line["address"] + 8] = line["word1"]
    assert {address: ours.get(address) for address in theirs} == theirs
    assert len(theirs) > 100


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stacks_of_exceptions_and_interrupts(
    scenario: str, crashed: Callable[..., Crash], crash_oracle: CrashOracle, tmp_path: Path
) -> None:
    crash = crashed("6.1", scenario=scenario)
    if crash.vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    judged = judge(crash_oracle, crash, "6.1", tmp_path)
    with judged.dump:
        texts = judged.ask(("bt -as", "log"))
        theirs = {stack.header.task: stack for stack in parse_bt(texts["bt -as"])}
        rows = records(judged.dump.run("bt -a").table)
        assert {row["task"] for row in rows} == set(theirs)
        for row in rows:
            stack = theirs[row["task"]]
            # After a call to nowhere crash has no frame of the exception itself.
            registers = [one for one in our_registers(row) if one["rip"] != 0]
            assert registers == their_registers(stack)
            # Numbers follow from the frames.
            mine = [one[1:] for one in our_places(row)]
            assert [one[1:] for one in their_places(stack) if one[1:] not in mine] == []
            for frame in our_frames(row):
                if frame["pc"] and (frame["sp"], frame["pc"]) not in pairs(stack):
                    # The kernel's own trace has it, and not among those that it doubts.
                    assert f"]  {frame['function']}+{frame['offset']:#x}/" in texts["log"]


def pairs(stack: Stack) -> set[tuple[int, int]]:
    return {(frame.sp, frame.pc) for frame in stack.frames}
