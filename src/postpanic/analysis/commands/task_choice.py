"""The tasks that the words of ``foreach`` and the options of ``ps`` choose."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drgn import Object

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.values import find_tasks, parse_cpus
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import STATE_NAMES, TaskFacts, read_all_facts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem

__all__ = ["TaskChoice", "active_tasks", "choose_tasks", "keep_leaders", "narrow", "set_active"]

_ACTIVE = "active"
"""Setting: which task ``set -a`` put on which CPU."""
_KINDS = frozenset({"user", "kernel", "gleader", "active"})


@dataclass(slots=True)
class TaskChoice:
    """
    Which tasks a command is for: *names* add tasks (none: all), the rest leaves out what does not fit.

    ``gleader`` among the *kinds* stands for the leaders of user processes, as in crash.
    """

    names: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    states: set[str] = field(default_factory=set)
    policies: frozenset[int] | None = None

    def add(self, word: str) -> None:
        """Add one word of ``foreach``."""
        if word in _KINDS:
            self.kinds.add(word)
        elif word in STATE_NAMES:
            self.states.add(word)
        else:
            self.names.append(word)


def choose_tasks(workspace: Workspace, choice: TaskChoice, problems: list[Problem]) -> list[TaskFacts]:
    """
    Find the tasks of a choice, idle ones first, then by PID, each once.

    A name that is no task's is a problem, where others are.

    Raises
    ------
    UsageError
        If no name is that of a task.
    """
    tasks = read_all_facts(workspace, problems)
    if choice.names:
        found = _find_named(workspace, choice.names, problems)
        wanted = {int(task.value_()) for task in found}
        known = {task.vaddr for task in tasks}
        # A task that no list of the kernel has any more may still be given by its address.
        strays = [task for task in found if int(task.value_()) not in known]
        tasks = [*(task for task in tasks if task.vaddr in wanted), *read_facts(workspace, strays)]
    return narrow(workspace, choice, tasks, problems)


def narrow(
    workspace: Workspace, choice: TaskChoice, tasks: Sequence[TaskFacts], problems: list[Problem]
) -> list[TaskFacts]:
    """Leave out the tasks that are not of the kinds, states and policies of a choice."""
    kept = list(tasks)
    for test in _tests(workspace, choice, problems):
        kept = [task for task in kept if _passes(test, task, problems)]
    return kept


def _find_named(workspace: Workspace, names: Sequence[str], problems: list[Problem]) -> list[Object]:
    found: list[Object] = []
    errors: list[UsageError] = []
    for name in names:
        try:
            found += find_tasks(workspace, [_plain(name)], problems)
        except UsageError as exc:
            errors.append(exc)
    if errors and not found:
        raise errors[0]
    problems += [Problem(str(error), Reason.NOT_PRESENT) for error in errors]
    return found


def _plain(name: str) -> str:
    r"""``\1234`` is a name that looks like a number, which a regular expression says best."""
    return f"'^{re.escape(name[1:16])}$'" if name.startswith("\\") else name


def _tests(workspace: Workspace, choice: TaskChoice, problems: list[Problem]) -> list[Callable[[TaskFacts], bool]]:
    tests: list[Callable[[TaskFacts], bool]] = []
    if "kernel" in choice.kinds:
        tests.append(lambda task: task.is_kernel_thread)
    if choice.kinds & {"user", "gleader"}:
        tests.append(lambda task: not task.is_kernel_thread)
    if "gleader" in choice.kinds:
        tests.append(lambda task: task.is_group_leader)
    if "active" in choice.kinds:
        active = set(active_tasks(workspace, problems).values())
        tests.append(lambda task: task.vaddr in active)
    if choice.states:
        tests.append(lambda task: task.state in choice.states)
    policies = choice.policies
    if policies is not None:
        tests.append(lambda task: task.number("policy") in policies)
    return tests


def _passes(test: Callable[[TaskFacts], bool], task: TaskFacts, problems: list[Problem]) -> bool:
    try:
        return test(task)
    except UNREADABLE as exc:
        problems.append(problem(f"task {task.vaddr:x}", exc))
        return False


def active_tasks(workspace: Workspace, problems: list[Problem]) -> dict[int, int]:
    """Find the task that runs on each CPU: address of its ``struct task_struct`` by CPU (``rq->curr``)."""

    def read() -> tuple[dict[int, int], tuple[Problem, ...]]:
        from drgn.helpers.linux.sched import cpu_curr

        found: dict[int, int] = {}
        missing: list[Problem] = []
        for cpu in parse_cpus(workspace, "all"):
            try:
                if task := int(cpu_curr(workspace.prog, cpu).value_()):
                    found[cpu] = task
            except UNREADABLE as exc:
                missing.append(problem(f"run queue of CPU {cpu}", exc))
        return found, tuple(missing)

    found, missing = workspace.once("active tasks", read)
    problems += [entry for entry in missing if entry not in problems]
    return {**found, **workspace.settings.get(_ACTIVE, {})}


def set_active(workspace: Workspace, task: TaskFacts) -> None:
    """Take a task for the one that is on its CPU (``set -a``), whatever the run queue says."""
    workspace.settings.setdefault(_ACTIVE, {})[task.cpu] = task.vaddr


def keep_leaders(workspace: Workspace, tasks: Sequence[TaskFacts]) -> list[TaskFacts]:
    """Put the leader of its thread group in the place of each task, each once."""
    kept: dict[int, TaskFacts] = {}
    for task in tasks:
        try:
            vaddr = task.number("group_leader")
        except UNREADABLE:
            continue
        if vaddr == task.vaddr:
            kept[vaddr] = task
        elif vaddr not in kept:
            kept[vaddr] = read_facts(workspace, [Object(workspace.prog, "struct task_struct *", vaddr)])[0]
    return list(kept.values())
