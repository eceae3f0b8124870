"""Synthesize the debug information of a dump's kernel and modules, or take it from the cache."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, FileFaultError
from postpanic.kernel.btf import Btf, Kind, decode_btf
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.debuginfo.cache import CacheRefusedError, DebuginfoCache
from postpanic.kernel.debuginfo.charsign import detect_signed_char
from postpanic.kernel.debuginfo.globals import GlobalsTable, load_globals_table
from postpanic.kernel.debuginfo.image import NAMED_CONTENTS, NEVER_CONTENTS, TEMPLATE
from postpanic.kernel.debuginfo.module_file import ModuleFacts, synthesize_module
from postpanic.kernel.debuginfo.module_layout import ModuleLayout
from postpanic.kernel.debuginfo.modules import LoadedModule, ModuleReader, ModuleSection, read_module_btfs
from postpanic.kernel.debuginfo.sections import TypingReport
from postpanic.kernel.debuginfo.selection import declarable_types
from postpanic.kernel.debuginfo.state import CacheState, decode_cache_state, encode_cache_state
from postpanic.kernel.debuginfo.symbols import Section, Symbols
from postpanic.kernel.debuginfo.vmlinux import VmlinuxFacts, link_symbols, synthesize_vmlinux
from postpanic.kernel.kallsyms import SymbolTable, read_kallsyms
from postpanic.kernel.memory import KernelMemory
from postpanic.units import VirtAddr

__all__ = ["FORMAT_VERSION", "DebuginfoReport", "SynthesizedDebuginfo", "build", "fingerprint"]

FORMAT_VERSION = 3
"""Part of every cache key: raise it when what is written changes."""

_IMAGE_REACH_BYTES = 256 << 20
_VMLINUX = "vmlinux"
_STATE = "state.json"
_NAMED_FAILURES = 3
"""Modules left out that a note names; all have the same reason as a rule."""


@dataclass(slots=True)
class DebuginfoReport:
    """What was typed and what was not, in numbers and phrases."""

    vmlinux: dict[str, int] = field(default_factory=dict)
    modules: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is missing or could not be used, and why: one phrase each."""


@dataclass(frozen=True, slots=True)
class SynthesizedDebuginfo:
    """
    The files that were written, or found in the cache.

    Without a cache they are in a temporary directory, which goes when this
    object does.
    """

    vmlinux: Path
    modules: Mapping[str, Path]
    report: DebuginfoReport
    from_cache: bool
    has_types: bool = True
    """False: the kernel carries no BTF, so the files have symbols and nothing else."""
    temporary: tempfile.TemporaryDirectory[str] | None = None


def build(
    memory: KernelMemory,
    *,
    cache: DebuginfoCache | None,
    globals_table: GlobalsTable | None = None,
    symbols: SymbolTable | None = None,
    include_text: bool = False,
    modules: bool = True,
) -> SynthesizedDebuginfo:
    """
    Give debug information for the kernel in *memory* and for its modules.

    From the cache it takes VMCOREINFO and, with *modules*, the list of modules.

    Parameters
    ----------
    cache : DebuginfoCache or None
        Where files are kept; None: in a temporary directory.
    globals_table : GlobalsTable, optional
        Types of global variables; by default those that the package carries.
    symbols : SymbolTable, optional
        The kernel's symbols, if they have been read already.
    include_text : bool
        Whether the kernel image's contents go into the file as well. Pages that
        the dump does not hold are zeroes there, and the report counts them.
    modules : bool
        Whether modules are wanted.

    Raises
    ------
    AbsentError
        If the dump does not hold the kernel's symbol table.
    FileFaultError
        If that is damaged, or the machine is none that is supported.
    """
    job = _Job(memory, cache, globals_table, symbols, include_text=include_text)
    key = fingerprint(memory, globals_table) + ("-text" if include_text else "")
    vmlinux = job.cache.detect(key, _VMLINUX)
    state = decode_cache_state(job.cache.read(key, _STATE)) if vmlinux is not None else None
    from_cache = vmlinux is not None and state is not None
    has_types = True
    if vmlinux is None or state is None:
        parts, report = job.make_vmlinux()
        # Another dump of this kernel may hold the types that this one lacks.
        has_types = job.btf is not None
        vmlinux = job.store(key, _VMLINUX, parts, lasting=has_types)
        head = job.symbols.get("modules")
        state = CacheState(
            report.counts(), list(job.notes), job.module_layout(), head - memory.kaslr_offset if head is not None else 0
        )
        job.store(key, _STATE, [encode_cache_state(state)], lasting=has_types)
    else:
        job.notes = list(state.notes)
    module_files = job.make_modules(key, state) if modules else {}
    summary = DebuginfoReport(state.counts, job.modules, job.notes)
    return SynthesizedDebuginfo(vmlinux, module_files, summary, from_cache, has_types, job.temporary)


