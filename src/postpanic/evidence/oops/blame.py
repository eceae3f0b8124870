"""
Rank the functions of a report by how likely the fault is theirs.

The rule is the same for most kinds: walk the trace from where it happened
outwards, and pass over what reports, enters the kernel, or serves everybody
(:mod:`~postpanic.evidence.oops.functions`). Three groups differ:

* Lockdep names the place that takes the lock: that, and not a frame.
* A stalled CPU or an overrun stack was caught at a random place, deep inside;
  what counts is the callback that generic code had called: the system call's
  own code, the timer's, the work's or the protocol's function.
* A hung task waits; whom it asked to wait is what distinguishes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from postpanic.evidence.oops.dispatch import calls_back
from postpanic.evidence.oops.frames import base_name
from postpanic.evidence.oops.functions import Part, dispatchers, part_of, plain_name, syscall_name
from postpanic.evidence.oops.kinds import FAMILIES, Family, Kind
from postpanic.evidence.oops.model import Blame, Frame, Lock, Section, Trace

__all__ = ["rank"]

_RANKS = 8
_NO_CALLBACKS = frozenset({Part.ENTRY, Part.INTERRUPT, Part.REPORTING, Part.TRACING, Part.WAITING})
_STALLS = frozenset({Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.CSD_LOCK, Kind.WORKQUEUE_LOCKUP})
_BY_LOCK = frozenset({Kind.DEADLOCK, Kind.LOCK_STATE, Kind.LOCKDEP})
_FAULTS = frozenset(kind for kind, family in FAMILIES.items() if family in {Family.MEMORY_ACCESS, Family.EXCEPTION})
_NEAR = 2
"""Frames from the fault on whose own code may be to blame, whatever part they play."""
_FAULTY_TOO = frozenset({Part.INTERRUPT, Part.ENTRY, Part.WAITING})
"""Parts whose own code may fault."""
_SERVER_RANK = 3
_SERVERS = frozenset({Part.ALLOCATOR, Part.WAITING, Part.LIBRARY, Part.INTERRUPT, Part.ENTRY, Part.LOCKING})
_SERVING = frozenset({Part.ALLOCATOR, Part.WAITING, Part.LIBRARY})
_TAKE_LOCKS = frozenset({None, *_FAULTY_TOO})
_RECURSIONS = 8
"""Calls of a function by itself, from which on a full stack is its doing."""


class _Ranking:
    """Candidates in order, each once."""

    def __init__(self) -> None:
        self.found: dict[str, Blame] = {}

    def add(self, function: str, reason: str, module: str = "") -> None:
        name = plain_name(function)
        if name and name not in self.found and len(self.found) < _RANKS:
            self.found[name] = Blame(name, reason, module)


def rank(
    kind: Kind, traces: tuple[Trace, ...], locks: tuple[Lock, ...], named: tuple[str, ...] = ()
) -> tuple[Blame, ...]:
    """
    Return the functions to blame, the best guess first.

    Parameters
    ----------
    named : tuple of str
        Functions that the kernel's message names itself.
    """
    ranking = _Ranking()
    if kind is Kind.DEADLOCK:
        _rank_irq_use(traces, ranking)
    if kind in _BY_LOCK:
        for lock in locks:
            if lock.is_wanted and part_of(lock.function) in _TAKE_LOCKS:
                ranking.add(lock.function, f"takes {lock.name or 'the lock'}")
    if kind is Kind.KCSAN:
        for function in named:
            ranking.add(function, "the message names it")
    chosen = list(_chosen(kind, traces))
    for trace in chosen if kind in _STALLS or kind is Kind.STACK_OVERFLOW else ():
        if kind is Kind.STACK_OVERFLOW:
            _rank_recursion(trace, ranking)
        _rank_callbacks(kind, trace, ranking)
    for function in named:
        part = part_of(function)
        if part is None or (part in _FAULTY_TOO and kind is not Kind.WARNING):
            ranking.add(function, "the message names it")
    frames = [frame for trace in chosen for frame in trace]
    _rank_frames(kind, frames, ranking)
    if not ranking.found:
        _rank_leftovers(kind, frames, locks, named, ranking)
    return _with_server(kind, frames, tuple(ranking.found.values()))


def _with_server(kind: Kind, frames: list[Frame], ranked: tuple[Blame, ...]) -> tuple[Blame, ...]:
    """Put the function that served the first one third: it is at fault now and then."""
    if kind in _STALLS or kind in _BY_LOCK or not ranked:
        return ranked
    server: Frame | None = None
    for frame in frames:
        if plain_name(frame.function) == ranked[0].function:
            break
        part = part_of(frame.function)
        if frame.is_reliable and part in _SERVERS and (server is None or not server.is_pc):
            server = frame
    if server is None or plain_name(server.function) in {blame.function for blame in ranked}:
        return ranked
    reason = f"{part_of(server.function) or Part.LIBRARY}, but it was running there"
    blame = Blame(plain_name(server.function), reason, server.module)
    return (*ranked[: _SERVER_RANK - 1], blame, *ranked[_SERVER_RANK - 1 :])[:_RANKS]


def _rank_irq_use(traces: tuple[Trace, ...], ranking: _Ranking) -> None:
    """Where a lock was used in an interrupt: that use is what makes the others wrong."""
    for trace in traces:
        if trace.section is Section.LOCK and trace.title.endswith("irq-safe at:"):
            for frame in trace.frames:
                if frame.is_reliable and frame.function and part_of(frame.function, module=frame.module) is None:
                    ranking.add(frame.function, "takes the lock in an interrupt")
                    return


def _chosen(kind: Kind, traces: tuple[Trace, ...]) -> Iterator[list[Frame]]:
    """Yield the frames of the traces that tell where it happened."""
    wanted = {Section.MAIN}
    if kind in _STALLS:
        wanted = {Section.CPU, Section.TASK, Section.MAIN}
    for trace in traces:
        if trace.section in wanted and not (kind in _STALLS and _is_grace_period_thread(trace)):
            yield [frame for frame in trace.frames if frame.function and not frame.is_inline]


def _is_grace_period_thread(trace: Trace) -> bool:
    return any(frame.function.startswith(("rcu_gp_kthread", "rcu_gp_fqs_loop")) for frame in trace.frames)


def _rank_recursion(frames: list[Frame], ranking: _Ranking) -> None:
    """Blame a function that calls itself again and again: the stack is full of it."""
    names = [frame.function for frame in frames if frame.is_reliable]
    calls = Counter(outer for inner, outer in pairwise(names) if inner == outer)
    for name, count in calls.most_common(1):
        if count >= _RECURSIONS:
            ranking.add(name, f"calls itself {count} times", next(one.module for one in frames if one.function == name))


def _rank_callbacks(kind: Kind, frames: list[Frame], ranking: _Ranking) -> None:
    reliable = [frame for frame in frames if frame.is_reliable]
    if any(_waits_for_cpus(frame) for frame in reliable):
        ranking.add("smp_call_function", "waits for the other CPUs")
    for part in _contexts(reliable) if kind in _STALLS else [reliable]:
        for place, (inner, outer) in enumerate(pairwise(part)):
            if calls_back(outer.function) and not _is_generic(inner) and part_of(inner.function) not in _NO_CALLBACKS:
                if place and _adapts(inner, part[place - 1]):
                    ranking.add(part[place - 1].function, f"{plain_name(inner.function)} only adapts its arguments")
                ranking.add(inner.function, f"{plain_name(outer.function)} called it")


def _is_generic(frame: Frame) -> bool:
    """Tell whether a function called back belongs to everybody as well: what it calls in turn counts."""
    return base_name(frame.function).lstrip("_") in dispatchers()


def _adapts(wrapper: Frame, inner: Frame) -> bool:
    """Tell whether a function is another one's entry for 32-bit callers: ``foo_compat_ioctl`` of ``foo_ioctl``."""
    name = plain_name(wrapper.function)
    return "compat_" in name and name.replace("compat_", "", 1) == plain_name(inner.function)


