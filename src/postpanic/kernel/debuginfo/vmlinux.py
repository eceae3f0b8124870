"""A vmlinux with debug information, written from what the kernel carries in its own memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError
from postpanic.kernel.btf import Btf
from postpanic.kernel.debuginfo.elf import (
    SHT_NOTE,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    ElfSection,
    SectionFlag,
    build_id_note,
    elf_file,
    symbol_sections,
)
from postpanic.kernel.debuginfo.frames import encode_debug_frame, functions_without_orc
from postpanic.kernel.debuginfo.functions import FunctionTable
from postpanic.kernel.debuginfo.globals import GlobalsTable
from postpanic.kernel.debuginfo.image import image_sections, link_vaddrs
from postpanic.kernel.debuginfo.sections import TypingReport, debug_contents, debug_elf_sections
from postpanic.kernel.debuginfo.selection import AllTypes
from postpanic.kernel.debuginfo.symbols import Section, Symbols
from postpanic.kernel.debuginfo.variables import VariableTable
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.orc import decode_orc
from postpanic.kernel.prologue import FrameLayout, decode_frame_layout

__all__ = ["ElfParts", "VmlinuxFacts", "link_symbols", "synthesize_vmlinux"]

_ORC_IP_BYTES = 4
_ORC_ENTRY_BYTES = 6
_MAX_UNTYPED_BYTES = np.uint64(4 << 10)

ElfParts = list[bytes | NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class VmlinuxFacts:
    """
    All that goes into a vmlinux.

    ``contents`` gives the bytes of a section at its link-time addresses, or
    None for one that stays without.
    """

    machine: str
    symbols: Symbols
    """At link-time addresses, see :func:`link_symbols`."""
    btf: Btf | None
    build_id: bytes
    globals_table: GlobalsTable | None = None
    contents: Callable[[Section], bytes | NDArray[np.uint8] | None] = lambda _: None
    read: Callable[[int, int], bytes | None] = lambda _vaddr, _size: None
    """Gives the bytes of a function or variable at its link-time address, or None."""
    signed_char: bool = True


def link_symbols(table: SymbolTable, kaslr_offset: int) -> Symbols:
    """Put a kernel's symbols back to where they were linked, in the sections of the image."""
    symbols = Symbols.from_table(table, link_vaddrs(table, kaslr_offset))
    return symbols.in_sections(image_sections(symbols.vaddr_of))


def synthesize_vmlinux(facts: VmlinuxFacts) -> tuple[ElfParts, TypingReport]:
    """
    Write a vmlinux: one ELF64 executable at link-time addresses.

    It has the DWARF of every BTF type, of the functions and of the variables
    whose type is known, the symbol table, the build ID, and whatever
    ``facts.contents`` gives.

    Returns
    -------
    parts : list of bytes and arrays
        The file, to be written one part after the other.
    report : TypingReport

    Raises
    ------
    UnsupportedError
        If the machine is none that files can be written for.
    """
    symbols = facts.symbols
    sections = symbols.sections
    contents = debug_contents(
        facts.btf,
        symbols,
        facts.globals_table,
        AllTypes(),
        signed_char=facts.signed_char,
        unit_name="vmlinux",
        read=facts.read,
    )
    image = [_image_section(section, facts) for section in sections]
    if not any(section.type == SHT_NOTE for section in image) and facts.build_id:
        image.append(ElfSection(".note.gnu.build-id", build_id_note(facts.build_id), type=SHT_NOTE, alignment=4))
    table = symbol_sections(
        symbols.vaddrs,
        _symbol_sizes(symbols, contents.report.variables, contents.functions),
        symbols.letters,
        _symbol_types(symbols, contents.functions),
        symbols.section_index + 1,
        symbols.blob,
        symbols.name_offsets,
    )
    frames = _frame_sections(facts, image, contents.functions)
    return elf_file(facts.machine, [*image, *debug_elf_sections(contents), *frames, *table]), contents.report


def _symbol_types(symbols: Symbols, functions: FunctionTable) -> NDArray[np.uint8]:
    """Types of the symbols; a label inside a function has none."""
    types = np.where(symbols.is_function(), STT_FUNC, STT_OBJECT).astype(np.uint8)
    types[functions.labels] = STT_NOTYPE
    return types


def _symbol_sizes(symbols: Symbols, variables: VariableTable, functions: FunctionTable) -> NDArray[np.uint64]:
    """
    Sizes of the symbols: of their type, else the distance to the next one.

    Behind data there may be much that no symbol names, such as string literals;
    an address there is not within the variable before.
    """
    sizes = symbols.sizes.copy()
    sizes[functions.rows] = functions.size
    sizes[functions.labels] = 0
    data = ~symbols.is_function()
    sizes[data] = np.minimum(sizes[data], _MAX_UNTYPED_BYTES)
    rows, typed = np.array(variables.rows, dtype=np.int64), np.array(variables.sizes, dtype=np.uint64)
    # An array whose length is unknown keeps all the room.
    sizes[rows] = np.where(typed > 0, np.minimum(typed, symbols.sizes[rows]), symbols.sizes[rows])
    return sizes


def _frame_sections(facts: VmlinuxFacts, image: list[ElfSection], functions: FunctionTable) -> list[ElfSection]:
    """Describe the frames that ORC does not: nothing where there is no ORC, or it is damaged."""
    found = {section.name: section for section in image if section.data is not None}
    if ".orc_unwind_ip" not in found or ".orc_unwind" not in found:
        return []
    ips, entries = (np.asarray(found[name].data).tobytes() for name in (".orc_unwind_ip", ".orc_unwind"))
    try:
        # The linker pads the end.
        count = min(len(ips) // _ORC_IP_BYTES, len(entries) // _ORC_ENTRY_BYTES)
        orc = decode_orc(
            found[".orc_unwind_ip"].vaddr, ips[: count * _ORC_IP_BYTES], entries[: count * _ORC_ENTRY_BYTES]
        )
    except CorruptError:
        return []
    rows = functions_without_orc(orc, functions.vaddr, functions.size)
    pairs = list(zip(functions.vaddr[rows].tolist(), functions.size[rows].tolist(), strict=True))

    def decode(vaddr: int, size: int) -> FrameLayout | None:
        code = facts.read(vaddr, size)
        return None if code is None else decode_frame_layout(code)

    data = encode_debug_frame(pairs, decode)
    return [ElfSection(".debug_frame", data, alignment=8)] if data else []


def _image_section(section: Section, facts: VmlinuxFacts) -> ElfSection:
    flags = SectionFlag.ALLOC
    flags |= SectionFlag.EXECINSTR if section.executable else 0
    flags |= SectionFlag.WRITE if section.writable else 0
    data = facts.contents(section)
    result = ElfSection(
        section.name, data, vaddr=section.start, size_bytes=section.end - section.start, flags=flags, alignment=4
    )
    if section.name == ".notes" and data is not None:
        result.type = SHT_NOTE
    return result
