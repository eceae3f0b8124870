"""What ``ps`` shows of a task's relations: ``-p`` parents, ``-c`` children, ``-g`` its thread group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drgn import Object
from drgn.helpers.linux.list import list_for_each_entry

from postpanic.analysis.cells import guarded, problem
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import TaskFacts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.findings.absent import Reason
from postpanic.findings.table import Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["CHILDREN", "PARENTS", "THREADS", "show_children", "show_parents", "show_threads"]

_DEEPEST = 1000
"""No chain of parents is longer."""

PARENTS = Shape(
    "parents",
    (
        Column("depth", Kind.NUMBER, help="0 for the first ancestor."),
        Column("indent", help="Blanks that show the depth.", hidden=True),
        *TASK_COLUMNS,
    ),
    Layout.LINES,
    "{indent}" + TASK_LINE,
)
_RELATIVES = Shape("relatives", TASK_COLUMNS, Layout.LINES, TASK_LINE, indent=2)
CHILDREN = Shape(
    "children",
    (*TASK_COLUMNS, Column("children", Kind.ROWS, help="Tasks whose parent it is.", shape=_RELATIVES)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
THREADS = Shape(
    "threads",
    (*TASK_COLUMNS, Column("threads", Kind.ROWS, help="The other threads of the group.", shape=_RELATIVES)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)


def show_parents(workspace: Workspace, tasks: Iterable[TaskFacts], problems: list[Problem]) -> list[Table]:
    """Show the line of parents (``task_struct.parent``) of each task, the oldest first."""
    known: dict[int, TaskFacts] = {}
    return [_parents(workspace, task, known, problems) for task in tasks]


def _parents(workspace: Workspace, task: TaskFacts, known: dict[int, TaskFacts], problems: list[Problem]) -> Table:
    line = [task]
    try:
        while (parent := line[-1].number("parent")) != line[-1].vaddr:
            if any(parent == member.vaddr for member in line) or len(line) > _DEEPEST:
                problems.append(Problem(f"parents of task {task.vaddr:x} come back to {parent:#x}", Reason.DAMAGED))
                break
            if parent not in known:
                pointer = Object(workspace.prog, "struct task_struct *", parent)
                known[parent] = read_facts(workspace, [pointer])[0]
                # A line of parents that cannot be read ends at the last one that can.
                known[parent].number("pid")
            line.append(known[parent])
    except UNREADABLE as exc:
        problems.append(problem(f"parents of task {task.vaddr:x}", exc))
        line = [member for member in line if member.is_readable]
    return PARENTS.table([(depth, " " * depth, *task_cells(member)) for depth, member in enumerate(reversed(line))])


def show_children(all_tasks: Iterable[TaskFacts], tasks: Iterable[TaskFacts]) -> Table:
    """Show the tasks whose parent each of *tasks* is; the threads of a process have its parent too."""
    by_parent: dict[int, list[TaskFacts]] = {}
    for task in all_tasks:
        try:
            if task.number("parent") != task.vaddr:
                by_parent.setdefault(task.number("parent"), []).append(task)
        except UNREADABLE:
            continue
    return CHILDREN.table([_row(task, by_parent.get(task.vaddr, []), "(no children)") for task in tasks])


def _row(task: TaskFacts, others: Sequence[TaskFacts], none: str) -> tuple[Cell, ...]:
    title = "" if others else none
    return (*task_cells(task), _RELATIVES.table([task_cells(other) for other in others], title=title))


def show_threads(workspace: Workspace, tasks: Iterable[TaskFacts], problems: list[Problem]) -> Table:
    """Show the thread group of each task once: its leader, and the other threads below."""
    leaders: dict[int, TaskFacts] = {}
    for task in tasks:
        try:
            vaddr = task.number("group_leader")
        except UNREADABLE as exc:
            problems.append(problem(f"thread group of task {task.vaddr:x}", exc))
            continue
        if vaddr not in leaders:
            pointer = Object(workspace.prog, "struct task_struct *", vaddr)
            leaders[vaddr] = task if vaddr == task.vaddr else read_facts(workspace, [pointer])[0]
    rows = []
    for leader in leaders.values():
        threads = [thread for thread in read_threads(workspace, leader, problems) if thread.vaddr != leader.vaddr]
        rows.append(_row(leader, threads, "(no threads)"))
    return THREADS.table(rows)


def read_threads(workspace: Workspace, task: TaskFacts, problems: list[Problem]) -> list[TaskFacts]:
    """Read all threads of a task's group, its leader first (``signal_struct.thread_head``)."""
    what = f"threads of task {task.vaddr:x}"
    try:
        head = task.task.signal.thread_head.address_of_()
        # An idle task's list is of signal structures that nobody links.
        threads = list(guarded(list_for_each_entry("struct task_struct", head, "thread_node"), what, problems))
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
        return [task]
    return read_facts(workspace, threads)
