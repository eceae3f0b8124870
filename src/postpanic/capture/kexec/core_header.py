"""
The ELF core header that the capture kernel will believe: what the old memory is, and where.

``kexec_file_load`` makes it in the kernel (``crash_prepare_elf64_headers()``,
``kernel/crash_core.c``), the kexec program in user space. Both write an
``Elf64_Ehdr`` with one ``PT_NOTE`` per processor, one for VMCOREINFO, and
``PT_LOAD`` for the System RAM but the reservation; on x86, and by
``kexec_file_load`` on arm64 as well, one more for the kernel's text at its
virtual address. Of the low MiB of x86 the kernel's leaves all out, the program's
has 640 KiB. For arm64 the header is made here too (:mod:`.own_header`),
as the program gets it wrong where it cannot find ``_text``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.capture.host import IoMemory
from postpanic.dumps.elfcore.layout import (
    PT_LOAD,
    PT_NOTE,
    decode_elf_header,
    decode_program_headers,
    encode_elf_header,
    machine_name,
    machine_number,
)
from postpanic.dumps.memory import VirtualSegment, ranges_from_pairs
from postpanic.errors import CorruptError

__all__ = ["CoreHeader", "CoverageFault", "compare_coverage", "decode_core_header", "encode_core_header"]

_MAX_PROGRAM_HEADERS = 32768
_LOW_END = 1 << 20
_KERNEL_TEXT_START = 0xFFFF_FFFF_8000_0000
"""Of x86-64 (``__START_KERNEL_map``)."""
_PHDR = struct.Struct("<IIQQQQQQ")
_READ_WRITE_EXECUTE = 7
_MOST_TEXTS = 8
_PAGE_BYTES = 4096
_LAST_ADDRESS = (1 << 64) - 1

Range = tuple[int, int]


@dataclass(frozen=True)
class CoreHeader:
    """
    A core header.

    Attributes
    ----------
    machine : str
        As ``uname -m`` spells it.
    notes : tuple of (int, int)
        Physical address and size in bytes of each note.
    loads : tuple of (int, int)
        ``[start, end)`` of the memory that the dump will have.
    texts : tuple of (int, int)
        The same of what is mapped where the kernel's text is, which is part of the memory as well.
    """

    machine: str
    notes: tuple[Range, ...]
    loads: tuple[Range, ...]
    texts: tuple[Range, ...]


def decode_core_header(raw: bytes, *, where: str = "") -> CoreHeader:
    """
    Decode a core header.

    Parameters
    ----------
    raw : bytes
        From its first byte on, with all program headers.

    Raises
    ------
    FileFaultError
        If it is none, or makes no sense.
    """
    header = decode_elf_header(raw[:64], where=where)
    count, entry_bytes = header.program_header_count, header.program_header_size
    if not 0 < count <= _MAX_PROGRAM_HEADERS:
        raise CorruptError(f"{count} program headers, 1 to {_MAX_PROGRAM_HEADERS} are possible", where=where)
    start = header.program_header_offset
    table = raw[start : start + count * entry_bytes]
    if len(table) < count * entry_bytes:
        raise CorruptError(f"{count} program headers end beyond the {len(raw)} bytes that there are", where=where)
    machine = machine_name(header.machine, is_64bit=header.is_64bit)
    entries = decode_program_headers(table, header)
    # The physical address is in both; the reader of the capture kernel takes the offset.
    notes = tuple((int(entry["offset"]), int(entry["memsz"])) for entry in entries if entry["type"] == PT_NOTE)
    loads, texts = _tell_texts(entries[entries["type"] == PT_LOAD], machine)
    return CoreHeader(machine, notes, loads, texts)


def _tell_texts(entries: NDArray[np.void], machine: str) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """
    Tell loads of memory from those that have the kernel's text at its own addresses.

    x86-64 has fixed addresses for it. On arm64 they depend on the kernel's
    build; there such a load is part of the memory that all others have, and not
    mapped as that is.
    """
    spans = [(int(one["paddr"]), min(int(one["paddr"]) + int(one["memsz"]), _LAST_ADDRESS)) for one in entries]
    vaddrs = [int(one["vaddr"]) for one in entries]
    if machine == "x86_64":
        texts = {number for number, vaddr in enumerate(vaddrs) if vaddr >= _KERNEL_TEXT_START}
    elif machine == "aarch64":
        texts = _find_shifted([vaddr - span[0] for vaddr, span in zip(vaddrs, spans, strict=True)], spans)
    else:
        texts = set()
    return (
        tuple(span for number, span in enumerate(spans) if number not in texts),
        tuple(span for number, span in enumerate(spans) if number in texts),
    )


def _find_shifted(shifts: Sequence[int], spans: Sequence[Range]) -> set[int]:
    """Find what is mapped by another distance than most of the memory is, and lies within that."""
    sizes: dict[int, int] = {}
    for shift, (start, end) in zip(shifts, spans, strict=True):
        sizes[shift] = sizes.get(shift, 0) + end - start
    usual = max(sizes, key=lambda shift: sizes[shift], default=0)
    others = [number for number, shift in enumerate(shifts) if shift != usual]
    if len(others) > _MOST_TEXTS:
        return set()
    memory = [span for span, shift in zip(spans, shifts, strict=True) if shift == usual]
    return {number for number in others if not subtract([spans[number]], memory)}


def encode_core_header(
    machine: str, notes: Sequence[Range], loads: Sequence[VirtualSegment], texts: Sequence[VirtualSegment] = ()
) -> bytes:
    """
    Encode a core header; what each part is of the running machine's memory is what :class:`CoreHeader` has.

    Parameters
    ----------
    machine : str
        As ``uname -m`` spells it.
    notes : sequence of (int, int)
        Physical address and size in bytes.
    loads, texts : sequence of VirtualSegment
        Memory, and what of it is mapped where the kernel's text is.
    """
    entries = [_PHDR.pack(PT_NOTE, 0, paddr, 0, paddr, size, size, 0) for paddr, size in notes]
    for one in (*texts, *loads):
        place = (one.paddr, one.vaddr, one.paddr, one.size_bytes, one.size_bytes)
        entries.append(_PHDR.pack(PT_LOAD, _READ_WRITE_EXECUTE, *place, 0))
    number = machine_number(machine) or 0
    header = encode_elf_header(number, program_header_count=len(entries), section_header_offset=0, is_incomplete=False)
    return header + b"".join(entries)


@dataclass(frozen=True)
class CoverageFault:
    """
    How the memory of a core header differs from the host's.

    Attributes
    ----------
    missing, foreign, repeated : tuple of (int, int)
        System RAM that no load has; what loads have that is no System RAM, or is reserved for the capture kernel;
        what more than one has.
    """

    missing: tuple[Range, ...]
    foreign: tuple[Range, ...]
    repeated: tuple[Range, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.foreign or self.repeated)


def compare_coverage(header: CoreHeader, memory: IoMemory) -> CoverageFault:
    """
    Compare the memory of a core header with the System RAM less what the capture kernel has.

    Pages that are only partly RAM may count or not; of x86 the low MiB may be
    there or not.
    """
    low = ((0, _LOW_END),) if header.machine == "x86_64" else ()
    reserved = [(entry.start, entry.end) for entry in memory.for_capture]
    ram = subtract([(entry.start, entry.end) for entry in memory.system_ram], reserved)
    loads = merge(header.loads)
    missing = subtract(subtract(ram, low), loads)
    foreign = subtract(subtract(loads, low), ram)
    return CoverageFault(
        tuple(span for span in missing if span[1] - span[0] >= _PAGE_BYTES),
        tuple(span for span in foreign if span[1] - span[0] >= _PAGE_BYTES),
        tuple(find_repeated(header.loads)),
    )


def merge(spans: Sequence[Range]) -> list[Range]:
    """Sort spans, and join those that touch."""
    return [(start, end) for start, end in ranges_from_pairs(list(spans)).tolist()]


def subtract(spans: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """Return what of *spans* none of *others* has."""
    left: list[Range] = []
    taken = merge(others)
    for start, end in merge(spans):
        for other_start, other_end in taken:
            if other_end <= start or other_start >= end:
                continue
            if other_start > start:
                left.append((start, other_start))
            start = max(start, other_end)
        if start < end:
            left.append((start, end))
    return left


def find_repeated(spans: Sequence[Range]) -> list[Range]:
    """Return what more than one of *spans* has."""
    repeated: list[Range] = []
    reached = 0
    for start, end in sorted(spans):
        if start < reached:
            repeated.append((start, min(end, reached)))
        reached = max(reached, end)
    return merge(repeated)
