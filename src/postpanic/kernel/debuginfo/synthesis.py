"""What a dump's kernel tells of itself, read once, and the files that are made of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, FileFaultError
from postpanic.kernel.btf import Btf, Kind, decode_btf
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.debuginfo.charsign import detect_signed_char
from postpanic.kernel.debuginfo.globals import GlobalsTable, load_globals_table
from postpanic.kernel.debuginfo.image import NAMED_CONTENTS, NEVER_CONTENTS, TEMPLATE
from postpanic.kernel.debuginfo.module_file import ModuleFacts, synthesize_module
from postpanic.kernel.debuginfo.module_layout import ModuleLayout
from postpanic.kernel.debuginfo.modules import LoadedModule, ModuleReader, ModuleSection, read_module_btfs
from postpanic.kernel.debuginfo.sections import TypingReport
from postpanic.kernel.debuginfo.selection import declarable_types
from postpanic.kernel.debuginfo.symbols import Section, Symbols
from postpanic.kernel.debuginfo.vmlinux import VmlinuxFacts, link_symbols, synthesize_vmlinux
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.ksymtab import has_data_symbols, read_symbols
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.recovered import recover_symbols
from postpanic.units import VirtAddr

__all__ = ["ModuleFile", "Synthesis"]

_NAMED_FAILURES = 3
"""Modules left out that a note names; all have the same reason as a rule."""

ModuleFile = tuple[str, list[bytes | NDArray[np.uint8]], bool]
"""Name, file, and whether nothing was missing that another dump may hold."""


class Synthesis:
    """
    Files made from one dump; what has been read is not read again.

    Parameters
    ----------
    globals_table : GlobalsTable, optional
        By default the one that the package carries.
    symbols : SymbolTable, optional
        The kernel's symbols, if they have been read already.
    include_text : bool
        Whether the image's contents go into the kernel's file.
    notes : list of str
        What is missing is added here, one phrase each.
    """

    def __init__(
        self,
        memory: KernelMemory,
        globals_table: GlobalsTable | None,
        symbols: SymbolTable | None,
        *,
        include_text: bool,
        notes: list[str],
    ) -> None:
        self.memory = memory
        self.include_text = include_text
        self.notes = notes
        self._globals_table = globals_table
        self._symbols = symbols
        self._btf: Btf | None = None
        self._btf_failed = False

    @property
    def symbols(self) -> SymbolTable:
        """The kernel's symbols, as its tables have them."""
        if self._symbols is None:
            self._symbols = read_symbols(self.memory)
        return self._symbols

    @cached_property
    def all_symbols(self) -> SymbolTable:
        """The same with those that only its types and data tell of."""
        return recover_symbols(self.memory, self.symbols, self.btf) if self.btf is not None else self.symbols

    @property
    def has_data(self) -> bool:
        """Whether data has names: by kallsyms, or by all that stands in for it."""
        return has_data_symbols(self.symbols) or all(name in self.all_symbols for name in ("init_task", "modules"))

    @cached_property
    def linked(self) -> Symbols:
        """The kernel's symbols at link-time addresses."""
        return link_symbols(self.all_symbols, self.memory.kaslr_offset)

    @cached_property
    def globals_table(self) -> GlobalsTable:
        """Types of global variables, of the kernels most like this one first."""
        table = self._globals_table or load_globals_table()
        return table.ranked_for(self.linked.row_of)

    @property
    def btf(self) -> Btf | None:
        """The kernel's types; None, and a note, where there are none."""
        if self._btf is None and not self._btf_failed:
            try:
                self._btf = read_kernel_btf(self.memory, self.symbols)
            except (AbsentError, FileFaultError) as error:
                self._btf_failed = True
                self.notes.append(f"no types: {error}")
        return self._btf

    @cached_property
    def signed_char(self) -> bool:
        """Whether plain ``char`` is signed."""
        return self.btf is None or detect_signed_char(self.memory, self.symbols, self.btf)

    def make_vmlinux(self) -> tuple[list[bytes | NDArray[np.uint8]], TypingReport]:
        """Synthesize the kernel's file."""
        facts = VmlinuxFacts(
            machine=self.memory.machine,
            symbols=self.linked,
            btf=self.btf,
            build_id=bytes.fromhex(self.memory.vmcoreinfo.build_id or ""),
            globals_table=self.globals_table,
            contents=self._contents,
            read=self._read,
            signed_char=self.signed_char,
        )
        return synthesize_vmlinux(facts)

    def _read(self, vaddr: int, size: int) -> bytes | None:
        """
        Read a function or variable at its link-time address.

        None where the dump does not hold all of it, and for what the kernel
        freed after it had started: that memory is somebody else's by now.
        """
        first, last = self._freed
        if first <= vaddr < last:
            return None
        try:
            return self.memory.read(vaddr + self.memory.kaslr_offset, size)
        except AbsentError:
            return None

    @cached_property
    def _freed(self) -> tuple[int, int]:
        """Link-time addresses of the init sections (``free_initmem()``)."""
        first, last = self.linked.vaddr_of("__init_begin"), self.linked.vaddr_of("__init_end")
        return (first, last) if first is not None and last is not None else (0, 0)

    def _contents(self, section: Section) -> bytes | NDArray[np.uint8] | None:
        """Read what of the image goes into the file."""
        wanted = section.name in NAMED_CONTENTS or (self.include_text and section.name not in NEVER_CONTENTS)
        if not wanted:
            return None
        size = section.end - section.start
        if section.name == TEMPLATE:
            return bytes(size)
        vaddr = VirtAddr(section.start + self.memory.kaslr_offset)
        data, present = self.memory.read_available(vaddr, size)
        missing = size - int(np.count_nonzero(present))
        if missing:
            self.notes.append(f"{missing} of {size} bytes of {section.name} are not in the dump")
            # A table with a hole misleads; text with a hole is still worth having.
            if section.name in NAMED_CONTENTS:
                return None
        return data

    def module_layout(self) -> ModuleLayout | None:
        """Ask the BTF for the layout of ``struct module``; None, and a note, where it cannot tell."""
        if self.btf is None:
            return None
        try:
            return ModuleLayout.from_btf(self.btf)
        except AbsentError as error:
            self.notes.append(f"no modules: {error}")
            return None

    def make_modules(
        self, reader: ModuleReader, wanted: list[LoadedModule], loaded: list[LoadedModule]
    ) -> Iterator[ModuleFile]:
        """Synthesize the files of the *wanted* among the *loaded* modules, one after the other."""
        readable: list[tuple[LoadedModule, list[ModuleSection], SymbolTable]] = []
        failures: list[str] = []
        for module in wanted:
            try:
                readable.append((module, reader.read_sections(module), reader.read_symbols(module)))
            except (AbsentError, FileFaultError) as error:
                failures.append(f"{module.name} ({error})")
        if failures:
            self.notes.append(f"{len(failures)} modules are left out: {', '.join(failures[:_NAMED_FAILURES])}")
        if not readable or self.btf is None:
            return
        split = self._split_btf(loaded)
        declarable = declarable_types(self.btf, list(split.values()))
        for module, sections, symbols in readable:
            facts = ModuleFacts(
                machine=self.memory.machine,
                name=module.name,
                build_id=module.build_id,
                sections=tuple(sections),
                symbols=symbols,
                btf=split.get(module.vaddr),
                declarable=declarable,
                globals_table=self.globals_table.only_prefixes(),
                signed_char=self.signed_char,
            )
            try:
                parts, _ = synthesize_module(facts)
            except FileFaultError as error:
                self.notes.append(f"module {module.name} is left out: {error}")
                continue
            whole = module.vaddr in split or not self._has_split_btf
            yield module.name, parts, whole

    @property
    def _has_split_btf(self) -> bool:
        """Whether this kernel keeps types of modules, in this dump or not."""
        return self.btf is not None and self.btf.detect("btf_module", Kind.STRUCT) is not None

    def _split_btf(self, loaded: list[LoadedModule]) -> dict[int, Btf]:
        """Decode the types of each module, by the address of its ``struct module``."""
        head = self.all_symbols.get("btf_modules")
        result: dict[int, Btf] = {}
        if self.btf is None or head is None:
            return result
        try:
            data = read_module_btfs(self.memory, self.btf, head)
        except (AbsentError, FileFaultError) as error:
            self.notes.append(f"modules have no types: {error}")
            return result
        for module in loaded:
            if module.vaddr in data:
                try:
                    result[module.vaddr] = decode_btf(
                        data[module.vaddr], base=self.btf, where=f"BTF of module {module.name}"
                    )
                except FileFaultError as error:
                    self.notes.append(f"module {module.name} has no types: {error}")
        return result
