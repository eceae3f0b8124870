"""The ``.debug_*`` sections of a kernel or of a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, TypeResolver
from postpanic.kernel.debuginfo.dwarf import Abbreviations
from postpanic.kernel.debuginfo.elf import ElfSection, SectionFlag
from postpanic.kernel.debuginfo.functions import FunctionTable, function_forest, match_functions
from postpanic.kernel.debuginfo.globals import GlobalsTable
from postpanic.kernel.debuginfo.selection import Selection
from postpanic.kernel.debuginfo.symbols import Symbols
from postpanic.kernel.debuginfo.types import TypeTable
from postpanic.kernel.debuginfo.units import DwarfSections, UnitPlan, assemble
from postpanic.kernel.debuginfo.variables import VariableTable, type_variables, variable_forest

__all__ = ["DebugContents", "DebugStrings", "TypingReport", "debug_contents", "debug_elf_sections"]

_FUNCTIONS_PER_UNIT = 256
"""A debugger searches a unit's functions one by one, and opens only the unit it needs."""
_TYPES_PER_UNIT = 1 << 15


@dataclass(slots=True)
class TypingReport:
    """What of a kernel or module got types, and what did not."""

    symbols: int = 0
    types: int = 0
    functions: int = 0
    prototypes: int = 0
    ambiguous_functions: int = 0
    variables: VariableTable = field(default_factory=VariableTable)

    def counts(self) -> dict[str, int]:
        """Give everything as numbers."""
        variables = self.variables
        return {
            "symbols": self.symbols,
            "types": self.types,
            "functions": self.functions,
            "prototypes": self.prototypes,
            "ambiguous_functions": self.ambiguous_functions,
            "variables": len(variables),
            "variables_from_btf": variables.from_btf,
            "variables_from_table": variables.from_table,
            "variables_type_absent": variables.type_absent,
            "variables_do_not_fit": variables.does_not_fit,
            "variables_length_unknown": variables.length_unknown,
            "variables_ambiguous": variables.ambiguous,
        }


@dataclass(frozen=True, slots=True)
class DebugContents:
    """Debug information ready to be put into a file."""

    dwarf: DwarfSections
    strings: bytes
    functions: FunctionTable
    report: TypingReport


class DebugStrings:
    """``.debug_str``: the BTF's strings as they stand, and more behind them."""

    def __init__(self, first: bytes = b"\0") -> None:
        self._parts = [first]
        self._size = len(first)

    def add(self, names: list[bytes]) -> NDArray[np.uint32]:
        """Append names; gives their offsets."""
        if not names:
            return np.zeros(0, dtype=np.uint32)
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names)) + 1
        offsets = self._size + np.cumsum(lengths) - lengths
        self.append(b"\0".join(names) + b"\0")
        return offsets.astype(np.uint32)

    def append(self, blob: bytes) -> int:
        """Append NUL-terminated strings as they stand; gives the offset of the first."""
        start = self._size
        self._parts.append(blob)
        self._size += len(blob)
        return start

    def blob(self) -> bytes:
        """Give the section."""
        return b"".join(self._parts)


def debug_contents(
    btf: Btf | None,
    symbols: Symbols,
    globals_table: GlobalsTable | None,
    selection: Selection,
    *,
    signed_char: bool,
    unit_name: str,
    relocatable: bool = False,
    read: Callable[[int, int], bytes | None] = lambda _vaddr, _size: None,
) -> DebugContents:
    """
    Make the debug information of a kernel or module.

    Parameters
    ----------
    btf : Btf or None
        Without one only functions are described, by name.
    selection : Selection
        Which types go into the file, and how their strings are numbered.
    read : callable
        Gives the contents of a variable at its link-time address, or None.
    """
    report = TypingReport(symbols=len(symbols.vaddrs))
    functions = match_functions(btf, symbols)
    strings = DebugStrings(selection.first_strings(btf))
    abbreviations = Abbreviations()
    producer, name = strings.add([b"postpanic, from BTF and kallsyms", unit_name.encode()]).tolist()
    types: TypeTable | None = None
    plans: list[UnitPlan] = []
    if btf is not None:
        resolver = TypeResolver(btf)
        report.variables = type_variables(btf, symbols, globals_table, resolver, read)
        whole = resolver.constructed()
        chosen, declared = selection.choose(whole, functions, report.variables)
        types = TypeTable(
            whole, chosen, declared, selection.numbering(whole, chosen, functions, strings), signed_char=signed_char
        )
        names = strings.add([symbols.names[row] for row in report.variables.rows])
        variables = variable_forest(report.variables, symbols, types, names, abbreviations)
        plans.append(UnitPlan(types.forest(abbreviations), np.arange(types.count) // _TYPES_PER_UNIT, name))
        plans.append(UnitPlan(variables, np.zeros(len(report.variables), dtype=np.int64), name))
        report.types = types.count
    plans.append(_function_plan(functions, symbols, types, strings, abbreviations, name))
    dwarf = assemble(plans, types=0, abbreviations=abbreviations, producer=producer, relocatable=relocatable)
    report.functions = len(functions)
    report.prototypes = int((functions.prototype > 0).sum())
    report.ambiguous_functions = functions.ambiguous
    return DebugContents(dwarf, strings.blob(), functions, report)


def debug_elf_sections(contents: DebugContents) -> list[ElfSection]:
    """Give the sections as they go into a file."""
    return [
        ElfSection(".debug_aranges", contents.dwarf.aranges.view(np.uint8)),
        ElfSection(".debug_info", contents.dwarf.info),
        ElfSection(".debug_abbrev", contents.dwarf.abbrev),
        ElfSection(".debug_str", contents.strings, flags=SectionFlag.MERGE | SectionFlag.STRINGS, entry_bytes=1),
    ]


def _function_plan(
    functions: FunctionTable,
    symbols: Symbols,
    types: TypeTable | None,
    strings: DebugStrings,
    abbreviations: Abbreviations,
    unit_name: int,
) -> UnitPlan:
    """Cut the functions into units by address, none of which spans two sections."""
    forest = function_forest(functions, types, strings.add(functions.names), abbreviations)
    section = symbols.section_index[functions.rows]
    starts = np.concatenate(([True], section[1:] != section[:-1])) if len(section) else np.zeros(0, dtype=np.bool_)
    within = np.arange(len(section)) - np.maximum.accumulate(np.where(starts, np.arange(len(section)), 0))
    unit_of = np.cumsum(within % _FUNCTIONS_PER_UNIT == 0) - 1
    if not len(functions):
        return UnitPlan(forest, unit_of, unit_name)
    first = np.flatnonzero(np.diff(unit_of, prepend=-1))
    ends = np.maximum.reduceat(functions.vaddr + functions.size, first)
    return UnitPlan(forest, unit_of, unit_name, functions.vaddr[first], ends)
