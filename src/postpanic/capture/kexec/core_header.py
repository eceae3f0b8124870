"""
The ELF core header that the capture kernel will believe: what the old memory is, and where.

``kexec_file_load`` makes it in the kernel (``crash_prepare_elf64_headers()``,
``kernel/crash_core.c``), the kexec program in user space. Both write an
``Elf64_Ehdr`` with one ``PT_NOTE`` per processor, one for VMCOREINFO, and
``PT_LOAD`` for the System RAM but the reservation; on x86 one more for the
kernel's text at its virtual address. Of the low MiB of x86 the kernel's leaves
all out, the program's has 640 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postpanic.capture.host import IoMemory
from postpanic.dumps.elfcore.layout import decode_elf_header, decode_program_headers, machine_name
from postpanic.dumps.memory import ranges_from_pairs
from postpanic.errors import CorruptError

__all__ = ["CoreHeader", "CoverageFault", "compare_coverage", "decode_core_header"]

_PT_LOAD, _PT_NOTE = 1, 4
_MAX_PROGRAM_HEADERS = 32768
_LOW_END = 1 << 20
_KERNEL_TEXT_START = {"x86_64": 0xFFFF_FFFF_8000_0000}
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
    text_start = _KERNEL_TEXT_START.get(machine, 1 << 64)
    entries = decode_program_headers(table, header)
    notes: list[Range] = []
    loads: list[Range] = []
    texts: list[Range] = []
    for entry in entries:
        kind, vaddr, paddr, size = (int(entry[name]) for name in ("type", "vaddr", "paddr", "memsz"))
        if kind == _PT_NOTE:
            # The physical address is in both; the reader of the capture kernel takes the offset.
            notes.append((int(entry["offset"]), size))
        elif kind == _PT_LOAD:
            place = texts if machine == "x86_64" and vaddr >= text_start else loads
            place.append((paddr, min(paddr + size, _LAST_ADDRESS)))
    return CoreHeader(machine, tuple(notes), tuple(loads), tuple(texts))


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
