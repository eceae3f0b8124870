"""``wq``: workqueues, what runs, what waits, and who flushes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.per_task import TASK_COLUMNS, task_cells
from postpanic.analysis.commands.ps_details import format_age, read_rq_clocks
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import TaskFacts, possible_cpus, read_all_facts
from postpanic.analysis.workqueues import Pool, Worker, WorkItem, Workqueue, Workqueues, read_workqueues
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Problem, Shape, Table

__all__ = ["wq"]

_THREAD_BYTES = 64 << 10
"""No kernel stack is larger."""

_QUEUE = Column("queue", title="WORKQUEUE", help="Name of the workqueue.")
_WORK = (
    Column("work", Kind.ADDRESS, title="WORK", help="Address of the work_struct."),
    Column("function", title="FUNCTION", help="Its function."),
)
_RUNNING = Shape(
    "running",
    (
        Column("mark", title="", help="STUCK: its worker has slept in the item for longer than the limit."),
        _QUEUE,
        *_WORK,
        Column("pool", Kind.NUMBER, title="POOL", help="Number of the pool; its CPU is in the table of pools."),
        Column("state", title="ST", help="State of the worker's task."),
        Column("since", title="NOT RUN FOR", help="How long the worker has not been on a CPU."),
        Column("since_ns", Kind.NUMBER, hidden=True, help="The same in nanoseconds."),
        *TASK_COLUMNS,
    ),
    title="Running:",
)
_PENDING = Shape(
    "pending",
    (
        Column("why", title="WAITS FOR", help="a worker, max_active (held back), or the item that its worker runs."),
        _QUEUE,
        *_WORK,
        Column("pool", Kind.NUMBER, title="POOL", help="Number of the pool, where it is on a pool's list."),
    ),
    title="Pending:",
)
_DELAYED = Shape(
    "delayed",
    (_QUEUE, *_WORK, Column("jiffies_left", Kind.NUMBER, title="JIFFIES LEFT", help="Until its timer queues it.")),
    title="Delayed:",
)
_FLUSHERS = Shape(
    "flushers",
    (_QUEUE, Column("flusher", Kind.ADDRESS, title="FLUSHER", help="struct wq_flusher on its stack."), *TASK_COLUMNS),
    title="Flushing:",
)
_POOLS = Shape(
    "pools",
    (
        Column("mark", title="", help="STALLED: items wait, and for longer than the limit none was taken up."),
        Column("pool", Kind.NUMBER, title="POOL", help="Number of the pool."),
        Column("address", Kind.ADDRESS, title="WORKER_POOL", help="Address of the worker_pool."),
        Column("cpu", Kind.NUMBER, title="CPU", help="CPU; empty: unbound."),
        Column("nice", Kind.NUMBER, title="NICE", help="Nice value of its workers."),
        Column("workers", Kind.NUMBER, title="WORKERS", help="How many it has."),
        Column("idle", Kind.NUMBER, title="IDLE", help="How many of them are idle."),
        Column("pending", Kind.NUMBER, title="PENDING", help="Items that wait for a worker."),
        Column("flags", title="FLAGS", help="POOL_ flags."),
    ),
    title="Pools:",
)
_QUEUES = Shape(
    "queues",
    (
        Column("address", Kind.ADDRESS, title="WORKQUEUE", help="Address of the workqueue_struct."),
        Column("active", Kind.NUMBER, title="ACTIVE", help="Items that run or wait for a worker."),
        Column("in_flight", Kind.NUMBER, title="IN FLIGHT", help="All items that are queued."),
        Column("held_back", Kind.NUMBER, title="HELD BACK", help="Items that max_active holds back."),
        Column("flags", title="FLAGS", help="WQ_ flags."),
        Column("queue", title="NAME", help="Its name."),
    ),
    title="Workqueues:",
)
_DEFAULT_LIMIT_S = 30
"""``wq_watchdog_thresh`` of the kernel, unless it was set."""


@command(
    "wq",
    summary="workqueues: what runs, what waits, and who flushes",
    description=(
        "Show the items that run, with their workers; those that wait, and for what; who flushes which workqueue; and "
        "the pools. An item is STUCK when its worker has not been on a CPU for longer than the limit; a pool has "
        "STALLED when items wait and it took up none."
    ),
    options=(
        Option("-a", "all", "all workqueues, too"),
        Option("-d", "delayed", "the items that wait for their timers, too"),
        Option("-s", "limit", f"limit for STUCK; the kernel's own is {_DEFAULT_LIMIT_S}", "SECONDS"),
    ),
    operands=(Operand("queue", "only this workqueue, by its name or a part of it"),),
    shapes=(_RUNNING, _PENDING, _FLUSHERS, _DELAYED, _POOLS, _QUEUES),
    examples=(
        Example("wq", "what the workers do"),
        Example("wq -s 5 events", "items of the queues called events that sleep for more than 5 seconds"),
        Example("wq -ad", "everything"),
    ),
)
def wq(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show workqueues."""
    problems: list[Problem] = []
    limit_s = parse_number(arguments.get("limit") or str(_DEFAULT_LIMIT_S), "wq -s")
    state = workspace.once("workqueues", lambda: read_workqueues(workspace, problems))
    name = arguments.operands[0] if arguments.operands else ""
    if name and not any(name in queue.name for queue in state.queues):
        raise UsageError(f"wq: no workqueue {name}", hint="wq -a lists them")
    drawer = _Drawer(workspace, state, problems, name, limit_s * 1_000_000_000)
    tables = [drawer.running(), drawer.pending(), drawer.flushers()]
    if arguments.has("delayed"):
        tables.append(drawer.delayed())
    if not name:
        tables.append(drawer.pools())
    if arguments.has("all"):
        tables.append(drawer.queues())
    return Answer("wq", tuple([table for table in tables if table.rows] or tables[:1]), tuple(problems))


