"""
Build page tables in physical memory.

x86-64: Intel SDM volume 3, tables 4-15 to 4-20. arm64: Arm Architecture Reference
Manual, D8.3 "Translation table descriptor formats".
"""

from __future__ import annotations

import struct

P, RW, PSE, GLOBAL = 1 << 0, 1 << 1, 1 << 7, 1 << 8
NX = 1 << 63

ARM_VALID, ARM_TABLE, ARM_AF, ARM_UXN = 1 << 0, 1 << 1, 1 << 10, 1 << 54


class PageTableBuilder:
    """
    Tables of one machine; pages that hold them are taken one after the other from *tables_paddr*.

    *kind* is ``x86`` or ``arm``. *wide* says where arm64 keeps high address bits:
    ``""``, ``lpa`` (64 KiB granule, bits 15:12) or ``lpa2`` (bits 9:8).
    """

    def __init__(
        self, kind: str, *, page_shift: int = 12, va_bits: int = 48, tables_paddr: int, wide: str = ""
    ) -> None:
        self.kind = kind
        self.page_shift = page_shift
        self.va_bits = va_bits
        self.wide = wide
        self.stride = page_shift - 3
        self.levels = -(-(va_bits - page_shift) // self.stride)
        self.entries: dict[int, int] = {}
        self._next = tables_paddr
        self.root_paddr = self._take()

    def map(self, vaddr: int, paddr: int, *, leaf_level: int = 0, flags: int = 0) -> None:
        """Map one page; *leaf_level* counts from the last level: 1 is 2 MiB with 4 KiB pages."""
        table = self.root_paddr
        for level in range(self.levels - 1, leaf_level, -1):
            where = self.slot(table, vaddr, level)
            if where not in self.entries:
                self.entries[where] = self.encode_table(self._take())
            table = self.decode(self.entries[where])
        self.entries[self.slot(table, vaddr, leaf_level)] = self.encode_leaf(paddr, leaf_level) | flags

    def set_entry(self, vaddr: int, leaf_level: int, entry: int) -> None:
        """Overwrite the entry of an address at a level whose tables are there."""
        table = self.root_paddr
        for level in range(self.levels - 1, leaf_level, -1):
            table = self.decode(self.entries[self.slot(table, vaddr, level)])
        self.entries[self.slot(table, vaddr, leaf_level)] = entry

    def slot(self, table: int, vaddr: int, level: int) -> int:
        shift = self.page_shift + self.stride * level
        bits = self.stride if level < self.levels - 1 else self.va_bits - shift
        return table + 8 * ((vaddr >> shift) & ((1 << bits) - 1))

    def encode_table(self, paddr: int) -> int:
        if self.kind == "x86":
            return paddr | P | RW
        return self._spread(paddr) | ARM_VALID | ARM_TABLE

    def encode_leaf(self, paddr: int, level: int) -> int:
        if self.kind == "x86":
            return paddr | P | RW | NX | (PSE if level else 0)
        return self._spread(paddr) | ARM_VALID | ARM_AF | ARM_UXN | (0 if level else ARM_TABLE)

    def decode(self, entry: int) -> int:
        if self.kind == "x86":
            return entry & 0x000FFFFFFFFFF000
        top = 50 if self.wide == "lpa2" else 48
        low = entry & ((1 << top) - 1) & ~((1 << self.page_shift) - 1)
        if self.wide == "lpa2":
            return low | ((entry >> 8) & 3) << 50
        return low | ((entry >> 12) & 15) << 48 if self.wide == "lpa" else low

    def pages(self) -> dict[int, bytes]:
        """Give all tables: physical address to contents of one page."""
        size = 1 << self.page_shift
        pages: dict[int, bytearray] = {}
        for where, entry in self.entries.items():
            page = pages.setdefault(where & ~(size - 1), bytearray(size))
            struct.pack_into("<Q", page, where & (size - 1), entry)
        pages.setdefault(self.root_paddr, bytearray(size))
        return {paddr: bytes(page) for paddr, page in pages.items()}

    def _spread(self, paddr: int) -> int:
        if self.wide == "lpa2":
            return (paddr & ((1 << 50) - 1)) | (paddr >> 50) << 8
        if self.wide == "lpa":
            return (paddr & ((1 << 48) - 1)) | (paddr >> 48) << 12
        return paddr

    def _take(self) -> int:
        paddr = self._next
        self._next += 1 << self.page_shift
        return paddr
