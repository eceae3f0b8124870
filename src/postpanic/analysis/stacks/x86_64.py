"""What is special to stacks of x86-64: registers, entry frames, calls, and the stacks that each CPU has of its own."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from drgn import Object, Program, sizeof
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Area

__all__ = [
    "ARGUMENT_REGISTERS",
    "CALLEE_SAVED",
    "CALL_BYTES",
    "PT_REGS_BYTES",
    "REGISTER_NAMES",
    "REGISTER_ROWS",
    "decode_registers",
    "ends_with_call",
    "find_entry_frames",
    "is_user_mode",
    "note_registers",
    "read_cpu_areas",
]

REGISTER_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss"),
)
"""``struct pt_regs`` (``arch/x86/include/asm/ptrace.h``), in order."""
PT_REGS_BYTES = 8 * len(REGISTER_NAMES)
IRET_OFFSET = 8 * REGISTER_NAMES.index("rip")
"""What the processor itself pushes: ``rip`` and all behind it."""
REGISTER_ROWS = (
    ("rip", "rsp", "rflags"),
    ("rax", "rbx", "rcx"),
    ("rdx", "rsi", "rdi"),
    ("rbp", "r8", "r9"),
    ("r10", "r11", "r12"),
    ("r13", "r14", "r15"),
    ("orig_rax", "cs", "ss"),
)
"""How crash lays them out."""
CALLEE_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
ARGUMENT_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
"""System V ABI, figure 3.4."""
CALL_BYTES = 7
"""The longest call instruction that the kernel is compiled to."""
_USER_MODE = 3
"""Privilege level in ``cs``."""
_FORMAT = struct.Struct(f"<{len(REGISTER_NAMES)}Q")
_CPU_ENTRY_AREA = 0xFFFFFE0000000000
"""``CPU_ENTRY_AREA_RO_IDT`` (``arch/x86/include/asm/pgtable_areas.h``); the areas begin a page behind it."""
_EXCEPTION_STACKS = {
    "DF_stack": "DOUBLEFAULT",
    "NMI_stack": "NMI",
    "DB_stack": "DEBUG",
    "MCE_stack": "MCE",
    "VC_stack": "VC",
    "VC2_stack": "VC2",
}
"""Members of ``struct cea_exception_stacks`` (5.1, 019b17b3ffe4) and crash's names."""


def decode_registers(data: bytes) -> dict[str, int]:
    """Decode a ``struct pt_regs``, or the words that the processor pushed at its end."""
    if len(data) == PT_REGS_BYTES:
        return dict(zip(REGISTER_NAMES, _FORMAT.unpack(data), strict=True))
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    return dict(zip(REGISTER_NAMES[-len(words) :], words, strict=True))


def note_registers(registers: Mapping[str, int]) -> dict[str, int]:
    """Bring the registers of a note into the order and under the names of :data:`REGISTER_NAMES`."""
    return {name: registers[name] for name in REGISTER_NAMES if name in registers}


def is_user_mode(registers: Mapping[str, int]) -> bool:
    """Tell whether the registers are those of user code."""
    return registers.get("cs", 0) & _USER_MODE == _USER_MODE


def ends_with_call(code: bytes) -> bool:
    """
    Tell whether a call instruction ends where these 7 bytes of code do: direct, or through a register or memory.

    >>> ends_with_call(bytes.fromhex("9090e800000000"))
    True
    """
    if len(code) < CALL_BYTES:
        return False
    if code[-5] == 0xE8:
        return True
    return any(
        code[-size] == 0xFF and code[1 - size] >> 3 & 7 == 2 and _indirect_size(code[-size:]) == size
        for size in (2, 3, 4, 6, 7)
    )


