"""
Who holds which lock, who waits for it, and who waits for each other.

:func:`read_locks` starts from the tasks that are blocked: what they wait with lies
on their stacks, and leads to the lock; the lock leads to its holder.
"""

from postpanic.analysis.locks.graph import Cycle, Edge, find_cycles
from postpanic.analysis.locks.holders import Holder
from postpanic.analysis.locks.picture import Lock, LockPicture, read_locks
from postpanic.analysis.locks.waiting import KINDS, Wait, Waiter

__all__ = ["KINDS", "Cycle", "Edge", "Holder", "Lock", "LockPicture", "Wait", "Waiter", "find_cycles", "read_locks"]
