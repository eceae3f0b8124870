"""All locks for which somebody waits, with their holders and waiters, and the graph between the tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks.graph import Cycle, Edge, find_cycles
from postpanic.analysis.locks.holders import Holder, HolderReader
from postpanic.analysis.locks.waiting import Wait, Waiter, WaitFinder
from postpanic.analysis.stacks.engine import backtraces
from postpanic.analysis.tasks import TaskFacts, read_all_facts
from postpanic.analysis.workqueues import Workqueues, read_workqueues
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Problem

__all__ = ["Blocked", "Lock", "LockPicture", "read_locks"]

_SLEEPING = frozenset({"UN", "IN"})
_OF_NO_INTEREST = frozenset(
    {
        "__schedule",
        "schedule",
        "schedule_timeout",
        "schedule_timeout_uninterruptible",
        "io_schedule",
        "schedule_preempt_disabled",
    }
)


@dataclass(slots=True)
class Lock:
    """A lock for which somebody waits."""

    vaddr: int
    kind: str
    state: str = ""
    holders: list[Holder] = field(default_factory=list)
    waiters: list[Waiter] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A task in uninterruptible sleep that waits for no lock that is known."""

    task: int
    function: str
    """The innermost function that is not the scheduler's."""
    wait: Wait | None = None
    """Where the kind is known, but not the lock."""


@dataclass(slots=True)
class LockPicture:
    """Who waits for whom."""

    tasks: dict[int, TaskFacts]
    locks: list[Lock]
    blocked: list[Blocked]
    edges: list[Edge]
    cycles: list[Cycle]


def read_locks(workspace: Workspace, problems: list[Problem], *, interruptible: bool = False) -> LockPicture:
    """
    Find all locks for which tasks wait, from the stacks of these.

    Parameters
    ----------
    interruptible : bool
        Whether tasks in interruptible sleep are looked at, too: they are many.
    """
    everyone = {facts.vaddr: facts for facts in read_all_facts(workspace, problems)}
    states = _SLEEPING if interruptible else frozenset({"UN"})
    chosen = [facts.task for facts in everyone.values() if _state(facts) in states]
    finder = WaitFinder(workspace.prog, workspace.memory, set(everyone))
    locks: dict[int, Lock] = {}
    blocked: list[Blocked] = []
    for facts, trace in backtraces(workspace, chosen):
        wait = finder.find(facts, trace)
        if wait is not None and wait.lock:
            _add(locks, wait)
        elif _state(facts) == "UN":
            names = [frame.place.function for frame in trace.frames if frame.place is not None]
            function = next((name for name in names if name.partition(".")[0] not in _OF_NO_INTEREST), "")
            blocked.append(Blocked(facts.vaddr, function, wait))
    reader = HolderReader(workspace.prog, workspace.memory, set(everyone), problems)
    for lock in locks.values():
        try:
            lock.holders, lock.state = reader.read(lock.kind, lock.vaddr)
        except UNREADABLE as exc:
            problems.append(problem(f"{lock.kind} {lock.vaddr:#x}", exc))
    _add_work(workspace, locks, problems)
    edges = [
        Edge(waiter.task, holder.task, lock.vaddr, holder.certain)
        for lock in locks.values()
        for holder in lock.holders
        for waiter in lock.waiters
    ]
    ordered = sorted(locks.values(), key=lambda lock: (lock.kind, lock.vaddr))
    return LockPicture(everyone, ordered, blocked, edges, find_cycles(edges))


def _state(facts: TaskFacts) -> str:
    try:
        return facts.state
    except UNREADABLE:
        return ""


def _add(locks: dict[int, Lock], wait: Wait) -> None:
    lock = locks.setdefault(wait.lock, Lock(wait.lock, wait.kind))
    known = {waiter.task for waiter in lock.waiters}
    found = wait.waiters or (Waiter(wait.task, 0, wait.role),)
    lock.waiters += [waiter for waiter in found if waiter.task not in known]


def _add_work(workspace: Workspace, locks: dict[int, Lock], problems: list[Problem]) -> None:
    """Find who runs the items that others flush: a flush waits for a completion."""
    if not any(lock.kind == "completion" for lock in locks.values()):
        return
    try:
        queues = workspace.once("workqueues", lambda: read_workqueues(workspace, problems))
    except UNREADABLE as exc:
        problems.append(problem("workqueues", exc))
        return
    for lock in locks.values():
        if lock.kind == "completion":
            lock.holders += _workers_of(queues, lock.vaddr)


def _workers_of(queues: Workqueues, completion: int) -> list[Holder]:
    """Find the workers whose items stand between a flush and its end."""
    flushed = [queue for queue in queues.queues if any(flusher.done == completion for flusher in queue.flushers)]
    pwqs = {pwq for queue in flushed for pwq in queue.pwqs}
    found = [
        Holder(worker.task, "runs an item of the queue") for worker in queues.workers if worker.current_pwq in pwqs
    ]
    # struct wq_barrier begins with its work_struct, and its completion is right behind.
    found += [
        Holder(worker.task, "runs the item")
        for worker in queues.workers
        if any(0 < completion - item.vaddr < _BARRIER_BYTES for item in worker.scheduled)
    ]
    return found


_BARRIER_BYTES = 256
"""``struct wq_barrier`` is smaller, lock debugging and all."""
