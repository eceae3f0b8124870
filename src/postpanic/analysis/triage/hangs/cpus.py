"""What each CPU was at when the machine stopped: where it was interrupted, whether it spins, and on which lock."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.sleeping import find_own
from postpanic.evidence.oops.functions import Part, part_of

__all__ = ["Cpu", "Mode", "read_cpus"]

_SPINS = (
    *("native_queued_spin_lock_slowpath", "queued_spin_lock_slowpath", "__pv_queued_spin_lock_slowpath"),
    *("_raw_spin_lock", "_raw_read_lock", "_raw_write_lock", "queued_read_lock_slowpath", "queued_write_lock_slowpath"),
    *("do_raw_spin_lock", "rt_spin_lock", "__raw_spin_lock", "pv_wait", "kvm_wait", "_raw_spin_trylock"),
)
_RWLOCKS = ("_raw_read_lock", "_raw_write_lock", "queued_read_lock", "queued_write_lock")
_CALLS = ("smp_call_function", "on_each_cpu", "native_flush_tlb", "flush_tlb_", "csd_lock_wait", "__flush_tlb")
_IDLE = (
    *("cpuidle", "default_idle", "do_idle", "cpu_startup_entry", "mwait_idle", "acpi_idle", "acpi_safe_halt"),
    *(
        "native_safe_halt",
        "pv_native_safe_halt",
        "arch_cpu_idle",
        "intel_idle",
        "poll_idle",
        "cpu_idle_poll",
        "cpu_idle",
    ),
    *(
        "arch_safe_halt",
        "haltpoll",
        "kvm_",
        "do_halt",
        "call_cpuidle",
        "cpu_do_idle",
        "cpu_play_dead",
        "start_secondary",
    ),
    *("rest_init", "start_kernel", "x86_64_start", "secondary_startup"),
)
_DYING = ("machine_kexec", "crash_nmi_callback", "panic", "nmi_panic", "sysrq_handle_crash", "__crash_kexec")
_TICKS = (
    "hrtimer_interrupt",
    "sysvec_apic_timer",
    "__sysvec_apic_timer",
    "tick_",
    "update_process_times",
    "local_apic_timer",
)
_DEFERRED = ("call_timer_fn", "__do_softirq", "handle_softirqs", "run_timer_softirq", "irq_work_run", "__irq_work_run")
_INTERRUPTS_ON = 1 << 9
"""``X86_EFLAGS_IF``."""
_INTERRUPTS_OFF = 1 << 7
"""``PSR_I_BIT`` of arm64."""
_LOWEST = 1 << 63
_WORD = (1 << 64) - 1


class Mode(enum.Enum):
    """What a CPU was at."""

    USER = "user code"
    IDLE = "idle"
    KERNEL = "kernel code"
    PANIC = "the panic itself"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Cpu:
    """
    One CPU.

    Attributes
    ----------
    index : int
        Of the first frame in the trace that it was at when it was interrupted.
    registers : mapping, optional
        Of that moment.
    has_interrupts : bool, optional
        Whether interrupts were on; None: not known.
    spins_on : int
        Address of the lock that it spins on; 0: it does not, or it is not known.
    spin_kind : str
        ``spinlock``, ``rwlock``; empty: it does not spin.
    waits_for_cpus : bool
        Whether it waits for other CPUs to answer a call.
    """

    number: int
    facts: TaskFacts
    trace: Trace
    mode: Mode
    index: int = 0
    registers: Mapping[str, int] | None = None
    has_interrupts: bool | None = None
    spins_on: int = 0
    spin_kind: str = ""
    waits_for_cpus: bool = False

    @property
    def frames(self) -> list[Frame]:
        """From the function that was interrupted outwards."""
        return self.trace.frames[self.index :]

    @property
    def pc(self) -> int:
        """The instruction that it was at; 0: not known."""
        return self.frames[0].pc if self.frames else 0

    @property
    def innermost(self) -> str:
        """The function that it was in."""
        return function_of(self.frames[0]) if self.frames else ""

    @property
    def contexts(self) -> list[list[Frame]]:
        """The frames by pieces of work: of interrupts first, the task's own last; a clock's tick is left out."""
        found: list[list[Frame]] = [[]]
        for frame in self.frames:
            found[-1].append(frame)
            if frame.saved is not None and not frame.saved.user:
                found.append([])
        return [part for part in found if part and not _is_tick(part)]

    @property
    def own(self) -> Frame | None:
        """The innermost function that does work of its own."""
        return next((own for part in self.contexts if (own := find_own(part)[1]) is not None), None)

    @property
    def own_of_task(self) -> Frame | None:
        """The same of the task, whatever interrupted it."""
        return find_own(self.contexts[-1])[1] if self.contexts else None

    def own_inside(self, frame: Frame) -> Frame | None:
        """Give the innermost function with work of its own in the piece of work that a frame is part of."""
        part = next((part for part in self.contexts if any(one is frame for one in part)), [])
        return find_own(part)[1]


def _is_tick(frames: list[Frame]) -> bool:
    """Tell whether frames are those of a clock's interrupt, and of nothing that it runs for others."""
    names = [function_of(frame) for frame in frames]
    return any(name.startswith(_TICKS) for name in names) and not any(name.startswith(_DEFERRED) for name in names)