def _waits_for_cpus(frame: Frame) -> bool:
    return frame.function.startswith(("smp_call_function", "on_each_cpu"))


def _contexts(frames: list[Frame]) -> list[list[Frame]]:
    """Cut a stack where interrupts entered; the task's part comes first where it is in a driver's hands, or dies."""
    parts: list[list[Frame]] = [[]]
    for frame in frames:
        if frame.is_pc and parts[-1]:
            parts.append([])
        parts[-1].append(frame)
    if len(parts) > 1 and any(_takes_sample(frame) for frame in parts[0]):
        del parts[0]
    if any(frame.function.startswith("do_exit") or "_ioctl" in frame.function for frame in parts[-1]):
        return parts[::-1]
    return parts


def _takes_sample(frame: Frame) -> bool:
    return frame.function.startswith(("update_process_times", "tick_", "watchdog_timer_fn", "nmi_"))


def _rank_frames(kind: Kind, frames: list[Frame], ranking: _Ranking) -> None:
    passed: Part | None = None
    served: Frame | None = None
    for position, frame in enumerate(frames):
        if not frame.is_reliable or (kind is Kind.HUNG_TASK and _rank_bucket(frame, ranking)):
            continue
        part = _part_in(kind, frame)
        if position < _NEAR and frames[0].is_pc and kind in _FAULTS and part in _FAULTY_TOO:
            part = None
        if part in _SERVING and served is None:
            served = frame
        if served is not None and not ranking.found and _enters_interrupt(frame):
            # What lies behind is the task that the interrupt hit: it has no part in this.
            ranking.add(served.function, "all that the interrupt did", served.module)
        if part is None or (part is Part.ENTRY and syscall_name(frame.function)):
            reason = f"first behind one that {passed.value}" if passed is not None else "in the trace"
            ranking.add(frame.function, reason, frame.module)
            passed = None
        else:
            passed = part


