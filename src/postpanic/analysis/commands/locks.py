"""``locks``: who holds which lock, who waits for it, and who waits for each other."""

from __future__ import annotations

from collections.abc import Iterable

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.commands.ps_details import format_age, read_rq_clocks
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks import Cycle, Lock, LockPicture, read_locks
from postpanic.analysis.tasks import possible_cpus
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["locks"]

_HOLDERS = Shape(
    "holders",
    (
        Column("how", help="owner, writer, reader, or what else it does that keeps the lock."),
        Column("certain", Kind.BOOL, hidden=True, help="Whether the lock records it; no: it took the lock last."),
        Column("mark", hidden=True, help="'?' where it is not certain."),
        *TASK_COLUMNS,
    ),
    Layout.LINES,
    "  HELD  {how}{mark}: " + TASK_LINE,
)
_WAITERS = Shape(
    "waiters",
    (
        Column("place", Kind.NUMBER, help="Its place in line, from 1."),
        Column("role", help="reader or writer, where the lock knows the difference.", prefix=" "),
        Column("waits", help="How long it has not run: days, hours:minutes:seconds."),
        Column("waits_ns", Kind.NUMBER, hidden=True, help="The same in nanoseconds."),
        *TASK_COLUMNS,
    ),
    Layout.LINES,
    "  WAITS {place}{role} [{waits}]: " + TASK_LINE,
)
_LOCKS = Shape(
    "locks",
    (
        Column("kind", help="mutex, rwsem, semaphore, completion or percpu-rwsem."),
        Column("lock", Kind.ADDRESS, help="Address of the lock."),
        Column("name", help="Symbol, where the lock is a variable.", prefix="  "),
        Column("state", help="What the lock itself says."),
        Column("holders", Kind.ROWS, help="Who holds it.", shape=_HOLDERS),
        Column("waiters", Kind.ROWS, help="Who waits for it, the first in line first.", shape=_WAITERS),
    ),
    Layout.LINES,
    "{kind} {lock}{name}  ({state})",
    gap=True,
)
_EDGES = Shape(
    "edges",
    (
        Column("waiter_pid", Kind.NUMBER, help="Who waits."),
        Column("waiter", Kind.ADDRESS, hidden=True, help="Its task_struct."),
        Column("waiter_comm", help="Its name."),
        Column("kind", help="Kind of the lock."),
        Column("lock", Kind.ADDRESS, help="Address of the lock."),
        Column("name", help="Symbol of the lock.", prefix=" "),
        Column("holder_pid", Kind.NUMBER, help="Who holds it."),
        Column("holder", Kind.ADDRESS, hidden=True, help="Its task_struct."),
        Column("holder_comm", help="Its name."),
    ),
    Layout.LINES,
    '  PID {waiter_pid} "{waiter_comm}" waits for {kind} {lock}{name}, held by PID {holder_pid} "{holder_comm}"',
)
_CYCLES = Shape(
    "cycles",
    (
        Column("verdict", help="DEADLOCK where every holder is recorded, else POSSIBLE DEADLOCK."),
        Column("certain", Kind.BOOL, hidden=True, help="Whether every holder in it is recorded."),
        Column("task_count", Kind.NUMBER, help="Tasks that all wait for each other, directly or not."),
        Column("edges", Kind.ROWS, help="A shortest cycle among them.", shape=_EDGES),
    ),
    Layout.LINES,
    "{verdict} of {task_count} tasks:",
    gap=True,
)
_BLOCKED = Shape(
    "blocked",
    (*TASK_COLUMNS, Column("function", help="Where it waits: the innermost function that is not the scheduler's.")),
    Layout.LINES,
    TASK_LINE + "  in {function}",
    title="Uninterruptible, and waiting for no lock that is known:",
)


