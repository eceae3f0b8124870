"""
Locks, RCU and the data of a CPU, used against their rules.

Sources: ``kernel/locking/lockdep.c`` (``print_unlock_imbalance_bug()``, ``print_freed_lock_bug()``,
``print_held_locks_bug()``, ``print_lock_invalid_wait_context()``, ``lockdep_sys_exit()``,
``lockdep_rcu_suspicious()``), ``include/linux/rcupdate.h`` (``rcu_sleep_check()``),
``kernel/locking/spinlock_debug.c``, ``lib/smp_processor_id.c``.
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

_NAME = r"(?P<lock>\S[^\n]{0,159}?)"
_LOCK = rf"\s*(?:[0-9a-f]{{8,16}} )?\({_NAME}\)\{{[-+.?]"
_TOLD = re.compile(rf"^{_LOCK}")
"""The lock that a report is about: ``ffff888004a1c0d8 (&(&berth->lock)->rlock){+.+.}-{3:3}, at: …``."""
_HELD = re.compile(rf"^\s*#\d{{1,2}}:{_LOCK}")
"""The first of the locks that are held."""
_TASK = r"^\s*(?:\[ )?(?:(?:BUG|WARNING): )?(?P<task>\S.{0,40}?)/-?\d{1,10}"
_PLACE = r"(?P<place>[\w./-]{1,120}:\d{1,6})"
_GONE = "the lock was never initialised, or its memory has been freed or written over"


def _check(words: str) -> re.Pattern[str]:
    return re.compile(rf"DEBUG_LOCKS_WARN_ON\((?P<check>.{{0,80}}(?:{words}).{{0,80}})\)")


_SUBCLASS = Rule(
    re.compile(
        r"looking up invalid subclass: \d|MAX_LOCKDEP_SUBCLASSES too low|"
        r"DEBUG_LOCKS_WARN_ON\(.{0,40}MAX_LOCKDEP_SUBCLASSES"
    ),
    Cause.LOCK_MISUSE,
    Confidence.LIKELY,
    "{who} takes a lock at a level of nesting that lockdep does not have.",
    "a level that was written over",
)
"""``MAX_LOCKDEP_SUBCLASSES`` of ``include/linux/lockdep_types.h``: there are 8."""
_WARNINGS = (
    _SUBCLASS,
    Rule(
        re.compile(r"BUG: MAX_LOCK_DEPTH too low"),
        Cause.LOCK_MISUSE,
        Confidence.POSSIBLE,
        "A task holds more locks at once than lockdep can follow{depth}, and {who} took the last: others were not "
        "released, or it takes one for each of many things.",
        "many locks that are held at once on purpose",
        more=(re.compile(r"depth: (?P<depth>\d{1,6}) {1,4}max: \d"),),
    ),
    Rule(
        re.compile(r"BUG: MAX_(?P<table>[A-Z_]{3,40}) too low"),
        Cause.OVERLOAD,
        Confidence.LIKELY,
        "Lockdep's table of {table} is full, and it has turned itself off: it says nothing against any lock.",
        "locks that are made again and again with keys of their own",
    ),
    Rule(
        _check(r"irqs?_(?:disabled|enabled|context|count)|in_(?:hardirq|softirq|irq|interrupt|nmi)"),
        Cause.LOCK_MISUSE,
        Confidence.POSSIBLE,
        "Interrupts are not as the code of {who} has them{check}: it turned them on or off where it may not, or was "
        "called where it may not be.",
        "code of an exception or interrupt that did not tell lockdep of it",
    ),
    Rule(
        _check(r"ww_ctx|ww->|contending_lock"),
        Cause.LOCK_MISUSE,
        Confidence.POSSIBLE,
        "{who} takes or releases a lock with a context (struct ww_acquire_ctx) that does not fit it{check}.",
        "a context or lock whose memory was written over",
    ),
    Rule(
        _check(r"owner"),
        Cause.LOCK_MISUSE,
        Confidence.POSSIBLE,
        "{who} releases or takes a lock whose owner is not the one that it must be{check}.",
        "a lock that was initialised anew while it was held, or whose memory was written over",
    ),
    Rule(
        re.compile(r"DEBUG_LOCKS_WARN_ON\((?P<check>1|.{0,80}(?:magic|id >=|hlock|class|chain_key).{0,80})\)"),
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
        # The place stands before "at" since 6.19: kernel/panic.c, __warn().
        re.compile(r"kernel/locking/lockdep\.c:\d{1,6} (?:at )?(?P<check>(?:__)?(?:register_lock|look_up_lock)_class)"),
        Cause.LOCK_MISUSE,
        Confidence.POSSIBLE,
        "{who} takes a lock by another name than lockdep knows it by: it is of two kinds, or its memory was reused.",
        "a defect of lockdep",
    ),
)
"""What lockdep says by a warning of the kernel."""
_BUGS = (_SUBCLASS,)
"""What it says by a line that begins with BUG and has no kind of its own."""
_RULES = (
    *_WARNINGS,
    Rule(
        re.compile(rf"{_TASK} is trying to release lock \({_NAME}\) at:"),
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
        (_TOLD,),
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
        (_TOLD,),
    ),
    Rule(
        re.compile(r"Illegal context switch in RCU read-side critical section"),
        Cause.SLEEP_IN_ATOMIC,
        Confidence.LIKELY,
        "{who} sleeps between rcu_read_lock() and rcu_read_unlock(), where nobody may.",
    ),
    Rule(
        re.compile(r"Illegal context switch in RCU-(?P<flavour>bh|sched) read-side critical section"),
        Cause.SLEEP_IN_ATOMIC,
        Confidence.POSSIBLE,
        "{who} sleeps between rcu_read_lock_{flavour}() and rcu_read_unlock_{flavour}(), where nobody may.",
        "a list of held locks that does not have it: lockdep takes a lock for held where it does not know",
    ),
    Rule(
        re.compile(rf"^\s*{_PLACE} (?:suspicious|invoked) (?P<call>\w{{3,60}})\(\) (?:usage|without protection)"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} uses {call}() at {place} without the lock, or the rcu_read_lock(), that it asks for.",
        "a lock that is held, and is not named in the condition",
    ),
    Rule(
        re.compile(rf"^\s*{_PLACE} RCU-list traversed in non-reader section"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} goes through a list of RCU at {place} without rcu_read_lock() or its lock.",
        "a lock that is held, and is not named in the condition",
    ),
    Rule(
        re.compile(rf"^\s*{_PLACE} RCU-list traversed without holding the required lock"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} goes through a list at {place} without the lock, or the srcu_read_lock(), that it asks for.",
        "a lock that is held, and is not named in the condition",
    ),
    Rule(
        re.compile(rf"^\s*{_PLACE} (?P<call>\w{{3,60}})\(\) used illegally while idle"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} uses {call}() on a CPU that is idle to RCU, which does not wait for its readers.",
        "code of an exception or interrupt that did not tell RCU of it",
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
        re.compile(r"BUG: (?P<lock>spinlock|rwlock) recursion"),
        Cause.DEADLOCK,
        Confidence.LIKELY,
        "{who} takes a {lock} that it holds already.",
        "a copy of a lock that is held, or memory that was written over",
    ),
    Rule(
        # The owner was compared before: it is another task.
        re.compile(r"BUG: (?P<lock>spinlock|rwlock) cpu recursion"),
        Cause.DEADLOCK,
        Confidence.LIKELY,
        "{who} takes a {lock} that another task took on this CPU and has not released: it slept or returned with it.",
        "a copy of a lock that is held, or memory that was written over",
    ),
    Rule(
        # The owner was compared before: it is this task.
        re.compile(r"BUG: (?P<lock>spinlock|rwlock) wrong CPU"),
        Cause.LOCK_MISUSE,
        Confidence.LIKELY,
        "{who} releases a {lock} on another CPU than it took it on: it slept, or was moved, while it held it.",
        "memory that was written over",
    ),
    Rule(
        re.compile(r"BUG: (?P<lock>spinlock|rwlock) (?P<what>already unlocked|wrong owner)"),
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
    kinds=(Kind.LOCK_USAGE, Kind.LOCKDEP, Kind.SPINLOCK, Kind.RCU_USAGE, Kind.PREEMPTION, Kind.WARNING, Kind.BUG),
)
def find_broken_rule(scene: Scene) -> Iterator[Finding]:
    """Say which rule was broken, and by whom."""
    # What stands before another's warning is not its doing.
    rules = {Kind.WARNING: _WARNINGS, Kind.BUG: _BUGS}.get(scene.kind or Kind.LOCKDEP, _RULES)
    yield from tell(scene, "lock-rules", rules, reword=_reword)


def _reword(words: dict[str, str]) -> None:
    words["lock"] = words.get("lock") or "a lock"
    check = words.get("check", "")
    words["check"] = f" ({check})" if not check.isdigit() and check else ""
    words["table"] = words.get("table", "").lower().replace("_", " ")
    depth = words.get("depth", "")
    words["depth"] = f" ({depth})" if depth else ""
