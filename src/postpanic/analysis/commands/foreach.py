"""``foreach``: commands run for many tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import msgspec
from drgn import Object

from postpanic.analysis.commands.arguments import Arguments, Operand, parse_words
from postpanic.analysis.commands.per_task import (
    TASK_COLUMNS,
    TASK_LINE,
    find_answer_all,
    find_answer_each,
    task_cells,
)
from postpanic.analysis.commands.registry import Command, Example, command, declared_commands
from postpanic.analysis.commands.task_choice import TaskChoice, choose_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import CommandFailedError, capture_crash_command, describe_error
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["foreach", "split_words"]

_TEXT = Shape("text", (Column("line", help="One line of what drgn's command printed."),), Layout.LINES, "{line}")
_ANSWERS = Shape(
    "answers",
    (
        Column("command", help="The command."),
        Column("rows", Kind.ROWS, help="One table of its answer, in the shape of that command."),
    ),
    Layout.LINES,
)
_TASKS = Shape(
    "tasks",
    (*TASK_COLUMNS, Column("answers", Kind.ROWS, help="What the commands say of this task.", shape=_ANSWERS)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)

_JOINED = Shape(
    "joined",
    (
        Column("command", help="A command that answers for all tasks together, as ps does."),
        Column("rows", Kind.ROWS, help="One table of its answer, in the shape of that command."),
    ),
    Layout.LINES,
    gap=True,
)

_DRGN_COMMANDS = frozenset({"bt", "vm", "task", "files", "net", "set", "ps", "sig", "vtop"})
"""The commands that crash's ``foreach`` takes; those that are not native are drgn's, as text."""


@dataclass(slots=True)
class _Run:
    """Commands that stand together, and the words behind the last of them."""

    names: list[str]
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Step:
    """One command with its own words."""

    name: str
    words: tuple[str, ...]
    command: Command | None
    """None: drgn's."""
    arguments: Arguments | None

    @property
    def is_joined(self) -> bool:
        return self.command is not None and find_answer_all(self.name) is not None


@command(
    "foreach",
    summary="run commands for many tasks",
    description=(
        "The words before the first command choose tasks; none chooses all. PIDs, addresses and names add tasks, "
        "the other words leave out those that do not fit. Options and arguments behind a command are its own; commands "
        "that stand side by side share what stands behind the last of them, each taking the options that it has.\n\n"
        "Every native command that works on the task of the context can be run, alone or several at once. Where a "
        "task is named like a command or like one of the words below, a backslash goes before it. "
        "States: RU IN UN ST ZO TR SW DE WA PA ID NE."
    ),
    operands=(
        Operand(
            "words",
            "which tasks (PID, task_struct address, name, 'regex', user, kernel, gleader, active, state), then "
            "commands with their options",
            many=True,
            required=True,
        ),
    ),
    shapes=(_TASKS, _JOINED),
    examples=(
        Example("foreach bt", "the stacks of all tasks"),
        Example("foreach UN bt", "the stacks of all tasks in uninterruptible sleep"),
        Example("foreach 'kwork.*' task -R __state", "one member, for all tasks whose name fits"),
        Example("foreach active set bt", "two commands for the task on each CPU"),
    ),
    verbatim=True,
)
def foreach(workspace: Workspace, arguments: Arguments) -> Answer:
    """Run commands for many tasks."""
    chosen, runs = split_words(arguments.operands)
    steps = [step for run in runs for step in _make_steps(run)]
    if not steps:
        raise UsageError("foreach: no command", hint=f"foreach takes: {' '.join(sorted(_command_names()))}")
    problems: list[Problem] = []
    tasks = choose_tasks(workspace, chosen, problems)
    before = workspace.task if _has_context(workspace) else None
    try:
        joined = [_answer_all(workspace, step, [task.task for task in tasks]) for step in steps if step.is_joined]
        problems += [problem for answer in joined for problem in answer.problems]
        shared = [(answer.command, table) for answer in joined for table in answer.tables]
        tables = (_JOINED.table(shared),) if shared else ()
        rest = [step for step in steps if not step.is_joined]
        if rest:
            streams = [_answers(workspace, step, [task.task for task in tasks], problems) for step in rest]
            nested = [(task, _nest(rest, answers, problems)) for task, *answers in zip(tasks, *streams, strict=True)]
            # What looks for a reference (-R) says nothing of most tasks.
            rows = [(*task_cells(task), _ANSWERS.table(parts)) for task, parts in nested if _says_something(parts)]
            tables = (*tables, _TASKS.table(rows))
    finally:
        if before is not None:
            workspace.task = before
    return Answer("foreach", tables, tuple(dict.fromkeys(problems)))


def _has_context(workspace: Workspace) -> bool:
    try:
        return bool(workspace.task)
    except UNREADABLE:
        return False


