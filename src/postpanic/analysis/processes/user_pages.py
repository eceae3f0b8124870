"""
Where each page of a process is: in memory, on a swap device, in its file, or nowhere.

The page tables are read by our own reader (:mod:`postpanic.kernel.paging`), from
the process's root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from drgn import Object

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.paths import Paths
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.swap import SwapLayout
from postpanic.kernel.paging.tables import NOT_MAPPED, EntryKind, PageTables, Step
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["PagePlace", "SwapDevices", "UserPage", "process_tables", "walk_pages"]

_CHUNK_PAGES = 1 << 16


class PagePlace(StrEnum):
    """Where a page of a process is."""

    MEMORY = "memory"
    SWAP = "swap"
    FILE = "file"
    """Not mapped: it would be read from the file of its area."""
    NONE = "none"
    """Never touched."""
    SPECIAL = "special"
    """Neither mapped nor swapped out: being moved, poisoned, guarded by userfaultfd."""
    UNKNOWN = "unknown"
    """A page table on the way cannot be read."""


@dataclass(frozen=True, slots=True)
class UserPage:
    """One page of a process."""

    vaddr: int
    place: PagePlace
    paddr: int | None = None
    device: int | None = None
    """Index in ``swap_info``."""
    offset: int | None = None
    """On the swap device, in pages."""
    detail: str = ""


def process_tables(memory: KernelMemory, mm: Object) -> PageTables:
    """
    Return the page tables of a ``struct mm_struct *``.

    Raises
    ------
    TranslationError
        If ``mm->pgd`` is not an address of the kernel.
    """
    return memory.tables.with_root(PhysAddr(memory.translate(VirtAddr(int(mm.pgd.value_())))))


def walk_pages(
    memory: KernelMemory, tables: PageTables, area: Object, limit: int, layout: SwapLayout | None = None
) -> Iterator[UserPage]:
    """
    Walk the pages of a ``struct vm_area_struct *``, *limit* of them at most.

    Parameters
    ----------
    layout : SwapLayout, optional
        Of entries of pages that are not there; None: it is not known.

    Raises
    ------
    drgn.FaultError
        If the area cannot be read.
    """
    size_bytes = memory.page_size_bytes
    start = int(area.vm_start.value_())
    count = min(max(0, (int(area.vm_end.value_()) - start) // size_bytes), limit)
    otherwise = PagePlace.FILE if area.vm_file else PagePlace.NONE
    for first in range(0, count, _CHUNK_PAGES):
        base = start + first * size_bytes
        paddrs = tables.translate_pages(VirtAddr(base), min(_CHUNK_PAGES, count - first))
        yield from _describe(memory, tables, base, paddrs.tolist(), otherwise, layout)


def _describe(
    memory: KernelMemory,
    tables: PageTables,
    base: int,
    paddrs: list[int],
    otherwise: PagePlace,
    layout: SwapLayout | None,
) -> Iterator[UserPage]:
    size_bytes = memory.page_size_bytes
    known_until, known = base, UserPage(base, otherwise)
    for number, paddr in enumerate(paddrs):
        vaddr = base + number * size_bytes
        if paddr != NOT_MAPPED:
            yield UserPage(vaddr, PagePlace.MEMORY, paddr)
            continue
        if vaddr < known_until:
            # The same entry of an upper table.
            yield UserPage(vaddr, known.place, detail=known.detail)
            continue
        walk = tables.walk(VirtAddr(vaddr))
        last = walk.steps[-1] if walk.steps else None
        if last is None or last.kind is not EntryKind.NONE:
            known = UserPage(vaddr, PagePlace.UNKNOWN, detail=walk.reason)
        else:
            known = _describe_entry(tables, vaddr, last, otherwise, layout)
        # The uppermost table has no entry that leads to it.
        covered = last.size_bytes if last is not None else 1 << tables.va_bits
        known_until = (vaddr | (covered - 1)) + 1 if covered > size_bytes else vaddr
        yield known


def _describe_entry(
    tables: PageTables, vaddr: int, step: Step, otherwise: PagePlace, layout: SwapLayout | None
) -> UserPage:
    if not step.entry:
        return UserPage(vaddr, otherwise)
    if step.size_bytes > 1 << tables.page_shift or layout is None or step.entry & 1:
        return UserPage(vaddr, PagePlace.SPECIAL, detail=f"{step.level} entry {step.entry:#x}")
    if layout.is_kept(step.entry):
        _, paddr = tables.decode_entry(len(tables.levels) - 1, layout.restore(step.entry))
        return UserPage(vaddr, PagePlace.MEMORY, paddr)
    device, offset = layout.decode(step.entry)
    return UserPage(vaddr, PagePlace.SWAP, device=device, offset=offset)


class SwapDevices:
    """The names of the swap devices, by their index in ``swap_info``."""

    def __init__(self, paths: Paths, swap_info: Object) -> None:
        self._paths = paths
        self._info = swap_info
        self._names: dict[int, str | None] = {}

    def name(self, index: int) -> str | None:
        """Return the path of a swap device or file; None if there is none of that number: the entry is special."""
        if index not in self._names:
            self._names[index] = self._find(index)
        return self._names[index]

    def _find(self, index: int) -> str | None:
        try:
            # Numbers above those of the devices say what else an entry is.
            if index >= self._info.prog_["nr_swapfiles"].value_():
                return None
            info = self._info[index].read_()
            if not info or not info.swap_file:
                return None
            return self._paths.of_file(info.swap_file)
        except UNREADABLE:
            return None
