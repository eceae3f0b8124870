"""
The older way to load: the ``kexec`` program of kexec-tools, which prepares everything in user space.

For kernels without ``kexec_file_load``, and for images that only the program
understands. It may say 0 and have loaded nonsense: what it has done is to be
verified. Source: kexec(8).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal

from postpanic.errors import PostpanicError, ProcessError
from postpanic.process import find_program, run

__all__ = ["LegacyOptions", "LegacyRefusedError", "legacy_load", "spell_command"]

TIMEOUT_S = 120.0
_HINT = "install kexec-tools"
_NUMBERS = {os.strerror(code): code for code in errno.errorcode}
_FAILED = re.compile(r"(?:kexec_load|failed|Cannot \w+)[^:\n]*: ([A-Z][^\n:]+)$", re.MULTILINE)
_SAYINGS = (
    (re.compile(r"not reserved|crashkernel", re.IGNORECASE), errno.EADDRNOTAVAIL),
    (re.compile(r"find a free area|find memory|not enough memory|hole", re.IGNORECASE), errno.EADDRNOTAVAIL),
    (re.compile(r"determine the file type|cannot load", re.IGNORECASE), errno.ENOEXEC),
)


@dataclass(frozen=True)
class LegacyOptions:
    """
    What the program needs on some machines.

    Attributes
    ----------
    reset_vga : bool
        Put a standard VGA card back into text mode first: the capture kernel's messages are seen on screens that
        would stay dark. May hang on cards that are not VGA.
    console_vga : bool
        Let purgatory say on the screen that it runs: tells a machine that dies before from one that dies after it.
    core_headers : str
        ``elf32``: for capture kernels of 32 bits; ``elf64``: for memory above 4 GiB; ``auto``: the program's choice.
    hotplug : bool
        The kernel keeps the core header up to date when memory or processors come and go (6.10, kexec-tools 2.0.29).
    extra : tuple of str
        More words for its command line.
    """

    reset_vga: bool = False
    console_vga: bool = False
    core_headers: Literal["auto", "elf32", "elf64"] = "auto"
    hotplug: bool = False
    extra: tuple[str, ...] = ()


class LegacyRefusedError(PostpanicError):
    """The program has loaded nothing."""

    def __init__(self, message: str, *, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


def spell_command(kernel: Path, initrd: Path | None, command_line: str, options: LegacyOptions) -> list[str]:
    """Spell the program's words, all but its name."""
    words = ["--load-panic", "--kexec-syscall"]
    words += ["--reset-vga"] if options.reset_vga else []
    words += ["--console-vga"] if options.console_vga else []
    words += [f"--{options.core_headers}-core-headers"] if options.core_headers != "auto" else []
    words += ["--hotplug"] if options.hotplug else []
    words += options.extra
    words += [f"--initrd={initrd}"] if initrd else []
    return [*words, f"--command-line={command_line}", str(kernel)]


def legacy_load(kernel: Path | bytes, initrd: Path | bytes | None, command_line: str, options: LegacyOptions) -> str:
    """
    Load a capture kernel by the ``kexec`` program.

    Returns
    -------
    str
        What it said, which may be of interest though it has succeeded.

    Raises
    ------
    ProcessError
        If it is not installed or does not end.
    LegacyRefusedError
        If it fails, with the errno that is nearest.
    """
    program = find_program("kexec", hint=_HINT)
    with _as_file(kernel) as kernel_path, _as_file(initrd) as initrd_path:
        if kernel_path is None:
            raise ProcessError("no kernel to load")
        words = spell_command(kernel_path, initrd_path, command_line, options)
        finished = run([program, *words], timeout_s=TIMEOUT_S, check=False)
    said = (finished.stderr + (finished.stdout or b"")).decode(errors="replace").strip()
    if finished.returncode != 0:
        raise LegacyRefusedError(
            said.replace("\n", "; ") or f"exit status {finished.returncode}", errno=find_errno(said)
        )
    return said


def find_errno(said: str) -> int:
    """Find the errno in what the program said; ``EINVAL`` where there is none."""
    for text in _FAILED.findall(said):
        if text.strip() in _NUMBERS:
            return _NUMBERS[text.strip()]
    return next((code for pattern, code in _SAYINGS if pattern.search(said)), errno.EINVAL)


@contextmanager
def _as_file(content: Path | bytes | None) -> Iterator[Path | None]:
    if not isinstance(content, bytes):
        yield content
        return
    with NamedTemporaryFile(prefix="postpanic-") as stream:
        stream.write(content)
        stream.flush()
        yield Path(stream.name)