def _part_in(kind: Kind, frame: Frame) -> Part | None:
    """Tell the part of a function in a report of this kind."""
    if kind is Kind.HUNG_TASK and frame.function.startswith("console_lock"):
        return Part.LOCKING
    if kind is Kind.MEMORY_LEAK and "alloc" in frame.function:
        return Part.ALLOCATOR
    return part_of(frame.function, frame.location, frame.module)


def _rank_bucket(frame: Frame, ranking: _Ranking) -> bool:
    """Rank what many tasks wait for at once under one name."""
    if frame.function.startswith("rtnl_lock"):
        ranking.add("rtnl_lock", "waits for the lock of all network configuration")
        return True
    if frame.function.startswith(("synchronize_", "__synchronize_")):
        ranking.add("synchronize_rcu", "waits for a grace period")
        return True
    return False


def _enters_interrupt(frame: Frame) -> bool:
    return frame.function.startswith(
        (
            "asm_sysvec_",
            "apic_timer_interrupt",
            "__irq_svc",
            "el1_irq",
            "el1h_64_irq",
            "common_interrupt",
            "ret_from_intr",
        )
    )


def _rank_leftovers(
    kind: Kind, frames: list[Frame], locks: tuple[Lock, ...], named: tuple[str, ...], ranking: _Ranking
) -> None:
    silent = {Part.REPORTING, Part.TRACING, Part.EXCEPTION}
    if kind is Kind.HUNG_TASK:
        silent |= {Part.WAITING, Part.LOCKING}
    for lock in locks:
        if lock.is_wanted:
            ranking.add(lock.function, "takes the lock; no other is known")
    for frame in frames:
        if frame.is_reliable and part_of(frame.function, module=frame.module) not in silent:
            ranking.add(frame.function, "all the others report")
            return
    for frame in frames:
        if frame.is_pc and part_of(frame.function) in {None, Part.LIBRARY, Part.LOCKING, Part.ALLOCATOR}:
            ranking.add(frame.function, "it was running; no caller is known")
    for function in named:
        if kind is not Kind.WARNING:
            ranking.add(function, "the message names it; no other is known")
    entered = [frame for frame in frames if frame.is_reliable and part_of(frame.function) is Part.EXCEPTION]
    if entered and not ranking.found:
        ranking.add(entered[0].function, "nothing but the entry of the exception is known")
