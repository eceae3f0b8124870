"""Which tasks and which CPUs there are."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
from drgn.helpers.linux.list import list_for_each_entry, list_for_each_entry_reverse
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr, idle_task

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

    Where the list of PIDs breaks off, *problems* gets one more, and what the list
    of processes still leads to is added (``init_task.tasks``, from both ends).
    """

    def read() -> tuple[tuple[Object, ...], tuple[Problem, ...]]:
        found: list[Problem] = []
        tasks = {int(task.value_()): task for task in guarded(_all_tasks(workspace.prog), "the list of tasks", found)}
        if found:
            for task in _linked_tasks(workspace.prog):
                tasks.setdefault(int(task.value_()), task)
        return tuple(tasks.values()), tuple(found)

    tasks, found = workspace.once("tasks", read)
    problems += [problem for problem in found if problem not in problems]
    return tasks


def _all_tasks(prog: Program) -> Iterator[Object]:
    try:
        yield from _idle_tasks(prog)
    except UNREADABLE:
        # drgn asks fewer tables.
        yield from for_each_task(prog, idle=True)
        return
    yield from for_each_task(prog)


def _idle_tasks(prog: Program) -> Iterator[Object]:
    """Give the idle tasks of the CPUs that are online, and of those that a panic stopped, which puts them offline."""
    online = set(for_each_online_cpu(prog))
    for cpu in for_each_possible_cpu(prog):
        # A CPU that was never up runs nothing.
        if cpu in online or cpu_curr(prog, cpu).on_cpu:
            yield idle_task(prog, cpu)


def _linked_tasks(prog: Program) -> Iterator[Object]:
    """Walk the list of processes forwards and backwards, and the threads of each; what is broken is left out."""
    try:
        head = prog["init_task"].tasks
    except LookupError:
        return
    for walk in (list_for_each_entry, list_for_each_entry_reverse):
        # What stops the walks is the same damage that the list of PIDs has told of.
        ignored: list[Problem] = []
        for leader in guarded(walk("struct task_struct", head.address_of_(), "tasks"), "", ignored):
            yield leader
            try:
                threads = list_for_each_entry(
                    "struct task_struct", leader.signal.thread_head.address_of_(), "thread_node"
                )
            except UNREADABLE:
                continue
            yield from guarded(threads, "", ignored)