def read_cpus(picture: Picture) -> list[Cpu]:
    """Read what each CPU that has a task was at; read once."""
    return picture.workspace.once("hangs: cpus", lambda: list(_read(picture)))


def _read(picture: Picture) -> list[Cpu]:
    found = []
    for task, number in sorted(picture.scene.stacks.running.items(), key=lambda item: item[1]):
        facts = picture.tasks.get(task)
        if facts is None:
            continue
        try:
            found.append(_read_cpu(picture, number, facts))
        except UNREADABLE as exc:
            picture.scene.problems.append(problem(f"what CPU {number} was at", exc))
    return found


def _read_cpu(picture: Picture, number: int, facts: TaskFacts) -> Cpu:
    trace = picture.scene.trace(facts)
    index, registers, is_user = _find_interrupted(trace)
    if not index and any(function_of(frame) in _DYING for frame in trace.frames):
        return Cpu(number, facts, trace, Mode.PANIC)
    if is_user:
        return Cpu(number, facts, trace, Mode.USER, index, registers)
    if not trace.frames[index:]:
        return Cpu(number, facts, trace, Mode.UNKNOWN)
    is_on = _has_interrupts(registers or {})
    names = [function_of(frame) for frame in trace.frames[index:]]
    work = [name for name in names if name and not name.startswith(_IDLE) and part_of(name) is not Part.ENTRY]
    if facts.pid == 0 and any(name.startswith(_IDLE) for name in names) and not _works(work):
        return Cpu(number, facts, trace, Mode.IDLE, index, registers, is_on)
    spins = [position for position, name in enumerate(names[:6]) if name.startswith(_SPINS)]
    calls = any(name.startswith(_CALLS) for name in names[:3])
    if not spins or spins[0] > 1:
        return Cpu(number, facts, trace, Mode.KERNEL, index, registers, is_on, waits_for_cpus=calls)
    last = spins[0]
    while last + 1 in spins:
        last += 1
    kind = "rwlock" if any(name.startswith(_RWLOCKS) for name in names[: last + 1]) else "spinlock"
    lock = _find_lock(picture, trace, index, last + index, registers or {})
    return Cpu(number, facts, trace, Mode.KERNEL, index, registers, is_on, lock, kind)


def _has_interrupts(registers: Mapping[str, int]) -> bool | None:
    """Tell whether interrupts were on; None: not known. Priorities (pseudo-NMI of arm64) are not looked at."""
    if "rflags" in registers:
        return bool(registers["rflags"] & _INTERRUPTS_ON)
    return not registers["pstate"] & _INTERRUPTS_OFF if "pstate" in registers else None


def _find_interrupted(trace: Trace) -> tuple[int, Mapping[str, int] | None, bool]:
    """
    Find what a CPU was at: behind the entry that stopped it, and behind a clock's tick that had interrupted it before.

    Returns
    -------
    tuple
        The place of its first frame, the registers there, and whether it is user code.
    """
    index, registers, is_user = 0, trace.registers, trace.start is not None and trace.start.user
    for position, frame in enumerate(trace.frames):
        if frame.saved is None:
            continue
        if index and not _is_tick(trace.frames[index : position + 1]):
            break
        index, registers, is_user = position + 1, frame.saved.registers, frame.saved.user
    return index, registers, is_user


def _works(names: list[str]) -> bool:
    """Tell whether an idle task does something: a softirq or an interrupt at work on its stack."""
    return any(part_of(name) is None for name in names)


def _find_lock(picture: Picture, trace: Trace, first: int, last: int, registers: Mapping[str, int]) -> int:
    """Find the lock that a CPU spins on: the argument of the function that takes it."""
    recovery, flows = picture.sleeps.recovery(trace), picture.sleeps.flows
    first_argument = flows.machine.arguments[0] if flows is not None else ""
    for index in range(last, first - 1, -1):
        found = recovery.argument(index, first_argument) if recovery is not None else None
        if found is not None and found.size_bytes == 8 and found.value >= _LOWEST:
            return found.value
    # Both slow paths keep the lock in a register while they spin.
    for name in ("rdi", "rbx", "rbp", "r12", "r13", "r14", "r15", "x0", *(f"x{number}" for number in range(19, 29))):
        value = registers.get(name, 0)
        if value >= _LOWEST and _looks_taken(picture, value):
            return value
    return 0


def _looks_taken(picture: Picture, vaddr: int) -> bool:
    """Tell whether a word looks like a queued spinlock that is taken (``include/asm-generic/qspinlock_types.h``)."""
    try:
        word = picture.workspace.memory.read_u32(vaddr)
    except UNREADABLE:
        return False
    return word & 0xFF == 1 and word & 0xFE00 == 0 and word >> 18 <= len(picture.clocks)
