"""What a kernel report can be about: kinds, and the families they belong to."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["FAMILIES", "NOTICES", "Family", "Kind"]


class Family(StrEnum):
    """The branches of the tree of kinds."""

    MEMORY_ACCESS = "memory-access"
    SANITIZER = "sanitizer"
    ASSERTION = "assertion"
    EXCEPTION = "exception"
    HANG = "hang"
    LOCKING = "locking"
    MEMORY_MANAGEMENT = "memory-management"
    HARDWARE = "hardware"
    USERLAND = "userland"
    DELIBERATE = "deliberate"
    OTHER = "other"


class Kind(StrEnum):
    """What happened; the spelling is what JSON shows."""

    NULL_DEREFERENCE = "null-dereference"
    PAGING_REQUEST = "paging-request"
    GENERAL_PROTECTION = "general-protection-fault"
    STACK_SEGMENT = "stack-segment-fault"
    UNHANDLED_FAULT = "unhandled-fault"
    INTERNAL_ERROR = "internal-error"
    ALIGNMENT = "alignment-trap"
    KASAN = "kasan"
    KFENCE = "kfence"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    UBSAN = "ubsan"
    MEMORY_LEAK = "memory-leak"
    KERNEL_BUG = "kernel-bug"
    USERCOPY = "usercopy"
    LIST_CORRUPTION = "list-corruption"
    WARNING = "warning"
    REFCOUNT = "refcount"
    ODEBUG = "debug-objects"
    STACK_PROTECTOR = "stack-protector"
    RUST_PANIC = "rust-panic"
    CFI = "control-flow-integrity"
    DIVIDE_ERROR = "divide-error"
    INVALID_OPCODE = "invalid-opcode"
    INT3 = "int3"
    TRAP = "trap"
    DOUBLE_FAULT = "double-fault"
    STACK_OVERFLOW = "stack-overflow"
    BAD_MODE = "bad-mode"
    SERROR = "serror"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    RCU_STALL = "rcu-stall"
    HUNG_TASK = "hung-task"
    WORKQUEUE_LOCKUP = "workqueue-lockup"
    CSD_LOCK = "csd-lock"
    NETDEVICE_REFERENCE = "netdevice-reference"
    DEADLOCK = "possible-deadlock"
    LOCK_STATE = "inconsistent-lock-state"
    LOCK_USAGE = "lock-usage"
    RCU_USAGE = "suspicious-rcu-usage"
    ATOMIC_SLEEP = "sleep-in-atomic"
    PREEMPTION = "preemptible-per-cpu"
    SPINLOCK = "spinlock"
    LOCKDEP = "lockdep"
    BAD_PAGE = "bad-page"
    SLAB = "slab-corruption"
    ALLOCATION_FAILURE = "page-allocation-failure"
    OUT_OF_MEMORY = "out-of-memory"
    MACHINE_CHECK = "machine-check"
    HARDWARE_ERROR = "hardware-error"
    NMI = "nmi"
    INIT_DIED = "init-died"
    NO_ROOT = "no-root-filesystem"
    SYSRQ = "sysrq-crash"
    PANIC = "panic"
    BUG = "bug"
    FILE_SYSTEM = "file-system"
    OOPS = "oops"


FAMILIES: dict[Kind, Family] = {
    **dict.fromkeys(
        (
            Kind.NULL_DEREFERENCE,
            Kind.PAGING_REQUEST,
            Kind.GENERAL_PROTECTION,
            Kind.STACK_SEGMENT,
            Kind.UNHANDLED_FAULT,
            Kind.INTERNAL_ERROR,
            Kind.ALIGNMENT,
        ),
        Family.MEMORY_ACCESS,
    ),
    **dict.fromkeys(
        (Kind.KASAN, Kind.KFENCE, Kind.KMSAN, Kind.KCSAN, Kind.UBSAN, Kind.MEMORY_LEAK),
        Family.SANITIZER,
    ),
    **dict.fromkeys(
        (
            Kind.KERNEL_BUG,
            Kind.USERCOPY,
            Kind.LIST_CORRUPTION,
            Kind.WARNING,
            Kind.REFCOUNT,
            Kind.ODEBUG,
            Kind.STACK_PROTECTOR,
            Kind.RUST_PANIC,
            Kind.CFI,
            Kind.BUG,
        ),
        Family.ASSERTION,
    ),
    **dict.fromkeys(
        (
            Kind.DIVIDE_ERROR,
            Kind.INVALID_OPCODE,
            Kind.INT3,
            Kind.TRAP,
            Kind.DOUBLE_FAULT,
            Kind.STACK_OVERFLOW,
            Kind.BAD_MODE,
        ),
        Family.EXCEPTION,
    ),
    **dict.fromkeys(
        (
            Kind.SOFT_LOCKUP,
            Kind.HARD_LOCKUP,
            Kind.RCU_STALL,
            Kind.HUNG_TASK,
            Kind.WORKQUEUE_LOCKUP,
            Kind.CSD_LOCK,
            Kind.NETDEVICE_REFERENCE,
        ),
        Family.HANG,
    ),
    **dict.fromkeys(
        (
            Kind.DEADLOCK,
            Kind.LOCK_STATE,
            Kind.LOCK_USAGE,
            Kind.RCU_USAGE,
            Kind.ATOMIC_SLEEP,
            Kind.PREEMPTION,
            Kind.SPINLOCK,
            Kind.LOCKDEP,
        ),
        Family.LOCKING,
    ),
    **dict.fromkeys((Kind.BAD_PAGE, Kind.SLAB, Kind.ALLOCATION_FAILURE, Kind.OUT_OF_MEMORY), Family.MEMORY_MANAGEMENT),
    **dict.fromkeys((Kind.MACHINE_CHECK, Kind.HARDWARE_ERROR, Kind.NMI, Kind.SERROR), Family.HARDWARE),
    **dict.fromkeys((Kind.INIT_DIED, Kind.NO_ROOT), Family.USERLAND),
    Kind.SYSRQ: Family.DELIBERATE,
    Kind.PANIC: Family.OTHER,
    Kind.FILE_SYSTEM: Family.OTHER,
    Kind.OOPS: Family.OTHER,
}
"""The family of each kind."""

NOTICES = frozenset({Kind.ALLOCATION_FAILURE, Kind.OUT_OF_MEMORY, Kind.MACHINE_CHECK, Kind.HARDWARE_ERROR, Kind.NMI})
"""Kinds that the kernel survives by design, where it does not panic on account of them."""
