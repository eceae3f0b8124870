"""The ELF file around the debug information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import UnsupportedError
from postpanic.kernel.elf_layout import SHDR, SYM

__all__ = ["ET_EXEC", "ET_REL", "ElfSection", "SectionFlag", "build_id_note", "elf_file", "symbol_sections"]

ET_REL = 1
ET_EXEC = 2

_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258, "ppc64le": 21}
"""``EM_*``; the little-endian 64-bit machines."""

SHT_NULL = 0
SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_RELA = 4
SHT_NOTE = 7
SHT_NOBITS = 8
SHN_ABS = 0xFFF1

STT_NOTYPE = 0
STT_OBJECT = 1
STT_FUNC = 2
_STT_SECTION = 3
_PT_LOAD = 1
_PT_NOTE = 4
_EHDR_SIZE_BYTES = 64
_PAGE_BYTES = 4096
_PHDR = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)


class SectionFlag:
    """``SHF_*``."""

    WRITE = 1
    ALLOC = 2
    EXECINSTR = 4
    MERGE = 0x10
    STRINGS = 0x20
    INFO_LINK = 0x40


@dataclass(slots=True)
class ElfSection:
    """
    One section of the file.

    ``data`` None makes it ``SHT_NOBITS``: it has addresses and no contents.
    """

    name: str
    data: bytes | NDArray[np.uint8] | None
    vaddr: int = 0
    size_bytes: int = 0
    """Only of a section without contents."""
    flags: int = 0
    type: int = SHT_PROGBITS
    link: str = ""
    """Name of the section that ``sh_link`` refers to."""
    info: int = 0
    entry_bytes: int = 0
    alignment: int = 1

    @property
    def memory_bytes(self) -> int:
        """Bytes the section takes in memory."""
        return self.size_bytes if self.data is None else len(self.data)


def elf_file(
    machine: str, sections: Sequence[ElfSection], *, file_type: int = ET_EXEC
) -> list[bytes | NDArray[np.uint8]]:
    """
    Lay out an ELF64 file; the parts are to be written one after the other.

    An executable gets a ``PT_LOAD`` for every allocated section and a
    ``PT_NOTE`` for every note; a relocatable file has no segments.

    Raises
    ------
    UnsupportedError
        If the machine has no known number.
    """
    if machine not in _MACHINES:
        raise UnsupportedError(f"no debug information can be written for {machine or 'an unknown machine'}")
    loads = _loaded(sections)
    notes = [at for at, section in enumerate(sections) if section.type == SHT_NOTE]
    segments = (len(loads) + len(notes)) if file_type == ET_EXEC else 0
    names, name_offsets = _string_table(["", *(section.name for section in sections), ".shstrtab"])
    headers: NDArray[np.void] = np.zeros(len(sections) + 2, dtype=SHDR)
    position = _EHDR_SIZE_BYTES + segments * _PHDR.itemsize
    parts: list[bytes | NDArray[np.uint8]] = []
    by_name = {section.name: at + 1 for at, section in enumerate(sections)}
    for at, section in enumerate([*sections, ElfSection(".shstrtab", names, type=SHT_STRTAB)]):
        padding = -position % max(section.alignment, 1)
        row = headers[at + 1]
        row["name"] = name_offsets[at + 1]
        row["type"] = SHT_NOBITS if section.data is None else section.type
        row["flags"] = section.flags
        row["addr"] = section.vaddr
        row["size"] = section.memory_bytes
        row["link"] = by_name.get(section.link, 0)
        row["info"] = section.info
        row["addralign"] = section.alignment
        row["entsize"] = section.entry_bytes
        if section.data is not None:
            parts += [bytes(padding), section.data]
            position += padding + len(section.data)
            row["offset"] = position - len(section.data)
        else:
            row["offset"] = position
    tail = -position % 8
    parts.append(bytes(tail))
    programs: NDArray[np.void] = np.zeros(segments, dtype=_PHDR)
    if segments:
        _fill_segments(programs, headers, sections, loads, notes)
    header = _file_header(machine, file_type, segments, position + tail, len(headers))
    return [header, programs.tobytes(), *parts, headers.tobytes()]


def _loaded(sections: Sequence[ElfSection]) -> list[int]:
    """
    List the sections that get a segment, in its order.

    By rising address, but for a section of offsets (per-CPU variables at 0): as in
    the kernel's own vmlinux it comes in between, because debuggers take the first
    and the last segment for the bounds of the kernel.
    """
    loads = [at for at, section in enumerate(sections) if section.flags & SectionFlag.ALLOC and section.memory_bytes]
    loads.sort(key=lambda at: sections[at].vaddr)
    offsets = [at for at in loads if sections[at].vaddr < _PAGE_BYTES]
    high = [at for at in loads if at not in offsets]
    # Without contents there is nothing to load.
    offsets = [at for at in offsets if sections[at].data is not None]
    return [*high[:1], *offsets, *high[1:]] if len(high) > 1 else high


def _fill_segments(
    programs: NDArray[np.void],
    headers: NDArray[np.void],
    sections: Sequence[ElfSection],
    loads: list[int],
    notes: list[int],
) -> None:
    for row, (kind, at) in zip(
        programs, [*((_PT_LOAD, at) for at in loads), *((_PT_NOTE, at) for at in notes)], strict=True
    ):
        section = sections[at]
        row["type"] = kind
        # PF_R, PF_W, PF_X
        row["flags"] = (
            4 | (2 if section.flags & SectionFlag.WRITE else 0) | (1 if section.flags & SectionFlag.EXECINSTR else 0)
        )
        row["offset"] = headers[at + 1]["offset"]
        row["vaddr"] = row["paddr"] = section.vaddr
        row["filesz"] = 0 if section.data is None else section.memory_bytes
        row["memsz"] = section.memory_bytes
        row["align"] = 1 if kind == _PT_LOAD else 4


def _file_header(machine: str, file_type: int, segments: int, section_table: int, sections: int) -> bytes:
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    words = (
        file_type.to_bytes(2, "little"),
        _MACHINES[machine].to_bytes(2, "little"),
        (1).to_bytes(4, "little"),
        bytes(8),
        (_EHDR_SIZE_BYTES if segments else 0).to_bytes(8, "little"),
        section_table.to_bytes(8, "little"),
        bytes(4),
        _EHDR_SIZE_BYTES.to_bytes(2, "little"),
        (_PHDR.itemsize if segments else 0).to_bytes(2, "little"),
        segments.to_bytes(2, "little"),
        SHDR.itemsize.to_bytes(2, "little"),
        sections.to_bytes(2, "little"),
        (sections - 1).to_bytes(2, "little"),
    )
    return ident + b"".join(words)


def _string_table(names: Sequence[str]) -> tuple[bytes, list[int]]:
    blob = bytearray(b"\0")
    offsets: list[int] = []
    for name in names:
        offsets.append(len(blob) if name else 0)
        blob += name.encode() + b"\0" if name else b""
    return bytes(blob), offsets


def symbol_sections(
    values: NDArray[np.uint64],
    sizes: NDArray[np.uint64],
    letters: NDArray[np.uint8],
    types: NDArray[np.uint8],
    section_numbers: NDArray[np.int64],
    names: bytes,
    name_offsets: NDArray[np.int64],
    *,
    section_symbols: int = 0,
) -> list[ElfSection]:
    """
    Make ``.symtab`` and ``.strtab``.

    Parameters
    ----------
    letters : ndarray of uint8
        The ``nm`` letter of each symbol: upper case is global, W and V are weak.
    types : ndarray of uint8
        ``STT_*`` of each symbol.
    section_numbers : ndarray of int64
        Number of each symbol's section in the file; 0 makes the symbol absolute.
    names, name_offsets : bytes, ndarray of int64
        NUL-terminated names, and where each symbol's begins.
    section_symbols : int
        How many sections, from the first on, get a symbol that stands for them;
        symbol number n is then that of section number n.
    """
    upper = (letters >= ord("A")) & (letters <= ord("Z"))
    weak = np.isin(letters, np.frombuffer(b"WwVv", dtype=np.uint8))
    binding = np.where(weak, 2, np.where(upper, 1, 0))
    order = np.argsort(binding != 0, kind="stable")
    symbols: NDArray[np.void] = np.zeros(len(values) + 1 + section_symbols, dtype=SYM)
    symbols["info"][1 : 1 + section_symbols] = _STT_SECTION
    symbols["shndx"][1 : 1 + section_symbols] = np.arange(1, 1 + section_symbols)
    rows = symbols[1 + section_symbols :]
    rows["name"] = name_offsets[order] + 1
    rows["info"] = (binding << 4 | types)[order]
    rows["shndx"] = np.where(section_numbers == 0, SHN_ABS, section_numbers)[order]
    rows["value"] = values[order]
    rows["size"] = sizes[order]
    # Absolute symbols (a CRC, a size) are neither code nor data.
    rows["info"][(section_numbers == 0)[order]] &= 0xF0
    first_global = int((binding == 0).sum()) + 1 + section_symbols
    return [
        ElfSection(
            ".symtab",
            symbols.view(np.uint8),
            type=SHT_SYMTAB,
            link=".strtab",
            info=first_global,
            entry_bytes=SYM.itemsize,
            alignment=8,
        ),
        ElfSection(".strtab", b"\0" + names, type=SHT_STRTAB),
    ]


def build_id_note(build_id: bytes) -> bytes:
    """Make the ``NT_GNU_BUILD_ID`` note of a build ID."""
    words = (4, len(build_id), 3)
    padding = bytes(-len(build_id) % 4)
    return b"".join(word.to_bytes(4, "little") for word in words) + b"GNU\0" + build_id + padding
