"""What ``struct task_struct`` says of a task, decoded when it is asked, and read for all tasks at once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import drgn
from drgn import Object, Program, Type

from postpanic.analysis.cells import cell, decode
from postpanic.analysis.tasks.lists import read_tasks
from postpanic.analysis.tasks.scattered import read_scattered
from postpanic.analysis.tasks.states import state_code
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.table import Cell, Problem

__all__ = ["PF_KTHREAD", "Field", "TaskFacts", "find_field", "read_all_facts", "read_facts"]

PF_KTHREAD = 0x0020_0000
"""``include/linux/sched.h``: the task is a kernel thread."""

# Newest layout first. __state: 2f064a59a11f (5.14); start_boottime: cf25e24db61c (5.5);
# cpu in thread_info: c65eacbe290b (4.9), for arm64 bcf9033e5449 (5.16).
_MEMBERS: dict[str, tuple[str, ...]] = {
    "state": ("__state", "state"),
    "exit_state": ("exit_state",),
    "flags": ("flags",),
    "pid": ("pid",),
    "tgid": ("tgid",),
    "comm": ("comm",),
    "cpu": ("thread_info.cpu", "cpu"),
    "on_cpu": ("on_cpu",),
    "parent": ("parent",),
    "real_parent": ("real_parent",),
    "group_leader": ("group_leader",),
    "mm": ("mm",),
    "stack": ("stack",),
    "sp": ("thread.sp", "thread.cpu_context.sp"),
    "policy": ("policy",),
    "prio": ("prio",),
    "static_prio": ("static_prio",),
    "rt_priority": ("rt_priority",),
    "utime": ("utime",),
    "stime": ("stime",),
    "start_time": ("start_time",),
    "start_boottime": ("start_boottime", "real_start_time", "start_time"),
    "last_arrival": ("sched_info.last_arrival",),
    "exec_start": ("se.exec_start",),
    "signal": ("signal",),
    "sighand": ("sighand",),
    "blocked_on": ("blocked_on",),
    "blocker": ("blocker",),
    "last_switch_count": ("last_switch_count",),
    "last_switch_time": ("last_switch_time",),
    "nvcsw": ("nvcsw",),
    "nivcsw": ("nivcsw",),
}
_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


@dataclass(frozen=True, slots=True)
class Field:
    """Where a number or a text is inside a structure."""

    offset: int
    size_bytes: int
    decoder: struct.Struct | None
    """None: bytes up to a NUL."""

    def number(self, data: bytes) -> int:
        """Decode it from the bytes of the structure."""
        if self.decoder is None:
            raise TypeError("not a number")
        value: int = self.decoder.unpack_from(data, self.offset)[0]
        return value

    def text(self, data: bytes) -> str:
        """Decode it as text from the bytes of the structure."""
        return decode(data[self.offset : self.offset + self.size_bytes].split(b"\0", 1)[0])


def find_field(type_: Type, *names: str) -> Field | None:
    """
    Find the first of *names* that a structure has: integers, pointers, enums and ``char[]``.

    None if it has none of them.
    """
    for name in names:
        try:
            offset = drgn.offsetof(type_, name)
            member = _member_type(type_, name)
        except LookupError:
            continue
        while member.kind is drgn.TypeKind.TYPEDEF:
            member = member.type
        if member.kind is drgn.TypeKind.ARRAY:
            return Field(offset, drgn.sizeof(member), None)
        size = drgn.sizeof(member)
        code = _CODES.get(size)
        if code is None:
            continue
        signed = member.kind is drgn.TypeKind.INT and member.is_signed
        return Field(offset, size, struct.Struct("<" + (code if signed else code.upper())))
    return None


def _member_type(type_: Type, path: str) -> Type:
    for name in path.split("."):
        while type_.kind is drgn.TypeKind.TYPEDEF:
            type_ = type_.type
        type_ = type_.member(name).type
    return type_


@dataclass(frozen=True, slots=True)
class _Layout:
    fields: dict[str, Field]
    size_bytes: int
    """Up to the end of the last field: the rest of the structure is never read."""


def _find_layout(prog: Program) -> _Layout:
    type_ = prog.type("struct task_struct")
    found = {name: find_field(type_, *names) for name, names in _MEMBERS.items()}
    fields = {name: field for name, field in found.items() if field is not None}
    # The registers of the architecture are at the very end, and seldom asked for.
    near = [field.offset + field.size_bytes for name, field in fields.items() if name != "sp"]
    return _Layout(fields, max(near))


class TaskFacts:
    """
    One task.

    Reading a property may raise what reading memory raises, where the structure
    is not whole in the dump: put it into a cell with :func:`cells.cell`.

    Parameters
    ----------
    task : Object
        ``struct task_struct *``.
    data : bytes or None
        The beginning of the structure; None where it is not whole: each property is read by itself then.
    """

    __slots__ = ("_data", "_layout", "task", "vaddr")

    def __init__(self, task: Object, data: bytes | None, layout: _Layout) -> None:
        self.task = task
        self.vaddr = int(task.value_())
        self._data = data
        self._layout = layout

    def number(self, name: str) -> int:
        """
        Decode a member by its name here (``state``, ``cpu``, ``last_arrival`` …).

        Raises
        ------
        FactAbsentError
            If this kernel's tasks do not have it.
        FaultError
            If it is not in the dump.
        """
        field = self._layout.fields.get(name)
        if field is None:
            raise FactAbsentError(f"this kernel's task_struct has no {name}")
        if self._data is not None and field.offset + field.size_bytes <= len(self._data):
            return field.number(self._data)
        data = self.task.prog_.read(self.vaddr + field.offset, field.size_bytes)
        return Field(0, field.size_bytes, field.decoder).number(data)

    def cell(self, name: str) -> Cell:
        """Decode a member as a cell of a table."""
        return cell(lambda: self.number(name))

    @property
    def state_cell(self) -> Cell:
        """Its state as a cell of a table."""
        return cell(lambda: self.state)

    @property
    def is_readable(self) -> bool:
        """Whether all that is asked of it can be told."""
        return self._data is not None

    @property
    def pid(self) -> int:
        """Thread ID."""
        return self.number("pid")

    @property
    def comm(self) -> str:
        """Name, at most 15 bytes."""
        field = self._layout.fields["comm"]
        if self._data is not None:
            return field.text(self._data)
        return decode(self.task.comm.string_())

    @property
    def cpu(self) -> int:
        """CPU that it runs on or ran on last."""
        return self.number("cpu")

    @property
    def state(self) -> str:
        """Its state in two letters, as crash has them."""
        return state_code(self.number("state"), self.number("exit_state"))

    @property
    def is_kernel_thread(self) -> bool:
        """Whether ``PF_KTHREAD`` is set."""
        return bool(self.number("flags") & PF_KTHREAD)

    @property
    def is_group_leader(self) -> bool:
        """Whether it is the first thread of its process."""
        return self.number("group_leader") == self.vaddr

    @property
    def mm(self) -> int:
        """Address of its ``struct mm_struct``; 0 for kernel threads, and for what has exited."""
        return self.number("mm")

    @property
    def last_run_ns(self) -> int:
        """When it last came to a CPU: ``sched_info.last_arrival``, else ``se.exec_start``."""
        name = "last_arrival" if "last_arrival" in self._layout.fields else "exec_start"
        return self.number(name)


def read_facts(workspace: Workspace, tasks: Sequence[Object]) -> list[TaskFacts]:
    """Read tasks (``struct task_struct *``) in one go."""
    layout = workspace.once("layout of tasks", lambda: _find_layout(workspace.prog))
    vaddrs = [int(task.value_()) for task in tasks]
    contents = read_scattered(workspace.memory, vaddrs, layout.size_bytes)
    return [TaskFacts(task, data, layout) for task, data in zip(tasks, contents, strict=True)]


def read_all_facts(workspace: Workspace, problems: list[Problem]) -> list[TaskFacts]:
    """Read all tasks of the kernel, idle ones first, then by PID; they are kept for the next command."""
    tasks = read_tasks(workspace, problems)
    return workspace.once("facts of all tasks", lambda: read_facts(workspace, tasks))