def fingerprint(memory: KernelMemory, globals_table: GlobalsTable | None = None) -> str:
    """
    Name a kernel build by everything VMCOREINFO says of it that no boot changes.

    The build ID alone would not do: kernels before 5.14 do not give it, and
    several stable kernels gave a wrong one.
    """
    info = memory.vmcoreinfo
    stext = info.get_symbol("_stext") or 0
    digest = hashlib.blake2b(f"{FORMAT_VERSION} {memory.machine} {info.osrelease} {info.build_id}".encode())
    for name, vaddr in sorted(info.symbols.items()):
        # Others point to memory that was allocated.
        if abs(vaddr - stext) < _IMAGE_REACH_BYTES:
            digest.update(f"{name} {vaddr - stext}\n".encode())
    for entry, value in sorted(info.entries.items()):
        if entry.startswith(("OFFSET(", "SIZE(", "LENGTH(")):
            digest.update(f"{entry} {value}\n".encode())
    digest.update(_name_table(globals_table))
    return f"{(info.build_id or info.osrelease)[:40].replace('/', '_')}-{digest.hexdigest()[:16]}"


def _name_table(table: GlobalsTable | None) -> bytes:
    """Name a table of globals by its contents; the package's own without unpacking it."""
    digest = hashlib.blake2b()
    if table is None:
        digest.update(files(__package__).joinpath("globals.tsv.gz").read_bytes())
    else:
        digest.update(repr((table.spellings, table.names, sorted(table.prefixes.items()))).encode())
        digest.update(np.ascontiguousarray(table.types).tobytes())
    return digest.digest()


class _Job:
    """One run of :func:`build`: what has been read so far, so that nothing is read twice."""

    def __init__(
        self,
        memory: KernelMemory,
        cache: DebuginfoCache | None,
        globals_table: GlobalsTable | None,
        symbols: SymbolTable | None,
        *,
        include_text: bool,
    ) -> None:
        self.memory = memory
        self._globals_table = globals_table
        self.include_text = include_text
        self.temporary: tempfile.TemporaryDirectory[str] | None = None
        self.cache = cache if cache is not None else self._temporary_cache()
        self._symbols = symbols
        self._btf: Btf | None = None
        self._btf_failed = False
        self.notes: list[str] = []
        self.modules: dict[str, dict[str, int]] = {}

    def _temporary_cache(self) -> DebuginfoCache:
        if self.temporary is None:
            self.temporary = tempfile.TemporaryDirectory(prefix="postpanic-")
        return DebuginfoCache(Path(self.temporary.name))

    def store(self, key: str, name: str, parts: list[bytes | NDArray[np.uint8]], *, lasting: bool = True) -> Path:
        """
        Store into the cache; where that is refused, into a temporary directory.

        What a better dump of the same kernel would make better is not *lasting*:
        it does not go into the cache.
        """
        if not lasting:
            return self._temporary_cache().store(key, name, parts)
        try:
            return self.cache.store(key, name, parts)
        except CacheRefusedError as error:
            if self.temporary is not None:
                raise
            self.notes.append(f"the cache is not used: {error}")
            self.cache = self._temporary_cache()
            return self.cache.store(key, name, parts)

    @property
    def symbols(self) -> SymbolTable:
        """The kernel's symbols."""
        if self._symbols is None:
            self._symbols = read_kallsyms(self.memory)
        return self._symbols

    @cached_property
    def linked(self) -> Symbols:
        """The kernel's symbols at link-time addresses."""
        return link_symbols(self.symbols, self.memory.kaslr_offset)

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

    def make_modules(self, key: str, state: CacheState) -> dict[str, Path]:
        """Give a file for each loaded module, from the cache where all of them are there."""
        if state.module_layout is None or not state.modules_head:
            self.notes.append("no modules: the kernel's types or symbols do not tell where their list is")
            return {}
        reader = ModuleReader(self.memory, state.module_layout, state.modules_head + self.memory.kaslr_offset)
        try:
            loaded = reader.read_list()
        except (AbsentError, FileFaultError) as error:
            self.notes.append(f"no modules: {error}")
            return {}
        folder = f"modules-{_module_set(loaded)}"
        found = {module.name: self.cache.detect(key, f"{folder}/{module.name}.ko") for module in loaded}
        files = {name: path for name, path in found.items() if path is not None}
        wanted = [module for module in loaded if module.name not in files]
        return files | self._synthesize_modules(key, folder, reader, wanted, loaded) if wanted else files

    def _synthesize_modules(
        self, key: str, folder: str, reader: ModuleReader, wanted: list[LoadedModule], loaded: list[LoadedModule]
    ) -> dict[str, Path]:
        files: dict[str, Path] = {}
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
            return files
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
                parts, report = synthesize_module(facts)
            except FileFaultError as error:
                self.notes.append(f"module {module.name} is left out: {error}")
                continue
            whole = module.vaddr in split or not self._has_split_btf
            files[module.name] = self.store(key, f"{folder}/{module.name}.ko", parts, lasting=whole)
            self.modules[module.name] = report.counts()
        return files

    @property
    def _has_split_btf(self) -> bool:
        """Whether this kernel keeps types of modules, in this dump or not."""
        return self.btf is not None and self.btf.detect("btf_module", Kind.STRUCT) is not None

    def _split_btf(self, loaded: list[LoadedModule]) -> dict[int, Btf]:
        """Decode the types of each module, by the address of its ``struct module``."""
        head = self.symbols.get("btf_modules")
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


def _module_set(loaded: list[LoadedModule]) -> str:
    """
    Name a set of modules.

    A module's file depends on the others: a type is only declared where its name
    has one meaning. One without a build ID is known by where it is loaded.
    """
    digest = hashlib.blake2b()
    for module in sorted(loaded, key=lambda module: module.name):
        digest.update(f"{module.name} {module.build_id.hex() or module.data.hex()}\n".encode())
    return digest.hexdigest()[:16]
