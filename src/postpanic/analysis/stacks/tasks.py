"""What a backtrace says of its task, read once for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.sched import cpu_curr, task_cpu, task_state_to_char

from postpanic.analysis.commands.cells import absent, decode
from postpanic.analysis.context import UNREADABLE
from postpanic.findings.table import Cell

__all__ = ["TaskFacts", "read_active_tasks", "read_facts"]


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """
    A task, as the line above its backtrace names it.

    Parameters
    ----------
    task : Object
        ``struct task_struct *``.
    vaddr : int
    pid, cpu : int or Absent
    comm, state : str or Absent
        The state is the letter of ``ps``.
    active : bool
        Whether it was running on its CPU.
    """

    task: Object
    vaddr: int
    pid: Cell
    cpu: Cell
    comm: Cell
    state: Cell
    active: bool


def read_active_tasks(prog: Program) -> dict[int, int]:
    """
    Read which tasks were running: address of ``struct task_struct`` to CPU.

    A CPU that was stopped by a panic may count as offline (``stop_this_cpu()``), so all possible ones are asked.
    """
    active: dict[int, int] = {}
    try:
        for cpu in for_each_possible_cpu(prog):
            try:
                task = cpu_curr(prog, cpu)
                if task and _was_on_cpu(task):
                    active.setdefault(int(task), cpu)
            except UNREADABLE:
                continue
    except UNREADABLE:
        pass
    return active


def read_facts(tasks: Iterable[Object], active: dict[int, int]) -> Iterable[TaskFacts]:
    """Read the facts of tasks; what cannot be read is absent."""
    letters: dict[tuple[int, int], str] = {}
    for task in tasks:
        vaddr = int(task)
        yield TaskFacts(
            task,
            vaddr,
            _cell(lambda task=task: int(task.pid)),  # type: ignore[misc]
            active[vaddr] if vaddr in active else _cell(lambda task=task: int(task_cpu(task))),  # type: ignore[misc]
            _cell(lambda task=task: decode(bytes(task.comm.string_()))),  # type: ignore[misc]
            _cell(lambda task=task: _state(task, letters)),  # type: ignore[misc]
            vaddr in active,
        )


def _was_on_cpu(task: Object) -> bool:
    try:
        return bool(task.on_cpu)
    except AttributeError:
        return True


def _cell(read: Callable[[], Cell]) -> Cell:
    try:
        return read()
    except UNREADABLE as exc:
        return absent(exc)


def _state(task: Object, letters: dict[tuple[int, int], str]) -> Cell:
    """Spell the state; tasks share few, and drgn's answer takes a while."""
    try:
        # 5.14, 2f064a59a11f.
        state = int(task.member_("__state"))
    except AttributeError:
        state = int(task.state)
    key = (state, int(task.exit_state))
    if key not in letters:
        letters[key] = task_state_to_char(task)
    return letters[key]
