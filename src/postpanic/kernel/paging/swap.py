"""
Page table entries of pages that are not there: where on a swap device they are.

x86-64 has had one layout since the mitigation of L1TF (6b28baca9b1f, bcd11afa7ade, eee4818baac0), ``arch/x86/include/
asm/pgtable_64.h``. arm64 has had several (``arch/arm64/include/asm/pgtable.h``), and neither types nor VMCOREINFO tell
which one a kernel has: its code does, which takes entries apart by ``ubfx`` and ``lsr`` (Arm ARM C6.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ARM64_LAYOUTS", "ARM64_READERS", "X86_64_LAYOUT", "SwapLayout", "find_arm64_layout"]

_PRESENT = 0b11
"""Bits 1:0 of an entry of arm64 that leads to a page."""

# UBFM of 64 bits, of which UBFX and LSR are names: Arm ARM C6.2.
_UBFM_MASK, _UBFM = 0xFFC00000, 0xD3400000
_REACH = 6
"""Instructions between which the two parts of an entry are taken out."""


@dataclass(frozen=True, slots=True)
class SwapLayout:
    """
    Where the parts of a swap entry are.

    Attributes
    ----------
    type_shift, type_bits : int
        Of the number of the swap device.
    offset_shift, offset_bits : int
        Of the page on it.
    is_inverted : bool
        Whether the bits of the offset are turned over.
    absent_bits : int
        One of them set: the page is there, but must not be touched (``PROT_NONE``); 0: the tables know by themselves.
    """

    type_shift: int
    type_bits: int
    offset_shift: int
    offset_bits: int
    is_inverted: bool = False
    absent_bits: int = 0

    def decode(self, entry: int) -> tuple[int, int]:
        """Give the number of the device and the page on it."""
        offset = ~entry if self.is_inverted else entry
        return (
            entry >> self.type_shift & ((1 << self.type_bits) - 1),
            offset >> self.offset_shift & ((1 << self.offset_bits) - 1),
        )

    def is_kept(self, entry: int) -> bool:
        """Tell whether an entry that the hardware does not follow has a page nevertheless."""
        return not entry & 1 and bool(entry & self.absent_bits)

    def restore(self, entry: int) -> int:
        """Give the entry as it would be if the page might be touched."""
        return entry | _PRESENT if self.is_kept(entry) else entry


X86_64_LAYOUT = SwapLayout(59, 5, 9, 50, is_inverted=True)
_NOT_VALID = 1 << 58 | 1 << 59
"""``PTE_PROT_NONE`` and ``PMD_PRESENT_INVALID``, above the offset."""
ARM64_LAYOUTS = (
    SwapLayout(2, 6, 8, 50, absent_bits=_NOT_VALID),
    # "arm64/pgtable: support __HAVE_ARCH_PTE_SWP_EXCLUSIVE": bit 2 tells pages that are a process's own.
    SwapLayout(3, 5, 8, 50, absent_bits=_NOT_VALID),
    # "arm64/mm: Move PTE_PRESENT_INVALID to overlay PTE_NG": below the offset; bit 3 is for userfaultfd.
    SwapLayout(6, 5, 12, 50, absent_bits=1 << 11),
)
ARM64_READERS = (
    *("do_swap_page", "copy_page_range", "mincore_pte_range", "smaps_pte_range", "check_pte", "change_protection"),
    *("madvise_free_pte_range", "unuse_pte_range", "pagemap_pmd_range", "unmap_page_range", "softleaf_from_pte"),
)
"""Functions that take swap entries apart (``pte_to_swp_entry()``), in any kernel."""


def find_arm64_layout(codes: Iterable[bytes]) -> SwapLayout | None:
    """
    Find how a kernel's code takes swap entries apart.

    Parameters
    ----------
    codes : iterable of bytes
        Of functions of :data:`ARM64_READERS`.

    Returns
    -------
    SwapLayout or None
        None: the code does not show it, or shows more than one.
    """
    found = {shifts for code in codes for shifts in _find_shifts(code)}
    if len(found) != 1:
        return None
    ((type_shift, offset_shift),) = found
    matching = (one for one in ARM64_LAYOUTS if (one.type_shift, one.offset_shift) == (type_shift, offset_shift))
    return next(matching, None)


def _find_shifts(code: bytes) -> set[tuple[int, int]]:
    """Find pairs of instructions that take a type and an offset of 50 bits out of the same register."""
    words = struct.unpack(f"<{len(code) // 4}I", code[: len(code) // 4 * 4])
    fields = [_decode_field(word) for word in words]
    offsets = {layout.offset_shift for layout in ARM64_LAYOUTS}
    found = set()
    for place, field in enumerate(fields):
        if field is None or field[1] not in offsets or field[2] != ARM64_LAYOUTS[0].offset_bits:
            continue
        for other in fields[max(0, place - _REACH) : place + _REACH]:
            if other is None or other[0] != field[0] or other[1] >= field[1]:
                continue
            found.add((other[1], field[1]))
    return found


def _decode_field(word: int) -> tuple[int, int, int] | None:
    """Decode the taking out of bits: source register, lowest bit, how many."""
    low, high = word >> 16 & 63, word >> 10 & 63
    if word & _UBFM_MASK != _UBFM or high < low or not low:
        return None
    return word >> 5 & 31, low, high - low + 1
