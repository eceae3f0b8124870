"""
Workqueues: their pools, what the workers of these do, what waits, and who flushes.

The structures are those of ``kernel/workqueue.c``, which change often: members
are looked for, newest name first. Every list is walked with a guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from drgn import Object, Program, cast, container_of
from drgn.helpers.linux.idr import idr_for_each
from drgn.helpers.linux.list import list_for_each, list_for_each_entry
from drgn.helpers.linux.timer import timer_base_for_each

from postpanic.analysis.cells import decode, guarded, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import possible_cpus
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.table import Problem

__all__ = ["Flusher", "Pool", "WorkItem", "Worker", "Workqueue", "Workqueues", "read_workqueues"]

_FLAG_BITS = (8, 9)
"""``WORK_STRUCT_FLAG_BITS``: 9 with ``CONFIG_DEBUG_OBJECTS_WORK``; a ``pool_workqueue`` is aligned to it."""
_POOL_FLAGS = {1 << 0: "BH", 1 << 2: "DISASSOCIATED", 1 << 3: "BH_DRAINING"}
_WORKER_FLAGS = {
    1 << 1: "DIE", 1 << 2: "IDLE", 1 << 3: "PREP", 1 << 6: "CPU_INTENSIVE", 1 << 7: "UNBOUND", 1 << 8: "REBOUND",
}  # fmt: skip
_WQ_FLAGS = {
    1 << 0: "BH", 1 << 1: "UNBOUND", 1 << 2: "FREEZABLE", 1 << 3: "MEM_RECLAIM", 1 << 4: "HIGHPRI",
    1 << 5: "CPU_INTENSIVE", 1 << 6: "SYSFS", 1 << 7: "POWER_EFFICIENT", 1 << 16: "DESTROYING", 1 << 17: "DRAINING",
    1 << 18: "ORDERED", 1 << 19: "ORDERED_EXPLICIT",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkItem:
    """
    A ``struct work_struct`` that is queued, or waits for its timer.

    Parameters
    ----------
    function : int
        Address of its function.
    pwq : int
        ``struct pool_workqueue`` that it is queued on; 0: none.
    expires : int or None
        Of a delayed item: jiffies at which its timer queues it.
    """

    vaddr: int
    function: int
    pwq: int = 0
    expires: int | None = None


@dataclass(slots=True)
class Worker:
    """A ``struct worker`` and what it does."""

    vaddr: int
    task: int
    """``struct task_struct``."""
    pool: int
    current_work: int
    """The item that it runs; 0: it is idle."""
    current_function: int
    current_pwq: int
    flags: tuple[str, ...]
    is_rescuer: bool
    scheduled: tuple[WorkItem, ...] = ()
    """Items that it runs next: those that flush or cancel what it runs are among them."""


@dataclass(slots=True)
class Pool:
    """A ``struct worker_pool``."""

    vaddr: int
    number: int
    cpu: int
    """-1: unbound."""
    nice: int | None
    flags: tuple[str, ...]
    worker_count: int
    idle_count: int
    watchdog_ts: int | None
    """Jiffies when it last took up an item."""
    workers: list[Worker] = field(default_factory=list)
    pending: list[WorkItem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Flusher:
    """A task that waits in ``flush_workqueue()``: the ``struct wq_flusher`` on its stack."""

    vaddr: int
    done: int
    """Its ``struct completion``."""


@dataclass(slots=True)
class Workqueue:
    """A ``struct workqueue_struct``."""

    vaddr: int
    name: str
    flags: tuple[str, ...]
    pwqs: dict[int, int] = field(default_factory=dict)
    """``struct pool_workqueue`` and its ``struct worker_pool``."""
    active_count: int = 0
    in_flight: int = 0
    inactive: list[WorkItem] = field(default_factory=list)
    """Held back by ``max_active``."""
    flushers: list[Flusher] = field(default_factory=list)
    rescuer: int = 0


@dataclass(slots=True)
class Workqueues:
    """All of it."""

    pools: list[Pool]
    queues: list[Workqueue]
    delayed: list[tuple[WorkItem, int]]
    """Items that wait for their timers, each with its ``struct workqueue_struct``."""

    def queue_of(self, pwq: int) -> Workqueue | None:
        """Find the workqueue of a ``struct pool_workqueue``."""
        return next((queue for queue in self.queues if pwq in queue.pwqs), None)

    @property
    def workers(self) -> Iterator[Worker]:
        """All workers of all pools."""
        return (worker for pool in self.pools for worker in pool.workers)


def read_workqueues(workspace: Workspace, problems: list[Problem]) -> Workqueues:
    """
    Read all workqueues.

    Raises
    ------
    FactAbsentError
        If the kernel's symbols or types do not tell where they are.
    """
    reader = _Reader(workspace, problems)
    queues = list(reader.read_queues())
    reader.known_pwqs = {pwq for queue in queues for pwq in queue.pwqs}
    for queue in queues:
        reader.fill_queue(queue)
    pools = list(reader.read_pools())
    delayed = list(reader.read_delayed())
    return Workqueues(pools, queues, delayed)


def _names(table: dict[int, str], flags: int) -> tuple[str, ...]:
    return tuple(name for bit, name in table.items() if flags & bit)


def _optional(structure: Object, *names: str) -> Object | None:
    """Return the first of the members that the structure has."""
    for name in names:
        try:
            member: Object = structure.member_(name)
        except LookupError:
            continue
        return member
    return None


def _number(member: Object | None) -> int:
    if member is None:
        return 0
    counter = _optional(member, "counter") if member.type_.kind.name in {"STRUCT", "TYPEDEF"} else None
    return int((counter if counter is not None else member).value_())


class _Reader:
    def __init__(self, workspace: Workspace, problems: list[Problem]) -> None:
        self._workspace = workspace
        self._prog: Program = workspace.prog
        self._problems = problems
        self.known_pwqs: set[int] = set()

    def _variable(self, type_name: str, symbol: str) -> Object:
        try:
            return Object(self._prog, type_name, address=self._prog.symbol(symbol).address)
        except LookupError as exc:
            raise FactAbsentError(f"workqueues cannot be found: no {symbol}, or no type for it") from exc

    def _guarded(self, items: Iterable[Object], what: str) -> Iterator[Object]:
        return guarded(items, what, self._problems)

    def read_queues(self) -> Iterator[Workqueue]:
        head = self._variable("struct list_head", "workqueues")
        entries = list_for_each_entry("struct workqueue_struct", head.address_of_(), "list")
        for queue in self._guarded(entries, "list of workqueues"):
            try:
                flags = _names(_WQ_FLAGS, int(queue.flags.value_()))
                name = decode(queue.name.string_())
                rescuer = int(queue.rescuer.value_())
                yield Workqueue(int(queue.value_()), name, flags, rescuer=rescuer, pwqs=dict(self._read_pwqs(queue)))
            except UNREADABLE as exc:
                self._problems.append(problem(f"workqueue {queue.value_():#x}", exc))

    def _read_pwqs(self, queue: Object) -> Iterator[tuple[int, int]]:
        entries = list_for_each_entry("struct pool_workqueue", queue.pwqs.address_of_(), "pwqs_node")
        for pwq in self._guarded(entries, f"pools of workqueue {queue.value_():#x}"):
            yield int(pwq.value_()), int(pwq.pool.value_())

    def fill_queue(self, queue: Workqueue) -> None:
        for address in queue.pwqs:
            pwq = Object(self._prog, "struct pool_workqueue *", address)
            try:
                queue.active_count += int(pwq.nr_active.value_())
                queue.in_flight += sum(int(count.value_()) for count in pwq.nr_in_flight.read_())
                # inactive_works: f97a4a1a3f87 (5.15).
                waiting = _optional(pwq, "inactive_works", "delayed_works")
                if waiting is not None:
                    queue.inactive += self._read_items(waiting, f"held back items of workqueue {queue.name}")
            except UNREADABLE as exc:
                self._problems.append(problem(f"workqueue {queue.name}", exc))
        queue.flushers = list(self._read_flushers(Object(self._prog, "struct workqueue_struct *", queue.vaddr)))

    def _read_flushers(self, queue: Object) -> Iterator[Flusher]:
        try:
            first = queue.first_flusher
            found = [first] if first else []
            for name in ("flusher_queue", "flusher_overflow"):
                entries = list_for_each_entry("struct wq_flusher", queue.member_(name).address_of_(), "list")
                found += self._guarded(entries, f"flushers of workqueue {queue.value_():#x}")
            for flusher in found:
                yield Flusher(int(flusher.value_()), int(flusher.done.address_of_().value_()))
        except UNREADABLE as exc:
            self._problems.append(problem(f"flushers of workqueue {queue.value_():#x}", exc))

    def _read_items(self, head: Object, what: str) -> list[WorkItem]:
        found = []
        for entry in self._guarded(list_for_each(head.address_of_()), what):
            work = container_of(entry, "struct work_struct", "entry")
            try:
                found.append(self._item(work))
            except UNREADABLE as exc:
                self._problems.append(problem(f"{what}, {work.value_():#x}", exc))
        return found

    def _item(self, work: Object, expires: int | None = None) -> WorkItem:
        data = _number(work.data)
        pwqs = (data >> bits << bits & (1 << 64) - 1 for bits in _FLAG_BITS)
        pwq = next((pwq for pwq in pwqs if pwq in self.known_pwqs), 0)
        return WorkItem(int(work.value_()), int(work.func.value_()), pwq, expires)

    def read_pools(self) -> Iterator[Pool]:
        idr = self._variable("struct idr", "worker_pool_idr")
        entries = (cast("struct worker_pool *", entry) for _, entry in idr_for_each(idr.address_of_()))
        for pool in self._guarded(entries, "list of worker pools"):
            try:
                yield self._read_pool(pool)
            except UNREADABLE as exc:
                self._problems.append(problem(f"worker pool {pool.value_():#x}", exc))

    def _read_pool(self, pool: Object) -> Pool:
        number = int(pool.id.value_())
        watchdog = _optional(pool, "watchdog_ts")
        found = Pool(
            int(pool.value_()),
            number,
            int(pool.cpu.value_()),
            self._nice(pool),
            _names(_POOL_FLAGS, int(pool.flags.value_())),
            int(pool.nr_workers.value_()),
            int(pool.nr_idle.value_()),
            None if watchdog is None else int(watchdog.value_()),
            pending=self._read_items(pool.worklist, f"items of pool {number}"),
        )
        entries = list_for_each_entry("struct worker", pool.workers.address_of_(), "node")
        for worker in self._guarded(entries, f"workers of pool {number}"):
            try:
                found.workers.append(self._read_worker(worker, found.vaddr))
            except UNREADABLE as exc:
                self._problems.append(problem(f"worker {worker.value_():#x}", exc))
        return found

    def _nice(self, pool: Object) -> int | None:
        try:
            return int(pool.attrs.nice.value_())
        except UNREADABLE:
            return None

    def _read_worker(self, worker: Object, pool: int) -> Worker:
        return Worker(
            int(worker.value_()),
            int(worker.task.value_()),
            pool,
            int(worker.current_work.value_()),
            int(worker.current_func.value_()),
            int(worker.current_pwq.value_()),
            _names(_WORKER_FLAGS, int(worker.flags.value_())),
            bool(worker.rescue_wq),
            tuple(self._read_items(worker.scheduled, f"items of worker {worker.value_():#x}")),
        )

    def read_delayed(self) -> Iterator[tuple[WorkItem, int]]:
        """Find ``struct delayed_work`` among the timers: their function is ``delayed_work_timer_fn()``."""
        prog = self._prog
        try:
            bases = Object(prog, "struct timer_base", address=prog.symbol("timer_bases").address)
            function = int(prog.symbol("delayed_work_timer_fn").address)
            size = int(bases.type_.size or 0)
        except (LookupError, AttributeError) as exc:
            self._problems.append(problem("delayed items", exc))
            return
        offsets = prog["__per_cpu_offset"]
        for cpu in possible_cpus(self._workspace):
            for number in range(_TIMER_BASES):
                address = (int(bases.address_ or 0) + int(offsets[cpu].value_()) + number * size) & (1 << 64) - 1
                base = Object(prog, "struct timer_base *", address)
                if not self._is_base(base, cpu):
                    break
                timers = timer_base_for_each(base)
                for timer in self._guarded(timers, f"timers of CPU {cpu}"):
                    yield from self._delayed_item(timer, function)

    def _is_base(self, base: Object, cpu: int) -> bool:
        try:
            return int(base.cpu.value_()) == cpu
        except UNREADABLE:
            return False

    def _delayed_item(self, timer: Object, function: int) -> Iterator[tuple[WorkItem, int]]:
        try:
            if int(timer.function.value_()) == function:
                delayed = container_of(timer, "struct delayed_work", "timer")
                item = self._item(delayed.work.address_of_(), int(timer.expires.value_()))
                yield item, int(delayed.wq.value_())
        except UNREADABLE as exc:
            self._problems.append(problem(f"timer {timer.value_():#x}", exc))


_TIMER_BASES = 3
"""At most: ``BASE_LOCAL``, ``BASE_GLOBAL``, ``BASE_DEF`` (``kernel/time/timer.c``)."""
