"""
Give reserved memory back while the machine runs.

The kernel takes a smaller size only, and only while nothing is loaded; what is
given back is gone until the next boot.

Source: ``crash_shrink_memory()``, ``kernel/kexec_core.c`` (``kernel/crash_core.c`` since 6.11):
``-ENOENT`` while something is loaded, ``-EINVAL`` for more than there is, sizes rounded up to pages.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from postpanic.capture.host import Host
from postpanic.errors import NotReadyError, UsageError
from postpanic.units import format_size

__all__ = ["ShrinkOutcome", "check_shrink", "shrink"]

_FILES = ("sys/kernel/kexec/crash_size", "sys/kernel/kexec_crash_size")


@dataclass(frozen=True)
class ShrinkOutcome:
    """Bytes reserved before and after."""

    before_bytes: int
    after_bytes: int


def check_shrink(host: Host, size_bytes: int, *, least_bytes: int = 0) -> int:
    """
    Find out whether the reservation can be shrunk to a size, loaded or not.

    Parameters
    ----------
    least_bytes : int
        What the capture kernel needs; less than that, but for 0, is refused.

    Returns
    -------
    int
        What is reserved now, in bytes.

    Raises
    ------
    NotReadyError
        If nothing can be given back here.
    UsageError
        If the size is not less than what there is, or too little.
    """
    if not host.is_root:
        raise NotReadyError("only root may give reserved memory back", hint="run it as root")
    found = host.read_crash_size_bytes()
    if not found:
        why = "this kernel cannot have a capture kernel" if found is None else "no memory is reserved"
        raise NotReadyError(f"nothing to shrink: {why}")
    if size_bytes >= found:
        raise UsageError(
            f"{format_size(size_bytes)} is not less than the {format_size(found)} that are reserved",
            hint="more memory takes another crashkernel= and a reboot: postpanic crashkernel set",
        )
    if 0 < size_bytes < least_bytes:
        raise UsageError(
            f"{format_size(size_bytes)} is too little: the capture kernel needs {format_size(least_bytes)}",
            hint="0 gives all of it back; --force shrinks all the same",
        )
    return found


def shrink(host: Host, size_bytes: int) -> ShrinkOutcome:
    """
    Shrink the reservation; nothing may be loaded.

    Raises
    ------
    NotReadyError
        If something is loaded, or the kernel refuses.
    """
    before = host.read_crash_size_bytes() or 0
    path = next((host.path(name) for name in _FILES if host.path(name).exists()), host.path(_FILES[-1]))
    try:
        # Not through a buffer: the kernel answers to the one write(2).
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{size_bytes}\n".encode())
        finally:
            os.close(fd)
    except OSError as exc:
        raise _explain(exc, host) from exc
    after = host.read_crash_size_bytes()
    if after is None or after >= before:
        raise NotReadyError(f"the kernel took the size and still holds {format_size(after or before)}", where=str(path))
    return ShrinkOutcome(before, after)


def _explain(exc: OSError, host: Host) -> NotReadyError:
    if exc.errno == errno.ENOENT and host.read_crash_loaded():
        return NotReadyError("a capture kernel is loaded in it", hint="--reload unloads it, shrinks, and arms again")
    if exc.errno == errno.EBUSY:
        return NotReadyError("another load is going on", hint="try again")
    return NotReadyError(f"the kernel refuses to shrink the reservation: {(exc.strerror or str(exc)).lower()}")
