"""
What a vmlinux tells of the kernel that it is: build ID, release, types (BTF) and symbols.

Only what the file's section headers lead to is read, never its DWARF. Layout:
System V gABI, chapter 4 (``Elf64_Ehdr``, ``Elf64_Shdr``, ``Elf64_Sym``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.elfcore.layout import ELF_MAGIC, machine_name
from postpanic.dumps.notes import decode_notes
from postpanic.dumps.source import FileSource
from postpanic.errors import CorruptError, FileFaultError, NotADumpError, TruncatedError, UnsupportedError
from postpanic.kernel.btf import Btf, decode_btf
from postpanic.kernel.btf.layout import MAX_DATA_BYTES
from postpanic.kernel.elf_layout import SHDR, SYM
from postpanic.kernel.kallsyms import SymbolTable, make_symbol_table
from postpanic.units import MIB, format_size

__all__ = ["VmlinuxFile", "read_vmlinux"]

_EHDR_BYTES = 64
_ET_EXEC, _ET_DYN = 2, 3
_SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS = 2, 7, 8
_SHF_COMPRESSED = 0x800
_STT_SECTION, _STT_FILE = 3, 4
_NT_GNU_BUILD_ID = 3
_MAX_SECTIONS = 1 << 16
_MAX_NAMES_BYTES = MIB
_MAX_NOTES_BYTES = MIB
_MAX_SYMBOLS_BYTES = 512 * MIB
_BANNER = b"Linux version "
_BANNER_BYTES = 512
_UPPER_HALF = 1 << 63


@dataclass(frozen=True)
class VmlinuxFile:
    """
    A kernel's own ELF file.

    Attributes
    ----------
    symbols : SymbolTable
        At the addresses the kernel was linked to; sizes are those of the file.
    btf : Btf or None
        None where the file has no ``.BTF`` section.
    sizes : dict
        ``st_size`` of each symbol that has one, in bytes, by name.
    """

    path: str
    machine: str
    build_id: str
    """In hex digits; empty where the file has none."""
    release: str
    """``uname -r``; empty where the file has no contents for it."""
    symbols: SymbolTable
    sizes: dict[str, int]
    btf: Btf | None
    has_dwarf: bool

    def require_btf(self) -> Btf:
        """
        Give the types.

        Raises
        ------
        UnsupportedError
            If the file has DWARF only, or no types at all.
        """
        if self.btf is not None:
            return self.btf
        what = "DWARF and no .BTF section: DWARF is not read" if self.has_dwarf else "neither types nor DWARF"
        raise UnsupportedError(
            f"the file has {what}",
            where=self.path,
            hint="give a vmlinux built with CONFIG_DEBUG_INFO_BTF, or add the section with pahole -J",
        )


def read_vmlinux(path: Path) -> VmlinuxFile:
    """
    Read a vmlinux.

    Raises
    ------
    FileFaultError
        If it cannot be opened, is no little-endian ELF64 executable, or is damaged.
    """
    source = FileSource(path)
    try:
        return _Reader(source).read()
    finally:
        source.close()


class _Reader:
    """Reads the sections of one file."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.name = source.name
        head = source.read(0, _EHDR_BYTES)
        if head[:4] != ELF_MAGIC:
            raise NotADumpError(
                "not an ELF file, so no vmlinux", where=self.name, hint="a bzImage or vmlinuz is no vmlinux"
            )
        if len(head) < _EHDR_BYTES:
            raise TruncatedError(f"{len(head)} bytes of ELF header, {_EHDR_BYTES} are needed", where=self.name)
        if head[4] != 2 or head[5] != 1:
            raise UnsupportedError("not a 64-bit little-endian ELF file", where=self.name)
        kind, machine = struct.unpack_from("<HH", head, 16)
        if kind not in (_ET_EXEC, _ET_DYN):
            raise UnsupportedError(
                f"an ELF file of type {kind}, a vmlinux is an executable (2)", where=f"{self.name}+0x10"
            )
        self.machine = machine_name(machine, is_64bit=True)
        offset, entry, count, names = *struct.unpack_from("<Q", head, 40), *struct.unpack_from("<HHH", head, 58)
        self.sections = self._read_sections(offset, entry, count)
        self.names = self._read_names(names)

    def _read_sections(self, offset: int, entry: int, count: int) -> NDArray[np.void]:
        if not offset or entry != SHDR.itemsize:
            raise CorruptError(
                f"section headers of {entry} bytes at {offset:#x}, must be {SHDR.itemsize}", where=self.name
            )
        if count == 0:
            # More sections than the field can hold: the first one's size is their number.
            count = int(self._table(offset, 1)["size"][0])
        if not 0 < count <= _MAX_SECTIONS:
            raise CorruptError(f"{count} sections, at most {_MAX_SECTIONS} are read", where=self.name)
        return self._table(offset, count)

    def _table(self, offset: int, count: int) -> NDArray[np.void]:
        raw = self.source.read(offset, count * SHDR.itemsize)
        if len(raw) < count * SHDR.itemsize:
            raise TruncatedError("the section headers are cut", where=f"{self.name}+{offset:#x}")
        return np.frombuffer(raw, dtype=SHDR)

    def _read_names(self, index: int) -> list[str]:
        if index >= len(self.sections):
            raise CorruptError(f"the names are in section {index} of {len(self.sections)}", where=self.name)
        table = self._contents(self.sections[index], _MAX_NAMES_BYTES)
        return [
            table[start : max(table.find(b"\0", start), start)].decode("utf-8", "replace")
            for start in self.sections["name"].tolist()
        ]

    def _section(self, name: str) -> np.void | None:
        """Find a section that has contents."""
        for index, spelling in enumerate(self.names):
            if spelling == name and self.sections[index]["type"] != _SHT_NOBITS and self.sections[index]["size"]:
                found: np.void = self.sections[index]
                return found
        return None

    def _contents(self, section: np.void, limit: int) -> bytes:
        size, offset = int(section["size"]), int(section["offset"])
        if size > limit:
            raise CorruptError(
                f"a section of {format_size(size)}, at most {format_size(limit)} is read",
                where=f"{self.name}+{offset:#x}",
            )
        if int(section["flags"]) & _SHF_COMPRESSED:
            raise UnsupportedError(
                "a compressed section is needed", where=f"{self.name}+{offset:#x}", hint="decompress it with objcopy"
            )
        data = self.source.read(offset, size)
        if len(data) < size:
            raise TruncatedError(f"{len(data)} of {size} bytes of a section", where=f"{self.name}+{offset:#x}")
        return data

    def read(self) -> VmlinuxFile:
        """Read all that is wanted."""
        symbols, sizes = self._read_symbols()
        btf = self._section(".BTF")
        return VmlinuxFile(
            self.name,
            self.machine,
            self._read_build_id(),
            self._read_release(symbols),
            symbols,
            sizes,
            None if btf is None else decode_btf(self._contents(btf, MAX_DATA_BYTES), where=f"{self.name}: .BTF"),
            self._section(".debug_info") is not None,
        )

    def _read_build_id(self) -> str:
        for index in np.flatnonzero(self.sections["type"] == _SHT_NOTE).tolist():
            for note in decode_notes(self._contents(self.sections[index], _MAX_NOTES_BYTES), byte_order="little"):
                if note.name == b"GNU" and note.type == _NT_GNU_BUILD_ID:
                    return note.desc.hex()
        return ""

    def _read_symbols(self) -> tuple[SymbolTable, dict[str, int]]:
        found = np.flatnonzero(self.sections["type"] == _SHT_SYMTAB)
        if not len(found):
            raise FileFaultError(
                "the file has no symbol table", where=self.name, hint="it was stripped: give the vmlinux of the build"
            )
        section = self.sections[found[0]]
        raw = self._contents(section, _MAX_SYMBOLS_BYTES)
        rows = np.frombuffer(raw, dtype=SYM, count=len(raw) // SYM.itemsize)
        if int(section["link"]) >= len(self.sections):
            raise CorruptError("the symbol table's names are in no section", where=self.name)
        names = self._contents(self.sections[int(section["link"])], _MAX_SYMBOLS_BYTES) + b"\0"
        kinds = rows["info"] & 0xF
        rows = rows[(kinds < _STT_SECTION) & (rows["name"] > 0) & (rows["name"] < len(names)) & (rows["shndx"] > 0)]
        offsets = rows["name"].astype(np.int64)
        letters = np.where(rows["info"] >> 4, ord("D"), ord("d")).astype(np.uint8)
        table = make_symbol_table(rows["value"].astype(np.uint64), letters, names, offsets)
        sized = rows[rows["size"] > 0]
        sizes = {
            names[start : names.index(0, start)].decode("utf-8", "replace"): size
            for start, size in zip(sized["name"].tolist(), sized["size"].tolist(), strict=True)
        }
        return table, sizes

    def _read_release(self, symbols: SymbolTable) -> str:
        """Read the release from ``linux_banner`` (``init/version-timestamp.c``), where the file has its section."""
        vaddr = symbols.get("linux_banner")
        if vaddr is None:
            return ""
        sections = self.sections
        for index in np.flatnonzero((sections["type"] != _SHT_NOBITS) & (sections["addr"] >= _UPPER_HALF)).tolist():
            start, size = int(sections["addr"][index]), int(sections["size"][index])
            if start <= vaddr < start + size:
                text = self.source.read(int(sections["offset"][index]) + vaddr - start, _BANNER_BYTES)
                if text.startswith(_BANNER):
                    return text[len(_BANNER) :].split(b" ", 1)[0].decode("ascii", "replace")
        return ""
