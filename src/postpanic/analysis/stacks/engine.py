"""The backtraces of tasks: where each begins, and who follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from drgn import Architecture, Object, Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks import arm64, x86_64
from postpanic.analysis.stacks.code_index import CodeIndex
from postpanic.analysis.stacks.drgn_walk import trace_with_drgn
from postpanic.analysis.stacks.frames import Area, Saved, Trace
from postpanic.analysis.stacks.orc_rows import OrcRows
from postpanic.analysis.stacks.running import read_running_tasks
from postpanic.analysis.stacks.walk import Start, Walker
from postpanic.analysis.stacks.words import Words
from postpanic.analysis.tasks import TaskFacts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FileFaultError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Problem

__all__ = ["Stacks", "backtraces", "open_stacks"]

_DYING = ("machine_kexec", "crash_nmi_callback", "kdump_nmi_callback")
"""
Functions that a CPU never leaves while the machine dies: their frames are the
innermost, though the dump's notes hold the registers of an earlier moment.
"""
_ENTRY_FRAME = {"r15": 0, "r14": 8, "r13": 16, "r12": 24, "rbx": 32, "rbp": 40, "ret_addr": 48}
"""``struct inactive_task_frame`` (``arch/x86/include/asm/switch_to.h``), 4.9 and newer."""
_ENTRY_FRAME_BYTES = 56
_DEFAULT_THREAD_SIZE = 16 << 10


def open_stacks(workspace: Workspace) -> Stacks:
    """Return the stacks of a dump; what they need is read once."""
    return workspace.once("stacks", lambda: Stacks(workspace))


def backtraces(workspace: Workspace, tasks: Sequence[Object]) -> Iterator[tuple[TaskFacts, Trace]]:
    """
    Unwind the stacks of tasks, one after the other.

    Nothing is raised for what a stack holds: a trace says in its problems where
    it stopped and why.

    Parameters
    ----------
    tasks : sequence of Object
        ``struct task_struct *``.
    """
    stacks = open_stacks(workspace)
    for facts in read_facts(workspace, tasks):
        yield facts, stacks.trace(facts)


@dataclass(frozen=True, slots=True)
class _Begin:
    start: Start | None = None
    saved: Saved | None = None
    why: Problem | None = None
    absent: Absent | None = None


class Stacks:
    """
    All stacks of a dump.

    Parameters
    ----------
    workspace : Workspace
    """

    def __init__(self, workspace: Workspace) -> None:
        self.prog: Program = workspace.prog
        self.words = Words(workspace.memory, keep=not workspace.is_live)
        self.is_live = workspace.is_live
        self.is_x86_64 = self.prog.platform is not None and self.prog.platform.arch is Architecture.X86_64
        self.thread_size = self._read_thread_size()
        self.problems: list[Problem] = []
        """What kept unwinding from being as good as it can be."""

    @cached_property
    def code(self) -> CodeIndex:
        """All functions, by address."""
        return CodeIndex(self.prog)

    @cached_property
    def running(self) -> dict[int, int]:
        """Tasks that were running: address of the ``struct task_struct`` to CPU."""
        return read_running_tasks(self.prog)

    @cached_property
    def areas(self) -> tuple[Area, ...]:
        """The stacks of the CPUs: of interrupts and exceptions."""
        if self.records is not None:
            return self.records.areas
        found: list[Area] = []
        try:
            for cpu in for_each_possible_cpu(self.prog):
                found += x86_64.read_cpu_areas(self.prog, cpu, self.thread_size) if self.is_x86_64 else ()
        except UNREADABLE as exc:
            self.problems.append(problem("the stacks of the CPUs", exc))
        return tuple(found)

    @cached_property
    def walker(self) -> Walker | None:
        """What follows stacks by the kernel's unwind tables; None: there are none, drgn does it by its own means."""
        if not self.is_x86_64:
            return None
        try:
            rows = OrcRows(self.prog, self.words.memory)
        except (*UNREADABLE, FileFaultError) as exc:
            self.problems.append(problem("unwind tables of the kernel", exc))
            return None
        return Walker(self.words, rows, self.code, self.areas)

    @cached_property
    def records(self) -> arm64.FrameRecords | None:
        """What follows frame records; None: this is not arm64."""
        if self.prog.platform is None or self.prog.platform.arch is not Architecture.AARCH64:
            return None
        try:
            return arm64.FrameRecords(self.prog, self.words, self.code, self.thread_size)
        except UNREADABLE as exc:
            self.problems.append(problem("frame records", exc))
            return None

    def _trace_by_records(self, facts: TaskFacts, area: Area | None) -> Trace | None:
        """Follow frame records; None: there is nothing to begin with, or no such thing here."""
        records = self.records
        if records is None or (self.is_live and facts.vaddr in self.running):
            return None
        if area is None and facts.vaddr not in self.running:
            # A task that ended gave its stack back; what lies there now is another's.
            return Trace(absent=Absent(Reason.NOT_PRESENT, "no stack"))
        try:
            if facts.vaddr in self.running:
                frame = self.prog.stack_trace(facts.task)[0]
                return records.trace(records.running({**frame.registers(), "pc": int(frame.pc)}), area)
            state = records.sleeping(facts.task.thread.cpu_context)
        except (*UNREADABLE, IndexError):
            return None
        return records.trace(state, area)

    def _trace_from(self, facts: TaskFacts, area: Area | None, pc: int | None, sp: int | None) -> Trace:
        """Begin where the user says; without a stack pointer, where the trace would begin anyway."""
        records = self.records
        if records is None:
            raise UsageError("a trace cannot begin elsewhere on this machine", hint="bt -I and -S: x86-64 and arm64")
        if sp is not None:
            if sp & 7:
                raise UsageError(f"stack pointer {sp:#x} must be a multiple of 8")
            return records.trace(records.begin_at(sp, pc), area)
        trace = self._trace_by_records(facts, area)
        if trace is None or not trace.frames or pc is None:
            return trace or Trace()
        first = trace.frames[0]
        trace.frames[0] = replace(first, pc=pc, place=self.code.find(pc), interrupted=True)
        return trace

    def find_task_area(self, facts: TaskFacts) -> Area | None:
        """Find the stack of a task; None: it has none any more, or it cannot be read."""
        try:
            start = facts.number("stack")
        except UNREADABLE:
            return None
        return Area("task", start, start + self.thread_size) if start else None

    def trace(self, facts: TaskFacts, *, pc: int | None = None, sp: int | None = None) -> Trace:
        """
        Unwind the stack of a task.

        Parameters
        ----------
        pc, sp : int, optional
            Begin there; without a stack pointer, at the one where the trace would begin anyway.
        """
        area = self.find_task_area(facts)
        walker = self.walker
        if walker is None:
            if sp is not None or pc is not None:
                return self._trace_from(facts, area, pc, sp)
            return self._trace_by_records(facts, area) or trace_with_drgn(self.prog, self.code, facts, area)
        begin = self._begin_at(walker, area, pc, sp) if sp is not None else self._find_begin(facts, walker, area)
        start = begin.start
        if start is not None and pc is not None and sp is None:
            start = replace(start, pc=pc, interrupted=True)
        trace = walker.trace(start, area) if start is not None else Trace()
        trace.start, trace.absent = begin.saved, begin.absent
        trace.registers = begin.start.registers if begin.start is not None else None
        if begin.why is not None:
            trace.problems.insert(0, begin.why)
        return trace

    def find_start(self, facts: TaskFacts) -> Start | None:
        """Find where the trace of a task begins; None: nothing tells, or there is nothing to unwind."""
        walker, area = self.walker, self.find_task_area(facts)
        if walker is None:
            return self._begin_asleep(facts, area).start if area is not None else None
        return self._find_begin(facts, walker, area).start

    def _begin_at(self, walker: Walker, area: Area | None, pc: int | None, sp: int) -> _Begin:
        """Begin where the user says; without an address of code, at the first return address there."""
        if sp & 7:
            raise UsageError(f"stack pointer {sp:#x} must be a multiple of 8")
        if pc is not None:
            return _Begin(Start(pc, sp, 0, interrupted=True))
        found = walker.find_area(sp, area)
        starts = walker.candidates(sp, found.end) if found is not None else []
        if not starts:
            return _Begin(why=Problem(f"no return address at or above {sp:#x} in a known stack", Reason.NOT_PRESENT))
        return _Begin(starts[0])

    def _find_begin(self, facts: TaskFacts, walker: Walker, area: Area | None) -> _Begin:
        if area is None:
            return _Begin(absent=Absent(Reason.NOT_PRESENT, "no stack"))
        if facts.vaddr not in self.running:
            return self._begin_asleep(facts, area)
        if self.is_live:
            return _Begin(absent=Absent(Reason.NOT_APPLICABLE, "(active)"))
        registers, why = self.read_note(facts)
        if registers is None:
            return self._begin_without_note(facts, walker, area, why)
        saved = self._saved(registers)
        dying = self.find_dying(walker, facts, area, registers)
        if dying is not None:
            return _Begin(dying)
        if saved.user:
            return _Begin(None, saved)
        start = Start(
            registers["rip"], registers["rsp"], registers.get("rbp", 0), interrupted=True, registers=registers
        )
        return _Begin(start, saved)

    def _saved(self, registers: Mapping[str, int]) -> Saved:
        user = x86_64.is_user_mode(registers)
        return Saved(0, registers, user, None if user else self.code.find(registers["rip"]))

    def _begin_asleep(self, facts: TaskFacts, area: Area) -> _Begin:
        """Begin where the scheduler left the task."""
        try:
            sp = facts.number("sp")
        except UNREADABLE as exc:
            return _Begin(why=problem("its stack pointer", exc))
        if sp not in area:
            return _Begin(why=Problem(f"its stack pointer {sp:#x} is not in its stack", Reason.DAMAGED))
        return self._read_entry_frame(sp)

    def _read_entry_frame(self, sp: int) -> _Begin:
        names = list(_ENTRY_FRAME)
        try:
            values = dict(zip(names, self.words.read_many(sp, len(names)), strict=True))
        except UNREADABLE as exc:
            return _Begin(why=problem(f"the stack at {sp:#x}", exc))
        pc = values.pop("ret_addr")
        place = self.code.find(pc)
        # Not called, but put there by copy_thread().
        is_new = place is not None and not place.offset and place.function.startswith("ret_from_fork")
        return _Begin(Start(pc, sp + _ENTRY_FRAME_BYTES, values["rbp"], interrupted=is_new, registers=values))

    def read_stack_pointer(self, facts: TaskFacts) -> int | None:
        """Read where a task's stack pointer was; None where nothing tells."""
        if facts.vaddr not in self.running:
            return facts.number("sp")
        try:
            return int(self.prog.stack_trace(facts.task)[0].sp)
        except (*UNREADABLE, IndexError):
            return None

    def read_note(self, facts: TaskFacts) -> tuple[Mapping[str, int] | None, Problem | None]:
        """Read the registers that the dump's notes have of a running task."""
        try:
            frames = self.prog.stack_trace(facts.task)
            registers = x86_64.note_registers(frames[0].registers())
        except (*UNREADABLE, IndexError) as exc:
            return None, problem("the registers of its CPU", exc)
        if not {"rip", "rsp"} <= registers.keys():
            return None, Problem("the dump has no registers of its CPU", Reason.NOT_PRESENT)
        return registers, None

    def find_dying(
        self, walker: Walker, facts: TaskFacts, area: Area, registers: Mapping[str, int] | None
    ) -> Start | None:
        """
        Find the innermost frame of a CPU that was stopped while the machine died.

        The notes of a kernel that saved itself hold the registers of the moment
        that killed it, or that stopped the CPU; what came then is still on the
        stack. It counts only if it leads to those very registers.
        """
        ranges = []
        for name in _DYING:
            vaddr = self.code.vaddr(name)
            place = self.code.find(vaddr) if vaddr is not None else None
            if place is not None:
                ranges.append((place.start, place.start + place.size_bytes))
        own = [other for other in self.areas if other.cpu == self.running.get(facts.vaddr)]
        for stack in (area, *own):
            for start in walker.candidates(stack.start, stack.end):
                if not any(first < start.pc <= last for first, last in ranges):
                    continue
                trace = walker.try_trace(start, area)
                if trace.complete if registers is None else _meets(trace, registers):
                    return start
        return None

    def _begin_without_note(self, facts: TaskFacts, walker: Walker, area: Area, why: Problem | None) -> _Begin:
        start = self.find_dying(walker, facts, area, None)
        if start is not None:
            return _Begin(start, None, why)
        begin = self._begin_asleep(facts, area)
        stale = Problem(
            "it was running, and no registers are known; shown is where it last slept",
            Reason.NOT_PRESENT,
        )
        return _Begin(begin.start, None, begin.why or stale)

    def _read_thread_size(self) -> int:
        try:
            return int(self.prog["THREAD_SIZE"])
        except UNREADABLE:
            return _DEFAULT_THREAD_SIZE


def _meets(trace: Trace, registers: Mapping[str, int]) -> bool:
    """Tell whether a trace comes by the state that the registers are of."""
    pc, sp = registers["rip"], registers["rsp"]
    for frame in trace.frames:
        saved = frame.saved
        if saved is not None and saved.registers["rip"] == pc and saved.registers["rsp"] == sp:
            return True
        place = frame.place
        if frame.sp == sp and place is not None and place.start <= pc < place.start + place.size_bytes:
            return True
    return False
