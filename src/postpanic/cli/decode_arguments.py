"""The words of ``postpanic decode``: logs, and what decode_stacktrace.sh takes in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import UsageError

__all__ = ["DecodeArguments", "sort_arguments"]

_AUTO = "auto"
_STANDARD_INPUT = Path("-")


@dataclass(frozen=True, slots=True)
class DecodeArguments:
    """
    What the words are.

    Parameters
    ----------
    base : str
        Taken off the front of source paths; empty: to be found out.
    """

    logs: tuple[Path, ...] = ()
    kernel: Path | None = None
    modules: tuple[Path, ...] = ()
    base: str = ""


def sort_arguments(words: Sequence[Path]) -> DecodeArguments:
    """
    Tell logs, symbols and directories apart by what they are.

    ``VMLINUX [BASE|auto] [MODULES]`` is how decode_stacktrace.sh is called: with a
    vmlinux in front and two directories behind, the first is where it was built.
    Any directory is looked through for modules.

    Raises
    ------
    FileFaultError
        If a file cannot be read.
    UsageError
        If there are two kernels, or a dump: that has a verb of its own.
    """
    from postpanic.analysis.decode.files import FileKind, detect_file

    logs: list[Path] = []
    kernels: list[Path] = []
    modules: list[Path] = []
    directories: list[Path] = []
    for number, word in enumerate(words):
        if word == _STANDARD_INPUT:
            logs.append(word)
        elif str(word) == _AUTO and number == 1 and not word.exists():
            continue
        elif word.is_dir():
            directories.append(word)
        elif number == 1 and len(kernels) == 1 and word.is_absolute() and not word.exists():
            # The directory that the kernel was built in need not be on this machine.
            directories.append(word)
        else:
            kind = detect_file(word)
            {FileKind.KERNEL: kernels, FileKind.MODULE: modules, FileKind.MAP: kernels, FileKind.DUMP: kernels}.get(
                kind, logs
            ).append(word)
    if len(kernels) > 1:
        raise UsageError(f"symbols of the kernel twice: {kernels[0]} and {kernels[1]}")
    base = ""
    if kernels and len(words) > 1 and words[1] in directories and (len(directories) > 1 or not words[1].is_dir()):
        base = f"{str(words[1]).rstrip('/')}/"
    existing = [path for path in directories if path.is_dir()]
    return DecodeArguments(tuple(logs), kernels[0] if kernels else None, (*modules, *existing), base)
