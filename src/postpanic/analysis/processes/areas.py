"""The virtual memory areas of a process."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program
from drgn.helpers.linux.mm import vma_name

from postpanic.analysis.cells import decode, guarded
from postpanic.analysis.containers import maple_entries
from postpanic.analysis.filesystems.paths import Paths, file_path
from postpanic.findings.table import Problem

__all__ = ["area_name", "flag_names", "read_areas"]

# include/linux/mm.h. 0x800 was VM_DENYWRITE until 5.15 and has no name in the kernels after it.
_FLAGS = (
    *("READ", "WRITE", "EXEC", "SHARED", "MAYREAD", "MAYWRITE", "MAYEXEC", "MAYSHARE", "GROWSDOWN", "UFFD_MISSING"),
    *("PFNMAP", "DENYWRITE", "UFFD_WP", "LOCKED", "IO", "SEQ_READ", "RAND_READ", "DONTCOPY", "DONTEXPAND"),
    *("LOCKONFAULT", "ACCOUNT", "NORESERVE", "HUGETLB", "SYNC", "ARCH_1", "WIPEONFORK", "DONTDUMP", "SOFTDIRTY"),
    *("MIXEDMAP", "HUGEPAGE", "NOHUGEPAGE", "MERGEABLE"),
)
"""Bits 0 to 31 of ``vm_area_struct.vm_flags``, without ``VM_``."""

_NEWER = (
    *("MAYBE_GUARD", "PKEY_BIT0", "PKEY_BIT1", "PKEY_BIT2", "PKEY_BIT3", "PKEY_BIT4", "SHADOW_STACK", "UFFD_MINOR"),
    *("MTE", "MTE_ALLOWED", "ALLOW_ANY_UNCACHED", "DROPPABLE", "SEALED", "DONTCOPY", "STICKY"),
)
"""Flags whose bits differ between kernels: those that name them in an enumeration say which it is."""


def read_areas(mm: Object, problems: list[Problem]) -> Iterator[Object]:
    """Walk the ``struct vm_area_struct *`` of a ``struct mm_struct *``, by address."""
    try:
        tree = mm.mm_mt
    except AttributeError:
        # Before 6.1 (763ecb035029) they were in a list.
        yield from guarded(_list(mm), f"memory areas of the mm_struct at {mm.value_():#x}", problems)
        return
    for _, area in maple_entries(tree, "struct vm_area_struct", problems):
        yield area


def _list(mm: Object) -> Iterator[Object]:
    area = mm.mmap.read_()
    while area:
        yield area
        area = area.vm_next.read_()


def area_name(area: Object, paths: Paths) -> str:
    """Name an area as ``/proc/PID/maps`` does: its file's path, ``[heap]``, ``[stack]`` …, empty for none."""
    file = area.vm_file.read_()
    if file:
        return paths.of_path(file_path(file))
    return decode(vma_name(area))


def flag_names(prog: Program, flags: int) -> list[str]:
    """Name the bits that are set in ``vm_area_struct.vm_flags``; a bit without a name is ``BIT40``."""
    by_bit = dict(enumerate(_FLAGS))
    for name in _NEWER:
        try:
            by_bit[int(prog.constant(f"VMA_{name}_BIT").value_())] = name
        except LookupError:
            continue
    return [by_bit.get(bit, f"BIT{bit}") for bit in range(flags.bit_length()) if flags >> bit & 1]
