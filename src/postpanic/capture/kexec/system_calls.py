"""
The system calls that load and unload kernels; Python has none of them.

Sources: ``include/uapi/linux/kexec.h``, kexec_load(2), kexec_file_load(2), the
kernel's tables of system calls. An errno is handed on as ``OSError``;
:mod:`postpanic.capture.kexec.refusals` says what it means.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

__all__ = ["FILE_LOAD_NUMBERS", "file_load", "file_unload", "legacy_load", "legacy_unload"]

FILE_LOAD_NUMBERS = {"x86_64": 320, "aarch64": 294, "riscv64": 294, "loongarch64": 294, "ppc64le": 382, "s390x": 381}
LEGACY_LOAD_NUMBERS = {"x86_64": 246, "aarch64": 104, "riscv64": 104, "loongarch64": 104, "ppc64le": 268, "s390x": 277}

_FILE_UNLOAD = 1
_FILE_ON_CRASH = 2
_FILE_NO_INITRAMFS = 4
_LEGACY_ON_CRASH = 1


def file_load(machine: str, kernel_fd: int, initrd_fd: int | None, command_line: bytes) -> None:
    """
    Have the kernel load a capture kernel (``kexec_file_load(2)``).

    Parameters
    ----------
    machine : str
        As ``uname -m`` spells it.
    initrd_fd : int or None
        None: no initramfs.
    command_line : bytes
        Without the NUL, which is added.

    Raises
    ------
    OSError
        As the kernel has it; ``ENOSYS`` also on machines without the call.
    """
    flags = _FILE_ON_CRASH | (_FILE_NO_INITRAMFS if initrd_fd is None else 0)
    line = command_line + b"\0"
    _call(FILE_LOAD_NUMBERS, machine, kernel_fd, -1 if initrd_fd is None else initrd_fd, len(line), line, flags)


def file_unload(machine: str) -> None:
    """Have the kernel forget a capture kernel, however it was loaded; also under lockdown."""
    _call(FILE_LOAD_NUMBERS, machine, -1, -1, 0, None, _FILE_UNLOAD | _FILE_ON_CRASH)


class _KexecSegment(ctypes.Structure):
    """``struct kexec_segment``."""

    _fields_ = (
        ("buf", ctypes.c_char_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_size_t),
        ("memsz", ctypes.c_size_t),
    )


def legacy_load(machine: str, entry: int, segments: Sequence[tuple[int, bytes, int]]) -> None:
    """
    Have the kernel copy a capture kernel into the reserved memory (``kexec_load(2)``).

    Parameters
    ----------
    entry : int
        The physical address where it begins.
    segments : sequence of (int, bytes, int)
        Physical address, what comes there, and how many bytes it takes: whole pages.

    Raises
    ------
    OSError
        As the kernel has it.
    """
    table = (_KexecSegment * len(segments))(
        *(_KexecSegment(content, len(content), paddr, size_bytes) for paddr, content, size_bytes in segments)
    )
    _call(LEGACY_LOAD_NUMBERS, machine, entry, len(segments), ctypes.addressof(table), _LEGACY_ON_CRASH)


def legacy_unload(machine: str) -> None:
    """Do the same by ``kexec_load(2)``, for kernels without the other call."""
    _call(LEGACY_LOAD_NUMBERS, machine, 0, 0, None, _LEGACY_ON_CRASH)


def _call(numbers: dict[str, int], machine: str, *arguments: int | bytes | None) -> None:
    # Another machine's number is another call here.
    if machine not in numbers or machine != os.uname().machine:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    words = [
        ctypes.c_char_p(word) if isinstance(word, bytes) or word is None else ctypes.c_long(word) for word in arguments
    ]
    if libc.syscall(ctypes.c_long(numbers[machine]), *words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
