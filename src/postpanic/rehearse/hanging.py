r"""
Let a task hang for good in the kernel, without a module for it.

One process writes to a pipe what lies in memory that is never filled: it holds
the pipe's mutex, and waits for a page that :manpage:`userfaultfd(2)` is to bring.
Another one writes to the same pipe, and waits for the mutex, which nothing ends.

Sources: ``pipe_write()`` in ``fs/pipe.c``; ``Documentation/admin-guide/mm/userfaultfd.rst``;
``include/uapi/linux/userfaultfd.h``; the tables of system calls of each architecture.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time

from postpanic.errors import PostpanicError

__all__ = ["hang_a_task"]

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API = 0xAA
_MODE_MISSING = 1
_WAIT_S = 60.0


def hang_a_task(machine: str) -> None:
    """
    Make two processes, of which one hangs. Does not return if that is a panic.

    Parameters
    ----------
    machine : str
        As ``uname -m`` has it.

    Raises
    ------
    PostpanicError
        If the kernel has no user faults, or is still alive afterwards.
    """
    number = _USERFAULTFD.get(machine)
    if number is None:
        raise PostpanicError(f"no task can be made to hang on {machine}")
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        _write_what_is_not_there(number, writer)
    time.sleep(1.0)
    if os.waitpid(holder, os.WNOHANG)[0]:
        raise PostpanicError("no task can be made to hang: the kernel has no userfaultfd")
    if os.fork() == 0:
        os.write(writer, b"never")
        os._exit(0)
    time.sleep(_WAIT_S)
    os.close(reader)
    raise PostpanicError(f"still alive {_WAIT_S:g} s after a task was made to hang")


def _write_what_is_not_there(number: int, writer: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    faults = libc.syscall(ctypes.c_long(number), ctypes.c_long(os.O_CLOEXEC))
    area = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for request, words in (
        (_UFFDIO_API, (_UFFD_API, 0, 0)),
        (_UFFDIO_REGISTER, (start, mmap.PAGESIZE, _MODE_MISSING, 0)),
    ):
        argument = ctypes.create_string_buffer(struct.pack(f"={len(words)}Q", *words))
        if faults < 0 or libc.ioctl(faults, ctypes.c_ulong(request), argument) < 0:
            os.write(2, f"userfaultfd: {os.strerror(ctypes.get_errno())}\n".encode())
            os._exit(1)
    libc.write(writer, ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE))
    os._exit(0)