class _Drawer:
    """Makes the tables."""

    def __init__(
        self, workspace: Workspace, state: Workqueues, problems: list[Problem], name: str, limit_ns: int
    ) -> None:
        self._workspace = workspace
        self._state = state
        self._problems = problems
        self._name = name
        self._limit_ns = limit_ns
        self._queue_by_pwq = {pwq: queue for queue in state.queues for pwq in queue.pwqs}
        self._pool_numbers = {pool.vaddr: pool.number for pool in state.pools}
        self._clocks = read_rq_clocks(workspace, possible_cpus(workspace), problems)
        self._tasks = {facts.vaddr: facts for facts in read_all_facts(workspace, problems)}
        self._jiffies = self._read_jiffies()

    def _read_jiffies(self) -> int | None:
        try:
            return self._workspace.memory.read_u64(self._workspace.prog.symbol("jiffies_64").address)
        except UNREADABLE as exc:
            self._problems.append(problem("jiffies", exc))
            return None

    def _function(self, address: int) -> Cell:
        try:
            return str(self._workspace.prog.symbol(address).name)
        except LookupError:
            return Absent(Reason.NOT_PRESENT, f"no function at {address:#x}")

    def _is_shown(self, queue: Workqueue | None) -> bool:
        return not self._name or (queue is not None and self._name in queue.name)

    def _task(self, vaddr: int) -> tuple[Cell, ...]:
        facts = self._tasks.get(vaddr)
        if facts is None:
            missing = Absent(Reason.DAMAGED, f"{vaddr:#x} is no task of the kernel")
            return (missing, vaddr, missing, missing)
        return task_cells(facts)

    def running(self) -> Table:
        rows = []
        for pool in self._state.pools:
            for worker in pool.workers:
                queue = self._queue_by_pwq.get(worker.current_pwq)
                if worker.current_work and self._is_shown(queue):
                    rows.append(self._running(pool, worker, queue))
        return _RUNNING.table(rows)

    def _running(self, pool: Pool, worker: Worker, queue: Workqueue | None) -> tuple[Cell, ...]:
        facts = self._tasks.get(worker.task)
        age: Cell = None
        state: Cell = None
        if facts is not None:
            state = facts.state_cell
            age = self._age(facts)
        stuck = isinstance(age, int) and state != "RU" and age > self._limit_ns
        return (
            "STUCK" if stuck else "",
            queue.name if queue is not None else None,
            worker.current_work,
            self._function(worker.current_function),
            pool.number,
            state,
            format_age(age) if isinstance(age, int) else age,
            age,
            *self._task(worker.task),
        )

    def _age(self, facts: TaskFacts) -> Cell:
        try:
            return max(0, self._clocks[facts.cpu] - facts.last_run_ns)
        except UNREADABLE as exc:
            return Absent(Reason.UNREADABLE, str(exc))

    def pending(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for pool in self._state.pools:
            rows += self._items(pool.pending, "a worker", pool.number)
            for worker in pool.workers:
                rows += self._items(worker.scheduled, "the item before it", pool.number)
        for queue in self._state.queues:
            if self._is_shown(queue):
                rows += [
                    ("max_active", queue.name, item.vaddr, self._function(item.function), None)
                    for item in queue.inactive
                ]
        return _PENDING.table(rows)

    def _items(self, items: Iterable[WorkItem], why: str, pool: int) -> list[tuple[Cell, ...]]:
        rows: list[tuple[Cell, ...]] = []
        for item in items:
            queue = self._queue_by_pwq.get(item.pwq)
            if self._is_shown(queue):
                name = queue.name if queue is not None else None
                rows.append((why, name, item.vaddr, self._function(item.function), pool))
        return rows

    def delayed(self) -> Table:
        names = {queue.vaddr: queue for queue in self._state.queues}
        rows = []
        for item, address in self._state.delayed:
            queue = names.get(address)
            if self._is_shown(queue):
                left: Cell = None
                if self._jiffies is not None and item.expires is not None:
                    left = item.expires - self._jiffies
                name = queue.name if queue is not None else None
                rows.append((name, item.vaddr, self._function(item.function), left))
        return _DELAYED.table(rows)

    def flushers(self) -> Table:
        stacks = _stacks(self._tasks.values())
        rows = []
        for queue in self._state.queues:
            if not self._is_shown(queue):
                continue
            for flusher in queue.flushers:
                owner = next((task for start, task in stacks if 0 <= flusher.vaddr - start < _THREAD_BYTES), 0)
                cells = self._task(owner) if owner else (None, None, None, None)
                rows.append((queue.name, flusher.vaddr, *cells))
        return _FLUSHERS.table(rows)

    def pools(self) -> Table:
        rows = []
        for pool in self._state.pools:
            stalled = False
            if self._jiffies is not None and pool.watchdog_ts and pool.pending:
                # 1000 is the most that HZ can be: whoever is late then is late for all others, too.
                stalled = self._jiffies - pool.watchdog_ts > 1000 * self._limit_ns // 1_000_000_000
            rows.append(
                (
                    "STALLED" if stalled else "",
                    pool.number,
                    pool.vaddr,
                    pool.cpu if pool.cpu >= 0 else None,
                    pool.nice,
                    pool.worker_count,
                    pool.idle_count,
                    len(pool.pending),
                    " ".join(pool.flags),
                )
            )
        return _POOLS.table(rows)

    def queues(self) -> Table:
        return _QUEUES.table(
            [
                (
                    queue.vaddr,
                    queue.active_count,
                    queue.in_flight,
                    len(queue.inactive),
                    " ".join(queue.flags),
                    queue.name,
                )
                for queue in self._state.queues
                if self._is_shown(queue)
            ]
        )


def _stacks(tasks: Iterable[TaskFacts]) -> Sequence[tuple[int, int]]:
    """Return where the stacks of tasks begin, the highest first, with their tasks."""
    found = []
    for task in tasks:
        try:
            found.append((task.number("stack"), task.vaddr))
        except UNREADABLE:
            continue
    return sorted(found, reverse=True)
