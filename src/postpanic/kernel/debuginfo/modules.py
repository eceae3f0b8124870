"""The loaded modules: their list, sections, symbols and types, read from the kernel's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from postpanic.errors import CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.btf import Btf
from postpanic.kernel.btf.layout import MAX_DATA_BYTES
from postpanic.kernel.debuginfo.module_layout import NONE, ModuleLayout
from postpanic.kernel.memory import KernelMemory

if TYPE_CHECKING:
    from postpanic.kernel.kallsyms import SymbolTable

__all__ = ["LoadedModule", "ModuleReader", "ModuleSection", "read_module_btfs"]

_MODULE_LIMIT = 4096
_SECTION_LIMIT = 512
_SYMBOL_LIMIT = 1 << 20
_SYMBOL_BYTES = 24
_STRINGS_LIMIT_BYTES = 16 << 20
_NOTE_LIMIT_BYTES = 4096
_NT_GNU_BUILD_ID = 3


@dataclass(frozen=True, slots=True)
class ModuleSection:
    """One allocated section of a loaded module; ``end`` is where the next begins."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """One entry of the list of modules."""

    name: str
    vaddr: int
    """Of the ``struct module``."""
    build_id: bytes
    """Empty when the module has none."""
    data: bytes
    """The ``struct module`` itself."""


class ModuleReader:
    """
    Reads the list of modules and what hangs on each entry.

    Parameters
    ----------
    head : int
        Address of ``LIST_HEAD(modules)`` (``kernel/module/main.c``).
    """

    def __init__(self, memory: KernelMemory, layout: ModuleLayout, head: int) -> None:
        self.memory = memory
        self.layout = layout
        self.head = head

    def read_list(self) -> list[LoadedModule]:
        """
        Read every entry.

        Raises
        ------
        CorruptError
            If the list does not end.
        AbsentError
            If an entry is not in the dump.
        """
        layout = self.layout
        found: list[LoadedModule] = []
        seen: set[int] = set()
        entry = self.memory.read_u64(self.head)
        while entry != self.head:
            if entry in seen or len(seen) >= _MODULE_LIMIT:
                raise CorruptError(f"the list of modules does not end: {len(seen)} entries, then {entry:#x} again")
            seen.add(entry)
            vaddr = (entry - layout.list) % (1 << 64)
            data = self.memory.read(vaddr, layout.size)
            name = data[layout.name : layout.name + layout.name_size].split(b"\0")[0].decode("utf-8", "replace")
            found.append(LoadedModule(name, vaddr, self._build_id(data), data))
            entry = _u64(data, layout.list)
        return found

    def read_sections(self, module: LoadedModule) -> list[ModuleSection]:
        """
        Read names and addresses of the module's sections, ascending; empty when the kernel keeps none.

        Raises
        ------
        AbsentError
            If part of them is not in the dump.
        """
        table = _u64(module.data, self.layout.sect_attrs)
        if not table or self.layout.section_group == NONE:
            return []
        starts = [
            (self.memory.read_u64(attribute + self.layout.section_address), self._attribute_name(attribute))
            for attribute in self._group(table + self.layout.section_group)
        ]
        return self._bounded(module, sorted(starts))

    def read_symbols(self, module: LoadedModule) -> SymbolTable:
        """
        Read the module's symbol table.

        Raises
        ------
        CorruptError
            If a count is beyond reason.
        AbsentError
            If it has none, or part of it is not in the dump.
        """
        # Not needed where the module's file is in the cache.
        from postpanic.kernel.kallsyms import decode_module_symbols

        layout = self.layout
        kallsyms = _u64(module.data, layout.kallsyms)
        if not kallsyms:
            raise FactAbsentError(f"module {module.name} has no symbol table")
        data = self.memory.read(kallsyms, layout.kallsyms_size)
        count = int.from_bytes(data[layout.num_symtab : layout.num_symtab + 4], "little")
        if count > _SYMBOL_LIMIT:
            raise CorruptError(f"module {module.name}: {count} symbols, at most {_SYMBOL_LIMIT}")
        syms = self.memory.read(_u64(data, layout.symtab), _SYMBOL_BYTES * count)
        typetab = self.memory.read(_u64(data, layout.typetab), count) if layout.typetab != NONE else None
        return decode_module_symbols(syms, self._read_strings(module, _u64(data, layout.strtab), syms), typetab)

    def _read_strings(self, module: LoadedModule, strtab: int, syms: bytes) -> bytes:
        """Read the string table; its length is not recorded, so up to the end of the last name."""
        offsets = np.frombuffer(syms, dtype="<u4")[:: _SYMBOL_BYTES // 4]
        last = int(offsets.max()) if len(offsets) else 0
        if last > _STRINGS_LIMIT_BYTES:
            raise CorruptError(f"module {module.name}: a symbol's name at {last:#x} of the string table")
        return self.memory.read(strtab, last) + self.memory.read_c_string(strtab + last) + b"\0"

    def _bounded(self, module: LoadedModule, starts: list[tuple[int, str]]) -> list[ModuleSection]:
        """Give each section its end: the next one's start, or the end of its memory range."""
        ranges = list(self._ranges(module))
        result: list[ModuleSection] = []
        for index, (vaddr, name) in enumerate(starts):
            limit = next((end for start, end in ranges if start <= vaddr < end), None)
            if limit is None:
                # Freed with the init memory, or nonsense.
                continue
            following = next((later for later, _ in starts[index + 1 :] if later > vaddr), limit)
            result.append(ModuleSection(name, vaddr, min(following, limit)))
        return result

    def _ranges(self, module: LoadedModule) -> Iterator[tuple[int, int]]:
        """Memory ranges of the module, its per-CPU section included."""
        pairs = list(self.layout.ranges)
        if self.layout.percpu != NONE and self.layout.percpu_size != NONE:
            pairs.append((self.layout.percpu, self.layout.percpu_size))
        for base_at, size_at in pairs:
            base = _u64(module.data, base_at)
            size = int.from_bytes(module.data[size_at : size_at + 4], "little")
            if base and size:
                yield base, base + size

    def _build_id(self, data: bytes) -> bytes:
        """Find the build ID among the module's notes; else the copy that the kernel keeps for stack traces."""
        layout = self.layout
        notes = _u64(data, layout.notes_attrs)
        try:
            for attribute in self._notes(notes) if notes else ():
                size = self.memory.read_u64(attribute + layout.attribute_data_size)
                note = self.memory.read_u64(attribute + layout.attribute_private)
                found = _find_build_id(self.memory.read(note, min(size, _NOTE_LIMIT_BYTES)))
                if found:
                    return found
        except PostpanicError:
            pass
        return data[layout.build_id : layout.build_id + layout.build_id_size] if layout.build_id != NONE else b""

    def _notes(self, table: int) -> Iterator[int]:
        """Addresses of the ``bin_attribute`` of each note section."""
        layout = self.layout
        if layout.note_group != NONE:
            yield from self._group(table + layout.note_group)
        elif layout.note_count != NONE and layout.note_array != NONE:
            for index in range(min(self.memory.read_u32(table + layout.note_count), _SECTION_LIMIT)):
                yield table + layout.note_array + index * layout.attribute_size

    def _group(self, pointer: int) -> Iterator[int]:
        """Addresses in the NULL-terminated array that ``attribute_group.bin_attrs`` points to."""
        array = self.memory.read_u64(pointer)
        for index in range(_SECTION_LIMIT):
            attribute = self.memory.read_u64(array + 8 * index) if array else 0
            if not attribute:
                return
            yield attribute

    def _attribute_name(self, attribute: int) -> str:
        name = self.memory.read_u64(attribute + self.layout.attribute_name)
        return self.memory.read_c_string(name).decode("utf-8", "replace")


