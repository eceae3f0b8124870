"""
What the bits of a page table entry say.

x86-64: ``arch/x86/include/asm/pgtable_types.h``; arm64: Arm Architecture Reference Manual D8.3,
``arch/arm64/include/asm/pgtable-prot.h``. Swap entries: :mod:`postpanic.kernel.paging.swap`.
"""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.swap import ARM64_LAYOUTS, ARM64_READERS, X86_64_LAYOUT, SwapLayout, find_arm64_layout
from postpanic.kernel.paging.tables import EntryKind

__all__ = ["NOT_VALID", "DecodedEntry", "SwapEntry", "decode_page_entry", "find_swap_layout"]

_X86_FLAGS = (
    (0, "PRESENT"), (1, "RW"), (2, "USER"), (3, "PWT"), (4, "PCD"), (5, "ACCESSED"), (6, "DIRTY"), (7, "PSE"),
    (8, "GLOBAL"), (63, "NX"),
)  # fmt: skip
_ARM64_FLAGS = (
    (0, "VALID"), (6, "USER"), (7, "RDONLY"), (10, "AF"), (11, "NG"), (51, "WRITE"), (52, "CONT"), (53, "PXN"),
    (54, "UXN"), (55, "DIRTY"), (56, "SPECIAL"),
)  # fmt: skip
_ARM64_SHARED = 3 << 8
_X86_PROTNONE = 1 << 8
NOT_VALID = "not valid"
"""In place of flags: the hardware does not follow the entry, and whether it has a page is not known."""
_LONGEST_READER_BYTES = 32 << 10


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


def find_swap_layout(workspace: Workspace) -> SwapLayout | None:
    """Find how swap entries are laid out; None: nothing in the dump tells."""
    if workspace.memory.machine == "x86_64":
        return X86_64_LAYOUT
    return workspace.once("layout of swap entries", lambda: find_arm64_layout(_read_readers(workspace)))


def _read_readers(workspace: Workspace) -> list[bytes]:
    """Read the code of functions that take swap entries apart."""
    found = []
    for name in ARM64_READERS:
        try:
            symbol = workspace.prog.symbol(name)
            found.append(workspace.memory.read(symbol.address, min(symbol.size, _LONGEST_READER_BYTES)))
        except UNREADABLE:
            continue
    return found


def decode_page_entry(
    memory: KernelMemory, entry: int, level_index: int | None = None, *, layout: SwapLayout | None = None
) -> DecodedEntry:
    """
    Decode an entry that maps a page.

    Parameters
    ----------
    level_index : int, optional
        Of which level of the tables it is; None: the last one, of base pages.
    layout : SwapLayout, optional
        Of entries of pages that are not there; None: x86-64's, or not known.
    """
    if layout is None and memory.machine == "x86_64":
        layout = X86_64_LAYOUT
    levels = memory.tables.levels
    index = len(levels) - 1 if level_index is None else level_index
    restored = _restore(entry, layout)
    kind, paddr = memory.tables.decode_entry(index, restored)
    if memory.machine == "x86_64":
        flags = _x86_flags(entry)
    else:
        flags = (*_arm64_flags(entry), *(("PROTNONE",) if restored != entry else ()))
    if kind is not EntryKind.NONE:
        return DecodedEntry(entry, int(paddr), flags)
    if not entry or entry & 1:
        return DecodedEntry(entry, None, ())
    if layout is None:
        return DecodedEntry(entry, None, (NOT_VALID,))
    return DecodedEntry(entry, None, (), SwapEntry(*layout.decode(entry)))


def _restore(entry: int, layout: SwapLayout | None) -> int:
    """Give the entry of a page that must not be touched as it would be otherwise; without a layout, if all agree."""
    if layout is not None:
        return layout.restore(entry)
    return ARM64_LAYOUTS[0].restore(entry) if all(one.is_kept(entry) for one in ARM64_LAYOUTS) else entry


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
    return tuple(names)
