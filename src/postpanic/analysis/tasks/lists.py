"""Which tasks and which CPUs there are."""

from __future__ import annotations

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
from drgn.helpers.linux.pid import for_each_task

from postpanic.analysis.cells import guarded
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Problem

__all__ = ["possible_cpus", "read_tasks"]


def possible_cpus(workspace: Workspace) -> tuple[int, ...]:
    """Return the numbers of the possible CPUs; where not even the online ones can be read, CPU 0."""
    return workspace.once("possible CPUs", lambda: _read_possible_cpus(workspace.prog))


def _read_possible_cpus(prog: Program) -> tuple[int, ...]:
    for read in (for_each_possible_cpu, for_each_online_cpu):
        try:
            return tuple(read(prog)) or (0,)
        except UNREADABLE:
            continue
    return (0,)


def read_tasks(workspace: Workspace, problems: list[Problem]) -> tuple[Object, ...]:
    """
    Read all tasks of the kernel: ``struct task_struct *``, the idle tasks first, then by PID, threads included.

    Where the list of PIDs breaks off, *problems* gets one more, and the tasks up to there are returned.
    """

    def read() -> tuple[tuple[Object, ...], tuple[Problem, ...]]:
        found: list[Problem] = []
        tasks = tuple(guarded(for_each_task(workspace.prog, idle=True), "the list of tasks", found))
        return tasks, tuple(found)

    tasks, found = workspace.once("tasks", read)
    problems += [problem for problem in found if problem not in problems]
    return tasks
