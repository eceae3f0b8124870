"""
Who waits for whom: the wait-for graph of a crash, built once for all detectors.

It begins with the tasks in uninterruptible sleep, and follows every holder, in
whatever state that is, until nobody new is found. What the kernel records (the
owner of a mutex, the writer of an rwsem, the worker that runs a work item) makes
a certain edge; the reader that came last, or the last to take a semaphore, a likely one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import drgn

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.ps_details import read_rq_clocks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks import Holder
from postpanic.analysis.locks.graph import Cycle, Edge, find_cycles
from postpanic.analysis.locks.holders import HolderReader
from postpanic.analysis.locks.waiting import WaitFinder
from postpanic.analysis.memory.slabs.objects import find_object
from postpanic.analysis.tasks import TaskFacts, possible_cpus
from postpanic.analysis.triage.hangs.naming import Namer
from postpanic.analysis.triage.hangs.rcu import find_rcu_blockers
from postpanic.analysis.triage.hangs.sleeping import LOCKS, Sleep, SleepReader
from postpanic.analysis.triage.scene import Scene
from postpanic.analysis.workqueues import Worker, Workqueues, read_workqueues

__all__ = ["Picture", "Thing"]

_OWNERS = {"mutex": ("struct mutex", "owner"), "rwsem": ("struct rw_semaphore", "owner")}
_OWNER_FLAGS = 7
_MUTEX_PICKUP = 4
"""``MUTEX_FLAG_PICKUP``: the lock was handed to its owner, who has not run since (``kernel/locking/mutex.c``)."""
_RWSEM_READER_OWNED = 1
_BARRIER_BYTES = 256
_REBORN_NS = 2_000_000_000
"""A task that began so much later than somebody waits for it is not the one that is waited for."""


@dataclass(slots=True)
class Thing:
    """
    What tasks wait for.

    Attributes
    ----------
    kind : str
        As that of :class:`~postpanic.analysis.triage.hangs.sleeping.Sleep`.
    vaddr : int
        0: it has no address, or none is known.
    state : str
        What it says of itself.
    holders : list of Holder
        Who must act for it to come.
    waiters : list of int
        ``struct task_struct``, those whose stacks were read.
    owner : int
        ``struct task_struct`` that the lock records, though it is no holder (any more).
    gone : str
        What became of *owner*: ``freed``, ``reused``, ``unlisted``, ``unknown``, ``left`` (it is past the code that
        took the lock); empty: there is nothing to say.
    is_seen : bool
        Whether the code that the holder is in holds the lock.
    """

    kind: str
    vaddr: int
    state: str = ""
    holders: list[Holder] = field(default_factory=list)
    waiters: list[int] = field(default_factory=list)
    owner: int = 0
    gone: str = ""
    is_seen: bool = False


class Picture:
    """
    The wait-for graph.

    Parameters
    ----------
    scene : Scene
        Of a dump.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.workspace = scene.dump
        self.names = Namer(self.workspace)
        self.tasks = scene.tasks_by_vaddr
        known = set(self.tasks)
        self._finder = WaitFinder(scene.prog, self.workspace.memory, known)
        self.sleeps = SleepReader(scene.prog, scene.stacks, self._finder)
        self._holders = HolderReader(scene.prog, self.workspace.memory, known, scene.problems)
        self.clocks = read_rq_clocks(self.workspace, possible_cpus(self.workspace), scene.problems)
        self.sleeping: dict[int, Sleep] = {}
        """What each task that was looked at waits for, by ``struct task_struct``."""
        self.things: dict[tuple[str, int], Thing] = {}
        self.edges: list[Edge] = []
        self._queues: Workqueues | None = None
        self._follow(facts.vaddr for facts in scene.tasks if self.state(facts) == "UN")
        self._link()

    @property
    def cycles(self) -> list[Cycle]:
        """Tasks that wait for each other."""
        return find_cycles(self.edges)

    @property
    def has_all_tasks(self) -> bool:
        """Whether the list of tasks could be walked to its end."""
        return not any("list of tasks" in each.what for each in self.scene.problems)

    @property
    def queues(self) -> Workqueues | None:
        """The workqueues; None: they cannot be read."""
        if self._queues is None:
            problems = self.scene.problems
            try:
                self._queues = self.workspace.once("workqueues", lambda: read_workqueues(self.workspace, problems))
            except UNREADABLE as exc:
                problems.append(problem("workqueues", exc))
        return self._queues

    def state(self, facts: TaskFacts) -> str:
        """Give the state of a task in two letters; empty: it cannot be read."""
        try:
            return facts.state
        except UNREADABLE:
            return ""

    def is_running(self, task: int) -> bool:
        """Tell whether a task was on a CPU."""
        return task in self.scene.stacks.running

    def waited_ns(self, facts: TaskFacts) -> int | None:
        """Tell for how long a task has not run; None: not known."""
        try:
            return max(0, self.clocks[facts.cpu] - facts.last_run_ns)
        except UNREADABLE:
            return None

    def thing_of(self, task: int) -> Thing | None:
        """Give what a task waits for."""
        sleep = self.sleeping.get(task)
        return self.things.get(_key(sleep)) if sleep is not None else None

    def holders_of(self, task: int) -> list[Holder]:
        """Give who keeps a task waiting."""
        thing = self.thing_of(task)
        return thing.holders if thing is not None else []

    def look_at(self, task: int) -> Sleep | None:
        """Read what one more task waits for, and who keeps it."""
        self._follow([task])
        self._link()
        return self.sleeping.get(task)

    def add_holders(self, thing: Thing, holders: list[Holder]) -> None:
        """Say who holds a thing that does not record it, and look at what these wait for in turn."""
        thing.holders = holders
        self._follow(holder.task for holder in holders)
        self._link()

    def set_gone(self, thing: Thing, owner: int, gone: str) -> None:
        """Say that the recorded owner of a lock does not hold it any more, and what became of it."""
        thing.owner, thing.gone, thing.holders = owner, gone, []
        self._link()

    def _follow(self, seeds: Iterable[int]) -> None:
        pending = list(seeds)
        while pending:
            task = pending.pop()
            facts = self.tasks.get(task)
            if facts is None or task in self.sleeping or self.is_running(task):
                continue
            try:
                sleep = self.sleeps.read(facts, self.scene.trace(facts))
            except UNREADABLE as exc:
                self.scene.problems.append(problem(f"what task {task:x} waits for", exc))
                continue
            self.sleeping[task] = sleep
            thing = self._add(sleep)
            pending += [holder.task for holder in thing.holders]

    def _add(self, sleep: Sleep) -> Thing:
        key = _key(sleep)
        thing = self.things.get(key)
        if thing is None:
            thing = self.things[key] = Thing(sleep.kind, sleep.target)
            try:
                self._read(thing, sleep)
            except UNREADABLE as exc:
                self.scene.problems.append(problem(f"{thing.kind} {thing.vaddr:#x}", exc))
        thing.waiters.append(sleep.facts.vaddr)
        return thing

    def _read(self, thing: Thing, sleep: Sleep) -> None:
        """Find who must act for a thing to come."""
        if thing.kind in LOCKS and thing.vaddr:
            thing.holders, thing.state = self._holders.read(thing.kind, thing.vaddr)
            self._check_owner(thing, sleep)
        elif thing.kind == "completion" and thing.vaddr:
            _, thing.state = self._holders.read("completion", thing.vaddr)
        elif thing.kind == "work":
            self._find_workers(thing, sleep)
        elif thing.kind == "task" and thing.vaddr in self.tasks:
            thing.holders = [Holder(thing.vaddr, "must stop")]
        elif thing.kind == "rcu":
            thing.holders = [
                Holder(task, how, certain=sure)
                for task, how, sure in find_rcu_blockers(self.scene)
                if task in self.tasks
            ]
        elif thing.kind == "cpu":
            running = {cpu: task for task, cpu in self.scene.stacks.running.items()}
            if thing.vaddr in running and sleep.function.startswith("stop_one_cpu"):
                thing.holders = [Holder(running[thing.vaddr], "runs on the CPU", certain=False)]

    def _check_owner(self, thing: Thing, sleep: Sleep) -> None:
        """Look whether the owner that a lock records can still be the one who took it."""
        found = self.owner_word(thing)
        if found is None:
            return
        word = found[1]
        owner = word & ~_OWNER_FLAGS
        if thing.kind == "mutex" and word & _MUTEX_PICKUP:
            # It was handed over, and its new owner only has to run.
            thing.holders = []
            thing.state = "handed over"
            return
        if not thing.holders:
            is_held = not thing.state.startswith("unlocked")
            if owner and is_held and owner not in self.tasks:
                thing.owner, thing.gone = owner, self._fate(owner)
            return
        facts = self.tasks[thing.holders[0].task]
        try:
            born = facts.number("start_time")
            began = sleep.facts.last_run_ns
        except UNREADABLE:
            return
        if born > began + _REBORN_NS:
            thing.owner, thing.gone, thing.holders = facts.vaddr, "reused", []

    def owner_word(self, thing: Thing) -> tuple[int, int] | None:
        """Read where a lock records its owner, and what stands there; None: it does not, or cannot be read."""
        names = _OWNERS.get(thing.kind)
        if names is None or not thing.vaddr:
            return None
        try:
            vaddr = thing.vaddr + int(drgn.offsetof(self.scene.prog.type(names[0]), names[1]))
            return vaddr, self.workspace.memory.read_u64(vaddr)
        except UNREADABLE:
            return None

    def _fate(self, owner: int) -> str:
        """Tell what became of a task that is none any more, or that the list of tasks does not reach."""
        try:
            found = find_object(self.workspace, owner, self.scene.problems)
        except UNREADABLE:
            return "freed" if self.has_all_tasks else "unknown"
        if found is not None and not found.object.allocated:
            return "freed"
        if not self.has_all_tasks:
            return "unknown"
        return "unlisted" if found is not None else "freed"

    def _find_workers(self, thing: Thing, sleep: Sleep) -> None:
        """Find the workers whose items stand between a flush and its end."""
        queues = self.queues
        if queues is None:
            return
        completion = sleep.wait.lock if sleep.wait is not None else 0
        flushed = [queue for queue in queues.queues if any(one.done == completion for one in queue.flushers)]
        pwqs = {pwq for queue in flushed for pwq in queue.pwqs}
        thing.state = f"workqueue {flushed[0].name}" if flushed else ""
        thing.holders = [
            Holder(worker.task, "runs an item of the queue") for worker in queues.workers if worker.current_pwq in pwqs
        ]
        # struct wq_barrier begins with its work_struct, and its completion is right behind.
        thing.holders += [
            Holder(worker.task, "runs the item") for worker in queues.workers if _runs(worker, thing.vaddr, completion)
        ]

    def _link(self) -> None:
        self.edges = [
            Edge(waiter, holder.task, thing.vaddr, holder.certain)
            for thing in self.things.values()
            for holder in thing.holders
            for waiter in thing.waiters
        ]


def _runs(worker: Worker, work: int, completion: int) -> bool:
    if work and worker.current_work == work:
        return True
    return bool(completion) and any(0 < completion - item.vaddr < _BARRIER_BYTES for item in worker.scheduled)


def _key(sleep: Sleep) -> tuple[str, int]:
    """Tell things apart: two waits without an address are two things, but all wait for one RCU."""
    if sleep.kind == "rcu":
        return sleep.kind, 0
    return sleep.kind, sleep.target or -sleep.facts.vaddr
