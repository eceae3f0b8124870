"""
Page tables of arm64: granules of 4, 16 and 64 KiB, addresses of 36 to 52 bits.

Arm Architecture Reference Manual, D8 "The AArch64 Virtual Memory System
Architecture"; ``arch/arm64/include/asm/pgtable-hwdef.h`` for Linux' use of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PhysicalMemory
from postpanic.errors import CorruptError
from postpanic.kernel.paging.tables import NOT_MAPPED, EntryKind, Level, PageTables
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.units import PhysAddr

__all__ = ["Arm64PageTables", "find_root_paddr", "find_va_bits"]

_VALID = 1 << 0
_TABLE = 1 << 1
_PAGE = _VALID | _TABLE
_WORD = (1 << 64) - 1

_GRANULE_SHIFTS = (12, 14, 16)
_LARGEST_BLOCK_SHIFT = {12: 39, 14: 36, 16: 42}
_MIN_VA_BITS, _MAX_VA_BITS = 36, 52
_LPA2_VA_BITS = 48


class Arm64PageTables(PageTables):
    """
    Page tables of an arm64 kernel or process.

    Parameters
    ----------
    memory : PhysicalMemory
        Where the tables lie.
    root_paddr : int
        Physical address of the uppermost table.
    page_shift : int
        12, 14 or 16: the granule.
    va_bits : int
        Size of the address space, 36 to 52. With 4 or 16 KiB pages more than 48
        bits exist only with FEAT_LPA2, which also moves address bits 51:50 to
        bits 9:8 of an entry; Linux turns on both or neither (9684ec186f8f,
        "arm64: Enable LPA2 at boot if supported by the system").

    Raises
    ------
    CorruptError
        If there is no such geometry.
    """

    def __init__(self, memory: PhysicalMemory, root_paddr: PhysAddr, *, page_shift: int, va_bits: int) -> None:
        if page_shift not in _GRANULE_SHIFTS:
            raise CorruptError(f"arm64 has no pages of {1 << page_shift} bytes, must be 4, 16 or 64 KiB")
        if not _MIN_VA_BITS <= va_bits <= _MAX_VA_BITS:
            raise CorruptError(f"arm64 has no {va_bits}-bit address space, must be {_MIN_VA_BITS} to {_MAX_VA_BITS}")
        stride = page_shift - 3
        count = -(-(va_bits - page_shift) // stride)
        levels = tuple(
            Level(
                name,
                page_shift + stride * (count - 1 - depth),
                stride if depth else va_bits - page_shift - stride * (count - 1),
            )
            for depth, name in enumerate(self.level_names[count])
        )
        super().__init__(memory, root_paddr, levels)
        self._va_bits = va_bits
        has_lpa2 = page_shift < 16 and va_bits > _LPA2_VA_BITS
        top = 50 if has_lpa2 else 48
        self._low_mask = (1 << top) - (1 << page_shift)
        # Where the address bits above `top` are kept, and how far they have to go up.
        self._high_mask, self._high_shift = (0x300, 42) if has_lpa2 else (0xF000, 36) if page_shift == 16 else (0, 0)

    @property
    def va_bits(self) -> int:
        """How many low bits of an address the tables translate."""
        return self._va_bits

    def with_root(self, root_paddr: PhysAddr) -> Arm64PageTables:
        """Give the same kind of tables with another root: those of a process."""
        return Arm64PageTables(self.memory, root_paddr, page_shift=self.page_shift, va_bits=self._va_bits)

    def decode_entry(self, level_index: int, entry: int) -> tuple[EntryKind, PhysAddr]:
        """
        Say what an entry is, and the physical address it holds.

        Bit 0 says valid; bit 1 tells a table from a block, and must be set in the
        last level. Entries that Linux keeps invalid (``PROT_NONE``, swap) are not
        mapped.
        """
        level = self.levels[level_index]
        if not entry & _VALID:
            return EntryKind.NONE, PhysAddr(0)
        paddr = (entry & self._low_mask) | (entry & self._high_mask) << self._high_shift
        if level_index == len(self.levels) - 1:
            return (EntryKind.LEAF, PhysAddr(paddr)) if entry & _TABLE else (EntryKind.NONE, PhysAddr(0))
        if entry & _TABLE:
            return EntryKind.TABLE, PhysAddr(paddr)
        if level.shift > _LARGEST_BLOCK_SHIFT[self.page_shift]:
            return EntryKind.NONE, PhysAddr(0)
        return EntryKind.LEAF, PhysAddr(paddr & ~((1 << level.shift) - 1))

    def decode_entries(
        self, level_index: int, entries: NDArray[np.uint64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint64]]:
        """Say what entries of a level above the last are, of those that the hardware would follow."""
        shift = self.levels[level_index].shift
        valid = entries & np.uint64(_VALID) != 0
        is_table = valid & (entries & np.uint64(_TABLE) != 0)
        is_leaf = valid & ~is_table & (shift <= _LARGEST_BLOCK_SHIFT[self.page_shift])
        paddrs = self._addresses(entries)
        return is_table, is_leaf, np.where(is_leaf, paddrs >> np.uint64(shift) << np.uint64(shift), paddrs)

    def decode_pages(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Give the physical addresses of last-level entries, ``NOT_MAPPED`` for those that are none."""
        return np.where(entries & np.uint64(_PAGE) == _PAGE, self._addresses(entries), np.uint64(NOT_MAPPED))

    def _addresses(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high = (entries & np.uint64(self._high_mask)) << np.uint64(self._high_shift)
        return (entries & np.uint64(self._low_mask)) | high

    def is_canonical(self, vaddr: int) -> bool:
        """Tell whether the bits above ``va_bits`` are all ones (kernel) or all zeroes (process)."""
        return vaddr >> self._va_bits in {0, (1 << (64 - self._va_bits)) - 1}


def find_root_paddr(vmcoreinfo: Vmcoreinfo) -> PhysAddr:
    """
    Give the physical address of ``swapper_pg_dir``, which lies in the kernel image.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO lacks ``SYMBOL(swapper_pg_dir)`` or ``NUMBER(kimage_voffset)``.
    """
    return PhysAddr((vmcoreinfo.symbol("swapper_pg_dir") - vmcoreinfo.number("kimage_voffset")) & _WORD)


def find_va_bits(vmcoreinfo: Vmcoreinfo, page_shift: int) -> int:
    """
    Give the size of the kernel's address space as its page tables have it.

    ``NUMBER(TCR_EL1_T1SZ)`` is what the hardware was told (since 5.9, bbdbc11804ff,
    "arm64/crash_core: Export TCR_EL1.T1SZ in vmcoreinfo"), ``NUMBER(VA_BITS)`` what
    the kernel was built for. With 64 KiB pages a kernel built for 52 bits on
    hardware with 48 still has a root table for 52, of which the hardware is shown
    the end; its entries are found with 52.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO has neither number.
    """
    built = vmcoreinfo.get_number("VA_BITS")
    t1sz = vmcoreinfo.get_number("TCR_EL1_T1SZ")
    if t1sz is None:
        return vmcoreinfo.number("VA_BITS")
    actual = 64 - t1sz
    return max(actual, built or 0) if page_shift == 16 else actual
