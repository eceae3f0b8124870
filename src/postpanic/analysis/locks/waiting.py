"""
What a blocked task waits for.

The function that it sleeps in tells the kind of lock. The structure that stands
for it in the lock's list of waiters is a variable of that function, so it lies in
its frame; it is found there by the pointer to the task in it, and believed if its
neighbours in the list point back. Following the list leads to its head, which is in
the lock. Since 7.1 lists of waiters have no head; then the lock is ``blocked_on`` or
``blocker`` of the task, or a pointer on its stack to something whose first waiter is in the list.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import drgn
from drgn import Program, Type

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.tasks import TaskFacts
from postpanic.kernel.memory import KernelMemory

__all__ = ["KINDS", "Wait", "WaitFinder", "Waiter", "classify_wait", "find_wait_frames"]

KINDS = ("mutex", "rwsem", "semaphore", "completion", "percpu-rwsem")

_FUNCTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # kind, role, beginnings of names; kernel/locking/*.c, kernel/sched/completion.c
    ("mutex", "", ("__mutex_lock", "mutex_lock", "__ww_mutex_lock", "ww_mutex_lock")),
    ("percpu-rwsem", "reader", ("__percpu_down_read", "percpu_rwsem_wait")),
    ("percpu-rwsem", "writer", ("percpu_down_write",)),
    ("rwsem", "reader", ("rwsem_down_read_slowpath", "down_read", "__down_read")),
    ("rwsem", "writer", ("rwsem_down_write_slowpath", "down_write", "__down_write")),
    ("semaphore", "", ("__down", "___down_common", "down_interruptible", "down_killable", "down_timeout")),
    ("completion", "", ("__wait_for_common", "wait_for_completion", "do_wait_for_common", "wait_for_common")),
)
_DEEPEST_FRAME = 16
_MOST_WAITERS = 100_000
_LOWEST = 1 << 63
_RAW = 4096
"""Bytes above the frame in which pointers to a lock are looked for."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """
    A task in a lock's list of waiters.

    Parameters
    ----------
    vaddr : int
        What stands for it in the list; 0: it has no such structure.
    role : str
        ``reader`` or ``writer``; empty where the lock knows no difference.
    """

    task: int
    vaddr: int
    role: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """What one task waits for."""

    task: int
    kind: str
    function: str
    lock: int
    """Address of the lock; 0: it was not found."""
    role: str = ""
    waiters: tuple[Waiter, ...] = ()
    """All that wait, the first in line first, as far as the list can be walked."""


@dataclass(frozen=True, slots=True)
class _List:
    """How the waiters of a kind are linked."""

    task: int
    """Offset of the pointer to the task in what waits."""
    link: int
    """Offset of its ``struct list_head``."""
    head: int | None
    """Offset of the list's head in the lock; None: the list has no head."""
    first: int | None
    """Offset of the pointer to the first waiter, where there is no head."""
    type: int | None
    """Offset of ``enum rwsem_waiter_type``."""


def _offset(type_: Type, *paths: str) -> int | None:
    for path in paths:
        try:
            return int(drgn.offsetof(type_, path))
        except LookupError:
            continue
    return None


def _find_list(prog: Program, lock: str, waiter: str, paths: Sequence[str]) -> _List | None:
    task_path, link_path, head_path = paths
    try:
        waiting, locking = prog.type(waiter), prog.type(lock)
    except LookupError:
        return None
    task, link = _offset(waiting, task_path), _offset(waiting, link_path)
    if task is None or link is None:
        return None
    # wait_list became first_waiter in 7.1.
    return _List(task, link, _offset(locking, head_path), _offset(locking, "first_waiter"), _offset(waiting, "type"))


_LISTS = {
    "mutex": ("struct mutex", "struct mutex_waiter", ("task", "list", "wait_list")),
    "rwsem": ("struct rw_semaphore", "struct rwsem_waiter", ("task", "list", "wait_list")),
    "semaphore": ("struct semaphore", "struct semaphore_waiter", ("task", "list", "wait_list")),
    "completion": ("struct completion", "struct swait_queue", ("task", "task_list", "wait.task_list")),
    "percpu-rwsem": ("struct percpu_rw_semaphore", "struct wait_queue_entry", ("private", "entry", "waiters.head")),
}
# include/linux/hung_task.h: the low bits of task_struct.blocker.
_BLOCKER_KINDS = {0: "mutex", 1: "semaphore", 2: "rwsem", 3: "rwsem"}


def find_wait_frames(trace: Trace) -> tuple[str, str, list[Frame], str] | None:
    """
    Find the function in which a task waits for a lock.

    Returns
    -------
    tuple or None
        Kind, role, the frames of that wait (with the one that called it) and the name of the function.
    """
    for number, frame in enumerate(trace.frames[:_DEEPEST_FRAME]):
        found = classify_wait(_name(frame))
        if found is None:
            continue
        last = number
        while last + 1 < len(trace.frames) and (classify_wait(_name(trace.frames[last + 1])) or ("",))[0] == found[0]:
            last += 1
        kind, role = found
        roles = [role, *(known[1] for each in trace.frames[number : last + 1] if (known := classify_wait(_name(each))))]
        # percpu_rwsem_wait() is called for writers, too.
        role = "writer" if "writer" in roles else role
        return kind, role, list(trace.frames[number : last + 2]), _name(trace.frames[last])
    return None


def _name(frame: Frame) -> str:
    return frame.place.function.partition(".")[0] if frame.place is not None else ""


def classify_wait(name: str) -> tuple[str, str] | None:
    """Tell the kind of lock that a function waits for, and its role; None: it waits for none."""
    for kind, role, beginnings in _FUNCTIONS:
        if name == "down" or name.startswith(beginnings):
            return ("semaphore", "") if name == "down" else (kind, role)
    return None


