"""Kernels by build ID and release: which symbols serve which log. Each is read once, however many logs it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from postpanic.analysis.decode.files import (
    FileKind,
    ModuleFiles,
    detect_file,
    find_kernel_files,
    module_directories,
    read_elf_facts,
    read_release,
)
from postpanic.analysis.decode.kernel import KernelSymbols, fetch_debug_file
from postpanic.analysis.decode.locate import Locator
from postpanic.analysis.decode.maps import read_map
from postpanic.errors import FileFaultError, PostpanicError, UsageError

__all__ = ["Chosen", "SymbolOptions", "SymbolStore"]


@dataclass(frozen=True)
class SymbolOptions:
    """
    Where symbols may come from.

    Parameters
    ----------
    kernel : Path, optional
        A vmlinux, a ``System.map``, a copy of ``/proc/kallsyms`` or a dump: for all logs.
    modules : tuple of Path
        Files of modules, and directories with such.
    roots : tuple of Path
        Directories like ``/usr/lib/debug``, searched by build ID and release.
    release : str
        Of the kernel, whatever the log says.
    base : str
        Taken off the front of source paths; empty: found out.
    force : bool
        Use the symbols even where their build ID is not the log's.
    debuginfod : bool
        Ask debuginfod servers for what is not here, by build ID.
    """

    kernel: Path | None = None
    modules: tuple[Path, ...] = ()
    roots: tuple[Path, ...] = ()
    release: str = ""
    base: str = ""
    force: bool = False
    debuginfod: bool = False


class Chosen(NamedTuple):
    """The symbols for a log, and what the user should know of the choice."""

    locator: Locator
    remarks: tuple[str, ...]


@dataclass
class SymbolStore:
    """The kernels that logs were decoded with so far."""

    options: SymbolOptions
    scratch: Path
    _chosen: dict[tuple[str, str], Chosen] = field(default_factory=dict, repr=False)
    _remarks: list[str] = field(default_factory=list, repr=False)
    """Of the kernel that is being looked for."""
    _given: KernelSymbols | None = field(default=None, repr=False)
    _given_release: str = ""

    def find(self, release: str, build_id: str) -> Chosen:
        """
        Find the symbols for a log.

        Parameters
        ----------
        release, build_id : str
            As the log has them; empty: it does not say.

        Raises
        ------
        FileFaultError
            If a file that the user named cannot be used.
        """
        key = build_id, release
        if key not in self._chosen:
            self._remarks = []
            wanted = self.options.release
            if wanted and release not in {"", wanted}:
                self._remarks.append(f"the log is of release {release}, the symbols of {wanted}, as asked for")
                build_id = ""
            locator = self._share(self._find_kernel(wanted or release, build_id))
            self._chosen[key] = Chosen(locator, tuple(self._remarks))
        return self._chosen[key]

    def _share(self, kernel: KernelSymbols) -> Locator:
        known = (chosen.locator for chosen in self._chosen.values() if chosen.locator.kernel is kernel)
        return next(known, None) or Locator(kernel, self.scratch)

    def _find_kernel(self, release: str, build_id: str) -> KernelSymbols:
        if self.options.kernel is not None:
            return self._check_given(release, build_id)
        for chosen in self._chosen.values():
            if build_id and chosen.locator.kernel.build_id == build_id:
                return chosen.locator.kernel
        kernel = self._new(release)
        for path in find_kernel_files(self.options.roots, release=release, build_id=build_id):
            try:
                if detect_file(path) not in {FileKind.KERNEL, FileKind.MAP}:
                    # Distributions put a text that names the package in place of a large file.
                    continue
                if (other := self._take(kernel, path, build_id)) is not None:
                    self._remarks.append(f"{path}: its build ID is {other}, the log has {build_id}: not used")
                    continue
            except PostpanicError as exc:
                self._remarks.append(str(exc))
                continue
            return kernel
        if self.options.debuginfod and (fetched := fetch_debug_file(build_id)) is not None:
            kernel.load_vmlinux(fetched)
        elif release or build_id:
            self._remarks.append(f"no symbols of kernel {release or build_id} were found")
        return kernel

    def _new(self, release: str) -> KernelSymbols:
        files = tuple(path for path in self.options.modules if not path.is_dir())
        directories = [path for path in self.options.modules if path.is_dir()]
        directories += module_directories(self.options.roots, release)
        return KernelSymbols(
            release=release,
            modules=ModuleFiles(directories, files, self.options.roots),
            base=self.options.base,
            asks_servers=self.options.debuginfod,
        )

    def _take(self, kernel: KernelSymbols, path: Path, build_id: str) -> str | None:
        """Read a kernel's file; give its build ID instead if it is not the wanted one."""
        if detect_file(path) is FileKind.MAP:
            kernel.load_table(read_map(path), str(path))
            return None
        facts = read_elf_facts(path)
        if build_id and facts.build_id and facts.build_id != build_id:
            return facts.build_id
        kernel.load_vmlinux(path, facts)
        return None

    def _check_given(self, release: str, build_id: str) -> KernelSymbols:
        path = self.options.kernel
        if path is None:  # pragma: no cover - asked before
            raise UsageError("no file with symbols was named")
        if self._given is None:
            self._given = self._new(release)
            self._given_release = self._load_given(self._given, path)
        given = self._given
        if build_id and given.build_id and given.build_id != build_id:
            if not self.options.force:
                self._remarks.append(
                    f"{path}: its build ID is {given.build_id}, the log has {build_id}: not used (--force uses it)"
                )
                return self._new(release)
            self._remarks.append(
                f"{path}: its build ID is {given.build_id}, the log has {build_id}: used because of --force"
            )
        elif not build_id and release and self._given_release and release != self._given_release:
            self._remarks.append(
                f"{path} is of release {self._given_release}, the log of {release}: "
                "only functions of the same size are located"
            )
        return given

    def _load_given(self, kernel: KernelSymbols, path: Path) -> str:
        match detect_file(path):
            case FileKind.KERNEL:
                facts = read_elf_facts(path)
                kernel.load_vmlinux(path, facts)
                return read_release(path)
            case FileKind.MAP:
                kernel.load_table(read_map(path), str(path))
                return ""
            case FileKind.DUMP:
                from postpanic.analysis.decode.from_dump import load_dump_symbols

                return load_dump_symbols(kernel, path)
            case kind:
                raise FileFaultError(
                    f"a {kind}, not a kernel's symbols", where=str(path), hint="give a vmlinux, System.map or dump"
                )