@cache
def _command_names() -> frozenset[str]:
    return _DRGN_COMMANDS | {
        name for name, entry in declared_commands().items() if entry.per_task or find_answer_all(name) is not None
    }


def split_words(words: Sequence[str]) -> tuple[TaskChoice, list[_Run]]:
    """Tell the words that choose tasks from the commands with their words."""
    chosen = TaskChoice()
    runs: list[_Run] = []
    value_follows = False
    for word in words:
        is_command = word in _command_names() and not value_follows
        if is_command and runs and not runs[-1].words:
            runs[-1].names.append(word)
        elif is_command:
            runs.append(_Run([word]))
        elif runs:
            runs[-1].words.append(word)
            value_follows = not value_follows and _takes_value(runs[-1].names, word)
        elif word in declared_commands():
            raise UsageError(f"foreach: {word} does not work on a task", hint=f"\\{word} is a task of that name")
        else:
            chosen.add(word)
    return chosen, runs


def _takes_value(names: Sequence[str], word: str) -> bool:
    """Tell whether the next word is the value of the option in this one."""
    options = [option for name in names if name in declared_commands() for option in declared_commands()[name].options]
    if not word.startswith("-"):
        return False
    last = word if any(option.flag == word for option in options) else f"-{word[-1]}"
    return any(option.flag == last and option.value and not option.attached for option in options)


def _make_steps(run: _Run) -> Iterator[_Step]:
    for name in run.names:
        entry = declared_commands().get(name)
        if entry is None:
            yield _Step(name, tuple(run.words), None, None)
            continue
        words = tuple(run.words) if len(run.names) == 1 else tuple(_own_words(run, entry))
        parsed = parse_words(name, words, options=entry.options, operands=entry.operands, source=" ".join(words))
        yield _Step(name, words, entry, parsed)


def _own_words(run: _Run, entry: Command) -> Iterator[str]:
    """Leave out the options that only the other commands of the run have."""
    native = declared_commands()
    flags = {name: {option.flag for option in native[name].options} for name in run.names if name in native}
    others = set().union(*flags.values()) - flags[entry.name]
    pending = iter(run.words)
    for word in pending:
        letters = [word] if word in others or word in flags[entry.name] else [f"-{letter}" for letter in word[1:]]
        if not word.startswith("-") or not any(letter in others for letter in letters):
            yield word
            continue
        kept = "".join(letter[1:] for letter in letters if letter not in others)
        if kept:
            yield f"-{kept}"
        if _takes_value(run.names, word):
            next(pending, None)


def _answer_all(workspace: Workspace, step: _Step, tasks: Sequence[Object]) -> Answer:
    answer_all = find_answer_all(step.name)
    if answer_all is None or step.arguments is None:
        raise LookupError(step.name)
    return answer_all(workspace, step.arguments, tasks)


def _answers(
    workspace: Workspace, step: _Step, tasks: Sequence[Object], problems: list[Problem]
) -> Iterable[Answer | None]:
    """Answer one command for each task."""
    answer_each = find_answer_each(step.name)
    if step.command is not None and step.arguments is not None and answer_each is not None:
        return answer_each(workspace, step.arguments, tasks)
    return (_answer_one(workspace, step, task, problems) for task in tasks)


def _answer_one(workspace: Workspace, step: _Step, task: Object, problems: list[Problem]) -> Answer | None:
    workspace.task = task
    try:
        if step.command is not None and step.arguments is not None:
            return step.command(workspace, step.arguments)
        line = " ".join([step.name, *step.words])
        lines = capture_crash_command(workspace.prog, line).rstrip("\n").split("\n")
        body = lines[1:] if lines[0].startswith("PID: ") else lines
        return Answer(step.name, (_TEXT.table([(part,) for part in body]),))
    except UsageError:
        raise
    except (*UNREADABLE, CommandFailedError) as exc:
        problems.append(Problem(f"{step.name} of task {task.value_():x}: {describe_error(exc)}", Reason.UNREADABLE))
        return None


def _nest(steps: Sequence[_Step], answers: Sequence[Answer | None], problems: list[Problem]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for step, answer in zip(steps, answers, strict=True):
        if answer is None:
            continue
        problems += answer.problems
        rows += [(step.name, _without_header(table)) for table in answer.tables]
    return rows


def _says_something(parts: Sequence[tuple[Cell, ...]]) -> bool:
    return not parts or any(isinstance(table, Table) and table.rows for _, table in parts)


def _without_header(table: Table) -> Table:
    """Leave out the line that names the task: it stands above the answers already."""
    if not table.shape.line.startswith(TASK_LINE):
        return table
    return Table(_headless(table.shape), table.rows, table.title)


@cache
def _headless(shape: Shape) -> Shape:
    return msgspec.structs.replace(shape, line=shape.line.removeprefix(TASK_LINE).removeprefix("\n"))
