"""
Build a vmlinux: an ELF64 executable with the sections that describe a kernel.

Written from the System V gABI, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

EM_X86_64, EM_AARCH64 = 62, 183
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 1, 2, 3, 7, 8
SHF_COMPRESSED = 0x800


@dataclass
class Section:
    name: str
    data: bytes
    kind: int = SHT_PROGBITS
    vaddr: int = 0
    link: int = 0
    flags: int = 0


def build_id_section(build_id: bytes) -> Section:
    return Section(".notes", struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id, SHT_NOTE)


def symbol_sections(symbols: Sequence[tuple[str, int, int]], first: int) -> list[Section]:
    """Make ``.symtab`` of name, address, size; *first* is the number that it will have."""
    names = bytearray(b"\0")
    rows = [bytes(24)]
    for name, vaddr, size in symbols:
        rows.append(struct.pack("<IBBHQQ", len(names), 1 << 4 | 1, 0, 1, vaddr, size))
        names += name.encode() + b"\0"
    table = Section(".symtab", b"".join(rows), SHT_SYMTAB, link=first + 1)
    return [table, Section(".strtab", bytes(names), SHT_STRTAB)]


def build_vmlinux(
    sections: Sequence[Section],
    symbols: Sequence[tuple[str, int, int]] | None = (),
    *,
    machine: int = EM_X86_64,
    kind: int = 2,
    bits: int = 64,
    has_segments: bool = False,
) -> bytes:
    """
    Lay out header, contents, section headers; *symbols* None leaves the symbol table out.

    With *has_segments* each section that has an address is one that is loaded (``PT_LOAD``).
    """
    everything = [Section("", b"", 0), *sections]
    if symbols is not None:
        everything += symbol_sections(symbols, len(everything))
    names = b"".join(section.name.encode() + b"\0" for section in everything) + b".shstrtab\0"
    everything.append(Section(".shstrtab", names, SHT_STRTAB))
    body = bytearray()
    headers = []
    segments = []
    for section in everything:
        at = 64 + len(body)
        stored = b"" if section.kind == SHT_NOBITS else section.data
        body += stored + bytes(-len(stored) % 8)
        name = names.index(section.name.encode() + b"\0")
        entry_bytes = 24 if section.kind == SHT_SYMTAB else 0
        sizes = (section.vaddr, at, len(section.data), section.link, 0, 8, entry_bytes)
        headers.append(struct.pack("<IIQQQQIIQQ", name, section.kind, section.flags, *sizes))
        if has_segments and section.vaddr:
            size = len(section.data)
            segments.append(struct.pack("<IIQQQQQQ", 1, 5, at, section.vaddr, section.vaddr, size, size, 8))
    places = (64 + len(body) + 64 * len(everything) if segments else 0, 64 + len(body))
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    rest = (64, 56 if segments else 0, len(segments), 64, len(everything), len(everything) - 1)
    header = ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, *places, 0, *rest)
    return header + bytes(body) + b"".join(headers) + b"".join(segments)
