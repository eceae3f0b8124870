"""``set``: the task that commands work on, and the variables of the prompt."""

from __future__ import annotations

from drgn.helpers.linux.sched import task_thread_info

from postpanic.analysis.cells import cell
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.set_variables import VARIABLES, is_variable, set_variable, show_variable
from postpanic.analysis.commands.task_choice import active_tasks, set_active
from postpanic.analysis.commands.values import find_tasks, parse_cpus
from postpanic.analysis.context import UNREADABLE, find_context_task
from postpanic.analysis.tasks import TaskFacts, read_facts, state_words
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["set_command"]

_CONTEXT = Shape(
    "context",
    (
        Column("pid", Kind.NUMBER, title="PID", help="Thread ID."),
        Column("comm", title="COMMAND", help="Name of the task."),
        Column("task", Kind.ADDRESS, title="TASK", help="Address of the task_struct."),
        Column("thread_info", Kind.ADDRESS, help="Address of the thread_info."),
        Column("cpu", Kind.NUMBER, title="CPU", help="CPU that it runs on or ran on last."),
        Column("state", title="STATE", help="Constants of the kernel for state and exit_state."),
        Column("mark", prefix=" (", suffix=")", help="PANIC or ACTIVE."),
    ),
    Layout.LINES,
    '    PID: {pid}\nCOMMAND: "{comm}"\n   TASK: {task}  [THREAD_INFO: {thread_info}]\n    CPU: {cpu}\n'
    "  STATE: {state}{mark}",
)


@command(
    "set",
    summary="choose the task that commands work on, or set a variable",
    description=(
        "Without words, show the task of the context. A PID or the address of a task_struct makes another one the "
        "context; the name of a variable shows it, and with a value sets it. Several variables may be set at once."
    ),
    options=(
        Option("-p", "panic", "back to the task that panicked"),
        Option("-c", "cpu", "the task that is on this CPU", "CPU"),
        Option("-a", "as_active", "take this task for the one that is on its CPU", "TASK"),
        Option("-v", "variables", "show all variables"),
    ),
    operands=(Operand("words", "a PID or a task_struct address, or variables with their values", many=True),),
    shapes=(_CONTEXT, VARIABLES),
    examples=(
        Example("set 1", "work on init"),
        Example("set -c 0", "on what CPU 0 does"),
        Example("set radix 16", "numbers in hexadecimal from now on"),
        Example("set -v", "all variables"),
    ),
    per_task=True,
)
def set_command(workspace: Workspace, arguments: Arguments) -> Answer:
    """Choose the context, or set variables."""
    problems: list[Problem] = []
    words = list(arguments.operands)
    if len([name for name in ("panic", "cpu", "as_active", "variables") if arguments.has(name)]) > 1:
        raise UsageError("set: -p, -c, -a and -v exclude each other")
    if arguments.has("variables"):
        return Answer("set", (_show_all(workspace),))
    if words and is_variable(words[0]):
        return Answer("set", (_set_variables(workspace, words),))
    _choose(workspace, arguments, words, problems)
    facts = read_facts(workspace, [workspace.task])[0]
    return Answer("set", (_CONTEXT.table([_context_row(workspace, facts, problems)]),), tuple(problems))


def _choose(workspace: Workspace, arguments: Arguments, words: list[str], problems: list[Problem]) -> None:
    if len(words) > 1:
        raise UsageError(f"set: one task is the context, found {len(words)} words", hint="set -v lists the variables")
    if arguments.has("panic"):
        try:
            workspace.task = find_context_task(workspace.prog).task
        except LookupError as exc:
            raise FactAbsentError(f"set -p: {exc}") from exc
    elif (text := arguments.get("cpu")) is not None:
        cpus = parse_cpus(workspace, text)
        active = active_tasks(workspace, problems)
        if len(cpus) != 1 or cpus[0] not in active:
            raise UsageError(f"set -c: no task is known for CPU {text}", hint="set -c takes the number of one CPU")
        workspace.task = find_tasks(workspace, [f"{active[cpus[0]]:#x}"], problems)[0]
    elif (text := arguments.get("as_active")) is not None:
        task = find_tasks(workspace, [text], problems)[0]
        set_active(workspace, read_facts(workspace, [task])[0])
        workspace.task = task
    elif words:
        workspace.task = find_tasks(workspace, words, problems)[0]


def _context_row(workspace: Workspace, facts: TaskFacts, problems: list[Problem]) -> tuple[Cell, ...]:
    return (
        cell(lambda: facts.pid),
        cell(lambda: facts.comm),
        facts.vaddr,
        cell(lambda: int(task_thread_info(facts.task).value_())),
        cell(lambda: facts.cpu),
        cell(lambda: state_words(facts.number("state"), facts.number("exit_state"))),
        _mark(workspace, facts, problems),
    )


def _mark(workspace: Workspace, facts: TaskFacts, problems: list[Problem]) -> str:
    try:
        context = find_context_task(workspace.prog)
        if context.panicked and int(context.task.value_()) == facts.vaddr:
            return "PANIC"
    except UNREADABLE:
        pass
    return "ACTIVE" if facts.vaddr in active_tasks(workspace, problems).values() else ""


def _show_all(workspace: Workspace) -> Table:
    from postpanic.analysis.commands.set_variables import NAMES

    return VARIABLES.table([show_variable(workspace, name) for name in NAMES])


def _set_variables(workspace: Workspace, words: list[str]) -> Table:
    rows = []
    pending = list(reversed(words))
    while pending:
        name = pending.pop()
        if not is_variable(name):
            raise UsageError(f"set: no variable {name}", hint="set -v lists the variables")
        if name in {"hex", "dec"}:
            pending += ["16" if name == "hex" else "10"]
            name = "radix"
        if pending and not is_variable(pending[-1]):
            set_variable(workspace, name, pending.pop())
        rows.append(show_variable(workspace, name))
    return VARIABLES.table(rows)
