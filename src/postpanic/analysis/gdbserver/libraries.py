"""
The files that gdb loads: the kernel's and, as libraries, those of the modules and of the unwind tables.

gdb puts each library's sections to the addresses that it is told (gdb manual,
"Library List Format"), one for every section that the file allocates, in the
file's order.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from drgn import RelocatableModule

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.gdbserver.threads import xml_text
from postpanic.analysis.workspace import Workspace
from postpanic.errors import CorruptError, FileFaultError
from postpanic.kernel.elf_layout import SHDR

__all__ = [
    "Library",
    "Section",
    "encode_libraries",
    "find_first_segment",
    "find_unmoved_sections",
    "read_allocated_sections",
    "read_libraries",
]

_EHDR_BYTES = 64
_PHDR_BYTES = 56
_PT_LOAD = 1
_SHF_ALLOC = 2
_NAMES_LIMIT_BYTES = 1 << 20
_NOWHERE = 0x0080_0000_0000_0000
"""Addresses that no machine has: between the user's half and the kernel's. For sections whose memory was given back."""
_PAGE = 4096
_MODULE_LIVE = 0
"""``MODULE_STATE_LIVE`` (``include/linux/module.h``)."""


@dataclass(frozen=True, slots=True)
class Library:
    """A file, and where each of its allocated sections is, in the file's order."""

    path: Path
    addresses: tuple[int, ...]


class Section(NamedTuple):
    """A section that takes memory."""

    name: str
    vaddr: int
    size_bytes: int


def encode_libraries(libraries: Iterable[Library]) -> bytes:
    """Make the document of ``qXfer:libraries:read``."""
    lines = ["<library-list>"]
    for library in libraries:
        sections = "".join(f'<section address="{address:#x}"/>' for address in library.addresses)
        lines.append(f'<library name="{xml_text(str(library.path))}">{sections}</library>')
    return "\n".join([*lines, "</library-list>", ""]).encode("utf-8", "surrogateescape")


def read_libraries(workspace: Workspace) -> list[Library]:
    """Read where the sections of each module are for which there is a file; others are left out."""
    found: list[Library] = []
    unused = _NOWHERE
    for module in workspace.prog.modules():
        path = module.debug_file_path or module.loaded_file_path
        if not isinstance(module, RelocatableModule) or path is None:
            continue
        try:
            sections = read_allocated_sections(Path(path))
            addresses, unused = _place(module, sections, unused)
        except (*UNREADABLE, FileFaultError, OSError):
            continue
        found.append(Library(Path(path), addresses))
    return found


def _place(module: RelocatableModule, sections: Sequence[Section], unused: int) -> tuple[tuple[int, ...], int]:
    known: Mapping[str, int] = module.section_addresses
    initialised = _is_initialised(module)
    addresses = []
    for name, _, size in sections:
        address = known.get(name)
        # The memory of a module's initialisation is given back, and others are there by now.
        if address is None or (initialised and name.startswith(".init")):
            address = unused
            unused += -(-size // _PAGE) * _PAGE + _PAGE
        addresses.append(address)
    return tuple(addresses), unused


def _is_initialised(module: RelocatableModule) -> bool:
    try:
        return int(module.object.state) == _MODULE_LIVE
    except UNREADABLE:
        return True


def _read(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    """Read a part of a file, all of it or an error."""
    end = file.seek(0, os.SEEK_END)
    if offset + size_bytes > end:
        raise CorruptError(f"{size_bytes} bytes at {offset:#x}, the file has {end}", where=file.name)
    file.seek(offset)
    return file.read(size_bytes)


def _read_header(file: BinaryIO) -> bytes:
    header = _read(file, 0, _EHDR_BYTES)
    if header[:6] != b"\x7fELF\x02\x01":
        raise CorruptError("not a 64-bit little-endian ELF file", where=file.name)
    return header


def find_unmoved_sections(path: Path) -> list[Section]:
    """
    Find the sections of a vmlinux that are not moved with the kernel: those that were not linked for its half.

    Until 6.15 per-CPU variables of x86-64 were linked for address 0: what they are added to is each CPU's own
    (9d7de2aa8b41). A debugger that is told of one offset moves them, too.

    Raises
    ------
    CorruptError
        If it is not an ELF file, or damaged.
    """
    return [section for section in read_allocated_sections(path) if not section.vaddr >> 63]


def read_allocated_sections(path: Path) -> list[Section]:
    """
    Read names, addresses and sizes of the sections that take memory (``SHF_ALLOC``), in the file's order.

    Raises
    ------
    CorruptError
        If it is not an ELF file, or damaged.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        (table,) = struct.unpack_from("<Q", header, 40)
        entry_bytes, count, names_at = struct.unpack_from("<HHH", header, 58)
        if entry_bytes != SHDR.itemsize or not names_at < count:
            raise CorruptError(f"{count} sections of {entry_bytes} bytes each", where=str(path))
        sections = np.frombuffer(_read(file, table, entry_bytes * count), dtype=SHDR)
        strings = sections[names_at]
        names = _read(file, int(strings["offset"]), min(int(strings["size"]), _NAMES_LIMIT_BYTES))
    return [
        Section(
            names[int(row["name"]) :].split(b"\0", 1)[0].decode("utf-8", "replace"), int(row["addr"]), int(row["size"])
        )
        for row in sections
        if int(row["flags"]) & _SHF_ALLOC
    ]


def find_first_segment(path: Path) -> int | None:
    """
    Find the address that the first loaded segment of a vmlinux was linked for; None: it has none.

    Raises
    ------
    CorruptError
        If it is not an ELF file, or damaged.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        (table,) = struct.unpack_from("<Q", header, 32)
        entry_bytes, count = struct.unpack_from("<HH", header, 54)
        if count and entry_bytes < _PHDR_BYTES:
            raise CorruptError(f"{count} segments of {entry_bytes} bytes each", where=str(path))
        data = _read(file, table, entry_bytes * count)
    for at in range(0, len(data), entry_bytes or 1):
        kind, vaddr = struct.unpack_from("<I12xQ", data, at)
        if kind == _PT_LOAD:
            return int(vaddr)
    return None
