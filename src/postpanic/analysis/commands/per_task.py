"""
What commands that work on a task share with ``foreach``: the header of a task, and quicker ways for many tasks.

``foreach`` runs any command that was declared with ``per_task=True`` once for each
task. A command that answers many tasks quicker, because it prepares once what
all of them need, says so with :func:`answers_each`; one whose answers belong into one
table (``ps``) with :func:`answers_all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from drgn import Object

from postpanic.analysis.cells import cell
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.tasks import TaskFacts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Answer, Cell, Column, Kind

__all__ = [
    "TASK_COLUMNS",
    "TASK_LINE",
    "AnswerAll",
    "AnswerEach",
    "answers_all",
    "answers_each",
    "find_answer_all",
    "find_answer_each",
    "task_cells",
    "task_rows",
]

TASK_COLUMNS = (
    Column("pid", Kind.NUMBER, title="PID", help="Thread ID (task_struct.pid)."),
    Column("task", Kind.ADDRESS, title="TASK", help="Address of the task_struct."),
    Column("cpu", Kind.NUMBER, title="CPU", help="CPU that it runs on or ran on last."),
    Column("comm", title="COMMAND", help="Name of the task (task_struct.comm)."),
)
"""The first columns of every table that has a row for each task."""

TASK_LINE = 'PID: {pid:<7}  TASK: {task}  CPU: {cpu:<3}  COMMAND: "{comm}"'
"""
The line that crash shows above what belongs to a task.

A shape whose line begins with it is shown by ``foreach`` without it, since
``foreach`` shows the line by itself, once for all commands.
"""

AnswerEach = Callable[[Workspace, Arguments, Sequence[Object]], Iterable[Answer]]
"""Answers for each task (``struct task_struct *``), in their order."""

AnswerAll = Callable[[Workspace, Arguments, Sequence[Object]], Answer]
"""Answers for all tasks together."""

_EACH: dict[str, AnswerEach] = {}
_ALL: dict[str, AnswerAll] = {}


def answers_each(name: str) -> Callable[[AnswerEach], AnswerEach]:
    """
    Declare how the command *name* answers many tasks: one answer for each, in their order.

    The function may be a generator; an exception ends all that would follow, so
    what is wrong with one task belongs into the cells and problems of its answer.
    """

    def declare(answer: AnswerEach) -> AnswerEach:
        _EACH[name] = answer
        return answer

    return declare


def answers_all(name: str) -> Callable[[AnswerAll], AnswerAll]:
    """Declare how the command *name* answers many tasks in one: its tables then stand for themselves."""

    def declare(answer: AnswerAll) -> AnswerAll:
        _ALL[name] = answer
        return answer

    return declare


def find_answer_each(name: str) -> AnswerEach | None:
    """Return what :func:`answers_each` declared for a command; None: run it for each task."""
    return _EACH.get(name)


def find_answer_all(name: str) -> AnswerAll | None:
    """Return what :func:`answers_all` declared for a command, if anything."""
    return _ALL.get(name)


def task_cells(facts: TaskFacts) -> tuple[Cell, ...]:
    """Fill :data:`TASK_COLUMNS`."""
    return (
        cell(lambda: facts.pid),
        facts.vaddr,
        cell(lambda: facts.cpu),
        cell(lambda: facts.comm),
    )


def task_rows(workspace: Workspace, tasks: Sequence[Object]) -> list[tuple[Cell, ...]]:
    """Fill :data:`TASK_COLUMNS` for many tasks."""
    return [task_cells(facts) for facts in read_facts(workspace, tasks)]
