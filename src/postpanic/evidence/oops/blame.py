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

from collections.abc import Iterable, Iterator

from postpanic.evidence.oops.dispatch import calls_back
from postpanic.evidence.oops.functions import Part, part_of, plain_name, syscall_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.oops.model import Blame, Frame, Lock, Section, Trace

__all__ = ["rank"]

_RANKS = 8
_STALLS = frozenset({Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.CSD_LOCK, Kind.WORKQUEUE_LOCKUP})
_BY_LOCK = frozenset({Kind.DEADLOCK, Kind.LOCK_STATE})
_OUTSIDE = frozenset({Part.ENTRY, Part.INTERRUPT})


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
            if lock.is_wanted and part_of(lock.function) not in {Part.REPORTING, Part.LOCKING}:
                ranking.add(lock.function, f"takes {lock.name or 'the lock'}")
    if kind is Kind.KCSAN:
        for function in named:
            ranking.add(function, "the message names it")
    chosen = list(_chosen(kind, traces))
    if kind in _STALLS or kind is Kind.STACK_OVERFLOW:
        for frames in chosen:
            _rank_callbacks(kind, frames, ranking)
    for function in named:
        if part_of(function) is None:
            ranking.add(function, "the message names it")
    frames = [frame for trace in chosen for frame in trace]
    _rank_frames(kind, frames, ranking)
    if not ranking.found:
        _rank_leftovers(kind, frames, locks, named, ranking)
    return tuple(ranking.found.values())


def _rank_irq_use(traces: tuple[Trace, ...], ranking: _Ranking) -> None:
    """Where a lock was used in an interrupt: that use is what makes the others wrong."""
    for trace in traces:
        if trace.section is Section.LOCK and trace.title.endswith("irq-safe at:"):
            for frame in trace.frames:
                if frame.is_reliable and frame.function and part_of(frame.function) is None:
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


def _rank_callbacks(kind: Kind, frames: list[Frame], ranking: _Ranking) -> None:
    reliable = [frame for frame in frames if frame.is_reliable]
    if any(_waits_for_cpus(frame) for frame in reliable):
        ranking.add("smp_call_function", "waits for the other CPUs")
    start = _after_interrupt(reliable) if kind in _STALLS else 0
    for inner, outer in zip(reliable[start:], reliable[start + 1 :], strict=False):
        if calls_back(outer.function) and part_of(inner.function) not in {*_OUTSIDE, Part.REPORTING, Part.WAITING}:
            ranking.add(inner.function, f"{plain_name(outer.function)} called it")


def _waits_for_cpus(frame: Frame) -> bool:
    return frame.function.startswith(("smp_call_function", "on_each_cpu"))


def _after_interrupt(frames: list[Frame]) -> int:
    """Return where the interrupt that took the sample ends, by its entry."""
    for position, frame in enumerate(frames[:80]):
        if frame.is_pc:
            return position
        if frame.function.startswith(("apic_timer_interrupt", "asm_sysvec_", "el1_irq", "el1h_64_irq", "__irq_svc")):
            return position + 1
    return 0


def _rank_frames(kind: Kind, frames: Iterable[Frame], ranking: _Ranking) -> None:
    is_hang = kind is Kind.HUNG_TASK
    passed: Part | None = None
    for frame in frames:
        if not frame.is_reliable:
            continue
        part = part_of(frame.function)
        if kind is Kind.MEMORY_LEAK and "alloc" in frame.function:
            part = Part.ALLOCATOR
        if is_hang and frame.function == "rtnl_lock":
            ranking.add(frame.function, "waits for the lock of all network configuration")
            continue
        if is_hang and frame.function.startswith(("synchronize_", "__synchronize_")):
            ranking.add("synchronize_rcu", "waits for a grace period")
            continue
        if part is None or (part is Part.ENTRY and syscall_name(frame.function)):
            reason = f"first behind one that {passed.value}" if passed is not None else "in the trace"
            ranking.add(frame.function, reason, frame.module)
            passed = None
        else:
            passed = part


def _rank_leftovers(
    kind: Kind, frames: list[Frame], locks: tuple[Lock, ...], named: tuple[str, ...], ranking: _Ranking
) -> None:
    for lock in locks:
        if lock.is_wanted:
            ranking.add(lock.function, "takes the lock; no other is known")
    for frame in frames:
        if frame.is_reliable and part_of(frame.function) not in {Part.REPORTING, Part.TRACING, Part.EXCEPTION}:
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