def read_module_btfs(memory: KernelMemory, btf: Btf, head: int) -> dict[int, bytes]:
    """
    Read the split BTF of the loaded modules.

    Parameters
    ----------
    head : int
        Address of ``LIST_HEAD(btf_modules)`` (``kernel/bpf/btf.c``).

    Returns
    -------
    dict
        Address of the ``struct module`` to its BTF data. Entries that cannot be
        read are left out.

    Raises
    ------
    CorruptError
        If the list does not end.
    AbsentError
        If the kernel's BTF does not describe the list, or part of it is not in the dump.
    """
    entry_layout = btf.find_struct("btf_module")
    layout = btf.find_struct("btf")
    list_at = entry_layout.offset_of("list")
    found: dict[int, bytes] = {}
    seen: set[int] = set()
    entry = memory.read_u64(head)
    while entry != head:
        if entry in seen or len(seen) >= _MODULE_LIMIT:
            raise CorruptError(f"the list of module BTF does not end: {len(seen)} entries, then {entry:#x} again")
        seen.add(entry)
        base = (entry - list_at) % (1 << 64)
        try:
            module = memory.read_u64(base + entry_layout.offset_of("module"))
            object_vaddr = memory.read_u64(base + entry_layout.offset_of("btf"))
            size = memory.read_u32(object_vaddr + layout.offset_of("data_size"))
            data = memory.read_u64(object_vaddr + layout.offset_of("data"))
            if size <= MAX_DATA_BYTES:
                found[module] = memory.read(data, size)
        except PostpanicError:
            pass
        entry = memory.read_u64(entry)
    return found


def _u64(data: bytes, at: int) -> int:
    """Value of a pointer member; 0 where there is no such member."""
    return int.from_bytes(data[at : at + 8], "little") if at != NONE else 0


def _find_build_id(notes: bytes) -> bytes:
    """Find the GNU build ID in a section of ELF notes; empty when there is none."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = (
            int.from_bytes(notes[at + 4 * word : at + 4 * word + 4], "little") for word in range(3)
        )
        start = at + 12 + (name_size + 3) // 4 * 4
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0" and start + size <= len(notes):
            return notes[start : start + size]
        at = start + (size + 3) // 4 * 4
    return b""
