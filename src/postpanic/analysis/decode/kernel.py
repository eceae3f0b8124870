"""
The symbols and source lines of one kernel and its modules, whatever file they come from.

drgn reads ELF and DWARF (``Program.source_location`` gives inlined callers too). A module's file is
relocatable: each gets addresses of its own, where nothing else lies, and a place in it is found as in the kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import drgn

from postpanic.analysis.decode.files import ElfFacts, ModuleFiles, Section, read_elf_facts, unpack_module
from postpanic.analysis.decode.symbols import Match, Symbol, SymbolTable
from postpanic.errors import MismatchError, PostpanicError

__all__ = ["KernelSymbols", "Place", "SourceLine", "fetch_debug_file"]

_FIRST_MODULE_VADDR = 0x100000
_ALIGNMENT = 0x1000
_MOST_MODULE_FILES = 16
"""Of one name are looked at: one with source lines is preferred."""
_KERNEL = ""
_LANDMARKS = (
    (("kernel_init", "start_kernel"), "init/main.c"),
    # Compilers may have been told to make paths relative; assemblers are not.
    (
        ("entry_SYSCALL_64", "entry_INT80_32", "primary_entry", "vectors", "stext", "handle_exception", "system_call"),
        "arch/",
    ),
)
"""Functions, and what the path of their file in the kernel's tree ends or goes on with."""