def _indirect_size(code: bytes) -> int:
    """Give the length of ``FF /2`` by its ModRM byte (Intel SDM, volume 2, 2.1.5)."""
    mode, register = code[1] >> 6, code[1] & 7
    if mode == 3:
        return 2
    with_index = register == 4
    if mode == 0:
        base = code[2] & 7 if with_index and len(code) > 2 else register
        return 2 + with_index + (4 if base == 5 else 0)
    return 2 + with_index + (1 if mode == 1 else 4)


def find_entry_frames(words: NDArray[np.uint64], is_text: NDArray[np.bool_]) -> list[int]:
    """
    Find what may be a ``struct pt_regs`` among the words of a stack.

    Parameters
    ----------
    is_text : ndarray of bool
        For each word, whether it is an address in the kernel's code.

    Returns
    -------
    list of int
        Index of the first word of each, rising.
    """
    size = len(REGISTER_NAMES)
    if len(words) < size:
        return []
    count = len(words) - size + 1

    def column(name: str) -> NDArray[np.uint64]:
        place = REGISTER_NAMES.index(name)
        return words[place : place + count]

    code, stack, flags = column("cs"), column("ss"), column("rflags")
    kernel_half = np.uint64(1 << 63)
    # Bit 1 is always set, bits 3, 5 and 15 never, nor those above 21 (Intel SDM, volume 1, 3.4.3).
    sane = (flags & np.uint64(0xFFFFFFFFFFC08028) == 0) & (flags & np.uint64(2) != 0)
    place = REGISTER_NAMES.index("rip")
    in_kernel = (
        (code == 0x10)
        & ((stack == 0x18) | (stack == 0))
        & is_text[place : place + count]
        & (column("rsp") >= kernel_half)
    )
    is_user = ((code == 0x33) | (code == 0x23)) & (stack == 0x2B)
    is_user &= (column("rip") < kernel_half) & (column("rsp") < kernel_half)
    found: list[int] = np.flatnonzero(sane & (in_kernel | is_user)).tolist()
    return found


def read_cpu_areas(prog: Program, cpu: int, thread_size: int) -> Iterator[Area]:
    """Give the stacks that a CPU has of its own; what cannot be read is left out."""
    for read in (_read_irq_area, _read_exception_areas):
        try:
            yield from read(prog, cpu, thread_size)
        except UNREADABLE:
            continue


def _read_irq_area(prog: Program, cpu: int, thread_size: int) -> Iterator[Area]:
    """
    Find the stack of hardware interrupts.

    ``hardirq_stack_ptr`` since 5.2 (758a2e312228), in ``pcpu_hot`` from 6.2
    (d7b6d709a76a) to 6.14, ``irq_stack_ptr`` before; its top, or the last word of it.
    """
    top = 0
    for name in ("hardirq_stack_ptr", "pcpu_hot", "irq_stack_ptr"):
        try:
            variable = per_cpu(prog[name], cpu)
            top = int(variable.hardirq_stack_ptr if name == "pcpu_hot" else variable)
            break
        except UNREADABLE:
            continue
    if top:
        # Where the stack is mapped on its own, it begins at any page.
        page_size = int(prog["PAGE_SIZE"])
        end = -(-top // page_size) * page_size
        yield Area("IRQ", end - thread_size, end, cpu)


def _read_exception_areas(prog: Program, cpu: int, _thread_size: int) -> Iterator[Area]:
    type_ = prog.type("struct cpu_entry_area")
    try:
        # 6.2, 97e3d26b5e5f: the areas are shuffled.
        place = int(per_cpu(prog["_cea_offset"], cpu))
    except UNREADABLE:
        place = cpu
    base = _CPU_ENTRY_AREA + prog["PAGE_SIZE"].value_() + place * sizeof(type_)
    stacks = Object(prog, type_, address=base).estacks
    for member, name in _EXCEPTION_STACKS.items():
        try:
            stack = getattr(stacks, member)
        except AttributeError:
            continue
        start = int(stack.address_of_())
        if sizeof(stack):
            yield Area(name, start, start + sizeof(stack), cpu)
