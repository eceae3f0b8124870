"""
Locks, RCU and the data of a CPU, used against their rules.

Sources: ``kernel/locking/lockdep.c`` (``print_unlock_imbalance_bug()``, ``print_freed_lock_bug()``,
``print_held_locks_bug()``, ``print_lock_invalid_wait_context()``, ``lockdep_sys_exit()``,
``lockdep_rcu_suspicious()``), ``kernel/locking/spinlock_debug.c``, ``lib/smp_processor_id.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.rules.told import Rule, tell
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Finding

__all__ = ["find_broken_rule"]

_NAME = r"(?P<lock>[^\s(){}]{1,80})"
_HELD = re.compile(rf"^\s*(?:#0:\s+)?(?:[0-9a-f]{{8,16}} )?\({_NAME}\)\{{")
_TASK = r"^\s*(?:\[ )?(?:BUG: )?(?P<task>\S.{0,40}?)/-?\d{1,10}"
_PLACE = r"(?P<place>[\w./-]{1,120}:\d{1,6})"
_GONE = "the lock was never initialised, or its memory has been freed or written over"

_WARNINGS = (
    Rule(
        re.compile(
            r"BUG: MAX_(?P<table>[A-Z_]{3,40}) too low|DEBUG_LOCKS_WARN_ON\(.{0,40}MAX_LOCKDEP_(?P<other>SUBCLASSES)"
        ),
        Cause.OVERLOAD,
        Confidence.LIKELY,
        "Lockdep's table of {table} is full, and it has turned itself off: it says nothing against any lock.",
        "locks that are made again and again with keys of their own",
    ),
    Rule(
        re.compile(r"DEBUG_LOCKS_WARN_ON\((?P<check>.{1,80})\)"),
        Cause.MEMORY_CORRUPTION,
        Confidence.POSSIBLE,
        f"{{who}} takes or releases a lock whose state cannot be{{check}}: {_GONE}.",
        "a defect of lockdep",
    ),
    Rule(
        re.compile(r"downgrading a read lock"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} downgrades a lock that it holds for reading only.",
    ),
    Rule(
        re.compile(r"at kernel/locking/lockdep\.c:\d{1,6} (?P<check>(?:__)?(?:register_lock|look_up_lock)_class)"),
        Cause.LOCK_MISUSE,
        Confidence.POSSIBLE,
        "{who} takes a lock by another name than lockdep knows it by: it is of two kinds, or its memory was reused.",
        "a defect of lockdep",
    ),
)
"""What lockdep says by a warning of the kernel."""
_RULES = (
    *_WARNINGS,
    Rule(
        re.compile(rf"{_TASK} is trying to release lock \({_NAME}\)"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} releases {lock}, which {task} does not hold.",
        "a lock that another task has taken for this one",
        "lock",
    ),
    Rule(
        re.compile(rf"{_TASK} is freeing memory .{{1,60}} with a lock still held there"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{task} frees memory with {lock} in it, which it still holds; {who} had taken the lock.",
        "",
        "lock",
        (_HELD,),
    ),
    Rule(
        re.compile(r"lock held when returning to user space"),
        Cause.LEAKED_LOCK,
        Confidence.LIKELY,
        "{who} took {lock} and returned to the process without giving it back.",
        "",
        "lock",
        (_HELD,),
    ),
    Rule(
        re.compile(rf"{_TASK} still has locks held"),
        Cause.LEAKED_LOCK,
        Confidence.POSSIBLE,
        "{task} goes to sleep or ends while it holds {lock}, which {who} took.",
        "a place where a lock may be held on purpose",
        "lock",
        (_HELD,),
    ),
    Rule(
        re.compile(r"trying to register non-static key"),
        Cause.UNINITIALIZED,
        Confidence.POSSIBLE,
        f"{{who}} takes a lock that lockdep cannot name: {_GONE}.",
        "a lock that was made without its key on purpose",
    ),
    Rule(
        re.compile(r"BUG: Invalid wait context"),
        Cause.SLEEP_IN_ATOMIC,
        Confidence.LIKELY,
        "{who} takes {lock}, which can sleep, where nobody may.",
        "",
        "lock",
        (_HELD,),
    ),
    Rule(
        re.compile(r"Illegal context switch in RCU(?P<flavour>[\w-]{0,10}) read-side critical section"),
        Cause.SLEEP_IN_ATOMIC,
        Confidence.LIKELY,
        "{who} sleeps between rcu_read_lock() and rcu_read_unlock(), where nobody may.",
    ),
    Rule(
        re.compile(rf"^\s*{_PLACE} (?:suspicious|invoked) (?P<call>\w{{3,60}})\(\) (?:usage|without protection)"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} uses {call}() at {place} without the lock, or the rcu_read_lock(), that it asks for.",
        "a lock that is held, and is not named in the condition",
    ),
    Rule(
        re.compile(r"^\s*(?P<place>[\w./-]{1,120}:\d{1,6}) (?P<message>RCU-list traversed in non-reader section)"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} goes through a list of RCU at {place} without rcu_read_lock() or its lock.",
        "a lock that is held, and is not named in the condition",
    ),
    Rule(
        re.compile(r"BUG: using (?P<call>\w{3,60})\(\) in preemptible \[[0-9a-f]{1,8}\](?: \S+)? code"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} uses {call}() where it may be moved to another CPU at any moment.",
    ),
    Rule(
        re.compile(r"BUG: (?P<lock>spinlock|rwlock|rtmutex) bad magic"),
        Cause.UNINITIALIZED,
        Confidence.POSSIBLE,
        f"{{who}} takes a {{lock}} that is none: {_GONE}.",
    ),
    Rule(
        re.compile(r"BUG: (?P<lock>spinlock|rwlock) (?P<what>recursion|cpu recursion)"),
        Cause.DEADLOCK,
        Confidence.LIKELY,
        "{who} takes a {lock} that it holds already.",
        "a copy of a lock that is held, or memory that was written over",
    ),
    Rule(
        re.compile(r"BUG: (?P<lock>spinlock|rwlock) (?P<what>already unlocked|wrong owner|wrong CPU)"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} releases a {lock} that it does not hold ({what}).",
        "a lock that was initialised anew while it was held",
    ),
)


@detector(
    "lock-rules",
    needs=(Need.REPORT,),
    about="locks, RCU and per-CPU data used against their rules, as lockdep and its like say",
    depth=60,
    kinds=(Kind.LOCK_USAGE, Kind.LOCKDEP, Kind.SPINLOCK, Kind.RCU_USAGE, Kind.PREEMPTION, Kind.WARNING),
)
def find_broken_rule(scene: Scene) -> Iterator[Finding]:
    """Say which rule was broken, and by whom."""
    # What stands before another's warning is not its doing.
    is_warning = scene.first is not None and scene.first.kind is Kind.WARNING
    yield from tell(scene, "lock-rules", _WARNINGS if is_warning else _RULES, reword=_reword)


def _reword(words: dict[str, str]) -> None:
    words["lock"] = words.get("lock") or "a lock"
    check = words.get("check", "")
    words["check"] = f" ({check})" if not check.isdigit() and check else ""
    words["table"] = (words.get("table") or words.get("other") or "").lower().replace("_", " ")
