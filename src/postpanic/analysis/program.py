"""
Open a dump as a drgn program, with whatever debug information can be had.

Real debug information is used when it is given, found in the standard places
or (when asked) served by debuginfod, and belongs to the dump by its build ID.
Everything else is synthesized from the dump itself. Which one it was is known
for each module afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import drgn

from postpanic.analysis.debug_files import DebugKind, DebugPolicy, DebugSource, load_debug_files
from postpanic.analysis.dump_program import create_program
from postpanic.dumps.memory import Dump
from postpanic.dumps.open import open_dump
from postpanic.dumps.overlay import Overlay
from postpanic.errors import AbsentError, FileFaultError
from postpanic.kernel.debuginfo.build import SynthesizedDebuginfo, build
from postpanic.kernel.debuginfo.cache import DebuginfoCache
from postpanic.kernel.memory import KernelMemory, open_kernel_memory

__all__ = ["OpenedProgram", "open_program"]


@dataclass(slots=True)
class OpenedProgram:
    """
    A program, the dump under it, and where its debug information comes from.

    ``overlay.write(paddr, data)`` changes what the program and the memory read; the
    file stays as it is.
    """

    prog: drgn.Program
    overlay: Overlay
    memory: KernelMemory
    sources: tuple[DebugSource, ...]
    synthesized: SynthesizedDebuginfo | None
    """Report of what was typed; also keeps files that no cache keeps."""
    warnings: list[str] = field(default_factory=list)
    zero_excluded: bool = False
    """Whether pages that the dump does not hold read as zeroes."""

    @property
    def dump(self) -> Dump:
        """The dump, with what was written over it."""
        return self.overlay

    @property
    def has_types(self) -> bool:
        """False where the kernel's debug information is synthesized, and the kernel carries no types (BTF)."""
        kernel_synthesized = bool(self.sources) and self.sources[0].kind is DebugKind.SYNTHESIZED
        return not kernel_synthesized or self.synthesized is None or self.synthesized.has_types

    def close(self) -> None:
        """Close the dump, and remove files that no cache keeps; the program must not be used any more."""
        # What it has kept refers to it, and it holds a descriptor for each file of debug information.
        self.prog.cache.clear()
        self.overlay.close()
        if self.synthesized is not None:
            self.synthesized.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _open_memory(dump: Overlay, *, zero_excluded: bool) -> tuple[KernelMemory, drgn.Program]:
    """Find the kernel, and make a program of its memory; both forget what they know of memory that changes."""
    memory = open_kernel_memory(dump)
    # Before the program's: what reads memory again must not find old translations.
    dump.listen(lambda _: memory.forget())
    prog = create_program(dump, memory, zero_excluded=zero_excluded)
    dump.listen(lambda _: prog.cache.clear())
    return memory, prog


class _Synthesis:
    """Debug information out of the dump itself, made when it is first asked for."""

    def __init__(self, memory: KernelMemory, cache_directory: Path | None, progress: Callable[[str], None]) -> None:
        self._memory = memory
        self._cache_directory = cache_directory
        self._progress = progress
        self.made: SynthesizedDebuginfo | None = None

    def get(self) -> SynthesizedDebuginfo:
        """Make it, once."""
        if self.made is None:
            self._progress("reading symbols and types from the dump")
            cache = DebuginfoCache(self._cache_directory) if self._cache_directory is not None else None
            try:
                self.made = build(self._memory, cache=cache)
            except (AbsentError, FileFaultError) as exc:
                # The log is found by VMCOREINFO alone, so there is something left to do.
                exc.hint = exc.hint or 'give a vmlinux with debug information; "postpanic dmesg" needs neither'
                raise
        return self.made


def open_program(
    dump_paths: Sequence[Path],
    *,
    vmlinux: Path | None = None,
    modules: Sequence[Path] = (),
    policy: DebugPolicy = DebugPolicy.AUTO,
    cache_directory: Path | None = None,
    debuginfod: bool = False,
    zero_excluded: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> OpenedProgram:
    """
    Open a dump for analysis.

    Parameters
    ----------
    dump_paths : sequence of Path
        One file, or all files of a split dump.
    vmlinux, modules : Path
        Real debug information of the kernel and of modules, if it is at hand.
    policy : DebugPolicy
        Which debug information may be used where none is given.
    cache_directory : Path, optional
        Where synthesized files are kept, by build ID; without it they are made
        anew and thrown away.
    debuginfod : bool
        Whether a debuginfod server may be asked.
    zero_excluded : bool
        Read pages that the dump does not hold as zeroes instead of failing.
    progress : callable
        Told what is being done, one phrase each, before anything long.

    Returns
    -------
    OpenedProgram
        A context manager; closing it closes the dump.

    Raises
    ------
    FileFaultError
        If the dump cannot be read, or a given file does not belong to it.
    FactAbsentError
        If the dump has no VMCOREINFO, or only real debug information is
        allowed and there is none.
    """
    dump = Overlay(open_dump(dump_paths))
    try:
        memory, prog = _open_memory(dump, zero_excluded=zero_excluded)
        synthesis = _Synthesis(memory, cache_directory, progress)
        sources = load_debug_files(
            prog, policy=policy, vmlinux=vmlinux, modules=modules, debuginfod=debuginfod, synthesize=synthesis.get
        )
        synthesized = synthesis.made
        warnings = [*dump.description.warnings, *(synthesized.report.notes if synthesized else ())]
        return OpenedProgram(prog, dump, memory, tuple(sources), synthesized, warnings, zero_excluded)
    except BaseException:
        dump.close()
        raise
