"""
Tasks as gdb's threads: all of them, the one that panicked first, with the registers that each has.

A CPU that ran has the registers of the dump's notes, of the moment that killed
it or stopped it; a task that slept those that the scheduler saved
(``struct inactive_task_frame`` on x86-64, ``struct cpu_context`` on arm64): what
a function call preserves, and no others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from drgn import Object, cast
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.context import UNREADABLE, find_context_task
from postpanic.analysis.gdbserver.targets import PAUTH_MASKS
from postpanic.analysis.stacks.engine import Stacks, open_stacks
from postpanic.analysis.tasks import TaskFacts, read_all_facts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Problem

__all__ = ["FIRST_IDLE_ID", "Thread", "Threads", "encode_threads", "xml_text"]

FIRST_IDLE_ID = 1 << 24
"""
Thread ID of the idle task of CPU 0; the others follow. All have PID 0, which is no
thread's ID in the protocol, and no PID is as large (``PID_MAX_LIMIT`` is ``1 << 22``).
"""
_USER_HALF = (1 << 55) - 1
_SWITCHED_ARM64 = (*(f"x{number}" for number in range(19, 29)), "fp", "sp", "pc")
"""``struct cpu_context`` (``arch/arm64/include/asm/processor.h``)."""


@dataclass(frozen=True, slots=True)
class Thread:
    """One task, as gdb is told of it."""

    id: int
    name: str
    state: str
    """Two letters, and the CPU where it ran or last ran."""
    cpu: int | None = None
    """Where it was running; None: it was not."""


class Threads:
    """
    All tasks of a dump, read when they are first asked for.

    Parameters
    ----------
    workspace : Workspace
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.problems: list[Problem] = []
        """What could not be read of the lists of tasks."""

    @property
    def all(self) -> Sequence[Thread]:
        """The threads: the one that panicked, then as ``ps`` lists them."""
        return tuple(thread for thread, _ in self._by_id.values())

    def find(self, number: int) -> Thread | None:
        """Find a thread by its ID."""
        found = self._by_id.get(number)
        return found[0] if found is not None else None

    def task(self, thread: Thread | None) -> Object | None:
        """Return the task of a thread: ``struct task_struct *``."""
        found = self._by_id.get(thread.id) if thread is not None else None
        return found[1].task if found is not None else None

    def registers(self, thread: Thread) -> Mapping[str, int]:
        """Return the registers of a thread by gdb's names, as far as they are known."""
        kept: dict[int, Mapping[str, int]] = self._workspace.once("gdb's registers", dict)
        if thread.id not in kept:
            kept[thread.id] = self._read_registers(thread)
        return kept[thread.id]

    def read_ahead(self) -> bool:
        """Read the registers of one more thread, so that nobody has to wait for them; False: all are read."""
        left: Iterator[Thread] = self._workspace.once("gdb's registers to come", lambda: iter(self.all))
        thread = next(left, None)
        if thread is not None:
            self.registers(thread)
        return thread is not None

    @property
    def _by_id(self) -> dict[int, tuple[Thread, TaskFacts]]:
        return self._workspace.once("gdb's threads", self._read)

    def _read(self) -> dict[int, tuple[Thread, TaskFacts]]:
        facts = list(read_all_facts(self._workspace, self.problems))
        running = open_stacks(self._workspace).running
        known = {each.vaddr for each in facts}
        lost = [vaddr for vaddr in running if vaddr not in known]
        # What runs on a CPU is a task, whether or not the lists still lead to it.
        found = read_facts(self._workspace, [self._task_at(vaddr) for vaddr in lost])
        facts += [each for each in found if each.is_readable]
        first = self._find_first()
        facts.sort(key=lambda each: each.vaddr != first)
        threads: dict[int, tuple[Thread, TaskFacts]] = {}
        for each in facts:
            thread = _describe(each, running.get(each.vaddr), threads)
            threads[thread.id] = thread, each
        return threads

    def _task_at(self, vaddr: int) -> Object:
        return cast("struct task_struct *", Object(self._workspace.prog, "unsigned long", vaddr))

    def _find_first(self) -> int:
        try:
            return int(find_context_task(self._workspace.prog).task)
        except UNREADABLE:
            return 0

    def _read_registers(self, thread: Thread) -> Mapping[str, int]:
        facts = self._by_id[thread.id][1]
        try:
            stacks = open_stacks(self._workspace)
            if not stacks.is_x86_64:
                return {**_arm64_registers(stacks, facts.task, thread.cpu), **_authentication_masks(stacks)}
            values = dict(_x86_64_registers(stacks, facts, thread.cpu))
            if "rflags" in values:
                values["eflags"] = values.pop("rflags")
            values.update(_segment_bases(self._workspace, facts.task, thread.cpu))
        except UNREADABLE:
            return {}
        return values


