"""The words of ``postpanic decode``: logs, and what decode_stacktrace.sh takes in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import UsageError

__all__ = ["DecodeArguments", "sort_arguments"]

_AUTO = "auto"
_RECORD_HEAD_BYTES = 128
_STANDARD_INPUT = Path("-")


@dataclass(frozen=True, slots=True)
class DecodeArguments:
    """
    What the words are.

    Parameters
    ----------
    base : str
        Taken off the front of source paths; empty: to be found out.
    dump : Path, optional
        Whose own log is to be decoded.
    records : tuple of Path
        Binary records of hardware errors.
    """

    logs: tuple[Path, ...] = ()
    kernel: Path | None = None
    modules: tuple[Path, ...] = ()
    base: str = ""
    dump: Path | None = None
    records: tuple[Path, ...] = ()


def sort_arguments(words: Sequence[Path]) -> DecodeArguments:
    """
    Tell logs, symbols and directories apart by what they are.

    ``VMLINUX [BASE|auto] [MODULES]`` is how decode_stacktrace.sh is called: with a
    vmlinux in front and two directories behind, the first is where it was built.
    Any directory is looked through for modules. A dump without a log beside it is
    the log, too.

    Raises
    ------
    FileFaultError
        If a file cannot be read.
    UsageError
        If there are two kernels or two dumps.
    """
    from postpanic.analysis.decode.files import FileKind, detect_file

    logs: list[Path] = []
    directories: list[Path] = []
    records: list[Path] = []
    found: dict[FileKind, list[Path]] = {kind: [] for kind in FileKind}
    for number, word in enumerate(words):
        follows_kernel = number == 1 and bool(found[FileKind.KERNEL] or found[FileKind.MAP])
        if word == _STANDARD_INPUT:
            logs.append(word)
        elif follows_kernel and str(word) == _AUTO and not word.exists():
            continue
        elif word.is_dir() or (follows_kernel and word.is_absolute() and not word.exists()):
            # The directory that the kernel was built in need not be on this machine.
            directories.append(word)
        elif _is_record(word):
            records.append(word)
        else:
            found[detect_file(word)].append(word)
    if records and len(records) < len(words):
        raise UsageError(f"{records[0]} holds binary records of hardware errors", hint="decode them by themselves")
    logs += found[FileKind.TEXT]
    dumps = found[FileKind.DUMP]
    kernels = [*found[FileKind.KERNEL], *found[FileKind.MAP], *(dumps if logs else [])]
    if len(kernels) > 1 or len(dumps) > 1:
        first, second = (kernels if len(kernels) > 1 else dumps)[:2]
        raise UsageError(f"symbols of the kernel twice: {first} and {second}")
    dump = dumps[0] if dumps and not logs else None
    modules = found[FileKind.MODULE]
    base = ""
    if kernels and len(words) > 1 and words[1] in directories and (len(directories) > 1 or not words[1].is_dir()):
        base = f"{str(words[1]).rstrip('/')}/"
    existing = [path for path in directories if path.is_dir()]
    kernel = kernels[0] if kernels else dump
    return DecodeArguments(tuple(logs), kernel, (*modules, *existing), base, dump, tuple(records))


def _is_record(path: Path) -> bool:
    from postpanic.evidence.hardware import is_record_file

    try:
        with path.open("rb") as file:
            return is_record_file(file.read(_RECORD_HEAD_BYTES), path.name)
    except OSError:
        # Whoever opens it next says what is the matter.
        return False
