"""What the image has to know of ELF files: what they need, and which part of them is ever loaded."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from postpanic.errors import CorruptError

__all__ = ["ElfFacts", "is_elf", "read_elf", "read_undefined_symbols", "strip"]

MAGIC = b"\x7fELF"
_CLASS64_LITTLE = MAGIC + b"\x02\x01"
# Elf64_Ehdr and Elf64_Phdr.
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_STRINGS = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath", "DT_SONAME": "soname"}


@dataclass(frozen=True)
class ElfFacts:
    """
    Of an ELF program or library.

    Attributes
    ----------
    machine : str
        ``EM_X86_64``, ``EM_AARCH64`` (System V ABI, ``e_machine``).
    bits : int
        32 or 64.
    interpreter : str
        The dynamic loader; empty for libraries and static programs.
    needed, rpath, runpath, soname
        Of the dynamic section, the search paths split at colons.
    """

    machine: str
    bits: int
    interpreter: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    soname: str = ""


def is_elf(content: bytes) -> bool:
    """Tell whether a file's beginning is that of an ELF file."""
    return content[:4] == MAGIC


def read_elf(content: bytes, where: str) -> ElfFacts:
    """
    Return what a program or library says about itself.

    Raises
    ------
    CorruptError
        If it is no ELF file, or a damaged one.
    """
    found: dict[str, list[str]] = {name: [] for name in _STRINGS.values()}
    interpreter = ""
    with _opened(content, where) as elf:
        for segment in elf.iter_segments():
            if isinstance(segment, InterpSegment):
                interpreter = segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags():
                    if tag.entry.d_tag in _STRINGS:
                        name = _STRINGS[tag.entry.d_tag]
                        found[name].append(getattr(tag, name))
        return ElfFacts(
            machine=str(elf.header.e_machine),
            bits=elf.elfclass,
            interpreter=interpreter,
            needed=tuple(found["needed"]),
            rpath=tuple(part for text in found["rpath"] for part in text.split(":") if part),
            runpath=tuple(part for text in found["runpath"] for part in text.split(":") if part),
            soname=found["soname"][0] if found["soname"] else "",
        )


def read_undefined_symbols(content: bytes, where: str) -> list[str]:
    """
    Return the names that a program or library needs of others, sorted.

    Raises
    ------
    CorruptError
        If it is no ELF file, or a damaged one.
    """
    names = set()
    with _opened(content, where) as elf:
        for segment in elf.iter_segments():
            if isinstance(segment, DynamicSegment):
                names |= {symbol.name for symbol in segment.iter_symbols() if symbol.entry.st_shndx == "SHN_UNDEF"}
    return sorted(names - {""})


@contextlib.contextmanager
def _opened(content: bytes, where: str) -> Iterator[ELFFile]:
    try:
        yield ELFFile(io.BytesIO(content))
    except (ELFError, ConstructError, OverflowError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CorruptError(f"not an ELF file that can be read: {exc}", where=where) from exc


def strip(content: bytes) -> bytes:
    """
    Return a program or library without what is never loaded: section headers, symbol table, debug information.

    The loader goes by program headers alone (System V gABI, chapter 5): what
    lies behind the last segment can go. What is not 64-bit little-endian ELF
    stays as it is.
    """
    if content[:6] != _CLASS64_LITTLE or len(content) < _EHDR.size:
        return content
    fields = list(_EHDR.unpack_from(content))
    program_offset, entry_bytes, count = fields[5], fields[9], fields[10]
    table_end = program_offset + entry_bytes * count
    if count == 0 or entry_bytes < _PHDR.size or table_end > len(content):
        return content
    segments = [_PHDR.unpack_from(content, program_offset + index * entry_bytes) for index in range(count)]
    end = max(table_end, *(offset + size for _, _, offset, _, _, size, _, _ in segments))
    if end > len(content):
        return content
    # e_shoff, e_shnum and e_shstrndx: there are no sections.
    fields[6] = fields[12] = fields[13] = 0
    return _EHDR.pack(*fields) + content[_EHDR.size : end]