def _describe(facts: TaskFacts, cpu: int | None, taken: Container[int]) -> Thread:
    def ask(read: Callable[[], object], otherwise: object) -> object:
        try:
            return read()
        except UNREADABLE:
            return otherwise

    pid = int(str(ask(lambda: facts.pid, 0)))
    last = ask(lambda: facts.cpu, None)
    number = pid
    if not 0 < pid < FIRST_IDLE_ID or pid in taken:
        number = FIRST_IDLE_ID + (cpu if cpu is not None else last if isinstance(last, int) and pid == 0 else 0)
        while number in taken:
            number += 1
    state = str(ask(lambda: facts.state, "??"))
    where = f"on CPU {cpu}" if cpu is not None else f"CPU {last}" if last is not None else ""
    name = str(ask(lambda: facts.comm, "?"))
    return Thread(number, name, ", ".join(filter(None, (state, where))), cpu)


def _x86_64_registers(stacks: Stacks, facts: TaskFacts, cpu: int | None) -> Mapping[str, int]:
    if cpu is not None:
        registers, _ = stacks.read_note(facts)
        if registers is not None:
            return registers
    start = stacks.find_start(facts)
    if start is None:
        return {}
    return {"rbp": start.fp, **(start.registers or {}), "rip": start.pc, "rsp": start.sp}


def _segment_bases(workspace: Workspace, task: Object, cpu: int | None) -> dict[str, int]:
    """
    Find the bases of ``fs`` and ``gs``.

    The kernel's ``gs`` is the per-CPU area of the CPU that the task runs on; the
    task's own ``fs`` is in ``thread.fsbase`` (4.7, 296f781a4b7801) since it last slept.
    """
    bases: dict[str, int] = {}
    with contextlib.suppress(*UNREADABLE):
        bases["fs_base"] = int(task.thread.fsbase)
    if cpu is not None:
        with contextlib.suppress(*UNREADABLE):
            bases["gs_base"] = int(per_cpu_ptr(Object(workspace.prog, "void *", 0), cpu))
    return bases


def _arm64_registers(stacks: Stacks, task: Object, cpu: int | None) -> Mapping[str, int]:
    if cpu is not None:
        frame = stacks.prog.stack_trace(task)[0]
        # Of drgn's registers the program counter is none.
        values = {**frame.registers(), "pc": int(frame.pc)}
        if "pstate" in values:
            values["cpsr"] = values.pop("pstate")
        return values
    context = task.thread.cpu_context.read_()
    values = {name: int(getattr(context, name)) for name in _SWITCHED_ARM64}
    values["x29"] = values.pop("fp")
    return values


def _authentication_masks(stacks: Stacks) -> dict[str, int]:
    mask = stacks.records.code_mask if stacks.records is not None else 0
    return {name: mask if name.endswith("high") else mask & _USER_HALF for name in PAUTH_MASKS}


_XML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"})


def xml_text(text: str) -> str:
    """Quote a text, and leave out what XML 1.0 does not allow at all."""
    return "".join(each if each.isprintable() else "?" for each in text).translate(_XML)


def encode_threads(threads: Sequence[Thread]) -> bytes:
    """Make the document of ``qXfer:threads:read`` (gdb manual, "Thread List Format")."""
    lines = ["<?xml version='1.0'?>", "<threads>"]
    for thread in threads:
        core = f' core="{thread.cpu}"' if thread.cpu is not None else ""
        lines.append(f'<thread id="{thread.id:x}"{core} name="{xml_text(thread.name)}">{thread.state}</thread>')
    return "\n".join([*lines, "</threads>", ""]).encode("utf-8", "replace")
