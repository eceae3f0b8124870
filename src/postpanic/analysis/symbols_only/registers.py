"""
The registers that each CPU left in the notes of a dump, and whose they are.

A note does not say which CPU wrote it. The kernel keeps each CPU's note in the
per-CPU buffers that ``crash_notes`` points to (``crash_save_cpu()`` of
``kernel/crash_core.c``, before 6.6 ``kernel/kexec_core.c``): a note equal to what
is there is that CPU's. A dump that a hypervisor took has no such notes; there
the order counts. ``/proc/vmcore`` has the notes of the CPUs that wrote one by
rising CPU number (``crash_prepare_elf64_headers()`` lists the possible CPUs,
``merge_note_headers_elf64()`` of ``fs/proc/vmcore.c`` drops the empty ones), which
are those online; QEMU writes one for each virtual CPU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postpanic.dumps.memory import DumpDescription
from postpanic.dumps.notes import decode_notes
from postpanic.errors import PostpanicError
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory

__all__ = [
    "PT_REGS_NAMES",
    "CpuRegisters",
    "decode_registers",
    "read_cpu_list",
    "read_cpu_registers",
    "read_panic_cpu",
    "read_per_cpu_pointer",
]

_NT_PRSTATUS = 1
_PID_OFFSET = 32
_REGISTERS_OFFSET = 112
"""``pr_pid`` and ``pr_reg`` of ``struct elf_prstatus``, 64-bit machines (``include/linux/elfcore.h``)."""
_NOTE_HEADER_BYTES = 12 + 8
"""``Elf64_Nhdr`` and the owner ``CORE``, padded."""

MAX_CPUS = 8192
"""Linux' own limit, ``NR_CPUS`` of x86 with ``CONFIG_MAXSMP``."""
_WORD = (1 << 64) - 1

PT_REGS_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax",
    "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss",
)  # fmt: skip
"""``struct pt_regs`` of x86-64, which ``pr_reg`` begins with (``arch/x86/include/asm/ptrace.h``)."""
_AARCH64_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
"""``struct user_pt_regs`` (``arch/arm64/include/uapi/asm/ptrace.h``)."""
_NAMES = {"x86_64": PT_REGS_NAMES, "aarch64": _AARCH64_NAMES}


@dataclass(frozen=True, slots=True)
class CpuRegisters:
    """What one CPU left."""

    cpu: int
    registers: dict[str, int]
    """By the machine's names, lower case: ``rip`` and so on."""
    pid: int | None
    """Of the task that ran; None where a hypervisor wrote the note."""
    source: str
    """How the CPU's number is known, as one phrase."""


def read_cpu_registers(
    memory: KernelMemory, symbols: SymbolTable, description: DumpDescription
) -> tuple[CpuRegisters, ...]:
    """
    Read the registers in a dump's notes, by rising CPU number.

    Empty where the notes have none. Nothing is raised: what the kernel's memory
    does not tell is told by the order of the notes, and ``source`` says so.
    """
    names = _NAMES.get(memory.machine, ())
    contents = [
        note.desc
        for note in decode_notes(description.notes, byte_order=description.byte_order)
        if note.name == b"CORE"
        and note.type == _NT_PRSTATUS
        and len(note.desc) >= _REGISTERS_OFFSET + 8 * max(len(names), 1)
    ][:MAX_CPUS]
    saved = _match_saved_notes(memory, symbols, contents)
    if saved is not None:
        cpus, source = saved, "the CPU's own note in memory"
    else:
        online = read_cpu_list(memory, symbols, "online")
        if len(online) == len(contents):
            cpus, source = online, "the order of the notes and of the online CPUs"
        else:
            cpus, source = list(range(len(contents))), "the order of the notes alone"
    found = [
        CpuRegisters(
            cpu,
            decode_registers(names, data[_REGISTERS_OFFSET:]),
            struct.unpack_from("<i", data, _PID_OFFSET)[0] if saved is not None else None,
            source,
        )
        for cpu, data in zip(cpus, contents, strict=True)
    ]
    return tuple(sorted(found, key=lambda cpu: cpu.cpu))


def decode_registers(names: Sequence[str], data: bytes) -> dict[str, int]:
    """Decode as many 64-bit words as there are *names*."""
    return dict(zip(names, struct.unpack_from(f"<{len(names)}Q", data), strict=True))


def read_cpu_list(memory: KernelMemory, symbols: SymbolTable, which: str) -> list[int]:
    """
    Read ``__cpu_online_mask`` or another of these bit maps; empty where it is not to be had.

    Parameters
    ----------
    which : str
        ``online``, ``present`` or ``possible``.
    """
    try:
        count = min(memory.read_u32(symbols.find("nr_cpu_ids").vaddr), MAX_CPUS)
        data = memory.read(symbols.find(f"__cpu_{which}_mask").vaddr, -(-count // 64) * 8)
    except PostpanicError:
        return []
    bits = int.from_bytes(data, "little")
    return [cpu for cpu in range(count) if bits >> cpu & 1]


def read_panic_cpu(memory: KernelMemory, symbols: SymbolTable) -> int | None:
    """
    Read which CPU panicked: ``panic_cpu`` (``kernel/panic.c``), else the architecture's ``crashing_cpu``.

    None where both are -1, their value in a kernel that runs on, or not to be had.
    """
    for name in ("panic_cpu", "crashing_cpu"):
        vaddr = symbols.get(name)
        if vaddr is None:
            continue
        try:
            cpu = memory.read_u32(vaddr)
        except PostpanicError:
            continue
        if cpu < MAX_CPUS:
            return cpu
    return None


def read_per_cpu_pointer(memory: KernelMemory, symbols: SymbolTable, name: str, cpu: int) -> int:
    """
    Read a pointer that is a per-CPU variable, or the first member of one.

    Raises
    ------
    AbsentError
        If there is no such variable, or it is not in the dump.
    """
    return memory.read_u64((symbols.find(name).vaddr + _per_cpu_offset(memory, symbols, cpu)) & _WORD)


def _per_cpu_offset(memory: KernelMemory, symbols: SymbolTable, cpu: int) -> int:
    return memory.read_u64(symbols.find("__per_cpu_offset").vaddr + 8 * cpu)


def _match_saved_notes(memory: KernelMemory, symbols: SymbolTable, contents: Sequence[bytes]) -> list[int] | None:
    """Find each note in the CPUs' own buffers; None unless all are found, each once."""
    if not contents:
        return None
    by_note = dict(_read_saved_notes(memory, symbols, max(map(len, contents))))
    cpus = [by_note[data] for data in contents if data in by_note]
    return cpus if len(set(cpus)) == len(contents) else None


def _read_saved_notes(memory: KernelMemory, symbols: SymbolTable, size: int) -> Iterator[tuple[bytes, int]]:
    vaddr = symbols.get("crash_notes")
    if vaddr is None:
        return
    for cpu in read_cpu_list(memory, symbols, "possible"):
        try:
            base = memory.read_u64(vaddr) + _per_cpu_offset(memory, symbols, cpu)
            data = memory.read(base & _WORD, _NOTE_HEADER_BYTES + size)
        except PostpanicError:
            continue
        note = next(decode_notes(data, byte_order="little"), None)
        if note is not None and note.type == _NT_PRSTATUS:
            yield note.desc, cpu
