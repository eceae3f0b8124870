"""
What an address or a register's value is: NULL and an offset, poison, an error number, text, a part of memory.

References
----------
include/linux/poison.h; include/linux/err.h ``MAX_ERRNO``; Documentation/arch/x86/x86_64/mm.rst;
Documentation/arch/arm64/memory.rst; Documentation/arch/riscv/vm-layout.rst; Documentation/dev-tools/kasan.rst.
"""

from __future__ import annotations

import errno
import os

__all__ = ["describe_address", "describe_value", "is_noncanonical"]

_WORD = (1 << 64) - 1
_MAX_ERRNO = 4095
_NULL_BYTES = 1 << 16
"""What is taken for a member of a structure at NULL: larger ones are rare, and vm.mmap_min_addr ends there."""
_POISON_POINTER_DELTA = 0xDEAD000000000000
_POISONS: dict[int, str] = {
    _POISON_POINTER_DELTA + 0x100: "LIST_POISON1: list_head.next after list_del()",
    _POISON_POINTER_DELTA + 0x122: "LIST_POISON2: list_head.prev after list_del()",
    _POISON_POINTER_DELTA + 0x200: "LIST_POISON2: list_head.prev after list_del()",
    _POISON_POINTER_DELTA + 0x300: "TIMER_ENTRY_STATIC",
    _POISON_POINTER_DELTA + 0x400: "page pool's or net_iov's magic",
    _POISON_POINTER_DELTA + 0x500: "MUTEX_POISON",
    0x100: "LIST_POISON1: list_head.next after list_del()",
    0x122: "LIST_POISON2: list_head.prev after list_del()",
    0x200: "LIST_POISON2: list_head.prev after list_del()",
    0xDEAD4EAD: "SPINLOCK_MAGIC",
    0xDEAF1EED: "RWLOCK_MAGIC",
}
_REPEATED: dict[int, str] = {
    0x6B: "POISON_FREE: a slab object after it was freed",
    0x5A: "POISON_INUSE: a slab object that was never written to",
    0xA5: "POISON_END: the last byte of a slab object",
    0xBB: "SLUB_RED_INACTIVE: beside a slab object that is free",
    0xCC: "SLUB_RED_ACTIVE or POISON_FREE_INITMEM: beside a slab object, or freed memory of init",
    0xAA: "PAGE_POISON: a page after it was freed",
    0x9C: "KMEM_CACHE_POISON_END: slab's end",
    0xFE: "0xfe over and over: stack that was initialised with a pattern",
}
_POISON_REACH = 0x1000
"""How far behind a poison an address may lie: a member of what it was taken for."""
_SHADOW = {"x86_64": 0xDFFFFC0000000000, "aarch64": 0xDFFF800000000000}
_SHADOW_SHIFT = 3
_ADDRESS_BITS = {"x86_64": (48, 57), "aarch64": (48, 52), "riscv64": (39, 48, 57), "s390x": (64,), "ppc64": (64,)}
_X86_64_PARTS = (
    (0xFF10000000000000, 0xFF11000000000000, "memory (direct map, five levels)"),
    (0xFFFF880000000000, 0xFFFFC88000000000, "memory (direct map)"),
    (0xFFFFC90000000000, 0xFFFFE90000000000, "vmalloc: modules' data, stacks, mapped devices"),
    (0xFFFFEA0000000000, 0xFFFFEB0000000000, "vmemmap: struct page"),
    (0xFFFFEC0000000000, 0xFFFFFC0000000000, "KASAN's shadow"),
    (0xFFFFFE0000000000, 0xFFFFFE8000000000, "cpu_entry_area"),
    (0xFFFFFF0000000000, 0xFFFFFF8000000000, "espfix stacks"),
    (0xFFFFFFEF00000000, 0xFFFFFFFF00000000, "EFI's runtime services"),
    (0xFFFFFFFF80000000, 0xFFFFFFFFC0000000, "kernel text or data"),
    (0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000, "modules"),
    (0xFFFFFFFFFF000000, 0xFFFFFFFFFFE00000, "fixmap"),
)
_AARCH64_PARTS = (
    (0xFFFF000000000000, 0xFFFF800000000000, "memory (linear map, 48 bits)"),
    (0xFFFF800000000000, 0xFFFFFBFFF0000000, "kernel, modules or vmalloc"),
    (0xFFFFFC0000000000, 0xFFFFFE0000000000, "vmemmap: struct page"),
    (0xFFF0000000000000, 0xFFFF000000000000, "memory (linear map, 52 bits)"),
)
_PPC64_PARTS = (
    (0xC000000000000000, 0xC008000000000000, "kernel or memory (linear map)"),
    (0xC008000000000000, 0xC00A000000000000, "vmalloc and modules"),
    (0xC00A000000000000, 0xC00C000000000000, "mapped devices"),
    (0xC00C000000000000, 0xC00E000000000000, "vmemmap: struct page"),
)
_PARTS = {"x86_64": _X86_64_PARTS, "aarch64": _AARCH64_PARTS, "ppc64": _PPC64_PARTS}
_THIRTY_TWO = frozenset({"i386", "arm", "armt", "mips", "micromips", "riscv32", "ppc"})


