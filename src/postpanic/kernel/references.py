"""
Variables that no table names, by the code that uses them.

A function whose name and place are known says in its instructions where its data
is: on arm64 an address is put together by ``adrp`` and ``add`` (Arm ARM C6.2), the
compiler often by way of an anchor that several variables share. A variable is
named only if exactly one address is all that is known of it: used by these
functions, and holding what it must hold.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

from postpanic.errors import AbsentError
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.units import KIB, VirtAddr

__all__ = ["find_referenced_symbols", "list_data_addresses"]

_LONGEST_FUNCTION_BYTES = 16 * KIB
_WORD = (1 << 64) - 1
_PAGE_MASK = ~0xFFF & _WORD
_KERNEL_HALF = 1 << 63
_MAX_CPUS = 8192
_INVALID_CPU = 0xFFFF_FFFF
"""``PANIC_CPU_INVALID``."""
_CALLER_SAVED = range(19)
"""x0 to x18: a call may change them (Procedure Call Standard for the Arm 64-bit Architecture, 6.1.1)."""
_SP = 31

# Masks and values of instructions: Arm ARM C4.1.
_ADRP = (0x9F000000, 0x90000000)
_ADD = (0xFFC00000, 0x91000000)
_LOAD_STORE = (0x3B000000, 0x39000000)
_MOVE = (0xFFE0FFE0, 0xAA0003E0)
_CALL = (0xFC000000, 0x94000000)


def find_referenced_symbols(memory: KernelMemory, table: SymbolTable) -> Iterator[tuple[str, int]]:
    """
    Find what tells how the kernel died: ``panic_cpu`` and ``crash_notes``.

    ``crash_kexec()`` and ``panic()`` exchange ``panic_cpu`` (``kernel/panic.c``, 1717f2096b54);
    ``crash_save_cpu()`` writes to its CPU's part of ``crash_notes`` (``kernel/crash_core.c``). What
    cannot be told for certain is left out; other machines than arm64 have none.
    """
    if memory.machine != "aarch64":
        return
    recipes: tuple[tuple[str, tuple[str, ...], Callable[[KernelMemory, SymbolTable, int], bool]], ...] = (
        ("panic_cpu", ("crash_kexec", "panic"), _may_be_panic_cpu),
        ("crash_notes", ("crash_save_cpu",), _may_be_crash_notes),
    )
    for name, functions, may_be in recipes:
        if name in table:
            continue
        used = [list_data_addresses(memory, table, function) for function in functions]
        both = set.intersection(*used) if used else set()
        found = [vaddr for vaddr in both if may_be(memory, table, vaddr)]
        if len(found) == 1:
            yield name, found[0]


def list_data_addresses(memory: KernelMemory, table: SymbolTable, function: str) -> set[int]:
    """
    List the addresses that a function's code puts together; empty where it cannot be read.

    Branches are not followed: what a register holds behind one may be from another way
    there, so that an address too many may be among them.
    """
    start = table.get(function)
    if start is None:
        return set()
    later = table.vaddrs[table.vaddrs > np.uint64(start)]
    size = min(int(later.min()) - start, _LONGEST_FUNCTION_BYTES) if len(later) else 0
    try:
        code = memory.read(start, size)
    except AbsentError:
        return set()
    return set(_follow(struct.unpack(f"<{size // 4}I", code[: size // 4 * 4]), start))


def _follow(words: tuple[int, ...], start: int) -> Iterator[int]:
    known: dict[int, int] = {}
    for number, word in enumerate(words):
        target, source = word & 31, word >> 5 & 31
        if _is(word, _ADRP):
            pages = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            pages -= (pages & 1 << 20) << 1
            known[target] = ((start + 4 * number & _PAGE_MASK) + (pages << 12)) & _WORD
        elif _is(word, _ADD):
            base = known.pop(source, None) if source == target else known.get(source)
            if base is not None and source != _SP:
                known[target] = base + (word >> 10 & 0xFFF)
                yield known[target]
        elif _is(word, _LOAD_STORE) and source in known:
            yield known[source] + ((word >> 10 & 0xFFF) << (word >> 30))
        elif _is(word, _MOVE) and word >> 16 & 31 in known:
            known[target] = known[word >> 16 & 31]
        elif _is(word, _CALL):
            for register in _CALLER_SAVED:
                known.pop(register, None)


def _is(word: int, pattern: tuple[int, int]) -> bool:
    return word & pattern[0] == pattern[1]


def _may_be_panic_cpu(memory: KernelMemory, table: SymbolTable, vaddr: int) -> bool:
    """Tell whether a CPU's number, or none, is in a variable of the kernel's own that no table names."""
    if vaddr % 4 or not _is_unnamed_data(memory, table, vaddr):
        return False
    try:
        value = memory.read_u32(vaddr)
    except AbsentError:
        return False
    return value < _MAX_CPUS or value == _INVALID_CPU


def _may_be_crash_notes(memory: KernelMemory, table: SymbolTable, vaddr: int) -> bool:
    """Tell whether it is a pointer that leads to memory when the offset of the first CPU is added."""
    offsets = table.get("__per_cpu_offset")
    if offsets is None or vaddr % 8 or not _is_unnamed_data(memory, table, vaddr):
        return False
    try:
        pointer = memory.read_u64(vaddr)
        place = (pointer + memory.read_u64(offsets)) & _WORD
        return bool(pointer and place & _KERNEL_HALF) and memory.walk(VirtAddr(place)).paddr is not None
    except AbsentError:
        return False


def _is_unnamed_data(memory: KernelMemory, table: SymbolTable, vaddr: int) -> bool:
    start, end = memory.layout.image_range
    etext = table.get("_etext")
    if not start <= vaddr < end or (etext is not None and vaddr < etext):
        return False
    return not bool(np.any(table.vaddrs == np.uint64(vaddr)))
