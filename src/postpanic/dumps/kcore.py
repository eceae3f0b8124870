"""
The memory of the running machine: ``/proc/kcore``, an ELF core whose contents change while it is read.

Sources: the kernel's ``fs/proc/kcore.c``. Segments of RAM and of the kernel image have
their physical address since 4.11 (464920104bf7, "/proc/kcore: update physical
address for kcore ram and text"), others -1; the VMCOREINFO note is there since
4.19 (23c85094fe18, "proc/kcore: add vmcoreinfo note to /proc/kcore").
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from postpanic.dumps.elfcore.layout import ELF_MAGIC
from postpanic.dumps.elfcore.reader import ElfCoreReader
from postpanic.dumps.memory import Dump
from postpanic.dumps.source import FileSource
from postpanic.errors import FileFaultError, UnsupportedError

__all__ = ["KCORE_PATH", "open_kcore"]

KCORE_PATH = Path("/proc/kcore")
_LOCKDOWN_PATH = Path("/sys/kernel/security/lockdown")
_CHOSEN = re.compile(r"\[(\w+)\]")


def open_kcore(path: Path = KCORE_PATH, *, lockdown_path: Path = _LOCKDOWN_PATH) -> Dump:
    """
    Open the memory of the running machine.

    Returns
    -------
    Dump
        A context manager. Two reads of one page may differ.

    Raises
    ------
    UnsupportedError
        If the kernel or the container gives none, or one without VMCOREINFO.
    FileFaultError
        If it may not be read: not root, or the kernel is locked down.
    """
    _check_access(path, lockdown_path)
    source = FileSource(path)
    try:
        if source.read(0, len(ELF_MAGIC)) != ELF_MAGIC:
            raise _masked(path)
        dump = ElfCoreReader(source)
        if not dump.description.vmcoreinfo:
            raise UnsupportedError(
                "the running kernel does not describe itself: no VMCOREINFO note",
                where=str(path),
                hint="kernels since 4.19 have one, if built with CONFIG_CRASH_CORE or CONFIG_VMCORE_INFO",
            )
    except BaseException:
        source.close()
        raise
    return dump


def _check_access(path: Path, lockdown_path: Path) -> None:
    """Say in words why the file cannot be opened, where it cannot."""
    try:
        # O_NONBLOCK: whatever a container put in its place must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UnsupportedError(
            "the memory of the running kernel is not there",
            where=str(path),
            hint="the kernel was built without CONFIG_PROC_KCORE, or a container hides it",
        ) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise FileFaultError(f"cannot open: {(error.strerror or str(error)).lower()}", where=str(path)) from error
        raise FileFaultError(
            "the memory of the running kernel may not be read", where=str(path), hint=_explain_refusal(lockdown_path)
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _masked(path)
    finally:
        os.close(fd)


def _masked(path: Path) -> UnsupportedError:
    """Make the error for what is no kcore: containers put an empty file or /dev/null in its place."""
    return UnsupportedError(
        "the memory of the running kernel is not there: the file is empty or not ELF",
        where=str(path),
        hint="a container masks it: run it on the host",
    )


def _explain_refusal(lockdown_path: Path) -> str:
    """Find the reason for a refusal: not root, kernel lockdown, or a container's capabilities."""
    if os.geteuid() != 0:
        return "run it as root"
    try:
        chosen = _CHOSEN.search(lockdown_path.read_text(errors="replace"))
    except OSError:
        chosen = None
    if chosen is not None and chosen[1] == "confidentiality":
        return (
            "the kernel is locked down (lockdown=confidentiality): its memory stays closed until it is booted without"
        )
    return "CAP_SYS_RAWIO is missing: a container or a sandbox took it away"