class SourceLine(NamedTuple):
    """A place in the source; ``function`` is that of the source, which a symbol may be called differently."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Place(NamedTuple):
    """
    A place that a log may mean.

    Parameters
    ----------
    lines : tuple of SourceLine
        The innermost inlined function first, the function itself last; empty: nothing tells.
    """

    symbol: Symbol
    vaddr: int
    lines: tuple[SourceLine, ...] = ()


@dataclass
class _Part:
    """The kernel, or one module."""

    name: str
    path: str
    build_id: str
    table: SymbolTable
    has_lines: bool
    code: tuple[Section, ...] = ()
    """What of it is in the file, at the addresses that are used here."""


@dataclass
class KernelSymbols:
    """
    One kernel's symbols; shared by all logs of that kernel.

    Parameters
    ----------
    origin : str
        Path of what the kernel's symbols were read from; empty: there is nothing.
    modules : ModuleFiles
    base : str
        Taken off the front of source paths.
    """

    origin: str = ""
    release: str = ""
    modules: ModuleFiles = field(default_factory=ModuleFiles)
    base: str = ""
    asks_servers: bool = False
    """Whether modules that are not here may be asked for by their build IDs."""
    sources: dict[str, str] = field(default_factory=dict)
    """The files of modules as they were found, packed or not."""
    _prog: drgn.Program = field(default_factory=drgn.Program, repr=False)
    _parts: dict[str, _Part] = field(default_factory=dict, repr=False)
    _missing: dict[str, str] = field(default_factory=dict, repr=False)
    _next_vaddr: int = _FIRST_MODULE_VADDR
    _places: dict[tuple[int, str], tuple[SourceLine, ...]] = field(default_factory=dict, repr=False)

    # ---- what there is

    @property
    def build_id(self) -> str:
        """The kernel's, hexadecimal; empty: not known."""
        part = self._parts.get(_KERNEL)
        return part.build_id if part is not None else ""

    @property
    def has_kernel(self) -> bool:
        """Whether there are symbols of the kernel itself."""
        return _KERNEL in self._parts

    @property
    def has_lines(self) -> bool:
        """Whether source lines of the kernel itself are known."""
        part = self._parts.get(_KERNEL)
        return part is not None and part.has_lines

    @property
    def machine(self) -> str:
        """The kernel's, as ``uname -m`` has it; empty: not known."""
        platform = self._prog.platform
        return platform.arch.name.lower() if platform is not None else ""

    def loaded(self) -> Iterator[tuple[str, str, str, bool]]:
        """Yield name (empty: the kernel), file, build ID and whether it has lines, of all that was read so far."""
        for part in self._parts.values():
            yield part.name, self.sources.get(part.name, part.path), part.build_id, part.has_lines

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield the modules that were asked for and not found, with the reason."""
        yield from self._missing.items()

    # ---- taking in files

    def load_vmlinux(self, path: Path, facts: ElfFacts | None = None) -> None:
        """
        Take the kernel's symbols from its ELF file.

        Raises
        ------
        FileFaultError
            If the file cannot be read or is no kernel.
        """
        facts = facts or read_elf_facts(path)
        module = self._prog.extra_module("vmlinux", create=True)
        try:
            module.try_file(path, force=True)
            # Only now: with ranges drgn would take the file for one that was moved to where they begin.
            module.address_ranges = [facts.code]
            symbols = list(_kernel_symbols(self._prog))
        except (OSError, ValueError, LookupError, drgn.FaultError) as exc:
            raise MismatchError(f"cannot be used as a vmlinux: {exc}", where=str(path)) from exc
        if not symbols and module.wants_loaded_file() and module.wants_debug_file():
            raise MismatchError("nothing in it can be loaded: no kernel", where=str(path))
        if not symbols:
            raise MismatchError(
                "it has no symbols", where=str(path), hint="it was stripped: give the vmlinux of the build"
            )
        self._take(_Part(_KERNEL, str(path), facts.build_id, SymbolTable(symbols), facts.has_lines, _in_file(facts)))
        if not self.base:
            self.base = self._find_base()

    def load_table(self, symbols: dict[str, list[Symbol]], origin: str, build_id: str = "") -> None:
        """Take symbols without lines or code: a ``System.map``, a ``/proc/kallsyms``, the table of a dump."""
        for module, listed in symbols.items():
            if module not in self._parts:
                self._take(_Part(module, origin, build_id if not module else "", SymbolTable(listed), has_lines=False))

    def load_module(self, name: str, path: Path) -> None:
        """
        Take a module's symbols from its file, which is not packed.

        Raises
        ------
        FileFaultError
            If the file cannot be read.
        """
        facts = read_elf_facts(path)
        start = self._next_vaddr
        module = self._prog.relocatable_module(name, start, create=True)
        vaddr = start
        ends = []
        moved: dict[str, Section] = {}
        for name_of_section, section in facts.sections.items():
            module.section_addresses[name_of_section] = vaddr
            moved[name_of_section] = section._replace(vaddr=vaddr)
            ends.append(vaddr + section.size)
            vaddr += -(-section.size // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
        module.address_ranges = [(start, vaddr)]
        self._next_vaddr = vaddr
        try:
            module.try_file(path, force=True)
            symbols = list(_symbols_within(self._prog, start, vaddr))
        except (OSError, ValueError, LookupError, drgn.FaultError) as exc:
            raise MismatchError(f"cannot be used as a module: {exc}", where=str(path)) from exc
        code = _in_file(replace(facts, sections=moved))
        self._take(_Part(name, str(path), facts.build_id, SymbolTable(symbols, ends), facts.has_lines, code))

    def _take(self, part: _Part) -> None:
        self._parts[part.name] = part
        if part.name == _KERNEL and not self.origin:
            self.origin = part.path

    # ---- questions

    def find(self, name: str, size: int | None, offset: int, module: str, build_id: str, scratch: Path) -> Match | None:
        """Find the symbols that a log means; None: there is none of that name."""
        part = self._part(module, build_id, scratch)
        return part.table.find(name, size, offset) if part is not None else None

    def size_of(self, symbol: Symbol) -> int:
        """Give the size that the kernel prints for one of its symbols, bytes."""
        return next((size for part in self._parts.values() if (size := part.table.size_of(symbol))), symbol.size)

    def symbol_at(self, vaddr: int) -> Symbol | None:
        """Find the kernel's symbol that an address lies in, as linked."""
        part = self._parts.get(_KERNEL)
        return part.table.at(vaddr) if part is not None else None

    def has_module(self, module: str, build_id: str, scratch: Path) -> bool:
        """Tell whether there are symbols of a module."""
        return self._part(module, build_id, scratch) is not None

    def module_build_id(self, module: str) -> str:
        """Give the build ID of a module's file; empty: not known."""
        part = self._parts.get(module)
        return part.build_id if part is not None else ""

    def read_code(self, vaddr: int, size: int) -> bytes:
        """Read code as it is in the file of the kernel or of a module; empty: it is not there."""
        for part in self._parts.values():
            for section in part.code:
                if section.vaddr <= vaddr < section.vaddr + section.size and section.offset is not None:
                    size = min(size, section.vaddr + section.size - vaddr)
                    try:
                        with Path(part.path).open("rb") as file:
                            file.seek(section.offset + vaddr - section.vaddr)
                            return file.read(size)
                    except OSError:
                        return b""
        return b""

    def lines_at(self, vaddr: int, function: str = "") -> tuple[SourceLine, ...]:
        """Give the source lines of an address, the innermost inlined function first; empty: nothing tells."""
        key = vaddr, function
        if key not in self._places:
            self._places[key] = tuple(self._read_lines(vaddr, function))
        return self._places[key]

    def _read_lines(self, vaddr: int, function: str) -> Iterator[SourceLine]:
        try:
            found = self._prog.source_location(vaddr)
        except (LookupError, ValueError, drgn.FaultError, drgn.BadDataError):
            return
        for place in range(len(found)):
            location = found[place]
            name = location.name() if callable(location.name) else location.name
            yield SourceLine(name or function, self._shorten(location.filename), location.line)

    def _shorten(self, path: str) -> str:
        path = path.removeprefix(self.base) if self.base else path
        return path.removeprefix("./").lstrip("/") if path != "/" and self.base else path.removeprefix("./")

    def _find_base(self) -> str:
        """Find where the kernel was built, from the file of a function whose path in the tree is known."""
        for names, ending in _LANDMARKS:
            for location in (location for name in names for location in self._location_names(name)):
                before, found, _ = location.partition(ending)
                if found and before:
                    return before
        return ""

    def _location_names(self, name: str) -> Iterator[str]:
        part = self._parts[_KERNEL]
        for symbol in part.table.named(name):
            yield from (line.file for line in self._read_lines(symbol.vaddr, name))

    def _part(self, module: str, build_id: str, scratch: Path) -> _Part | None:
        if module in self._parts or module in self._missing or not module:
            return self._parts.get(module)
        reason = "no file of it was found"
        best: tuple[Path, Path] | None = None
        for path in islice(self.modules.find(module, build_id), _MOST_MODULE_FILES):
            try:
                unpacked = unpack_module(path, scratch)
                facts = read_elf_facts(unpacked)
            except PostpanicError as exc:
                reason = str(exc)
                continue
            if build_id and facts.build_id and facts.build_id != build_id:
                reason = f"{path}: its build ID is {facts.build_id}, the log has {build_id}"
            elif facts.has_lines or best is None:
                best = path, unpacked
                if facts.has_lines:
                    break
        if best is None and self.asks_servers and (fetched := fetch_debug_file(build_id)) is not None:
            best = fetched, fetched
        if best is not None and (problem := self._try_module(module, *best)):
            best, reason = None, problem
        if best is None:
            self._missing[module] = reason
        return self._parts.get(module)

    def _try_module(self, module: str, path: Path, unpacked: Path) -> str:
        """Read a module's file; give the reason if that fails."""
        try:
            self.load_module(module, unpacked)
        except PostpanicError as exc:
            return str(exc)
        self.sources[module] = str(path)
        return ""


def fetch_debug_file(build_id: str) -> Path | None:
    """Get the file of a build ID from the debuginfod servers that the environment names; None: they have none."""
    if not build_id:
        return None
    prog = drgn.Program()
    prog.set_enabled_debug_info_finders(["debuginfod"])
    module = prog.extra_module("wanted", create=True)
    module.build_id = bytes.fromhex(build_id)
    with contextlib.suppress(drgn.MissingDebugInfoError, OSError, ValueError):
        prog.load_module_debug_info(module)
    return Path(module.debug_file_path) if module.debug_file_path else None


def _in_file(facts: ElfFacts) -> tuple[Section, ...]:
    return tuple(section for section in facts.sections.values() if section.offset is not None)


def _kernel_symbols(prog: drgn.Program) -> Iterator[Symbol]:
    for symbol in prog.symbols():
        # Sections have no name, and source files no address; to ask for the kind takes as long as all the rest.
        if (vaddr := symbol.address) and (name := symbol.name):
            yield Symbol(vaddr, name, symbol.size)


def _symbols_within(prog: drgn.Program, start: int, end: int) -> Iterable[Symbol]:
    return (symbol for symbol in _kernel_symbols(prog) if start <= symbol.vaddr < end)