class WaitFinder:
    """
    Finds what blocked tasks wait for.

    Parameters
    ----------
    tasks : set of int
        Addresses of all tasks of the kernel: what points elsewhere is no task.
    """

    def __init__(self, prog: Program, memory: KernelMemory, tasks: set[int]) -> None:
        self._memory = memory
        self._tasks = tasks
        self._lists = {kind: _find_list(prog, *words) for kind, words in _LISTS.items()}
        self._writer = self._find_writer(prog)

    @staticmethod
    def _find_writer(prog: Program) -> int | None:
        try:
            return _offset(prog.type("struct percpu_rw_semaphore"), "writer.task")
        except LookupError:
            return None

    def find(self, facts: TaskFacts, trace: Trace) -> Wait | None:
        """Find what a task waits for; None: nothing of :data:`KINDS`."""
        found = find_wait_frames(trace)
        if found is None:
            return None
        kind, role, frames, function = found
        low = trace.frames[0].sp
        high = frames[-1].sp if len(frames) > 1 else low + _RAW
        words = self._read_words(low, max(low, min(high, low + 4 * _RAW)) + _RAW)
        layout = self._lists[kind]
        if layout is not None:
            for position, word in enumerate(words):
                if word == facts.vaddr:
                    wait = self._follow(kind, role, function, facts, low + 8 * position - layout.task, layout, words)
                    if wait is not None:
                        return wait
        lock = self._find_percpu_writer(facts.vaddr, words) if kind == "percpu-rwsem" else 0
        return Wait(facts.vaddr, kind, function, lock or self._recorded(facts, kind), role)

    def _read_words(self, low: int, high: int) -> list[int]:
        size = (high - low) // 8 * 8
        while size > 0:
            try:
                return list(struct.unpack(f"<{size // 8}Q", self._memory.read(low, size)))
            except UNREADABLE:
                # The top of the stack is near.
                size = size // 2 // 8 * 8
        return []

    def _read_u64(self, vaddr: int) -> int:
        return self._memory.read_u64(vaddr)

    def _follow(
        self, kind: str, role: str, function: str, facts: TaskFacts, vaddr: int, layout: _List, words: Sequence[int]
    ) -> Wait | None:
        """Follow the list from one waiter to its head; None if it is no list."""
        start = vaddr + layout.link
        try:
            following = self._read_u64(start)
            if following < _LOWEST or self._read_u64(following + 8) != start:
                return None
            nodes, head = self._walk(start, layout)
        except UNREADABLE:
            return None
        lock = 0
        if head is not None and layout.head is not None:
            lock = head - layout.head
        elif layout.first is not None:
            lock = self._recorded(facts, kind) or self._find_headless(nodes, layout, words)
            nodes = self._rotate(nodes, lock, layout)
        waiters = tuple(self._waiter(node - layout.link, layout, role) for node in nodes)
        return Wait(facts.vaddr, kind, function, lock, role, waiters)

    def _walk(self, start: int, layout: _List) -> tuple[list[int], int | None]:
        """Go round the list; the element that holds no task is its head, and its successors stand first in line."""
        nodes: list[int] = []
        head: int | None = None
        node = start
        seen: set[int] = set()
        before: list[int] = []
        while node not in seen and len(seen) < _MOST_WAITERS:
            seen.add(node)
            if self._read_u64(node - layout.link + layout.task) in self._tasks:
                nodes.append(node)
            else:
                head, before, nodes = node, nodes, []
            node = self._read_u64(node)
        return nodes + before, head

    def _rotate(self, nodes: list[int], lock: int, layout: _List) -> list[int]:
        try:
            first = (self._read_u64(lock + (layout.first or 0)) & ~7) + layout.link
            place = nodes.index(first)
        except (*UNREADABLE, IndexError):
            return nodes
        return nodes[place:] + nodes[:place]

    def _waiter(self, vaddr: int, layout: _List, role: str) -> Waiter:
        task = self._read_u64(vaddr + layout.task)
        if layout.type is not None:
            # enum rwsem_waiter_type: RWSEM_WAITING_FOR_WRITE, RWSEM_WAITING_FOR_READ.
            kind = self._memory.read_u32(vaddr + layout.type)
            role = {0: "writer", 1: "reader"}.get(kind, "")
        return Waiter(task, vaddr, role)

    def _recorded(self, facts: TaskFacts, kind: str) -> int:
        """Read what the kernel itself notes: ``blocker`` (e711faaafbe5, 6.15), ``blocked_on`` of mutexes."""
        try:
            blocker = facts.number("blocker")
            if blocker and _BLOCKER_KINDS.get(blocker & 3) == kind:
                return blocker & ~3
        except UNREADABLE:
            pass
        return 0

    def _pointers(self, words: Sequence[int]) -> Iterator[int]:
        seen: set[int] = set()
        for word in words:
            if word >= _LOWEST and word % 8 == 0 and word not in seen:
                seen.add(word)
                yield word

    def _find_headless(self, nodes: Sequence[int], layout: _List, words: Sequence[int]) -> int:
        wanted = {node - layout.link for node in nodes}
        for pointer in self._pointers(words):
            try:
                if layout.first is not None and self._read_u64(pointer + layout.first) & ~7 in wanted:
                    return pointer
            except UNREADABLE:
                continue
        return 0

    def _find_percpu_writer(self, task: int, words: Sequence[int]) -> int:
        """Find the per-CPU rwsem whose ``writer`` (an rcuwait) is the task."""
        for pointer in self._pointers(words):
            try:
                if self._writer is not None and self._read_u64(pointer + self._writer) == task:
                    return pointer
            except UNREADABLE:
                continue
        return 0