def describe_address(vaddr: int, machine: str) -> str:
    """
    Say what kind of address something is; empty: nothing is known of it.

    >>> describe_address(0x28, "x86_64")
    'NULL + 0x28'
    >>> describe_address(0x6b6b6b6b6b6b6b73, "x86_64")
    '0x6b over and over + 0x8: POISON_FREE: a slab object after it was freed; non-canonical'
    """
    if machine in _THIRTY_TWO:
        vaddr &= 0xFFFFFFFF
    if vaddr < _NULL_BYTES and vaddr not in _POISONS:
        return f"NULL + {vaddr:#x}" if vaddr else "NULL"
    remarks = [remark for remark in (_poison(vaddr, machine), _error(vaddr, machine)) if remark]
    if not remarks and (shadow := _shadow(vaddr, machine)):
        remarks.append(shadow)
    if not remarks and (text := _text(vaddr)):
        remarks.append(text)
    place = _part(vaddr, machine)
    return "; ".join([*remarks, *([place] if place else [])])


def describe_value(value: int, machine: str) -> str:
    """
    Say what a register's value tells: poison, an error number, text; empty: nothing out of the ordinary.

    >>> describe_value(0xdead000000000122, "x86_64"), describe_value(0xfffffffffffffff4, "x86_64")
    ('LIST_POISON2: list_head.prev after list_del()', 'error number -12 (ENOMEM: Cannot allocate memory)')
    """
    if machine in _THIRTY_TWO:
        value &= 0xFFFFFFFF
    if value < _POISON_REACH:
        return ""
    return _poison(value, machine) or _error(value, machine) or _text(value)


def is_noncanonical(vaddr: int, machine: str) -> bool:
    """
    Tell whether no page table can map an address.

    >>> is_noncanonical(0xdead000000000100, "x86_64"), is_noncanonical(0xffff888000000000, "x86_64")
    (True, False)
    """
    widths = _ADDRESS_BITS.get(machine)
    if widths is None or widths[-1] == 64:
        return False
    # A top byte of a pointer of arm64 may be a tag.
    if machine == "aarch64":
        vaddr = vaddr | 0xFF << 56 if vaddr >> 55 & 1 else vaddr & ~(0xFF << 56)
    high = vaddr >> (widths[-1] - 1)
    return high not in {0, (1 << (65 - widths[-1])) - 1}


def _poison(vaddr: int, machine: str) -> str:
    is_short = machine in _THIRTY_TWO
    for poison, meaning in _POISONS.items():
        if (poison < _POISON_REACH) is is_short and vaddr == poison:
            return meaning
    for poison, meaning in _POISONS.items():
        if poison >= _POISON_POINTER_DELTA and 0 < vaddr - poison < _POISON_REACH - 0x100 and not is_short:
            return f"{poison:#x} + {vaddr - poison:#x}: {meaning}"
        if poison >= _POISON_POINTER_DELTA and 0 < poison - vaddr <= 0x80 and not is_short:
            return f"{poison:#x} - {poison - vaddr:#x}: {meaning}"
    size = 4 if is_short else 8
    for byte, meaning in _REPEATED.items():
        poison = int.from_bytes(bytes([byte]) * size, "little")
        if abs(vaddr - poison) < _POISON_REACH:
            distance = vaddr - poison
            tail = f" {'+' if distance > 0 else '-'} {abs(distance):#x}" if distance else ""
            return f"{byte:#x} over and over{tail}: {meaning}"
    return ""


def _error(vaddr: int, machine: str) -> str:
    limit = 1 << (32 if machine in _THIRTY_TWO else 64)
    number = limit - vaddr
    if 0 < number <= _MAX_ERRNO:
        name = errno.errorcode.get(number)
        return f"error number -{number}" + (f" ({name}: {os.strerror(number)})" if name else "")
    return ""


def _shadow(vaddr: int, machine: str) -> str:
    base = _SHADOW.get(machine)
    if base is None or not base <= vaddr < base + (1 << 45):
        return ""
    start = (vaddr - base << _SHADOW_SHIFT) & _WORD
    what = describe_address(start, machine)
    return f"KASAN's shadow of {start:#x}-{start + 7:#x}" + (f" ({what})" if what else "")


def _text(vaddr: int) -> str:
    data = vaddr.to_bytes(8, "little").rstrip(b"\0")
    if len(data) >= 4 and all(0x20 <= byte < 0x7F for byte in data):
        return f"text: {data.decode()!r}"
    return ""


def _part(vaddr: int, machine: str) -> str:
    if is_noncanonical(vaddr, machine):
        return "non-canonical"
    if machine == "x86_64" and vaddr >> 47 not in {0, 0x1FFFF} and not 0xFF10 << 48 <= vaddr < 0xFF11 << 48:
        return "non-canonical, unless page tables have five levels"
    for start, end, name in _PARTS.get(machine, ()):
        if start <= vaddr < end:
            return name
    widths = _ADDRESS_BITS.get(machine)
    if widths is not None and vaddr < 1 << (min(widths[-1], 63) - 1):
        return "user space"
    if machine in {"i386", "arm", "armt"}:
        return "user space" if vaddr < 0xC0000000 else "kernel"
    return ""
