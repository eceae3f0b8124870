"""Synthesize the debug information of a dump's kernel and modules, or take it from the cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, FileFaultError
from postpanic.kernel.debuginfo.cache import CacheRefusedError, DebuginfoCache
from postpanic.kernel.debuginfo.modules import LoadedModule, ModuleReader
from postpanic.kernel.debuginfo.state import CacheState, decode_cache_state, encode_cache_state
from postpanic.kernel.memory import KernelMemory

if TYPE_CHECKING:
    from postpanic.kernel.debuginfo.globals import GlobalsTable
    from postpanic.kernel.debuginfo.synthesis import Synthesis
    from postpanic.kernel.kallsyms import SymbolTable

__all__ = ["FORMAT_VERSION", "DebuginfoReport", "SynthesizedDebuginfo", "build", "fingerprint"]

FORMAT_VERSION = 12
"""Part of every cache key: raise it when what is written changes."""

MIN_PROCESSORS = 2
_IMAGE_REACH_BYTES = 256 << 20
_VMLINUX = "vmlinux"
_STATE = "state.json"


@dataclass(slots=True)
class DebuginfoReport:
    """What was typed and what was not, in numbers and phrases."""

    vmlinux: dict[str, int] = field(default_factory=dict)
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

    def close(self) -> None:
        """Remove files that no cache keeps."""
        if self.temporary is not None:
            self.temporary.cleanup()


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
        made = job.synthesis
        layout = made.module_layout()
        head = made.all_symbols.get("modules")
        head_offset = head - memory.kaslr_offset if head is not None else 0
        helper = _start_helper(job, key, CacheState({}, [], layout, head_offset)) if modules and made.btf else None
        parts, report = made.make_vmlinux()
        # Another dump of this kernel may hold what this one lacks: types, or what leads to its data.
        has_types = made.btf is not None
        is_lasting = has_types and made.has_data
        vmlinux = job.store(key, _VMLINUX, parts, lasting=is_lasting)
        state = CacheState(report.counts(), list(job.notes), layout, head_offset)
        job.store(key, _STATE, [encode_cache_state(state)], lasting=is_lasting)
        if helper is not None:
            os.waitpid(helper, 0)
            job.drop_unused()
    else:
        job.notes = list(state.notes)
    module_files = job.make_modules(key, state) if modules else {}
    summary = DebuginfoReport(state.counts, job.notes)
    return SynthesizedDebuginfo(vmlinux, module_files, summary, from_cache, has_types, job.temporary)


def _start_helper(job: _Job, key: str, state: CacheState) -> int | None:
    """
    Make the modules' files in a process of its own, while this one makes the kernel's.

    The cache is what they share: whatever the helper did not leave there is made
    here afterwards. Nothing but its own memory and new files is touched by it.

    Returns
    -------
    int or None
        Its process number; None where there is no second processor, or no process to be had.
    """
    if len(os.sched_getaffinity(0)) < MIN_PROCESSORS:
        return None
    # What the helper may not leave in the cache goes where we clean up.
    job.temporary_cache()
    try:
        with warnings.catch_warnings():
            # Other threads may hold locks; none of them is of use to what runs in the helper.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
    except OSError:
        return None
    if process == 0:
        # Neither an error nor an interrupt of the helper is anybody's business, and its exit runs nothing of ours.
        try:
            job.make_modules(key, state)
        finally:
            os._exit(0)
    return process


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
        self.cache = cache if cache is not None else self.temporary_cache()
        self._symbols = symbols
        self.notes: list[str] = []

    def temporary_cache(self) -> DebuginfoCache:
        """Give a cache in a temporary directory, which goes when the result does."""
        if self.temporary is None:
            self.temporary = tempfile.TemporaryDirectory(prefix="postpanic-")
        return DebuginfoCache(Path(self.temporary.name))

    def drop_unused(self) -> None:
        """Remove the temporary directory if nothing is in it."""
        if self.temporary is not None and not any(Path(self.temporary.name).iterdir()):
            self.temporary.cleanup()
            self.temporary = None

    def store(self, key: str, name: str, parts: list[bytes | NDArray[np.uint8]], *, lasting: bool = True) -> Path:
        """
        Store into the cache; where that is refused, into a temporary directory.

        What a better dump of the same kernel would make better is not *lasting*:
        it does not go into the cache.
        """
        if not lasting:
            return self.temporary_cache().store(key, name, parts)
        try:
            return self.cache.store(key, name, parts)
        except CacheRefusedError as error:
            refuge = self.temporary_cache()
            if self.cache.directory == refuge.directory:
                raise
            self.notes.append(f"the cache is not used: {error}")
            self.cache = refuge
            return self.cache.store(key, name, parts)

    @cached_property
    def synthesis(self) -> Synthesis:
        """What makes the files; imported only when something must be made."""
        from postpanic.kernel.debuginfo.synthesis import Synthesis

        return Synthesis(
            self.memory, self._globals_table, self._symbols, include_text=self.include_text, notes=self.notes
        )

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
        if wanted:
            for name, parts, whole in self.synthesis.make_modules(reader, wanted, loaded):
                files[name] = self.store(key, f"{folder}/{name}.ko", parts, lasting=whole)
        return files


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
