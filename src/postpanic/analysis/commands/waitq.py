"""``waitq``: who waits on a wait queue."""

from __future__ import annotations

from drgn import Object, TypeKind, cast
from drgn.helpers.linux.wait import waitqueue_for_each_entry

from postpanic.analysis.cells import absent, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_rows
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_vaddr, read_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["waitq"]

_WAITERS = Shape(
    "waiters",
    (
        *TASK_COLUMNS,
        Column("entry", Kind.ADDRESS, title="ENTRY", help="wait_queue_entry_t *.", hidden=True),
        Column("function", title="FUNCTION", help="Symbol of what wakes it.", hidden=True),
        Column("note", prefix="  ", help="For an entry that is no task: what wakes it."),
    ),
    Layout.LINES,
    f"{TASK_LINE}{{note}}",
)

_TASK_WAKERS = frozenset(
    {
        *("default_wake_function", "autoremove_wake_function", "woken_wake_function", "wake_bit_function"),
        *("var_wake_function", "wake_page_function", "child_wait_callback", "receiver_wake_function"),
        *("ep_autoremove_wake_function", "percpu_rwsem_wake_function"),
    }
)
"""Functions of entries whose ``private`` is the ``struct task_struct *`` that waits."""


@command(
    "waitq",
    summary="list tasks queued on a wait queue",
    description=(
        "Show the tasks that wait on a wait queue. Tasks in poll(2) and select(2) are found behind their entries; an "
        "entry that belongs to no task (epoll, a work item) is shown with the function that it calls."
    ),
    operands=(
        Operand("queue", "symbol or hexadecimal address of a wait queue, or structure.member", required=True),
        Operand("structure", "with structure.member: hexadecimal address of the structure"),
    ),
    shapes=(_WAITERS,),
    examples=(
        Example("waitq log_wait", "who reads the kernel log"),
        Example("waitq signal_struct.wait_chldexit c5496000", "who waits for a child"),
        Example("waitq c3534098", "by address"),
    ),
)
def waitq(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show who waits on a wait queue."""
    problems: list[Problem] = []
    vaddr = _queue_vaddr(workspace, arguments)
    queue = Object(workspace.prog, "wait_queue_head_t *", vaddr)
    rows: list[tuple[Cell, ...]] = []
    try:
        for entry in guarded(waitqueue_for_each_entry(queue), f"wait queue {vaddr:#x}", problems):
            rows.append(_row(workspace, entry))  # noqa: PERF401 - what was read stays when the list breaks off
    except UNREADABLE as exc:
        problems.append(problem(f"wait queue {vaddr:#x}", exc))
    title = None
    if not rows and not problems:
        title = f'wait queue "{arguments.operands[0]}" ({vaddr:x}) is empty'
    return Answer("waitq", (_WAITERS.table(rows, title=title),), tuple(problems))


def _queue_vaddr(workspace: Workspace, arguments: Arguments) -> int:
    """
    Find the wait queue that the operands name.

    Raises
    ------
    UsageError
        If they name none.
    FactAbsentError
        If there is no such symbol, type or member.
    """
    word, *rest = arguments.operands
    if not rest:
        return parse_vaddr(workspace, word)
    structure, dot, member = word.partition(".")
    if not dot:
        raise UsageError(f"waitq: {word!r} is not structure.member", hint="waitq task_struct.member c5496000")
    base = parse_vaddr(workspace, rest[0])
    name = structure if structure.startswith(("struct ", "union ")) else f"struct {structure}"
    try:
        place = Object(workspace.prog, name, address=base).subobject_(member)
        type_ = place.type_
        while type_.kind is TypeKind.TYPEDEF:
            type_ = type_.type
        # Some structures have a pointer to their queue.
        return int(place.value_()) if type_.kind is TypeKind.POINTER else int(place.address_ or 0)
    except LookupError as exc:
        raise FactAbsentError(f"waitq: there is no {name} with a member {member}") from exc


def _row(workspace: Workspace, entry: Object) -> tuple[Cell, ...]:
    vaddr = int(entry.value_())
    try:
        function = _symbol(workspace, int(entry.func.value_()))
        task = _task(workspace, entry, function)
    except UNREADABLE as exc:
        return (*[absent(exc)] * len(TASK_COLUMNS), vaddr, None, None)
    if task is None:
        reason = Absent(Reason.NOT_APPLICABLE, function)
        return (*[reason] * len(TASK_COLUMNS), vaddr, function, f"entry {vaddr:x} calls {function}")
    return (*task_rows(workspace, [task])[0], vaddr, function, None)


def _task(workspace: Workspace, entry: Object, function: str) -> Object | None:
    """Find the task that waits; None for an entry that is not a task's."""
    private = entry.private.read_()
    if function in _TASK_WAKERS:
        return cast("struct task_struct *", private)
    if function == "pollwake":
        # fs/select.c: what poll(2) and select(2) wait with.
        return cast("struct poll_wqueues *", private).polling_task.read_()
    known = workspace.once("task addresses", lambda: {int(task.value_()) for task in read_tasks(workspace, [])})
    return cast("struct task_struct *", private) if private.value_() in known else None


def _symbol(workspace: Workspace, vaddr: int) -> str:
    try:
        return str(workspace.prog.symbol(vaddr).name)
    except LookupError:
        return f"{vaddr:#x}"
