"""Which CPU crashed, on what stack, and which task ran there."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from postpanic.dumps.memory import DumpDescription
from postpanic.dumps.notes import decode_notes
from postpanic.errors import AbsentError, FactAbsentError
from postpanic.kernel.kallsyms.lookup import FoundSymbols
from postpanic.kernel.memory import KernelMemory
from postpanic.units import KIB

__all__ = ["SYMBOLS", "CrashSite", "find_crash_site", "find_thread_size"]

SYMBOLS = (
    "panic_cpu",
    "crashing_cpu",
    "__per_cpu_offset",
    "crash_notes",
    "current_task",
    "pcpu_hot",
    "__entry_task",
    "__start_init_task",
    "__end_init_task",
    "__start_init_stack",
    "__end_init_stack",
)
"""The symbols that this module asks for."""

_MAX_CPUS = 8192
"""Linux' own limit, ``NR_CPUS`` of x86 with ``CONFIG_MAXSMP``."""
_PANIC_CPU = ("panic_cpu", "crashing_cpu")
"""``kernel/panic.c``, and what architectures had before it (``arch/x86/kernel/reboot.c``)."""
_CURRENT_TASK = ("current_task", "pcpu_hot", "__entry_task")
"""
Per-CPU variables that begin with the pointer to the task that runs.

x86: ``current_task``, from 6.2 to 6.14 the first member of ``pcpu_hot``
(e57ef2ed97c1). arm64 keeps the pointer in a register, and beside it in
``__entry_task`` (``arch/arm64/kernel/process.c``).
"""
_INIT_STACK = (("__start_init_task", "__end_init_task"), ("__start_init_stack", "__end_init_stack"))
"""What ``INIT_TASK_DATA`` puts around the first stack (``vmlinux.lds.h``; renamed in 6.10, 8f69cba096b5)."""
_SMALLEST_STACK_BYTES, _LARGEST_STACK_BYTES = 4 * KIB, 256 * KIB
_USUAL_STACK_BYTES = 16 * KIB

_NT_PRSTATUS = 1
_PID_OFFSET = 32
_REGISTERS_OFFSET = 112
"""``pr_pid`` and ``pr_reg`` of ``struct elf_prstatus``, 64-bit machines (``include/linux/elfcore.h``)."""
_SP_WORD = {"x86_64": 19, "aarch64": 31}
"""Which word of ``pr_reg`` the stack pointer is (``struct pt_regs``, ``struct user_pt_regs``)."""
_NOTE_BYTES = 1024
"""Of a CPU's note: more than header and ``elf_prstatus`` take."""
_WORD = (1 << 64) - 1
_KERNEL_HALF = 1 << 63


@dataclass(frozen=True, slots=True)
class CrashSite:
    """What ran where the kernel crashed."""

    cpu: int
    sp: int | None
    """Stack pointer; None where no registers were saved, or they were those of a program."""
    pid: int | None
    """Of the task, as the CPU's own note has it; None where there is none."""
    task: int | None
    """Address of its ``struct task_struct``."""


def find_crash_site(memory: KernelMemory, symbols: FoundSymbols, description: DumpDescription) -> CrashSite:
    """
    Find the CPU that crashed and what it did.

    Raises
    ------
    FactAbsentError
        If no CPU crashed, or the kernel does not say which.
    TranslationError, PageAbsentError
        If where the kernel says so is not in the dump.
    """
    cpu = _read_crashed_cpu(memory, symbols)
    offsets = symbols.get("__per_cpu_offset")
    # Where it is missing the kernel is built for one CPU.
    offset = memory.read_u64(offsets + 8 * cpu) if offsets is not None else 0
    pid, sp = _read_saved_note(memory, symbols, offset)
    if pid is None:
        sp = _read_note_in_order(memory, description, cpu)
    return CrashSite(
        cpu, sp if sp is not None and sp & _KERNEL_HALF else None, pid, _read_task(memory, symbols, offset)
    )


def find_thread_size(memory: KernelMemory, symbols: FoundSymbols) -> int:
    """Give ``THREAD_SIZE``, the size of a task's stack, by the first task's stack in the kernel image."""
    for first, last in _INIT_STACK:
        start, end = symbols.get(first), symbols.get(last)
        if start is not None and end is not None:
            size = end - start
            if _SMALLEST_STACK_BYTES <= size <= _LARGEST_STACK_BYTES and size & (size - 1) == 0:
                return size
    return max(_USUAL_STACK_BYTES, memory.page_size_bytes)


def _read_crashed_cpu(memory: KernelMemory, symbols: FoundSymbols) -> int:
    known = False
    for name in _PANIC_CPU:
        vaddr = symbols.get(name)
        if vaddr is None:
            continue
        known = True
        cpu = memory.read_u32(vaddr)
        # Both are -1 while nothing has happened.
        if cpu < _MAX_CPUS:
            return cpu
    raise FactAbsentError("no CPU has crashed" if known else "the kernel has neither panic_cpu nor crashing_cpu")


def _read_saved_note(memory: KernelMemory, symbols: FoundSymbols, offset: int) -> tuple[int | None, int | None]:
    """Read process ID and stack pointer from the note that the CPU left in its own buffer (``crash_save_cpu()``)."""
    vaddr = symbols.get("crash_notes")
    if vaddr is None:
        return None, None
    try:
        data = memory.read((memory.read_u64(vaddr) + offset) & _WORD, _NOTE_BYTES)
    except AbsentError:
        return None, None
    note = next(decode_notes(data, byte_order="little"), None)
    if note is None or note.type != _NT_PRSTATUS:
        return None, None
    return _decode_pid(note.desc), _decode_sp(memory.machine, note.desc)


def _read_note_in_order(memory: KernelMemory, description: DumpDescription, cpu: int) -> int | None:
    """Read the stack pointer from the dump's notes: a hypervisor writes one for each CPU, in their order."""
    notes = [
        note.desc
        for note in decode_notes(description.notes, byte_order=description.byte_order)
        if note.name == b"CORE" and note.type == _NT_PRSTATUS
    ]
    return _decode_sp(memory.machine, notes[cpu]) if cpu < len(notes) else None


def _decode_pid(desc: bytes) -> int | None:
    return int(struct.unpack_from("<i", desc, _PID_OFFSET)[0]) if len(desc) >= _REGISTERS_OFFSET else None


def _decode_sp(machine: str, desc: bytes) -> int | None:
    word = _SP_WORD.get(machine)
    if word is None or len(desc) < _REGISTERS_OFFSET + 8 * (word + 1):
        return None
    return int(struct.unpack_from("<Q", desc, _REGISTERS_OFFSET + 8 * word)[0])


def _read_task(memory: KernelMemory, symbols: FoundSymbols, offset: int) -> int | None:
    for name in _CURRENT_TASK:
        vaddr = symbols.get(name)
        if vaddr is None:
            continue
        task = memory.read_u64((vaddr + offset) & _WORD)
        if task & _KERNEL_HALF:
            return task
    return None
