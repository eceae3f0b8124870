"""
The scene of a crash: what all detectors look at, read when it is first asked for.

With a dump there are memory, types, tasks and stacks; with a log alone there
are only its reports, and detectors that need more are not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from drgn import Object, Program

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE, find_context_task
from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.engine import Stacks, open_stacks
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.tasks import TaskFacts, read_all_facts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.evidence.hardware import explain_reports, find_hardware_errors
from postpanic.evidence.hardware.model import HardwareError
from postpanic.evidence.oops import Report, Section, find_reports
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.evidence.sources import plain_text
from postpanic.findings.table import Problem
from postpanic.findings.verdict import Missing
from postpanic.kernel.log_text import LogStyle, format_record
from postpanic.kernel.printk import read_log

__all__ = ["Fault", "Scene", "scene_of_dump", "scene_of_log"]

_PANICKED = "Kernel panic - not syncing"
_ON_A_REPORT = ("panic_on_", "Fatal exception", "Oops", "KASAN: panic_on", "UBSAN: panic_on", "kernel: panic_on")
"""Messages of panics that only carry out what a report before them made necessary."""
_LASTING = frozenset(
    {Family.MEMORY_ACCESS, Family.EXCEPTION, Family.SANITIZER, Family.ASSERTION, Family.MEMORY_MANAGEMENT}
)
_HARMLESS = frozenset({Kind.WARNING, Kind.ALLOCATION_FAILURE, Kind.MEMORY_LEAK, Kind.OUT_OF_MEMORY, Kind.BUG})


def _lasts(report: Report) -> bool:
    """Tell whether a kernel is not what it was before, though it went on."""
    return report.family in _LASTING and report.kind not in _HARMLESS


def _is_alike(earlier: Report, final: Report) -> bool:
    """Tell whether an earlier report is of the same trouble: the first task that hung, of those that did."""
    return earlier.family is final.family and earlier.family in {Family.HANG, Family.LOCKING, Family.HARDWARE}


@dataclass(frozen=True, slots=True)
class Fault:
    """
    The moment of a fault.

    Attributes
    ----------
    report : Report
        What the kernel printed of it.
    registers : mapping of str to int
        By lower-case names of the architecture (``rip``, ``rbx``; ``pc``, ``x0``), 64 bits.
    place : Place, optional
        Of the instruction; None: it is not in code, or there is no dump.
    address : int, optional
        What could not be accessed (CR2, FAR_EL1).
    task : TaskFacts, optional
        That was running; None: it is gone, or there is no dump.
    frames : tuple of Frame
        From the function that faulted outwards; empty: its stack is gone.
    is_from_stack : bool
        Whether the registers were read from the stack; else from the text of the report.
    """

    report: Report
    registers: Mapping[str, int]
    place: Place | None
    address: int | None
    task: TaskFacts | None
    frames: tuple[Frame, ...]
    is_from_stack: bool

    @property
    def pc(self) -> int | None:
        """Address of the instruction; None: not known."""
        return self.registers.get("rip", self.registers.get("pc"))


@dataclass
class Scene:
    """
    One crash.

    Attributes
    ----------
    text : bytes
        The log, plain.
    workspace : Workspace, optional
        The dump; None: there is only the log.
    """

    text: bytes
    workspace: Workspace | None = None
    missing: list[Missing] = field(default_factory=list)
    """What could not be seen; detectors add to it by :meth:`miss`."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def dump(self) -> Workspace:
        """The dump, for detectors that need one."""
        if self.workspace is None:
            raise LookupError("there is only a log")
        return self.workspace

    @property
    def prog(self) -> Program:
        """The program of the dump."""
        return self.dump.prog

    def miss(self, what: str, why: str = "", how: str = "") -> None:
        """Remember what could not be seen, once."""
        missing = Missing(what, why, how)
        if missing not in self.missing:
            self.missing.append(missing)

    @cached_property
    def hardware_errors(self) -> tuple[HardwareError, ...]:
        """What hardware and firmware said of themselves in the log."""
        return tuple(find_hardware_errors(self.text))

    @cached_property
    def reports(self) -> tuple[Report, ...]:
        """All reports of the log, in its order."""
        return tuple(explain_reports(find_reports(self.text), list(self.hardware_errors)))

    @cached_property
    def suspects(self) -> tuple[Report, ...]:
        """
        The reports that may be what the crash is about: not those that the kernel survives by design, nor consequences.

        Reports long before the one that ended it are kept: a warning may be the
        first sign. The one that panicked counts even if it follows from another.
        """
        own = [report for report in self.reports if not report.is_notice]
        first = [report for report in own if report.consequence_of is None or report.is_panic]
        return tuple(first or own)

    @cached_property
    def final(self) -> Report | None:
        """The report that the kernel panicked after; without one, the last that is no notice."""
        panics = [report for report in self.reports if report.is_panic]
        ended = [report for report in panics if any(_PANICKED in line for line in report.lines)]
        if ended or panics:
            return ended[0] if ended else panics[-1]
        return self.suspects[-1] if self.suspects else None

    @cached_property
    def first(self) -> Report | None:
        """
        The report that the final one may follow from; itself, if it follows from none.

        A kernel goes on after a warning or a task that hung for a while as before; after an
        oops, or with memory that was found corrupt, it does not.
        """
        final = self.final
        if final is None or final.consequence_of is None:
            return final
        place = next(number for number, report in enumerate(self.reports) if report is final)
        earlier = [report for report in self.reports[final.consequence_of : place] if not report.is_notice]
        if final.kind is Kind.PANIC and final.panic_message.startswith(_ON_A_REPORT) and earlier:
            return next((report for report in earlier if _lasts(report)), earlier[-1])
        return next((report for report in earlier if _lasts(report) or _is_alike(report, final)), final)

    @property
    def kind(self) -> Kind | None:
        """What the kernel met first."""
        return self.first.kind if self.first is not None else None

    @cached_property
    def stacks(self) -> Stacks:
        """The stacks of the dump."""
        return open_stacks(self.dump)

    @cached_property
    def tasks(self) -> Sequence[TaskFacts]:
        """All tasks, idle ones first, then by PID; empty where they cannot be read."""
        if self.workspace is None:
            return ()
        return read_all_facts(self.workspace, self.problems)

    @cached_property
    def tasks_by_vaddr(self) -> dict[int, TaskFacts]:
        """All tasks by the address of their ``struct task_struct``."""
        return {task.vaddr: task for task in self.tasks}

    @cached_property
    def panic_task(self) -> TaskFacts | None:
        """The task that panicked; None: none did, or it is not known."""
        if self.workspace is None:
            return None
        try:
            context = find_context_task(self.prog)
        except LookupError as exc:
            self.problems.append(problem("the task that panicked", exc))
            return None
        return read_facts(self.workspace, [context.task])[0] if context.panicked else None

    def find_task(self, pid: int | None, comm: str = "") -> TaskFacts | None:
        """Find a task by what a report says of it; PID 0 is no single task."""
        if not pid:
            return None
        for task in self.tasks:
            try:
                if task.pid == pid and (not comm or task.comm == comm or comm.startswith("kworker")):
                    return task
            except UNREADABLE:
                continue
        return None

    def facts_of(self, task: Object) -> TaskFacts:
        """Read one task."""
        return read_facts(self.dump, [task])[0]

    @cached_property
    def _traces(self) -> dict[int, Trace]:
        return {}

    def trace(self, task: TaskFacts) -> Trace:
        """Unwind the stack of a task; kept for the next detector."""
        found = self._traces.get(task.vaddr)
        if found is None:
            found = self._traces[task.vaddr] = self.stacks.trace(task)
        return found

    @cached_property
    def fault(self) -> Fault | None:
        """The moment of the first fault; None: it was none, or no registers of it are known."""
        report = self.first
        if report is None:
            return None
        return self._fault_on_stack(report) or self._fault_in_text(report)

    def _fault_on_stack(self, report: Report) -> Fault | None:
        if self.workspace is None or not report.registers:
            return None
        task = self.find_task(report.pid, report.comm) or self.panic_task
        if task is None:
            return None
        known = {name.lower(): value for name, value in report.registers.items()}
        stack = {"rsp", "sp"} & known.keys()
        try:
            frames = self.trace(task).frames
        except UNREADABLE as exc:
            self.problems.append(problem("the stack of the task that faulted", exc))
            return None
        for number, frame in enumerate(frames):
            saved = frame.saved
            if saved is None or saved.user:
                continue
            # The text may lack the upper registers; the stack pointer tells one entry from another.
            if all(saved.registers.get(name) == known[name] for name in stack) and stack:
                return Fault(
                    report,
                    dict(saved.registers),
                    saved.place,
                    report.address,
                    task,
                    tuple(frames[number + 1 :]),
                    is_from_stack=True,
                )
        return None

    def _fault_in_text(self, report: Report) -> Fault | None:
        if not report.registers:
            return None
        registers = {name.lower(): value for name, value in report.registers.items()}
        pc = self._find_pc(report)
        if pc is not None:
            registers.setdefault("rip" if "rsp" in registers else "pc", pc)
        place = self.stacks.code.find(pc) if pc is not None and self.workspace is not None else None
        task = self.find_task(report.pid, report.comm)
        return Fault(report, registers, place, report.address, task, (), is_from_stack=False)

    def _find_pc(self, report: Report) -> int | None:
        """Find the address of the instruction that a report names as a function and an offset."""
        main = next((trace for trace in report.traces if trace.section is Section.MAIN), None)
        frame = main.frames[0] if main is not None and main.frames else None
        if frame is None:
            return None
        if frame.address is not None:
            return frame.address
        if self.workspace is None or not frame.function or frame.offset is None:
            return None
        start = self.stacks.code.vaddr(frame.function)
        return start + frame.offset if start is not None else None


def scene_of_dump(workspace: Workspace) -> Scene:
    """
    Make the scene of a dump; a log that cannot be read is a thing missing, not an error.

    Parameters
    ----------
    workspace : Workspace
    """
    style = LogStyle(caller=True)
    problems: list[Problem] = []
    text = b""
    try:
        lines = [format_record(record, style) for record in read_log(workspace.memory)]
        text = "\n".join([*lines, ""]).encode()
    except UNREADABLE as exc:
        problems.append(problem("the kernel's log", exc))
    scene = Scene(bytes(plain_text(text)), workspace, problems=problems)
    for each in problems:
        scene.miss("the kernel's log", each.what)
    return scene


def scene_of_log(text: bytes) -> Scene:
    """Make the scene of a log in any form that :func:`~postpanic.evidence.sources.plain_text` takes."""
    scene = Scene(bytes(plain_text(text)))
    scene.miss(
        "memory, tasks and stacks", "there is only the log", "arm the machine (postpanic arm) to get a dump next time"
    )
    return scene
