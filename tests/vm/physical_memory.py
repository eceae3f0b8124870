"""A guest's physical memory, read as its capture kernel would: what ``/proc/vmcore`` is made of."""

from __future__ import annotations

import os
import struct
from pathlib import Path

__all__ = ["write_vmcore"]

# elf(5), of the 64-bit forms.
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_PT_LOAD, _PT_NOTE = 1, 4
_PAGE_BYTES = 4096


def _cut_notes(data: bytes) -> bytes:
    """Return a buffer of notes up to the empty one that ends it."""
    at = 0
    while at + _NOTE.size <= len(data):
        name_bytes, content_bytes, _ = _NOTE.unpack_from(data, at)
        if name_bytes == 0:
            break
        at += _NOTE.size + (name_bytes + 3) // 4 * 4 + (content_bytes + 3) // 4 * 4
    return data[:at]


def write_vmcore(memory: Path, header_paddr: int, target: Path) -> None:
    """
    Write what ``/proc/vmcore`` shows, by the ELF header that the kernel left for it.

    The header's offsets are physical addresses; its notes, one buffer a CPU, become one
    (fs/proc/vmcore.c, ``merge_note_headers_elf64()``).

    Parameters
    ----------
    memory : Path
        Physical memory from address 0.
    header_paddr : int
        ``elfcorehdr=`` on the capture kernel's command line.
    """
    with memory.open("rb") as source, target.open("wb") as stream:
        source.seek(header_paddr)
        header = list(_HEADER.unpack(source.read(_HEADER.size)))
        count = header[10]
        source.seek(header_paddr + header[5])
        programs = [_PROGRAM.unpack(source.read(_PROGRAM.size)) for _ in range(count)]
        notes = b""
        for program in programs:
            if program[0] == _PT_NOTE:
                source.seek(program[2])
                notes += _cut_notes(source.read(program[5]))
        loads = [program for program in programs if program[0] == _PT_LOAD]
        header[5], header[10] = _HEADER.size, 1 + len(loads)
        at = _HEADER.size + _PROGRAM.size * (1 + len(loads))
        table = _PROGRAM.pack(_PT_NOTE, 0, at, 0, 0, len(notes), len(notes), 4)
        place = -(-(at + len(notes)) // _PAGE_BYTES) * _PAGE_BYTES
        copies = []
        for kind, flags, _, vaddr, paddr, _, size_bytes, alignment in loads:
            table += _PROGRAM.pack(kind, flags, place, vaddr, paddr, size_bytes, size_bytes, alignment)
            copies.append((paddr, place, size_bytes))
            place += -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES
        stream.write(_HEADER.pack(*header) + table + notes)
        stream.flush()
        for paddr, offset, size_bytes in copies:
            _copy(source.fileno(), paddr, stream.fileno(), offset, size_bytes)


def _copy(source: int, at: int, target: int, offset: int, size_bytes: int) -> None:
    while size_bytes > 0:
        done = os.copy_file_range(source, target, size_bytes, at, offset)
        if done == 0:
            # The capture kernel would read nothing but zeros where there is no memory.
            os.ftruncate(target, offset + size_bytes)
            return
        at, offset, size_bytes = at + done, offset + done, size_bytes - done
