"""
States of tasks, as crash names them.

The bits are those of ``include/linux/sched.h`` since 4.14 (f2530dc71cf0 moved
them into one order); what the kernel reports as ``D`` though it is no
``TASK_UNINTERRUPTIBLE`` counts as such, as ``__task_state_index()`` has it.
"""

from __future__ import annotations

__all__ = ["STATE_NAMES", "state_code", "state_words"]

_INTERRUPTIBLE = 0x1
_UNINTERRUPTIBLE = 0x2
_STOPPED = 0x4
_TRACED = 0x8
_EXIT_DEAD = 0x10
_EXIT_ZOMBIE = 0x20
_PARKED = 0x40
_DEAD = 0x80
_WAKEKILL = 0x100
_WAKING = 0x200
_NOLOAD = 0x400
_NEW = 0x800
_RTLOCK_WAIT = 0x1000
_FROZEN = 0x8000

STATE_NAMES = {
    "RU": "running or runnable",
    "IN": "interruptible sleep",
    "UN": "uninterruptible sleep",
    "ZO": "zombie",
    "ST": "stopped",
    "TR": "stopped by a tracer",
    "DE": "dead",
    "SW": "swapping (kernels before 2.6)",
    "WA": "being woken",
    "PA": "parked",
    "ID": "idle (uninterruptible, does not count for the load)",
    "NE": "new",
}
"""crash's codes, and what they mean."""

_CODES = (
    (_EXIT_ZOMBIE, "ZO"),
    (_EXIT_DEAD, "DE"),
    (_DEAD, "DE"),
    (_NEW, "NE"),
    (_PARKED, "PA"),
    (_TRACED, "TR"),
    (_STOPPED, "ST"),
    (_INTERRUPTIBLE, "IN"),
    (_UNINTERRUPTIBLE | _RTLOCK_WAIT | _FROZEN, "UN"),
    (_WAKING, "WA"),
)

_WORDS = (
    (_INTERRUPTIBLE, "TASK_INTERRUPTIBLE"),
    (_UNINTERRUPTIBLE, "TASK_UNINTERRUPTIBLE"),
    (_STOPPED, "TASK_STOPPED"),
    (_TRACED, "TASK_TRACED"),
    (_EXIT_DEAD, "EXIT_DEAD"),
    (_EXIT_ZOMBIE, "EXIT_ZOMBIE"),
    (_PARKED, "TASK_PARKED"),
    (_DEAD, "TASK_DEAD"),
    (_WAKEKILL, "TASK_WAKEKILL"),
    (_WAKING, "TASK_WAKING"),
    (_NOLOAD, "TASK_NOLOAD"),
    (_NEW, "TASK_NEW"),
    (_RTLOCK_WAIT, "TASK_RTLOCK_WAIT"),
    (_FROZEN, "TASK_FROZEN"),
)


def state_code(state: int, exit_state: int) -> str:
    """
    Give crash's two letters for a task's ``state`` (``__state``) and ``exit_state``; ``??`` for what is none.

    >>> state_code(0, 0), state_code(0x402, 0), state_code(0x80, 0x20)
    ('RU', 'ID', 'ZO')
    """
    bits = state | exit_state
    if bits == 0:
        return "RU"
    if bits & _NOLOAD and bits & _UNINTERRUPTIBLE:
        return "ID"
    return next((code for mask, code in _CODES if bits & mask), "??")


def state_words(state: int, exit_state: int) -> str:
    """
    Spell the state as the kernel's constants, joined by ``|``.

    >>> state_words(0x102, 0)
    'TASK_UNINTERRUPTIBLE|TASK_WAKEKILL'
    """
    bits = state | exit_state
    if bits == 0:
        return "TASK_RUNNING"
    words = [word for mask, word in _WORDS if bits & mask]
    return "|".join(words) or f"(unknown: {bits:#x})"
