"""Per-CPU symbols: which they are, and where each CPU has its copy."""

from __future__ import annotations

from drgn import FaultError, Program
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.module_list import each_module

__all__ = ["find_per_cpu_vaddr", "is_per_cpu"]

_MODULE_LIMIT = 10_000


def is_per_cpu(prog: Program, vaddr: int) -> bool:
    """
    Tell whether the address of a symbol is an offset into the areas of the CPUs.

    The kernel's own lie between ``__per_cpu_start`` and ``__per_cpu_end``
    (``include/asm-generic/vmlinux.lds.h``; at 0 on x86-64 before 6.15), those of
    a module in ``module.percpu`` (``kernel/module/main.c``).
    """
    try:
        start, end = prog.symbol("__per_cpu_start").address, prog.symbol("__per_cpu_end").address
    except LookupError:
        return False
    if start <= vaddr < end:
        return True
    # Modules get theirs from pcpu_alloc(), whose offsets are no addresses of the kernel's half either.
    return vaddr >> 47 != (1 << 17) - 1 and vaddr >= end - start and _is_in_module(prog, vaddr)


def _is_in_module(prog: Program, vaddr: int) -> bool:
    try:
        for number, module in enumerate(each_module(prog)):
            if number >= _MODULE_LIMIT:
                return False
            start = int(module.percpu.value_())
            if start and start <= vaddr < start + int(module.percpu_size.value_()):
                return True
    except UNREADABLE:
        pass
    return False


def find_per_cpu_vaddr(prog: Program, vaddr: int, cpu: int) -> int:
    """
    Find the address of one CPU's copy of a per-CPU symbol or pointer.

    Parameters
    ----------
    vaddr : int
        Of the symbol, or what a ``__percpu`` pointer holds.

    Raises
    ------
    FaultError
        If the offsets of the CPUs (``__per_cpu_offset``) are not in the dump.
    LookupError
        If nothing tells where they are.
    """
    from drgn import Object

    pointer = per_cpu_ptr(Object(prog, "void *", vaddr), cpu)
    try:
        return int(pointer.value_())
    except FaultError as exc:
        raise FaultError(f"offset of CPU {cpu}", exc.address) from exc
