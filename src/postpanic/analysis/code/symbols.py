"""
All symbols of a kernel and its modules, with the letters of ``nm``.

They are read from the kernel's own tables in the dump: kallsyms, and the
symbol table that each module keeps (``struct mod_kallsyms``). Where the kernel
has none, those of the debug information serve.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from drgn import FaultError, Object, Program, SymbolBinding, SymbolKind

from postpanic.analysis.cells import decode, guarded, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.module_list import each_module
from postpanic.errors import PostpanicError
from postpanic.findings.table import Problem
from postpanic.kernel.kallsyms import SymbolTable, decode_module_symbols
from postpanic.kernel.ksymtab import read_symbols as read_kernel_symbols
from postpanic.kernel.memory import KernelMemory

__all__ = ["KernelSymbol", "LoadedModule", "SymbolIndex", "read_symbols"]

_SYMBOL_BYTES = 24
_MOST_MODULE_SYMBOLS = 1 << 20
_MOST_NAME_BYTES = 1 << 26
_LARGEST_SYMBOL_BYTES = 1 << 31


class KernelSymbol(NamedTuple):
    """One name at one address; ``type`` is the letter of ``nm``, ``?`` where nothing tells."""

    vaddr: int
    type: str
    name: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module, and where its parts lie."""

    name: str
    ranges: tuple[tuple[int, int, str], ...]
    """First address, end, and what lies there: empty for all of it, else ``TEXT``, ``DATA`` ..."""
    symbols: tuple[KernelSymbol, ...]


@dataclass
class SymbolIndex:
    """Symbols sorted by address."""

    symbols: list[KernelSymbol]
    modules: list[LoadedModule]
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def _vaddrs(self) -> list[int]:
        return [symbol.vaddr for symbol in self.symbols]

    def named(self, name: str) -> list[int]:
        """Give the places of all symbols of a name, by rising address."""
        return [place for place, symbol in enumerate(self.symbols) if symbol.name == name]

    def containing(self, text: str) -> Iterator[KernelSymbol]:
        """Yield the symbols whose names contain a text, by rising address."""
        return (symbol for symbol in self.symbols if text in symbol.name)

    def at(self, vaddr: int) -> int | None:
        """Give the place of the symbol that an address lies in: the first of those at the nearest address not above."""
        above = bisect.bisect_right(self._vaddrs, vaddr)
        if not above or vaddr - self._vaddrs[above - 1] >= _LARGEST_SYMBOL_BYTES:
            return None
        return bisect.bisect_left(self._vaddrs, self._vaddrs[above - 1])

    def neighbour(self, place: int, step: int) -> KernelSymbol | None:
        """Give the symbol before (-1) or behind (1) another, at another address."""
        vaddr = self._vaddrs[place]
        other = bisect.bisect_left(self._vaddrs, vaddr) - 1 if step < 0 else bisect.bisect_right(self._vaddrs, vaddr)
        return self.symbols[other] if 0 <= other < len(self.symbols) else None

    def in_module(self, vaddr: int) -> str:
        """Name the module that an address lies in; empty: none."""
        for module in self.modules:
            if any(start <= vaddr < end for start, end, _ in module.ranges):
                return module.name
        return ""


def read_symbols(prog: Program, memory: KernelMemory) -> SymbolIndex:
    """Read all symbols; what cannot be read is in the problems of the result."""
    problems: list[Problem] = []
    try:
        symbols = list(_spread(read_kernel_symbols(memory)))
    except PostpanicError as exc:
        problems.append(problem("the kernel's own symbol table", exc))
        symbols = list(_debug_symbols(prog))
    modules = list(_read_modules(prog, problems))
    symbols += [symbol for module in modules for symbol in module.symbols]
    symbols.sort(key=lambda symbol: symbol.vaddr)
    return SymbolIndex(symbols, modules, problems)


def _spread(table: SymbolTable, module: str = "") -> Iterator[KernelSymbol]:
    """Make symbols of the arrays of a table; a kernel has a hundred thousand."""
    # One decoding for all names; the names of symbols are ASCII, so that an offset stays one.
    text = table.names.decode("latin-1")
    columns = zip(table.vaddrs.tolist(), table.types.tolist(), table.name_offsets.tolist(), strict=True)
    for vaddr, letter, start in columns:
        yield KernelSymbol(vaddr, chr(letter), text[start : text.find("\0", start)], module)


def _debug_symbols(prog: Program) -> Iterator[KernelSymbol]:
    letters = {SymbolKind.FUNC: "T", SymbolKind.OBJECT: "D"}
    for symbol in prog.symbols():
        if symbol.kind in {SymbolKind.FILE, SymbolKind.SECTION} or not symbol.name:
            continue
        letter = letters.get(symbol.kind, "?")
        is_local = symbol.binding is SymbolBinding.LOCAL
        yield KernelSymbol(symbol.address, letter.lower() if is_local else letter, symbol.name)


def _read_modules(prog: Program, problems: list[Problem]) -> Iterator[LoadedModule]:
    for module in guarded(each_module(prog), "the list of modules", problems):
        try:
            name = decode(module.name.string_())
            ranges = tuple(_ranges(module))
        except UNREADABLE as exc:
            problems.append(problem(f"module {module.value_():x}", exc))
            continue
        try:
            table = _read_table(prog, module)
            symbols = tuple(_spread(table, name))
        except UNREADABLE as exc:
            problems.append(problem(f"symbols of {name}", exc))
            symbols = ()
        yield LoadedModule(name, ranges, symbols)


def _ranges(module: Object) -> Iterator[tuple[int, int, str]]:
    """
    Tell where a module lies.

    ``module.mem[]`` since 6.4 (ac3b43283923), ``core_layout`` and ``init_layout``
    since 4.5 (7523e4dc5057).
    """
    try:
        parts = module.mem
    except AttributeError:
        layout = module.core_layout
        start, size = int(layout.base.value_()), int(layout.size.value_())
        if size:
            yield start, start + size, ""
        return
    names = ("TEXT", "DATA", "RODATA", "RO_AFTER_INIT", "INIT_TEXT", "INIT_DATA", "INIT_RODATA")
    for number in range(len(parts)):
        start, size = int(parts[number].base.value_()), int(parts[number].size.value_())
        if start and size:
            yield start, start + size, names[number] if number < len(names) else str(number)


def _read_table(prog: Program, module: Object) -> SymbolTable:
    kallsyms = module.kallsyms
    count = int(kallsyms.num_symtab.value_())
    if not 0 <= count <= _MOST_MODULE_SYMBOLS:
        raise ValueError(f"{count} symbols, no module has more than {_MOST_MODULE_SYMBOLS}")
    data = prog.read(kallsyms.symtab.value_(), count * _SYMBOL_BYTES)
    strings = _read_strings(prog, int(kallsyms.strtab.value_()), data)
    try:
        typetab = prog.read(kallsyms.typetab.value_(), count)
    except AttributeError:
        typetab = None
    return decode_module_symbols(data, strings, typetab)


def _read_strings(prog: Program, start: int, symbols: bytes) -> bytes:
    """Read the names up to the end of the last one: nothing tells how long the table is."""
    offsets = [int.from_bytes(symbols[at : at + 4], "little") for at in range(0, len(symbols), _SYMBOL_BYTES)]
    last = max(offsets, default=0)
    if last > _MOST_NAME_BYTES:
        raise ValueError(f"a name {last} bytes into the table, no module has so many")
    try:
        names: bytes = prog.read(start, last) + prog.read_c_string(start + last, max_size=4096)
    except FaultError as exc:
        raise FaultError("names of the symbols", exc.address) from exc
    return names
