"""
Who holds a lock, as far as the lock records it.

``struct mutex`` has its owner, with flags in the low bits. ``struct rw_semaphore``
has its writer; of readers it counts all and remembers one that came last, which may
have left. A semaphore remembers a holder since 6.16 on kernels that detect hung tasks; a completion has none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import drgn
from drgn import Program

from postpanic.analysis.context import UNREADABLE
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem
from postpanic.kernel.memory import KernelMemory

__all__ = ["Holder", "HolderReader"]

_MUTEX_FLAGS = 7
_RWSEM_OWNER_FLAGS = 3
_READER_OWNED = 1
_WRITER_LOCKED = 1
_READER_SHIFT = 8
"""``kernel/locking/rwsem.c`` since 5.3 (94a9717b3c40)."""


@dataclass(frozen=True, slots=True)
class Holder:
    """
    A task that holds a lock.

    Parameters
    ----------
    how : str
        ``owner``, ``writer``, ``reader``, ``runs the item`` …
    certain : bool
        False: it was the last one to take the lock, and may have given it back.
    """

    task: int
    how: str
    certain: bool = True


class HolderReader:
    """
    Reads the state of locks.

    Parameters
    ----------
    tasks : set of int
        Addresses of all tasks of the kernel.
    """

    def __init__(self, prog: Program, memory: KernelMemory, tasks: set[int], problems: list[Problem]) -> None:
        self._prog = prog
        self._memory = memory
        self._tasks = tasks
        self._problems = problems

    def read(self, kind: str, lock: int) -> tuple[list[Holder], str]:
        """
        Read who holds a lock, and its state in words.

        Raises
        ------
        PostpanicError, LookupError
            If it cannot be read, or nothing describes it.
        """
        readers = {
            "mutex": self._mutex,
            "rwsem": self._rwsem,
            "semaphore": self._semaphore,
            "completion": self._completion,
            "percpu-rwsem": self._percpu,
        }
        return readers[kind](lock)

    def _number(self, type_name: str, path: str, lock: int) -> int:
        type_ = self._prog.type(type_name)
        offset = drgn.offsetof(type_, path)
        return self._memory.read_u64(lock + offset)

    def _word(self, type_name: str, path: str, lock: int) -> int:
        return self._memory.read_u32(lock + drgn.offsetof(self._prog.type(type_name), path))

    def _checked(self, task: int, lock: int, how: str, *, certain: bool = True) -> list[Holder]:
        if not task:
            return []
        if task not in self._tasks:
            self._problems.append(
                Problem(f"lock {lock:#x}: its {how} {task:#x} is no task of the kernel", Reason.DAMAGED)
            )
            return []
        return [Holder(task, how, certain)]

    def _mutex(self, lock: int) -> tuple[list[Holder], str]:
        owner = self._number("struct mutex", "owner", lock) & ~_MUTEX_FLAGS
        return self._checked(owner, lock, "owner"), "locked" if owner else "unlocked"

    def _rwsem(self, lock: int) -> tuple[list[Holder], str]:
        count = struct.unpack("<q", struct.pack("<Q", self._number("struct rw_semaphore", "count", lock)))[0]
        owner = self._number("struct rw_semaphore", "owner", lock)
        task = owner & ~_RWSEM_OWNER_FLAGS
        if count & _WRITER_LOCKED:
            return self._checked(task, lock, "writer"), "locked for writing"
        readers = count >> _READER_SHIFT
        if readers <= 0:
            return [], "unlocked"
        known = self._checked(task, lock, "reader", certain=False) if owner & _READER_OWNED else []
        return known, f"locked by {readers} reader{'s' * (readers != 1)}"

    def _semaphore(self, lock: int) -> tuple[list[Holder], str]:
        count = self._word("struct semaphore", "count", lock)
        try:
            task = self._number("struct semaphore", "last_holder", lock)
        except UNREADABLE:
            task = 0
        return self._checked(task, lock, "last holder", certain=False), f"count {count}"

    def _completion(self, lock: int) -> tuple[list[Holder], str]:
        done = self._word("struct completion", "done", lock)
        return [], f"done {done}"

    def _percpu(self, lock: int) -> tuple[list[Holder], str]:
        block = self._word("struct percpu_rw_semaphore", "block", lock)
        readers = self._count_readers(lock)
        shown = "" if readers is None else f", {readers} reader{'s' * (readers != 1)}"
        return [], ("a writer has it or waits" if block else "no writer") + shown

    def _count_readers(self, lock: int) -> int | None:
        """Add up ``read_count`` of all CPUs."""
        from drgn.helpers.linux.cpumask import for_each_possible_cpu

        try:
            pointer = self._number("struct percpu_rw_semaphore", "read_count", lock)
            offsets = self._prog["__per_cpu_offset"]
            total = 0
            for cpu in for_each_possible_cpu(self._prog):
                total += self._memory.read_u32((pointer + int(offsets[cpu].value_())) & (1 << 64) - 1)
        except UNREADABLE:
            return None
        return total & 0xFFFFFFFF
