"""The virtual memory areas of a process."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from drgn import Object, Program, Type, offsetof
from drgn.helpers.linux.mm import vma_name

from postpanic.analysis.cells import cell, decode, guarded
from postpanic.analysis.containers import maple_entries
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.paths import Paths
from postpanic.findings.table import Cell, Problem

__all__ = ["Area", "AreaReader", "area_name", "flag_names", "read_areas"]

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
    what = f"memory areas of the mm_struct at {mm.value_():#x}"
    try:
        tree = mm.mm_mt
    except AttributeError:
        # Before 6.1 (763ecb035029) they were in a list.
        yield from guarded(_list(mm), what, problems)
        return
    for _, area in maple_entries(tree, "struct vm_area_struct", what, problems):
        yield area


def _list(mm: Object) -> Iterator[Object]:
    area = mm.mmap.read_()
    while area:
        yield area
        area = area.vm_next.read_()


def area_name(area: Object, paths: Paths) -> str:
    """Name an area as ``/proc/PID/maps`` does: its file's path, ``[heap]``, ``[stack]`` …, empty for none."""
    file = area.vm_file.read_()
    return paths.of_file(file) if file else decode(vma_name(area))


@dataclass(frozen=True, slots=True)
class Area:
    """What an area is; cells, since its structure may be unreadable."""

    vma: Object
    """``struct vm_area_struct *``."""
    start: Cell
    end: Cell
    flags: Cell
    name: Cell


class AreaReader:
    """
    Reads the areas of one process, each structure in one piece.

    Parameters
    ----------
    mm : Object
        ``struct mm_struct *``; NULL for areas that are known by their address alone.
    """

    def __init__(self, mm: Object, paths: Paths) -> None:
        self._prog = mm.prog_
        self._paths = paths
        self._file_type = self._prog.type("struct file *")
        self._layout = _Layout.find(self._prog.type("struct vm_area_struct"))
        # What has no file and lies in none of these has a name only if it was given one.
        self._named = _named_ranges(mm)

    def read(self, vma: Object) -> Area:
        """Read one area."""
        try:
            start, end, flags, file, operations, name = self._layout.decode(self._prog, int(vma.value_()))
        except UNREADABLE:
            # Member by member: what can be read is shown.
            first, last, bits = (cell(partial(_member, vma, member)) for member in ("vm_start", "vm_end", "vm_flags"))
            return Area(vma, first, last, bits, cell(lambda: area_name(vma, self._paths)))
        if file:
            return Area(vma, start, end, flags, cell(lambda: self._paths.of_file(self._file(file))))
        if not operations and not name and not any(low <= end and start <= high for low, high in self._named):
            return Area(vma, start, end, flags, "")
        return Area(vma, start, end, flags, cell(lambda: area_name(vma, self._paths)))

    def _file(self, vaddr: int) -> Object:
        return Object(self._prog, self._file_type, vaddr)


def _member(vma: Object, name: str) -> int:
    return int(vma.member_(name).value_())


def _named_ranges(mm: Object) -> list[tuple[int, int]]:
    """Return the ranges whose areas may be called ``[heap]`` or ``[stack]``; everything, where that is not known."""
    try:
        return [
            (int(mm.start_brk.value_()), int(mm.brk.value_())),
            (int(mm.start_stack.value_()), int(mm.start_stack.value_())),
        ]
    except UNREADABLE:
        return [(0, (1 << 64) - 1)]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the members of ``struct vm_area_struct`` are that make a row."""

    size: int
    offsets: tuple[int, ...]

    @classmethod
    def find(cls, type_: Type) -> _Layout:
        names = ("vm_start", "vm_end", "vm_flags", "vm_file", "vm_ops", "anon_name")
        offsets = []
        for name in names:
            try:
                offsets.append(offsetof(type_, name))
            except LookupError:
                # Areas have had names of their own since 5.17 (9a10064f5625).
                offsets.append(-1)
        return cls(max(offsets) + 8, tuple(offsets))

    def decode(self, prog: Program, vaddr: int) -> list[int]:
        """Read the members of one area; 0 for one that the kernel does not have."""
        data = prog.read(vaddr, self.size)
        return [struct.unpack_from("<Q", data, offset)[0] if offset >= 0 else 0 for offset in self.offsets]


def flag_names(prog: Program, flags: int) -> list[str]:
    """Name the bits that are set in ``vm_area_struct.vm_flags``; a bit without a name is ``BIT40``."""
    by_bit = dict(enumerate(_FLAGS))
    for name in _NEWER:
        try:
            by_bit[int(prog.constant(f"VMA_{name}_BIT").value_())] = name
        except LookupError:
            continue
    return [by_bit.get(bit, f"BIT{bit}") for bit in range(flags.bit_length()) if flags >> bit & 1]
