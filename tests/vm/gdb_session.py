"""A dump in gdb and at our prompt, and whether both show the same stacks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from postpanic.analysis.gdbserver.threads import FIRST_IDLE_ID
from postpanic.analysis.open_dump import OpenDump, open_dump
from postpanic.analysis.stacks.engine import backtraces, open_stacks
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.tasks import TaskFacts, read_all_facts

__all__ = ["POSTPANIC", "TIMEOUT_S", "Debugged", "compare_backtraces", "parse_threads"]

POSTPANIC = [sys.executable, "-m", "postpanic"]
MARK = "=====next====="
TIMEOUT_S = 600


@dataclass(frozen=True)
class GdbFrame:
    pc: int | None
    function: str


@dataclass(frozen=True)
class GdbThread:
    """One line of ``info threads``."""

    id: int
    name: str
    state: str


class Debugged:
    """A dump, in gdb and at our prompt."""

    def __init__(
        self, dump: Path, environment: Mapping[str, str], *files: Path | str, questions: Sequence[str] = ()
    ) -> None:
        self.dump = dump
        self.environment = dict(environment)
        self.words = [*POSTPANIC, "gdb", *map(str, files), str(dump)]
        self._questions = questions

    def start(self, *words: str) -> list[str]:
        return [*self.words, "--", "-nx", *words]

    def gdb(self, *commands: str) -> list[str]:
        """Run commands of gdb in one session; returns what each printed."""
        words = ["-batch", "-ex", "set width 0", "-ex", "set height 0"]
        for command in (*commands, "detach"):
            words += ["-ex", f"echo {MARK}\\n", "-ex", command]
        # Errors and what "monitor" prints come in between.
        finished = subprocess.run(
            self.start(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        parts = finished.stdout.split(f"{MARK}\n")[1:-1]
        assert len(parts) == len(commands), finished.stdout
        return [part.rstrip("\n") for part in parts]

    def __getitem__(self, command: str) -> str:
        """Return what one of the questions printed: all are asked in one session."""
        return self.answers[command]

    @cached_property
    def answers(self) -> dict[str, str]:
        return dict(zip(self._questions, self.gdb(*self._questions), strict=True))

    @cached_property
    def ours(self) -> OpenDump:
        return open_dump(self.dump, cache_directory=Path(self.environment["XDG_CACHE_HOME"]) / "postpanic")

    @cached_property
    def tasks(self) -> dict[int, TaskFacts]:
        """All tasks, by the number that gdb has for each."""
        facts = read_all_facts(self.ours.workspace, [])
        return {each.pid or FIRST_IDLE_ID + each.cpu: each for each in facts}

    @cached_property
    def traces(self) -> dict[int, Trace]:
        numbers = {facts.vaddr: number for number, facts in self.tasks.items()}
        tasks = [facts.task for facts in self.tasks.values()]
        return {numbers[facts.vaddr]: trace for facts, trace in backtraces(self.ours.workspace, tasks)}

    @cached_property
    def running(self) -> set[int]:
        """Numbers of the tasks that were on a CPU."""
        on_cpu = open_stacks(self.ours.workspace).running
        return {number for number, facts in self.tasks.items() if facts.vaddr in on_cpu}


def parse_threads(text: str) -> list[GdbThread]:
    lines = re.findall(r"^[* ] +\d+ +Thread (\d+) \"(.*?)\" \((\S+), ", text, re.MULTILINE)
    return [GdbThread(int(number), name, state) for number, name, state in lines]


def parse_backtraces(text: str) -> dict[int, list[GdbFrame]]:
    found: dict[int, list[GdbFrame]] = {}
    frames: list[GdbFrame] = []
    for line in text.splitlines():
        if match := re.match(r"Thread \d+ \(Thread (\d+)[ )]", line):
            frames = found[int(match[1])] = []
        elif match := re.match(r"#\d+ +(?:0x([0-9a-f]+) in )?(<signal handler called>|\S+)", line):
            pc = int(match[1], 16) if match[1] else None
            if pc is None and frames and match[2] != "<signal handler called>":
                # What is above was inlined into this.
                pc = frames.pop().pc
            frames.append(GdbFrame(pc, match[2]))
    return found


def begin_at_registers(trace: Trace, frames: Sequence[GdbFrame]) -> list[Frame]:
    """Leave out what a dying CPU did after the moment that its registers are of."""
    pcs = [frame.pc for frame in trace.frames]
    if trace.start is not None and trace.start.user:
        return []
    for number, frame in enumerate(trace.frames):
        # The registers of the note were taken somewhere in this function.
        same = frame.place is not None and frames and frames[0].function in frame.place.function
        if frames and (frames[0].pc == frame.pc or (same and pcs[number + 1 :][:1] == [frames[1].pc])):
            return trace.frames[number:]
        saved = frame.saved
        if saved is not None and saved.user:
            return []
    return trace.frames


def is_same_function(dump: OpenDump, ours: Frame, theirs: GdbFrame) -> bool:
    """Tell whether two names are of one place: another name of it, the function of a label, or of a split off part."""
    name = ours.place.function if ours.place is not None else ""
    if theirs.function in {name, name.partition(".")[0]}:
        return True
    if theirs.function == "<signal handler called>":
        return ours.saved is not None
    symbols = [symbol for symbol in dump.prog.symbols(theirs.function) if symbol.address <= ours.pc]
    own = ours.place.start if ours.place is not None else 0
    return any(symbol.address == own or not symbol.size or own < symbol.address + 4096 for symbol in symbols)


def compare_backtraces(
    debugged: Debugged, text: str, *, tail_calls: bool = False, cut: Container[int] = (), least: int = 500
) -> None:
    """
    Compare what gdb printed of all threads with our own traces.

    Parameters
    ----------
    tail_calls : bool
        Whether gdb has DWARF, and so knows functions that left by a jump.
    cut : container of int
        Threads whose stack gdb need not follow to its end.
    least : int
        Number of frames that must have been compared.
    """
    found = parse_backtraces(text)
    assert set(found) == set(debugged.tasks)
    compared = 0
    for number, trace in debugged.traces.items():
        frames = found[number]
        if tail_calls:
            # By DWARF gdb also shows functions that left by a jump: they have no frame.
            pcs = {frame.pc for frame in trace.frames}
            frames = [
                frame for place, frame in enumerate(frames) if not place or frame.function == "??" or frame.pc in pcs
            ]
        if trace.absent is not None or not (trace.frames or trace.start):
            # A zombie has no stack, and no registers.
            assert [frame.function for frame in frames] in ([], ["<unavailable>"])
            continue
        # The last one is user code, which has no name here.
        frames = frames[:-1] if frames and frames[-1].function == "??" else frames
        ours = begin_at_registers(trace, frames) if number in debugged.running else trace.frames
        if number in cut:
            assert len(frames) > 1
            ours = ours[: len(frames)]
        assert len(frames) == len(ours), (number, frames, ours)
        for own, theirs in zip(ours, frames, strict=True):
            assert is_same_function(debugged.ours, own, theirs), (number, own, theirs)
            compared += 1
        # Only the place of the first frame differs: that of the registers, and where its call came back to.
        assert [own.pc for own in ours[1:]] == [
            own.pc if theirs.pc is None else theirs.pc for own, theirs in zip(ours[1:], frames[1:], strict=True)
        ]
    assert compared >= least
