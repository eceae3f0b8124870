"""
What the bits of a page table entry say.

x86-64: ``arch/x86/include/asm/pgtable_types.h`` and ``pgtable_64.h`` (swap entries);
arm64: Arm Architecture Reference Manual D8.3, ``arch/arm64/include/asm/pgtable-prot.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import EntryKind

__all__ = ["DecodedEntry", "SwapEntry", "decode_page_entry"]

_X86_FLAGS = (
    (0, "PRESENT"), (1, "RW"), (2, "USER"), (3, "PWT"), (4, "PCD"), (5, "ACCESSED"), (6, "DIRTY"), (7, "PSE"),
    (8, "GLOBAL"), (63, "NX"),
)  # fmt: skip
_ARM64_FLAGS = (
    (0, "VALID"), (6, "USER"), (7, "RDONLY"), (10, "AF"), (11, "NG"), (51, "WRITE"), (52, "CONT"), (53, "PXN"),
    (54, "UXN"), (55, "DIRTY"), (56, "SPECIAL"),
)  # fmt: skip
_ARM64_SHARED = 3 << 8
_ARM64_PROTNONE = (1 << 58, 1 << 2)
_X86_PROTNONE = 1 << 8
_SWAP_TYPE_SHIFT = 59
_SWAP_OFFSET_SHIFT = 14
_SWAP_TYPE_BITS = 5
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SwapEntry:
    """
    Where a page that is not present is: ``swp_entry_t``.

    A type that is no swap device is the kernel's own: a page that migrates or
    is poisoned, device memory, a marker (``include/linux/swapops.h``).
    """

    type: int
    offset: int
    """In pages of the swap device."""


@dataclass(frozen=True, slots=True)
class DecodedEntry:
    """
    A page table entry in words.

    Attributes
    ----------
    paddr : int or None
        Of the page; None where the entry holds none.
    swap : SwapEntry or None
        Of an entry that is not present and not empty.
    """

    entry: int
    paddr: int | None
    flags: tuple[str, ...]
    swap: SwapEntry | None = None


def decode_page_entry(memory: KernelMemory, entry: int, level_index: int | None = None) -> DecodedEntry:
    """
    Decode an entry that maps a page.

    Parameters
    ----------
    level_index : int, optional
        Of which level of the tables it is; None: the last one, of base pages.
    """
    levels = memory.tables.levels
    index = len(levels) - 1 if level_index is None else level_index
    kind, paddr = memory.tables.decode_entry(index, entry)
    if memory.machine == "x86_64":
        flags = _x86_flags(entry)
        is_there = kind is not EntryKind.NONE
        swap = _x86_swap(entry) if entry and not is_there else None
    else:
        flags = _arm64_flags(entry)
        is_there = kind is not EntryKind.NONE or bool(entry & _ARM64_PROTNONE[0])
        swap = None
    return DecodedEntry(entry, int(paddr) if kind is not EntryKind.NONE else None, flags if is_there else (), swap)


def _x86_flags(entry: int) -> tuple[str, ...]:
    names = tuple(name for bit, name in _X86_FLAGS if entry >> bit & 1)
    if not entry & 1 and entry & _X86_PROTNONE:
        # Not present for the hardware: the bit of GLOBAL says that the page is there.
        return tuple("PROTNONE" if name == "GLOBAL" else name for name in names)
    return names


def _arm64_flags(entry: int) -> tuple[str, ...]:
    names = [name for bit, name in _ARM64_FLAGS if entry >> bit & 1]
    if entry & _ARM64_SHARED == _ARM64_SHARED:
        names.insert(1, "SHARED")
    if not entry & 1 and entry & _ARM64_PROTNONE[0]:
        names.append("PROTNONE")
    return tuple(names)


def _x86_swap(entry: int) -> SwapEntry:
    """Take a swap entry apart: the type in the upper bits, the offset inverted (bcd11afa7ade, eee4818baac0)."""
    return SwapEntry(entry >> _SWAP_TYPE_SHIFT, ((~entry << _SWAP_TYPE_BITS) & _WORD) >> _SWAP_OFFSET_SHIFT)
