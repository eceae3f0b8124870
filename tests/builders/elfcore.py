"""
Build ELF core files out of Python values.

Written from the System V gABI (chapters 4 and 5) and the kernel's
``include/uapi/linux/elf.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

EM_386, EM_S390, EM_ARM, EM_X86_64, EM_AARCH64 = 3, 22, 40, 62, 183
PT_LOAD, PT_NOTE = 1, 4
PN_XNUM = 0xFFFF


@dataclass
class Segment:
    """
    One PT_LOAD; everything left None follows from the data.

    ``offset`` None appends the data to the file; a number points there and writes nothing.
    """

    paddr: int
    data: bytes = b""
    vaddr: int = 0
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None
    type: int = PT_LOAD


@dataclass
class ElfImage:
    """A finished file, and where its structures lie."""

    raw: bytes
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name to (offset, size) of each length, offset and count field."""
    boundaries: list[int] = field(default_factory=list)
    """Offsets at which a structure begins or ends."""


def build_note(name: bytes, kind: int, desc: bytes, *, byte_order: str = "little") -> bytes:
    prefix = "<" if byte_order == "little" else ">"
    owner = name + b"\0"
    header = struct.pack(prefix + "III", len(owner), len(desc), kind)
    return header + owner + bytes(-len(owner) % 4) + desc + bytes(-len(desc) % 4)


def build_vmcoreinfo_note(text: bytes, *, byte_order: str = "little") -> bytes:
    return build_note(b"VMCOREINFO", 0, text, byte_order=byte_order)


def build_elf_core(
    segments: Sequence[Segment],
    *,
    notes: bytes | None = None,
    bits: int = 64,
    byte_order: str = "little",
    machine: int = EM_X86_64,
    kind: int = 4,
    flags: int = 0,
    extended_count: bool = False,
    align: int = 4096,
) -> ElfImage:
    """
    Lay out header, program headers, (section header 0), notes, then data.

    *extended_count* uses PN_XNUM even where the count would fit.
    """
    prefix = "<" if byte_order == "little" else ">"
    wide = bits == 64
    ehsize, phentsize, shentsize = (64, 56, 64) if wide else (52, 32, 40)
    if notes is None:
        notes = build_vmcoreinfo_note(b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n", byte_order=byte_order)
    entries = [Segment(0, notes, memsz=0, type=PT_NOTE)] if notes else []
    entries += segments
    count = len(entries)
    extended = extended_count or count >= PN_XNUM
    phoff = ehsize
    shoff = phoff + count * phentsize if extended else 0
    body_at = phoff + count * phentsize + (shentsize if extended else 0)
    headers, body, bounds = _place(entries, body_at, align)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if byte_order == "little" else 2, 1]) + bytes(9)
    words = "QQQ" if wide else "III"
    phnum = PN_XNUM if extended else count
    shnum = 1 if extended else 0
    shape = (ehsize, phentsize, phnum, shentsize, shnum, 0)
    header = ident + struct.pack(prefix + "HHI" + words + "IHHHHHH", kind, machine, 1, 0, phoff, shoff, flags, *shape)
    fields = _header_fields(wide, ehsize, phentsize, count)
    table = b"".join(_pack_entry(prefix, wide, *values) for values in headers)
    section = b""
    if extended:
        form = "IIQQQQIIQQ" if wide else "IIIIIIIIII"
        section = struct.pack(prefix + form, 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
        fields["sh_info"] = (shoff + (44 if wide else 28), 4)
    raw = header + table + section + body
    boundaries = [0, 4, 16, ehsize, *range(phoff, shoff or body_at, phentsize), body_at, *bounds, len(raw)]
    return ElfImage(raw, fields, sorted({place for place in boundaries if place <= len(raw)}))


def _place(
    entries: Sequence[Segment], at: int, align: int
) -> tuple[list[tuple[int, int, int, int, int, int]], bytes, list[int]]:
    """Append each entry's data at an aligned offset; the entries' values, the body, its boundaries."""
    body = bytearray()
    values: list[tuple[int, int, int, int, int, int]] = []
    bounds: list[int] = []
    for entry in entries:
        offset = entry.offset
        if offset is None:
            if entry.type == PT_LOAD:
                body += bytes(-(at + len(body)) % align)
            offset = at + len(body)
            body += entry.data
            bounds += [offset, offset + len(entry.data)]
        filesz = len(entry.data) if entry.filesz is None else entry.filesz
        memsz = max(len(entry.data), filesz) if entry.memsz is None else entry.memsz
        values.append((entry.type, offset, entry.vaddr, entry.paddr, filesz, memsz))
    return values, bytes(body), bounds


def _pack_entry(
    prefix: str, wide: bool, kind: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int
) -> bytes:
    if wide:
        return struct.pack(prefix + "IIQQQQQQ", kind, 7, offset, vaddr, paddr, filesz, memsz, 0)
    return struct.pack(prefix + "IIIIIIII", kind, offset, vaddr, paddr, filesz, memsz, 7, 0)


def _header_fields(wide: bool, ehsize: int, phentsize: int, count: int) -> dict[str, tuple[int, int]]:
    word = 8 if wide else 4
    fields = {
        "ei_class": (4, 1),
        "ei_data": (5, 1),
        "e_type": (16, 2),
        "e_machine": (18, 2),
        "e_phoff": (32 if wide else 28, word),
        "e_shoff": (40 if wide else 32, word),
        "e_flags": (48 if wide else 36, 4),
        "e_phentsize": (54 if wide else 42, 2),
        "e_phnum": (56 if wide else 44, 2),
    }
    places = {"p_offset": 8, "p_vaddr": 16, "p_paddr": 24, "p_filesz": 32, "p_memsz": 40}
    if not wide:
        places = {"p_offset": 4, "p_vaddr": 8, "p_paddr": 12, "p_filesz": 16, "p_memsz": 20}
    for number in range(count):
        base = ehsize + number * phentsize
        fields[f"p_type[{number}]"] = (base, 4)
        for name, place in places.items():
            fields[f"{name}[{number}]"] = (base + place, word)
    return fields
