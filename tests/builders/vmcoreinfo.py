"""
Build the text of a VMCOREINFO note.

Written from ``include/linux/vmcore_info.h``: ``SYMBOL()`` and ``KERNELOFFSET`` in
hex without prefix, ``OFFSET() SIZE() LENGTH() NUMBER()`` in decimal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class VmcoreinfoBuilder:
    lines: list[str] = field(default_factory=list)

    def line(self, key: str, value: object) -> VmcoreinfoBuilder:
        self.lines.append(f"{key}={value}")
        return self

    def symbol(self, name: str, vaddr: int) -> VmcoreinfoBuilder:
        return self.line(f"SYMBOL({name})", f"{vaddr:x}")

    def offset(self, member: str, offset: int) -> VmcoreinfoBuilder:
        return self.line(f"OFFSET({member})", offset)

    def size(self, name: str, size: int) -> VmcoreinfoBuilder:
        return self.line(f"SIZE({name})", size)

    def length(self, name: str, length: int) -> VmcoreinfoBuilder:
        return self.line(f"LENGTH({name})", length)

    def number(self, name: str, number: int) -> VmcoreinfoBuilder:
        return self.line(f"NUMBER({name})", number)

    def hex_number(self, name: str, number: int) -> VmcoreinfoBuilder:
        return self.line(f"NUMBER({name})", f"{number:#x}")

    def text(self) -> bytes:
        return "".join(f"{line}\n" for line in self.lines).encode()


def build_x86_64_vmcoreinfo(
    *, stext: int, swapper: int, phys_base: int, release: str = "6.1.0-test", levels: int = 4
) -> VmcoreinfoBuilder:
    """Build the entries that every x86-64 kernel writes."""
    info = VmcoreinfoBuilder().line("OSRELEASE", release).line("PAGESIZE", 4096)
    info.symbol("init_uts_ns", stext + 0x100000).symbol("_stext", stext).symbol("swapper_pg_dir", swapper)
    info.number("phys_base", phys_base).number("pgtable_l5_enabled", int(levels == 5))
    return info.line("KERNELOFFSET", f"{stext - 0xFFFFFFFF81000000:x}").number("KERNEL_IMAGE_SIZE", 1 << 30)


def build_aarch64_vmcoreinfo(
    *, stext: int, swapper: int, kimage_voffset: int, page_size: int, va_bits: int, t1sz: int | None
) -> VmcoreinfoBuilder:
    """Build the entries that every arm64 kernel writes; ``TCR_EL1_T1SZ`` since 5.9."""
    info = VmcoreinfoBuilder().line("OSRELEASE", "6.12.0-test").line("PAGESIZE", page_size)
    info.symbol("init_uts_ns", stext + 0x100000).symbol("_stext", stext).symbol("swapper_pg_dir", swapper)
    info.number("VA_BITS", va_bits).hex_number("kimage_voffset", kimage_voffset & (1 << 64) - 1)
    info.hex_number("PHYS_OFFSET", 0x40000000).line("KERNELOFFSET", "0")
    return info if t1sz is None else info.hex_number("TCR_EL1_T1SZ", t1sz)


def build_note_page(text: bytes) -> bytes:
    """Build the ELF note as the kernel keeps it in a page of its own."""
    return struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
