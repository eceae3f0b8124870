"""
Page tables of x86-64: 4 or 5 levels of 4 KiB tables, pages of 4 KiB, 2 MiB and 1 GiB.

Intel SDM volume 3, chapter 4.5; ``arch/x86/include/asm/pgtable_types.h`` for
what Linux keeps in entries that are not present.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PhysicalMemory
from postpanic.errors import FactAbsentError
from postpanic.kernel.paging.tables import NOT_MAPPED, EntryKind, Level, PageTables
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.units import GIB, PhysAddr, VirtAddr

__all__ = ["START_KERNEL_MAP", "X86PageTables", "find_image_size_bytes", "find_root_paddr"]

START_KERNEL_MAP = VirtAddr(0xFFFFFFFF80000000)
"""``__START_KERNEL_map``: here the kernel image is mapped in one piece (``arch/x86/include/asm/page_64_types.h``)."""

_PRESENT = 1 << 0
_PSE = 1 << 7
_PROTNONE = 1 << 8
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ALL_ONES = (1 << 64) - 1

_PAGE_SHIFT = 12
_INDEX_BITS = 9
_PMD_SHIFT = 21
_PUD_SHIFT = 30


class X86PageTables(PageTables):
    """
    Page tables of an x86-64 kernel or process.

    Parameters
    ----------
    memory : PhysicalMemory
        Where the tables lie.
    root_paddr : int
        Physical address of the PGD.
    level_count : int
        4, or 5 where ``pgtable_l5_enabled``.
    encryption_mask : int
        ``sme_mask``: the bit that marks a page as encrypted and is no part of its address.
    """

    def __init__(
        self, memory: PhysicalMemory, root_paddr: PhysAddr, *, level_count: int = 4, encryption_mask: int = 0
    ) -> None:
        names = self.level_names[level_count]
        levels = tuple(
            Level(name, _PAGE_SHIFT + _INDEX_BITS * (level_count - 1 - depth), _INDEX_BITS)
            for depth, name in enumerate(names)
        )
        super().__init__(memory, root_paddr, levels)
        self._encryption_mask = encryption_mask
        self._address_mask = _ADDRESS & ~encryption_mask

    @property
    def va_bits(self) -> int:
        """48, or 57 with 5 levels."""
        return self.levels[0].shift + _INDEX_BITS

    def with_root(self, root_paddr: PhysAddr) -> X86PageTables:
        """Give the same kind of tables with another root: those of a process."""
        return X86PageTables(
            self.memory, root_paddr, level_count=len(self.levels), encryption_mask=self._encryption_mask
        )

    def decode_entry(self, level_index: int, entry: int) -> tuple[EntryKind, PhysAddr]:
        """
        Say what an entry is, and the physical address it holds.

        A page that is there but must not be touched (``PROT_NONE``) has its
        present bit clear and its frame number inverted (6b28baca9b1f,
        "x86/speculation/l1tf: Protect PROT_NONE PTEs against speculation"); a
        huge page that is being split keeps only PSE.
        """
        level = self.levels[level_index]
        is_last = level_index == len(self.levels) - 1
        is_large = not is_last and level.shift <= _PUD_SHIFT and bool(entry & _PSE)
        software = _PROTNONE if is_last else _PROTNONE | _PSE if is_large and level.shift == _PMD_SHIFT else 0
        if not entry & (_PRESENT | software):
            return EntryKind.NONE, PhysAddr(0)
        address = entry if entry & _PRESENT else entry ^ _ALL_ONES
        paddr = address & self._address_mask & ~((1 << level.shift) - 1 if is_large else 0)
        return (EntryKind.LEAF if is_last or is_large else EntryKind.TABLE), PhysAddr(paddr)

    def decode_entries(
        self, level_index: int, entries: NDArray[np.uint64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint64]]:
        """Say what entries of a level above the last are, of those that the hardware would follow."""
        shift = self.levels[level_index].shift
        present = entries & np.uint64(_PRESENT) != 0
        is_leaf = present & (entries & np.uint64(_PSE) != 0) & (shift <= _PUD_SHIFT)
        paddrs = entries & np.uint64(self._address_mask)
        return present & ~is_leaf, is_leaf, np.where(is_leaf, paddrs >> np.uint64(shift) << np.uint64(shift), paddrs)

    def decode_pages(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Give the physical addresses of last-level entries, ``NOT_MAPPED`` for those that are none."""
        present = entries & np.uint64(_PRESENT) != 0
        address = np.where(present, entries, ~entries) & np.uint64(self._address_mask)
        return np.where(entries & np.uint64(_PRESENT | _PROTNONE) != 0, address, np.uint64(NOT_MAPPED))

    def is_canonical(self, vaddr: int) -> bool:
        """Tell whether the bits above ``va_bits`` repeat the highest one."""
        upper = vaddr >> (self.va_bits - 1)
        return upper in {0, (1 << (64 - self.va_bits + 1)) - 1}


def find_root_paddr(vmcoreinfo: Vmcoreinfo, phys_base: int) -> PhysAddr:
    """
    Give the physical address of the kernel's PGD.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO names neither ``swapper_pg_dir`` nor ``init_top_pgt``.
    """
    for name in ("swapper_pg_dir", "init_top_pgt"):
        vaddr = vmcoreinfo.get_symbol(name)
        if vaddr is not None:
            return PhysAddr((vaddr - START_KERNEL_MAP + phys_base) & _ALL_ONES)
    raise FactAbsentError("VMCOREINFO has neither SYMBOL(swapper_pg_dir) nor SYMBOL(init_top_pgt)")


def find_image_size_bytes(vmcoreinfo: Vmcoreinfo) -> int:
    """Give the size of the window for the kernel image: ``KERNEL_IMAGE_SIZE``, 1 GiB at most."""
    size = vmcoreinfo.get_number("KERNEL_IMAGE_SIZE")
    return size if size is not None and 0 < size <= GIB else GIB