@command(
    "locks",
    summary="who holds which lock, who waits for it, and who waits for each other",
    description=(
        "Mutexes, rw-semaphores, semaphores, completions and per-CPU rw-semaphores for which tasks wait in "
        "uninterruptible sleep. They are found from the stacks of these tasks, where the structures lie with which "
        "they wait; the locks' own lists give the line, the locks their holders. A flush of a workqueue counts as held "
        "by the workers that run its items.\n\n"
        "A holder with '?' is the reader that took the lock last: the kernel does not record readers. Cycles come "
        "first: tasks that all wait for each other."
    ),
    options=(
        Option("-a", "interruptible", "look at tasks in interruptible sleep, too"),
        Option("-c", "cycles", "only the cycles"),
        Option("-g", "graph", "only the graph: who waits for whom"),
    ),
    operands=(Operand("task", "only locks that this task holds or waits for: PID, task_struct or name", many=True),),
    shapes=(_CYCLES, _LOCKS, _BLOCKED, _EDGES),
    examples=(
        Example("locks", "all of it"),
        Example("locks -c", "is there a deadlock?"),
        Example("locks 525", "what this task holds and waits for"),
    ),
)
def locks(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show who waits for whom."""
    problems: list[Problem] = []
    if arguments.has("cycles") and arguments.has("graph"):
        raise UsageError("locks: -c and -g exclude each other")
    picture = read_locks(workspace, problems, interruptible=arguments.has("interruptible"))
    shown = picture.locks
    if arguments.operands:
        wanted = {int(task.value_()) for task in find_tasks(workspace, arguments.operands, problems)}
        shown = [lock for lock in shown if wanted & {*_tasks_of(lock)}]
    drawer = _Drawer(workspace, picture, problems)
    tables: list[Table] = []
    if not arguments.has("graph"):
        tables.append(_CYCLES.table([drawer.cycle(cycle) for cycle in picture.cycles]))
    if arguments.has("graph"):
        edges = [edge for edge in picture.edges if any(edge.lock == lock.vaddr for lock in shown)]
        tables.append(_EDGES.table([drawer.edge(edge.waiter, edge.lock, edge.holder) for edge in edges]))
    elif not arguments.has("cycles"):
        tables.append(_LOCKS.table([drawer.lock(lock) for lock in shown]))
        if not arguments.operands:
            blocked = [(*drawer.task(entry.task), entry.function or None) for entry in picture.blocked]
            tables.append(_BLOCKED.table(blocked, title=None if blocked else ""))
    # An empty table would be an empty line on the terminal; the first one stays, since an answer has one.
    kept = [table for table in tables if table.rows]
    return Answer("locks", tuple(kept or tables[:1]), tuple(problems))


def _tasks_of(lock: Lock) -> Iterable[int]:
    return [*(holder.task for holder in lock.holders), *(waiter.task for waiter in lock.waiters)]


class _Drawer:
    """Makes the rows."""

    def __init__(self, workspace: Workspace, picture: LockPicture, problems: list[Problem]) -> None:
        self._prog = workspace.prog
        self._picture = picture
        self._clocks = read_rq_clocks(workspace, possible_cpus(workspace), problems)
        self._kinds = {lock.vaddr: lock.kind for lock in picture.locks}

    def task(self, vaddr: int) -> tuple[Cell, ...]:
        facts = self._picture.tasks.get(vaddr)
        if facts is None:
            missing = Absent(Reason.DAMAGED, "no task of the kernel")
            return (missing, vaddr, missing, missing)
        return task_cells(facts)

    def _name(self, vaddr: int) -> str:
        try:
            symbol = self._prog.symbol(vaddr)
        except LookupError:
            return ""
        offset = vaddr - int(symbol.address)
        return f"{symbol.name}+{offset:#x}" if offset else str(symbol.name)

    def _age(self, vaddr: int) -> tuple[Cell, Cell]:
        facts = self._picture.tasks.get(vaddr)
        try:
            if facts is None:
                raise LookupError("no task of the kernel")
            age = max(0, self._clocks[facts.cpu] - facts.last_run_ns)
        except UNREADABLE as exc:
            missing = Absent(Reason.UNREADABLE, str(exc))
            return (missing, missing)
        return (format_age(age), age)

    def lock(self, lock: Lock) -> tuple[Cell, ...]:
        holders: list[tuple[Cell, ...]] = [
            (holder.how, holder.certain, "" if holder.certain else "?", *self.task(holder.task))
            for holder in lock.holders
        ]
        waiters = [
            (number, waiter.role, *self._age(waiter.task), *self.task(waiter.task))
            for number, waiter in enumerate(lock.waiters, 1)
        ]
        return (
            lock.kind,
            lock.vaddr,
            self._name(lock.vaddr),
            lock.state,
            _HOLDERS.table(holders),
            _WAITERS.table(waiters),
        )

    def edge(self, waiter: int, lock: int, holder: int) -> tuple[Cell, ...]:
        from_pid, from_task, _, from_comm = self.task(waiter)
        to_pid, to_task, _, to_comm = self.task(holder)
        return (
            *(from_pid, from_task, from_comm),
            *(self._kinds.get(lock, ""), lock, self._name(lock)),
            *(to_pid, to_task, to_comm),
        )

    def cycle(self, cycle: Cycle) -> tuple[Cell, ...]:
        rows = [self.edge(edge.waiter, edge.lock, edge.holder) for edge in cycle.edges]
        verdict = "DEADLOCK" if cycle.certain else "POSSIBLE DEADLOCK"
        return (verdict, cycle.certain, len(cycle.tasks), _EDGES.table(rows))
