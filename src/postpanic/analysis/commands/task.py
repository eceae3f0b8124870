"""``task``: the structures of a task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from drgn import Object, TypeKind
from drgn.helpers.linux.sched import task_thread_info

from postpanic.analysis.cells import absent, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.objects.braces import MEMBERS, ValueWriter
from postpanic.analysis.objects.contents import object_contents
from postpanic.analysis.objects.members import members_table
from postpanic.analysis.objects.style import Style
from postpanic.analysis.tasks import read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["task"]

_MEMBERS = Shape(
    "chosen",
    (
        Column("structure", hidden=True, help="task_struct or thread_info."),
        Column("name", help="The member, as it was asked for."),
        Column("value", help="Its value as text; structures take several lines."),
        Column("number", Kind.NUMBER, hidden=True, help="Its value, where it is a number, a pointer or an enumerator."),
    ),
    Layout.LINES,
    "  {name} = {value},",
)
_CHOSEN = Shape(
    "task_members",
    (*TASK_COLUMNS, Column("members", Kind.ROWS, help="The members that were asked for.", shape=_MEMBERS)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_WHOLE = Shape(
    "task",
    (
        *TASK_COLUMNS,
        Column("task_struct", Kind.ROWS, help="All members of struct task_struct.", shape=MEMBERS),
        Column("thread_info", Kind.ROWS, help="All members of struct thread_info.", shape=MEMBERS),
    ),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_PART = re.compile(r"([A-Za-z_]\w*)((?:\[\d+\])*)\Z")
_NUMBERS = frozenset({TypeKind.INT, TypeKind.BOOL, TypeKind.ENUM, TypeKind.POINTER})


@command(
    "task",
    summary="the structures of a task",
    description=(
        "Show struct task_struct and struct thread_info of the task of the context, or of the tasks that are named; "
        "with -R only some members, which are looked for in both. A member may be a path with elements of arrays: "
        "se.avg.util_avg, comm[2]."
    ),
    options=(
        Option("-R", "members", "only these members, with commas between", "MEMBERS"),
        HEXADECIMAL,
        DECIMAL,
    ),
    operands=(Operand("task", "a PID, a task_struct address or a name; or members, without -R", many=True),),
    shapes=(_WHOLE, _CHOSEN),
    examples=(
        Example("task -x 1", "all of init, numbers in hexadecimal"),
        Example("task -R __state,se.on_rq", "two members of the current task"),
        Example("foreach task -R prio,static_prio", "for all tasks"),
    ),
    per_task=True,
)
def task(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show the structures of tasks."""
    problems: list[Problem] = []
    members = [name.strip() for text in arguments.all("members") for name in text.split(",") if name.strip()]
    words = list(arguments.operands)
    if not members:
        # Without -R a word that is no task is a list of members.
        members, words = _split_words(workspace, words)
    tasks = find_tasks(workspace, words, problems)
    style = choose_style(workspace, arguments)
    rows: list[tuple[Cell, ...]] = []
    for facts in read_facts(workspace, tasks):
        cells = task_cells(facts)
        if members:
            rows.append((*cells, _MEMBERS.table(_show_members(facts.task, members, style))))
        else:
            rows.append((*cells, *_show_whole(facts.task, style, problems)))
    return Answer("task", ((_CHOSEN if members else _WHOLE).table(rows),), tuple(problems))


def _split_words(workspace: Workspace, words: Sequence[str]) -> tuple[list[str], list[str]]:
    type_ = workspace.prog.type("struct task_struct")
    members: list[str] = []
    rest: list[str] = []
    for word in words:
        names = word.split(",")
        first = _PART.match(names[0].split(".", 1)[0])
        is_member = first is not None and not re.fullmatch(r"(?:0x)?[0-9a-f]+", word) and type_.has_member(first[1])
        (members if is_member else rest).extend(names if is_member else [word])
    return members, rest


def _show_whole(task: Object, style: Style, problems: list[Problem]) -> tuple[Cell, Cell]:
    cells: list[Cell] = []
    for is_thread_info in (False, True):
        try:
            structure = task_thread_info(task)[0] if is_thread_info else task[0]
            cells.append(members_table([structure], style))
        except UNREADABLE as exc:
            problems.append(problem(f"task {task.value_():x}", exc))
            cells.append(absent(exc))
    return cells[0], cells[1]


def _show_members(task: Object, members: Sequence[str], style: Style) -> list[tuple[Cell, ...]]:
    rows = []
    for path in members:
        found = [
            (structure, name, part)
            for structure, name, part in (
                ("task_struct", path, _find_member(task[0], path)),
                ("thread_info", path, _find_member(_thread_info(task), path)),
            )
            if part is not None
        ]
        if not found:
            raise UsageError(
                f"task: {path}: no member of task_struct or thread_info", hint="struct task_struct lists the members"
            )
        rows += [_member_row(structure, name, part, style) for structure, name, part in found]
    return rows


def _thread_info(task: Object) -> Object | None:
    try:
        return task_thread_info(task)[0]
    except UNREADABLE:
        return None


def _find_member(structure: Object | None, path: str) -> Object | None:
    """Follow a path of members and elements; None where the type has no such path."""
    part = structure
    for word in path.split("."):
        match = _PART.match(word)
        if part is None or match is None:
            return None
        try:
            part = part.member_(match[1])
            for number in re.findall(r"\d+", match[2]):
                part = part[int(number)]
        except (LookupError, TypeError, AttributeError):
            return None
    return part


def _member_row(structure: str, name: str, part: Object, style: Style) -> tuple[Cell, ...]:
    type_ = part.type_
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    try:
        number = int(part.value_()) if type_.kind in _NUMBERS else None
        writer = ValueWriter(part.prog_, style)
        bits = {"bit_offset": part.bit_offset_ or 0, "bit_size": part.bit_field_size_}
        writer.write(part.type_, object_contents(part.prog_, part), vaddr=part.address_, indent=2, **bits)
    except UNREADABLE as exc:
        return (structure, name, absent(exc), absent(exc))
    text = "\n".join(str(row[MEMBERS.index["text"]]) for row in writer.table_rows())
    return (structure, name, text, number)
