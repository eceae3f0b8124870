"""Sort the files on the command line by what they are, as crash does."""

from __future__ import annotations

import enum
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import FileFaultError, NotADumpError, UsageError

__all__ = ["InputFiles", "InputKind", "check_readable", "detect_input_kind", "sort_files"]

ELF_MAGIC = b"\x7fELF"
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EI_DATA = 5
ELFDATA2MSB = 2
E_TYPE_OFFSET = 16
HEADER_BYTES = 18

_MODULE_NAME = re.compile(r"\.ko(\.debug)?(\.(gz|xz|zst))?\Z")


class InputKind(enum.Enum):
    """What a file on the command line is meant as."""

    DUMP = "dump"
    KERNEL = "vmlinux"
    MODULE = "module"


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The files of one ``open``: the dump (several files if it was split), and debug information."""

    dump_paths: tuple[Path, ...]
    vmlinux: Path | None
    modules: tuple[Path, ...]


def check_readable(path: Path) -> bytes:
    """
    Read the first bytes of a file, to fail early and in plain words.

    Empty for what is not a regular file, which is left to those who open it.

    Raises
    ------
    FileFaultError
        If the file is missing or may not be read.
    """
    try:
        # Opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(descriptor, HEADER_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from None


def detect_input_kind(path: Path) -> InputKind:
    """
    Tell a dump, a vmlinux and a module apart by the type field of the ELF header.

    Everything that is neither an executable nor a relocatable ELF file is taken
    for a dump; opening it will tell. Compressed modules go by their names.

    Raises
    ------
    FileFaultError
        If the file cannot be read.
    """
    header = check_readable(path)
    if header.startswith(ELF_MAGIC) and len(header) == HEADER_BYTES:
        e_type = int.from_bytes(header[E_TYPE_OFFSET:], "big" if header[EI_DATA] == ELFDATA2MSB else "little")
        if e_type in {ET_EXEC, ET_DYN}:
            return InputKind.KERNEL
        return InputKind.MODULE if e_type == ET_REL else InputKind.DUMP
    return InputKind.MODULE if _MODULE_NAME.search(path.name) else InputKind.DUMP


def sort_files(files: Sequence[Path], *, vmlinux: Path | None = None) -> InputFiles:
    """
    Find out which of the files is the dump, which vmlinux, which modules.

    Parameters
    ----------
    files : sequence of Path
        In any order.
    vmlinux : Path, optional
        Named by an option, and then not looked for among *files*.

    Raises
    ------
    FileFaultError
        If a file cannot be read.
    NotADumpError
        If there is no dump among them.
    UsageError
        If there is more than one vmlinux.
    """
    if vmlinux is not None:
        check_readable(vmlinux)
    kinds = {path: detect_input_kind(path) for path in files}
    kernels = [path for path, kind in kinds.items() if kind is InputKind.KERNEL]
    dumps = tuple(path for path, kind in kinds.items() if kind is InputKind.DUMP)
    if not dumps:
        what = "an executable or a vmlinux" if kernels else "a kernel module"
        raise NotADumpError(
            f"{what}, and there is no dump beside it", where=str((kernels or files)[0]), hint="open [VMLINUX] DUMP"
        )
    if vmlinux is not None:
        kernels.insert(0, vmlinux)
    if len(kernels) > 1:
        raise UsageError(f"more than one kernel image: {kernels[0]} and {kernels[1]}")
    modules = tuple(path for path, kind in kinds.items() if kind is InputKind.MODULE)
    return InputFiles(dumps, kernels[0] if kernels else None, modules)
