"""
What a task that does not run waits for: the kind of wait, the thing, and whose code asked for it.

The innermost frames of a sleeping task are services: the scheduler, what waits
for it, the lock. They tell the kind. The first function behind them that does
work of its own is the one that asked to wait. The address of the thing comes
from the structure with which the task waits, on its stack
(:mod:`postpanic.analysis.locks.waiting`), or from the arguments of the services.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import drgn
from drgn import Program

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks.waiting import Wait, WaitFinder, classify_wait
from postpanic.analysis.stacks.arguments.flow import MACHINES, CodeFlow
from postpanic.analysis.stacks.arguments.recover import Recovery
from postpanic.analysis.stacks.engine import Stacks
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.evidence.oops.functions import Part, part_of

__all__ = ["LOCKS", "Sleep", "SleepReader", "find_own", "is_own", "kind_of_wait"]

LOCKS = frozenset({"mutex", "rwsem", "semaphore", "percpu-rwsem"})
"""Kinds that somebody holds."""

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # kind, beginnings of names; kernel/rcu, kernel/workqueue.c, kernel/kthread.c, kernel/stop_machine.c, kernel/smp.c,
    # block/, mm/filemap.c, fs/buffer.c, kernel/futex, kernel/time, kernel/freezer.c
    ("rcu", ("synchronize_rcu", "synchronize_net", "synchronize_sched", "rcu_barrier", "wait_rcu_gp", "__wait_rcu_gp")),
    ("srcu", ("synchronize_srcu", "__synchronize_srcu", "srcu_barrier")),
    (
        "work",
        (
            *("flush_work", "__flush_work", "drain_workqueue", "cancel_work_sync", "cancel_delayed_work_sync"),
            *("__cancel_work", "flush_delayed_work", "destroy_workqueue", "start_flush_work"),
        ),
    ),
    ("task", ("kthread_stop", "kthread_park")),
    ("cpu", ("stop_one_cpu", "stop_two_cpus", "stop_cpus", "__stop_cpus", "stop_machine", "smp_call_", "on_each_cpu")),
    (
        "io",
        (
            *("io_schedule", "bit_wait_io", "submit_bio_wait", "blk_execute_rq", "blk_wait_io", "__wait_on_buffer"),
            *("folio_wait_bit", "wait_on_page_bit", "__folio_lock", "__lock_page", "blk_mq_get_tag", "rq_qos_wait"),
            *("wbt_wait", "blkdev_issue_flush", "folio_wait_writeback", "blk_io_schedule", "__lock_buffer"),
            *("__filemap_get_folio", "filemap_get_pages", "filemap_update_page", "pagecache_get_page", "read_cache_"),
        ),
    ),
    (
        "server",
        (
            *("request_wait_answer", "__fuse_request_send", "__fuse_simple_request", "fuse_simple_request"),
            *("rpc_wait_bit_killable", "__rpc_execute", "p9_client_rpc", "p9_virtio_request"),
        ),
    ),
    ("queue freeze", ("blk_mq_freeze_queue_wait", "blk_freeze_queue", "blk_queue_enter", "__bio_queue_enter")),
    ("futex", ("futex_wait", "futex_lock_pi")),
    ("child", ("wait_for_vfork_done",)),
    ("freezer", ("__refrigerator",)),
    ("program", ("call_usermodehelper_exec",)),
    ("timer", ("timer_delete_sync", "del_timer_sync", "__timer_delete_sync", "hrtimer_cancel")),
    ("sleep", ("msleep", "ssleep", "usleep_range", "fsleep", "schedule_hrtimeout", "do_nanosleep", "hrtimer_nano")),
)  # fmt: skip
_SERVING = frozenset({Part.WAITING, Part.LOCKING, Part.LIBRARY, Part.TRACING})
_DELAYS = frozenset(
    {"__delay", "__const_udelay", "__udelay", "__ndelay", "udelay", "ndelay", "native_halt", "cpu_relax"}
)
"""Services that loop on behalf of others."""
_TAKERS = ("mutex_lock", "down", "wait_for_completion", "percpu_down")
"""Beginnings of the names of what is called with the address of the lock."""
_DEEPEST = 24
_LOWEST = 1 << 63
_ENTRIES_BYTES = 4096
_MOST_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Sleep:
    """
    One task that does not run.

    Attributes
    ----------
    kind : str
        A lock's (:data:`LOCKS`), ``completion``, ``waitqueue``, ``rcu``, ``srcu``, ``work``, ``task``, ``cpu``,
        ``io``, ``server``, ``queue freeze``, ``futex``, ``child``, ``freezer``, ``program``, ``timer``, ``sleep``;
        ``preempted``: it could run; empty: it sleeps, and nobody knows for what.
    function : str
        The service that it waits in, the outermost.
    own : Frame, optional
        Of the function that asked for it.
    own_index : int
        Its place in the trace.
    target : int
        Address of the thing; a CPU's number; 0: not known.
    wait : Wait, optional
        What the lock's own list of waiters says.
    """

    facts: TaskFacts
    trace: Trace
    kind: str
    function: str
    own: Frame | None
    own_index: int
    target: int = 0
    wait: Wait | None = None


def _kind_of(name: str) -> str:
    for kind, beginnings in _KINDS:
        if name.startswith(beginnings):
            return kind
    # flush_workqueue() and its inner half.
    return "work" if name.lstrip("_").startswith("flush_workqueue") else ""


def is_own(name: str) -> bool:
    """Tell whether a function does work of its own, and does not wait, lock or enter for others."""
    return bool(name) and part_of(name) is None and not _kind_of(name) and name not in _DELAYS


def kind_of_wait(names: Sequence[str]) -> tuple[str, str]:
    """Tell what kind of wait the functions of a sleeping task show, innermost first, and the outermost service."""
    kind = function = ""
    for name in names[:_DEEPEST]:
        lock = classify_wait(name)
        known = _kind_of(name) or (lock[0] if lock is not None else "")
        if not known and part_of(name) not in _SERVING:
            break
        kind, function = known or kind, name
    return kind, function


def find_own(frames: list[Frame], start: int = 0) -> tuple[int, Frame | None]:
    """Find the first function from a place outwards that does work of its own; its place, and None where none does."""
    for index in range(start, len(frames)):
        name = function_of(frames[index])
        if is_own(name):
            return index, frames[index]
    return len(frames), None


class SleepReader:
    """
    Reads what tasks wait for.

    Parameters
    ----------
    stacks : Stacks
    finder : WaitFinder
        For the locks that have lists of waiters.
    """

    def __init__(self, prog: Program, stacks: Stacks, finder: WaitFinder) -> None:
        self._prog = prog
        self._stacks = stacks
        self._finder = finder
        self._memory = stacks.words.memory
        self._flows = CodeFlow(self._memory, stacks.code) if self._memory.machine in MACHINES else None
        self._entry = self._find_entry(prog)

    @property
    def flows(self) -> CodeFlow | None:
        """What is known of the code of functions; None on machines whose code nobody follows here."""
        return self._flows

    @staticmethod
    def _find_entry(prog: Program) -> tuple[int, int, int, int] | None:
        """Find ``private``, ``func`` and ``entry`` of ``struct wait_queue_entry``, and ``head`` of the queue."""
        try:
            entry, head = prog.type("struct wait_queue_entry"), prog.type("struct wait_queue_head")
            names = ("private", "func", "entry")
            private, func, link = (int(drgn.offsetof(entry, name)) for name in names)
            return private, func, link, int(drgn.offsetof(head, "head"))
        except LookupError:
            return None

    def read(self, facts: TaskFacts, trace: Trace) -> Sleep:
        """Tell what a task waits for; a task that runs is ``preempted``."""
        frames = trace.frames
        index, kind, function = 0, "", ""
        for index, frame in enumerate(frames[:_DEEPEST]):  # noqa: B007 - where it stopped
            name = function_of(frame)
            known = _kind_of(name)
            if not known and part_of(name) not in _SERVING:
                break
            kind = known or kind
            function = name
        own_index, own = find_own(frames, index)
        wait = self._finder.find(facts, trace)
        if wait is not None and (wait.kind in LOCKS or not kind):
            target = wait.lock or self._argument(trace, range(index), _TAKERS)
            return Sleep(facts, trace, wait.kind, wait.function, own, own_index, target, wait)
        if kind:
            target = wait.lock if wait is not None and kind not in {"work", "task", "cpu"} else 0
            target = self._target(kind, trace, index) or target
            return Sleep(facts, trace, kind, function, own, own_index, target, wait)
        return self._other(facts, trace, function, own, own_index)

    def _other(self, facts: TaskFacts, trace: Trace, function: str, own: Frame | None, own_index: int) -> Sleep:
        """Tell apart who waits on a wait queue, who sleeps for a time, and who could run."""
        try:
            state = facts.state
        except UNREADABLE:
            state = ""
        if state == "RU":
            return Sleep(facts, trace, "preempted", function, own, own_index)
        queue = self._find_queue(facts, trace, own_index)
        if queue:
            return Sleep(facts, trace, "waitqueue", function, own, own_index, queue)
        kind = "sleep" if function.startswith("schedule_timeout") and self._has_timer(facts, trace) else ""
        return Sleep(facts, trace, kind, function, own, own_index)

    def _target(self, kind: str, trace: Trace, end: int) -> int:
        beginnings = {
            "work": ("flush_work", "cancel_work_sync", "__flush_work", "__cancel_work"),
            "task": ("kthread_",),
        }
        if kind == "cpu":
            return self._argument(trace, range(end), ("stop_one_cpu",), lowest=0)
        return self._argument(trace, range(end), beginnings[kind]) if kind in beginnings else 0

    def _argument(self, trace: Trace, indexes: range, beginnings: tuple[str, ...], lowest: int = _LOWEST) -> int:
        """Recover the first argument of the outermost of some services; 0: it is not known."""
        if self._flows is None:
            return 0
        register = self._flows.machine.arguments[0]
        recovery = self.recovery(trace)
        for index in reversed(indexes):
            name = function_of(trace.frames[index])
            if not name.lstrip("_").startswith(beginnings) and not name.startswith(beginnings):
                continue
            found = recovery.argument(index, register) if recovery is not None else None
            if found is not None and found.size_bytes == 8 and found.value >= lowest:
                return found.value
        return 0

    def recovery(self, trace: Trace) -> Recovery | None:
        """Give what recovers arguments of a trace; None on machines whose code nobody follows here."""
        if self._flows is None:
            return None
        return Recovery(self._stacks.words, self._stacks.code, self._flows, trace, trace.registers)

    def _words(self, trace: Trace, own_index: int) -> tuple[int, list[int]]:
        """Read the stack up to the frame of the function that asked to wait, and that frame."""
        if not trace.frames:
            return 0, []
        low = trace.frames[0].sp
        last = min(own_index + 1, len(trace.frames) - 1)
        size = min(max(trace.frames[last].sp - low, 0) + 256, _ENTRIES_BYTES)
        area = trace.frames[0].area
        size = (size if area is None else min(size, area.end - low)) // 8 * 8
        try:
            return low, list(struct.unpack(f"<{size // 8}Q", self._memory.read(low, size)))
        except UNREADABLE:
            return low, []

    def _has_timer(self, facts: TaskFacts, trace: Trace) -> bool:
        """Tell whether ``schedule_timeout()`` has a timer, which only a limited sleep needs."""
        function = self._stacks.code.vaddr("process_timeout")
        low, words = self._words(trace, 4)
        return function is not None and function in words and bool(low) and bool(facts.vaddr)

    def _find_queue(self, facts: TaskFacts, trace: Trace, own_index: int) -> int:
        """Find the head of the wait queue that an entry on the task's stack is in; 0: there is none."""
        if self._entry is None:
            return 0
        private, func, link, head = self._entry
        low, words = self._words(trace, own_index)
        for position, word in enumerate(words):
            if word != facts.vaddr:
                continue
            entry = low + 8 * position - private
            try:
                place = self._stacks.code.find(self._memory.read_u64(entry + func))
                if place is None or place.offset:
                    continue
                node = self._follow(entry + link, func - link)
            except UNREADABLE:
                continue
            if node:
                return node - head
        return 0

    def _follow(self, start: int, func: int) -> int:
        """Follow a wait queue from an entry to its head: the one whose would-be function is no code; 0: no list."""
        node = self._memory.read_u64(start)
        if node < _LOWEST or self._memory.read_u64(node + 8) != start:
            return 0
        for _ in range(_MOST_ENTRIES):
            if node == start:
                return 0
            try:
                place = self._stacks.code.find(self._memory.read_u64(node + func))
            except UNREADABLE:
                place = None
            if place is None or place.offset:
                return node
            node = self._memory.read_u64(node)
        return 0
