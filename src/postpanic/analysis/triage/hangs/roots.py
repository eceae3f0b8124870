"""Follow who waits for whom to the end: the one that nobody keeps waiting is the root of the hang."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks import Holder
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.cpus import Cpu, Mode, read_cpus
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.analysis.triage.hangs.picture import Picture, Thing
from postpanic.analysis.triage.hangs.sleeping import LOCKS, Sleep
from postpanic.evidence.oops.functions import Part, part_of, syscall_name

__all__ = ["Chain", "Root", "RootKind", "find_chains"]

_LONGEST = 1000
_HARMLESS = frozenset({"freezer", "child", "futex"})
"""What waits in these is no hang of the kernel."""
_CALLS_OF_WAITING = frozenset(
    {
        *("nanosleep", "clock_nanosleep", "pause", "wait4", "waitid", "waitpid", "futex", "poll", "ppoll", "select"),
        *("pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2", "rt_sigsuspend", "rt_sigtimedwait", "io_getevents"),
        *("accept", "accept4", "recvfrom", "recvmsg", "msgrcv", "semtimedop", "sigsuspend", "restart_syscall"),
    }
)
"""Calls in which programs wait for other programs, holding no lock of the kernel."""
_IDLE_THREADS = frozenset(
    {*("worker_thread", "rescuer_thread", "kthread", "smpboot_thread_fn", "kthread_worker_fn", "kthreadd")}
)


class RootKind(enum.Enum):
    """How a chain of waits ends."""

    GONE = "the lock's owner is gone"
    WENT_ON = "the lock's owner went on without it"
    UNHELD = "nobody is known to hold it"
    NEVER = "what is waited for does not come"
    IO = "a device does not answer"
    RCU = "a grace period does not end"
    ASLEEP = "the holder sleeps"
    RUNNING = "the holder runs"
    STARVED = "the holder could run, and does not"
    NO_WORKER = "nobody runs the work item"
    CYCLE = "tasks wait for each other"


@dataclass(frozen=True, slots=True)
class Root:
    """
    The end of a chain.

    Attributes
    ----------
    facts : TaskFacts
        The task at the end: the holder, or the last that waits.
    sleep : Sleep, optional
        What that task waits for; None: it runs.
    thing : Thing, optional
        What the chain ends at.
    cpu : Cpu, optional
        Where the task runs.
    """

    kind: RootKind
    facts: TaskFacts
    sleep: Sleep | None = None
    thing: Thing | None = None
    cpu: Cpu | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The same for chains that end at the same thing."""
        if (
            self.kind in {RootKind.GONE, RootKind.UNHELD, RootKind.NEVER}
            and self.thing is not None
            and self.thing.vaddr
        ):
            return self.thing.kind, self.thing.vaddr
        if self.kind in {RootKind.IO, RootKind.RCU}:
            return self.kind.name, 0
        return "task", self.facts.vaddr


@dataclass(frozen=True, slots=True)
class Chain:
    """A task that waits, the steps to the end, and the end."""

    steps: tuple[tuple[Sleep, Holder | None], ...]
    """Each that waits, with the holder that it waits for; the last has none where the chain ends at a thing."""
    root: Root


def find_chains(picture: Picture) -> list[Chain]:
    """Follow every task in uninterruptible sleep to its root."""
    found = []
    for facts in picture.scene.tasks:
        if picture.state(facts) == "UN" and facts.vaddr in picture.sleeping:
            chain = _follow(picture, facts)
            if chain is not None:
                found.append(chain)
    return found


