"""A vmlinux with debug information, written from what the kernel carries in its own memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, TypeResolver
from postpanic.kernel.debuginfo.dwarf import Abbreviations
from postpanic.kernel.debuginfo.elf import SHT_NOTE, ElfSection, SectionFlag, build_id_note, elf_file, symbol_sections
from postpanic.kernel.debuginfo.functions import FunctionTable, function_forest, match_functions
from postpanic.kernel.debuginfo.globals import GlobalsTable
from postpanic.kernel.debuginfo.image import image_sections, link_vaddrs
from postpanic.kernel.debuginfo.symbols import Section, Symbols
from postpanic.kernel.debuginfo.types import TypeTable, prototypes_in_use
from postpanic.kernel.debuginfo.units import UnitPlan, assemble
from postpanic.kernel.debuginfo.variables import VariableTable, type_variables, variable_forest
from postpanic.kernel.kallsyms import SymbolTable

__all__ = ["ElfParts", "TypingReport", "VmlinuxFacts", "dwarf_sections", "synthesize_vmlinux"]

ElfParts = list[bytes | NDArray[np.uint8]]

_FUNCTIONS_PER_UNIT = 256
"""A debugger searches a unit's functions one by one, and opens only the unit it needs."""
_TYPES_PER_UNIT = 1 << 15


@dataclass(frozen=True, slots=True)
class VmlinuxFacts:
    """
    All that goes into a vmlinux.

    ``contents`` gives the bytes of a section at its link-time addresses, or
    None for one that stays without.
    """

    machine: str
    symbols: SymbolTable
    kaslr_offset: int
    btf: Btf | None
    build_id: bytes
    globals_table: GlobalsTable | None = None
    contents: Callable[[Section], bytes | NDArray[np.uint8] | None] = lambda _: None
    signed_char: bool = True


@dataclass(slots=True)
class TypingReport:
    """What of a kernel or module got types, and what did not."""

    symbols: int = 0
    types: int = 0
    functions: int = 0
    prototypes: int = 0
    ambiguous_functions: int = 0
    variables: VariableTable = field(default_factory=VariableTable)
    notes: list[str] = field(default_factory=list)
    """What is missing and why, one phrase each."""


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
    symbols = Symbols.from_table(facts.symbols, link_vaddrs(facts.symbols, facts.kaslr_offset))
    sections = image_sections(symbols.vaddr_of)
    symbols = symbols.in_sections(sections)
    debug, report = dwarf_sections(facts.btf, symbols, facts.globals_table, signed_char=facts.signed_char)
    image = [_image_section(section, facts) for section in sections]
    if not any(section.type == SHT_NOTE for section in image) and facts.build_id:
        image.append(ElfSection(".note.gnu.build-id", build_id_note(facts.build_id), type=SHT_NOTE, alignment=4))
    table = symbol_sections(
        symbols.vaddrs,
        symbols.sizes,
        symbols.letters,
        symbols.is_function(),
        symbols.section_index + 1,
        symbols.blob,
        symbols.name_offsets,
    )
    return elf_file(facts.machine, [*image, *debug, *table]), report


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


def dwarf_sections(
    btf: Btf | None,
    symbols: Symbols,
    globals_table: GlobalsTable | None,
    *,
    signed_char: bool,
    unit_name: str = "vmlinux",
) -> tuple[list[ElfSection], TypingReport]:
    """Make the ``.debug_*`` sections of a kernel: all types of its BTF, its functions and its variables."""
    report = TypingReport(symbols=len(symbols.vaddrs))
    functions = match_functions(btf, symbols)
    strings = _Strings(btf.strings if btf else b"\0")
    types: TypeTable | None = None
    abbreviations = Abbreviations()
    plans: list[UnitPlan] = []
    producer, unit_names = strings.add([b"postpanic, from BTF and kallsyms", unit_name.encode()]).tolist()
    if btf is not None:
        resolver = TypeResolver(btf)
        report.variables = type_variables(btf, symbols, globals_table, resolver)
        whole = resolver.constructed()
        types = TypeTable(
            whole,
            prototypes_in_use(whole),
            np.zeros(whole.end_id, dtype=np.bool_),
            lambda _, offsets: offsets,
            signed_char=signed_char,
        )
        names = strings.add([symbols.names[row] for row in report.variables.rows])
        variables = variable_forest(report.variables, symbols, types, names, abbreviations)
        plans.append(UnitPlan(types.forest(abbreviations), np.arange(types.count) // _TYPES_PER_UNIT, unit_names))
        plans.append(UnitPlan(variables, np.zeros(len(report.variables), dtype=np.int64), unit_names))
        report.types = types.count
    plans.append(_function_plan(functions, types, strings.add(functions.names), abbreviations, unit_names))
    debug = assemble(plans, types=0, abbreviations=abbreviations, producer=producer)
    report.functions = len(functions)
    report.prototypes = int((functions.prototype > 0).sum())
    report.ambiguous_functions = functions.ambiguous
    sections = [
        ElfSection(".debug_aranges", debug.aranges),
        ElfSection(".debug_info", debug.info),
        ElfSection(".debug_abbrev", debug.abbrev),
        ElfSection(".debug_str", strings.blob(), flags=SectionFlag.MERGE | SectionFlag.STRINGS, entry_bytes=1),
    ]
    return sections, report


def _function_plan(
    functions: FunctionTable,
    types: TypeTable | None,
    names: NDArray[np.uint32],
    abbreviations: Abbreviations,
    unit_name: int,
) -> UnitPlan:
    """Cut the functions into units by address."""
    forest = function_forest(functions, types, names, abbreviations)
    unit_of = np.arange(len(functions)) // _FUNCTIONS_PER_UNIT
    if not len(functions):
        return UnitPlan(forest, unit_of, unit_name)
    first = np.arange(0, len(functions), _FUNCTIONS_PER_UNIT)
    ends = np.maximum.reduceat(functions.vaddr + functions.size, first)
    return UnitPlan(forest, unit_of, unit_name, functions.vaddr[first], ends)


class _Strings:
    """``.debug_str``: the BTF's strings as they stand, and more behind them."""

    def __init__(self, first: bytes) -> None:
        self._parts = [first]
        self._size = len(first)

    def add(self, names: list[bytes]) -> NDArray[np.uint32]:
        """Append names; gives their offsets."""
        if not names:
            return np.zeros(0, dtype=np.uint32)
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names)) + 1
        offsets = self._size + np.cumsum(lengths) - lengths
        self._parts.append(b"\0".join(names) + b"\0")
        self._size += int(lengths.sum())
        return offsets.astype(np.uint32)

    def blob(self) -> bytes:
        """Give the section."""
        return b"".join(self._parts)
