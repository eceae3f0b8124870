"""A module's debug information, written from what the kernel keeps about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import UnsupportedError
from postpanic.kernel.btf import Btf
from postpanic.kernel.debuginfo.dwarf import Addresses
from postpanic.kernel.debuginfo.elf import (
    ET_REL,
    SHT_NOTE,
    SHT_RELA,
    STT_FUNC,
    STT_OBJECT,
    ElfSection,
    SectionFlag,
    build_id_note,
    elf_file,
    symbol_sections,
)
from postpanic.kernel.debuginfo.globals import GlobalsTable
from postpanic.kernel.debuginfo.modules import ModuleSection
from postpanic.kernel.debuginfo.sections import TypingReport, debug_contents, debug_elf_sections
from postpanic.kernel.debuginfo.selection import ModuleTypes
from postpanic.kernel.debuginfo.symbols import Section, Symbols
from postpanic.kernel.kallsyms import SymbolTable

__all__ = ["ModuleFacts", "synthesize_module"]

_RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_ABSOLUTE_64 = {"x86_64": 1, "aarch64": 257}
"""``R_X86_64_64`` and ``R_AARCH64_ABS64``."""
_BUILD_ID_SECTION = ".note.gnu.build-id"
_WRITABLE = (".data", ".bss", "__", ".gnu.linkonce")


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """All that goes into one module's file."""

    machine: str
    name: str
    build_id: bytes
    sections: tuple[ModuleSection, ...]
    symbols: SymbolTable
    btf: Btf | None
    """The module's split BTF; vmlinux's where the module has none of its own."""
    declarable: NDArray[np.bool_]
    globals_table: GlobalsTable | None = None
    signed_char: bool = True


def synthesize_module(facts: ModuleFacts) -> tuple[list[bytes | NDArray[np.uint8]], TypingReport]:
    """
    Write a module's file: relocatable, like the ``.ko.debug`` of a distribution.

    Sections are named as the module's own are, so that a debugger puts each to
    its address in this dump; nothing in the file depends on where that was.

    Raises
    ------
    UnsupportedError
        If the machine is none that modules can be written for.
    """
    if facts.machine not in _ABSOLUTE_64:
        raise UnsupportedError(f"no module can be written for {facts.machine or 'an unknown machine'}")
    sections = _file_sections(facts)
    symbols = Symbols.from_table(facts.symbols, facts.symbols.vaddrs).in_sections(sections)
    contents = debug_contents(
        facts.btf,
        symbols,
        facts.globals_table,
        ModuleTypes(facts.declarable),
        signed_char=facts.signed_char,
        unit_name=facts.name,
        relocatable=True,
    )
    kept = np.flatnonzero(symbols.section_index >= 0)
    index = symbols.section_index[kept]
    starts = np.array([section.start for section in sections], dtype=np.uint64)
    table = symbol_sections(
        symbols.vaddrs[kept] - starts[index],
        symbols.sizes[kept],
        symbols.letters[kept],
        np.where(symbols.is_function()[kept], STT_FUNC, STT_OBJECT).astype(np.uint8),
        index + 1,
        symbols.blob,
        symbols.name_offsets[kept],
        section_symbols=len(sections),
    )
    image = [_image_section(section, facts) for section in sections]
    if not any(section.type == SHT_NOTE for section in image) and facts.build_id:
        image.append(ElfSection(_BUILD_ID_SECTION, build_id_note(facts.build_id), type=SHT_NOTE, alignment=4))
    debug = debug_elf_sections(contents)
    relocations = [
        _relocations(facts.machine, ".debug_info", contents.dwarf.info_addresses, sections, len(image) + 2),
        _relocations(facts.machine, ".debug_aranges", contents.dwarf.aranges_addresses, sections, len(image) + 1),
    ]
    if not len(contents.dwarf.info):
        # A module that has no function left (all were for its start) nor variables: readers refuse an empty section.
        debug, relocations = [], []
    return elf_file(facts.machine, [*image, *debug, *relocations, *table], file_type=ET_REL), contents.report


def _file_sections(facts: ModuleFacts) -> list[Section]:
    result: list[Section] = []
    for section in facts.sections:
        # Sections that begin at one address: all but the last are empty.
        if section.end > section.start and (not result or section.start >= result[-1].end):
            executable = "text" in section.name and not section.name.startswith("__")
            result.append(
                Section(
                    section.name,
                    section.start,
                    section.end,
                    executable,
                    not executable and section.name.startswith(_WRITABLE),
                )
            )
    return result


def _image_section(section: Section, facts: ModuleFacts) -> ElfSection:
    flags = SectionFlag.ALLOC
    flags |= SectionFlag.EXECINSTR if section.executable else 0
    flags |= SectionFlag.WRITE if section.writable else 0
    if section.name == _BUILD_ID_SECTION and facts.build_id:
        return ElfSection(section.name, build_id_note(facts.build_id), flags=flags, type=SHT_NOTE, alignment=4)
    return ElfSection(section.name, None, size_bytes=section.end - section.start, flags=flags, alignment=1)


def _relocations(
    machine: str, name: str, addresses: Addresses, sections: list[Section], section_number: int
) -> ElfSection:
    """Make the section that tells where addresses stand and what they are relative to."""
    where = np.concatenate([np.zeros(0, dtype=np.int64), *(offsets for offsets, _ in addresses)])
    values = np.concatenate([np.zeros(0, dtype=np.uint64), *(vaddrs for _, vaddrs in addresses)])
    starts = np.array([section.start for section in sections], dtype=np.uint64)
    index = np.searchsorted(starts, values, side="right").astype(np.int64) - 1
    rows: NDArray[np.void] = np.zeros(len(where), dtype=_RELOCATION)
    rows["offset"] = where
    rows["type"] = _ABSOLUTE_64[machine]
    # The symbol of section number n is symbol number n.
    rows["symbol"] = index + 1
    rows["addend"] = (values - starts[index]).astype(np.int64) if len(values) else 0
    return ElfSection(
        f".rela{name}",
        rows.view(np.uint8),
        type=SHT_RELA,
        flags=SectionFlag.INFO_LINK,
        link=".symtab",
        info=section_number,
        entry_bytes=_RELOCATION.itemsize,
        alignment=8,
    )