def _follow(picture: Picture, facts: TaskFacts) -> Chain | None:
    steps: list[tuple[Sleep, Holder | None]] = []
    seen: set[int] = set()
    current = facts
    via: Thing | None = None
    while len(steps) < _LONGEST:
        if current.vaddr in seen:
            return Chain(tuple(steps), Root(RootKind.CYCLE, current))
        seen.add(current.vaddr)
        sleep = picture.sleeping.get(current.vaddr)
        if sleep is None:
            return Chain(tuple(steps), _running(picture, current)) if steps else None
        thing = picture.thing_of(current.vaddr)
        if via is not None and via.kind in LOCKS and not via.is_seen and _went_on(picture, sleep, steps[-1][0]):
            return Chain(tuple(steps), Root(RootKind.WENT_ON, current, sleep, via))
        holder = _choose(picture, thing)
        steps.append((sleep, holder))
        if holder is None or thing is None:
            root = _end(picture, sleep, thing, is_holder=len(steps) > 1)
            return Chain(tuple(steps), root) if root is not None else None
        via, current = thing, picture.tasks[holder.task]
    return None


def _choose(picture: Picture, thing: Thing | None) -> Holder | None:
    """Choose whom to follow: a recorded holder first, one that waits itself before one that runs."""
    holders = [holder for holder in (thing.holders if thing is not None else ()) if holder.task in picture.tasks]
    return min(holders, key=lambda one: (not one.certain, one.task not in picture.sleeping), default=None)


def _end(picture: Picture, sleep: Sleep, thing: Thing | None, *, is_holder: bool) -> Root | None:
    """Tell what the end of a chain is; None: it is no hang."""
    kind = RootKind.NEVER
    if sleep.kind in _HARMLESS or (_is_new_thread(sleep) and not is_holder):
        return None
    if thing is not None and thing.kind in LOCKS:
        if thing.gone:
            kind = RootKind.GONE
        elif thing.state in {"unlocked", "handed over"}:
            return None
        else:
            kind = RootKind.UNHELD
    elif sleep.kind in {"io", "queue freeze"}:
        kind = RootKind.IO
    elif sleep.kind in {"rcu", "srcu"}:
        kind = RootKind.RCU
    elif sleep.kind == "work":
        kind = RootKind.NO_WORKER
    elif sleep.kind == "preempted":
        return _running(picture, sleep.facts) if is_holder else None
    elif sleep.kind == "sleep":
        kind = RootKind.ASLEEP
    return Root(kind, sleep.facts, sleep, thing)


def _is_new_thread(sleep: Sleep) -> bool:
    """Tell whether a kernel thread was made and not started yet: it sleeps in ``kthread()`` itself."""
    names = [function_of(frame) for frame in sleep.trace.frames]
    return len(names) < 6 and any(name in {"kthread", "ret_from_fork"} for name in names[:3])


def _running(picture: Picture, facts: TaskFacts) -> Root:
    cpu = next((one for one in read_cpus(picture) if one.facts.vaddr == facts.vaddr), None)
    if cpu is None:
        return Root(RootKind.STARVED, facts, picture.sleeping.get(facts.vaddr))
    if cpu.mode is Mode.USER:
        return Root(RootKind.WENT_ON, facts, None, None, cpu)
    return Root(RootKind.RUNNING, facts, None, None, cpu)


def _went_on(picture: Picture, sleep: Sleep, waiter: Sleep) -> bool:
    """
    Tell whether the owner of a lock is past the code that took it.

    It sleeps where no code holds locks for others: a program in a call that only waits,
    an idle worker, a dead task. A frame of the module whose lock it is says otherwise.
    """
    names = [function_of(frame) for frame in sleep.trace.frames]
    if picture.state(sleep.facts) in {"ZO", "DE"}:
        return True
    module = waiter.own.place.module if waiter.own is not None and waiter.own.place is not None else ""
    if module and any(frame.place is not None and frame.place.module == module for frame in sleep.trace.frames):
        return False
    try:
        is_thread = sleep.facts.is_kernel_thread
    except UNREADABLE:
        return False
    if is_thread:
        working = [name for name in names if name and part_of(name) is None]
        return bool(names) and not working and bool(_IDLE_THREADS & set(names))
    calls = [syscall_name(name) for name in names if part_of(name) is Part.ENTRY or name.startswith("__")]
    return any(call in _CALLS_OF_WAITING for call in calls) and sleep.kind not in {*LOCKS, "completion", "rcu", "io"}
