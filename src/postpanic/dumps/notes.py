"""
ELF notes, as every dump format carries them.

Layout: ``Elf64_Nhdr`` of the kernel's ``include/uapi/linux/elf.h``; the 32-bit
header is the same. Name and descriptor are each padded to 4 bytes, in core
files of either class.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "MAX_NOTES_BYTES",
    "MAX_VMCOREINFO_BYTES",
    "Note",
    "count_cpus",
    "decode_notes",
    "detect_user_core",
    "detect_vmcoreinfo",
]

MAX_NOTES_BYTES = 64 << 20
"""All notes of a dump; 8192 CPUs take some 4 MiB."""

MAX_VMCOREINFO_BYTES = 1 << 20
"""The VMCOREINFO text; the kernel's is one page, QEMU accepts 1 MiB from the guest."""

_NHDR_BYTES = 12
_NT_PRSTATUS = 1
_USER_CORE_TYPES = frozenset({3, 6, 0x46494C45, 0x53494749})
"""NT_PRPSINFO, NT_AUXV, NT_FILE, NT_SIGINFO: what the kernel writes for a process only."""


@dataclass(frozen=True, slots=True)
class Note:
    """One note: owner, type, contents."""

    name: bytes
    type: int
    desc: bytes


def decode_notes(raw: bytes, *, byte_order: str) -> Iterator[Note]:
    """
    Walk over the notes of a buffer; stop where a note does not fit.

    Parameters
    ----------
    byte_order : str
        ``little`` or ``big``.
    """
    header = struct.Struct(("<" if byte_order == "little" else ">") + "III")
    offset = 0
    while offset + _NHDR_BYTES <= len(raw):
        name_bytes, desc_bytes, kind = header.unpack_from(raw, offset)
        name_at = offset + _NHDR_BYTES
        desc_at = name_at + (name_bytes + 3 & ~3)
        end = desc_at + desc_bytes
        if end > len(raw):
            return
        # A PT_NOTE of /proc/vmcore is padded with empty notes up to its size.
        if name_bytes or desc_bytes or kind:
            yield Note(raw[name_at : name_at + name_bytes].rstrip(b"\0"), kind, raw[desc_at:end])
        offset = desc_at + (desc_bytes + 3 & ~3)


def count_cpus(raw: bytes, *, byte_order: str) -> int:
    """Count the CPUs whose registers were saved (``NT_PRSTATUS`` of ``CORE``)."""
    return sum(note.name == b"CORE" and note.type == _NT_PRSTATUS for note in decode_notes(raw, byte_order=byte_order))


def detect_vmcoreinfo(raw: bytes, *, byte_order: str) -> bytes:
    """Return the text of the VMCOREINFO note, empty when there is none."""
    for note in decode_notes(raw, byte_order=byte_order):
        if note.name == b"VMCOREINFO" and len(note.desc) <= MAX_VMCOREINFO_BYTES:
            return note.desc.rstrip(b"\0")
    return b""


def detect_user_core(raw: bytes, *, byte_order: str) -> bool:
    """Tell whether the notes are those of a crashed process, not of a kernel."""
    found = False
    for note in decode_notes(raw, byte_order=byte_order):
        if note.name == b"VMCOREINFO":
            return False
        if note.name == b"CORE" and note.type in _USER_CORE_TYPES:
            found = True
    return found
