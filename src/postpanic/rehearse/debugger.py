"""
Crash the machine's kernel from outside, through QEMU's stub for debuggers: where no module of the kernel's own can.

While somebody is connected the machine stands still. A processor that is in the
kernel, on behalf of the first process, is made to go on with what the code there
would never have done: at address 0, in a loop, at the end of its stack.

Sources: gdb's manual, appendix "Remote Serial Protocol"; ``gdb-xml/i386-64bit.xml`` of QEMU (numbers of registers);
``arch/x86/include/asm/page_64_types.h`` (``THREAD_SIZE``).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from postpanic.errors import ProcessError, UsageError

__all__ = ["STRIKES", "Stub", "list_strikes", "strike"]

_ATTEMPTS = 100
_RETRY_S = 0.05
_TIMEOUT_S = 20.0
_LIMIT_BYTES = 1 << 16
_PATH_BYTES = 107
_RSP, _RIP, _EFLAGS, _CS = 7, 16, 17, 18
_WIDTH_BYTES = 8
_MACHINE = "x86_64"
"""Whose registers and instructions these are."""
_INTERRUPTS = 1 << 9
_KERNEL_HALF = 1 << 63
_STACK_BYTES = 16 << 10
"""``THREAD_SIZE``, at a multiple of which a stack begins; with KASAN it is twice that, and the middle is met."""
_LOOP = bytes.fromhex("ebfe")


class Stub:
    """
    A connection; a context manager within which the machine stands still.

    Parameters
    ----------
    path : Path
        Of QEMU's socket.

    Raises
    ------
    ProcessError
        From every method, if QEMU refuses, or is gone.
    UsageError
        If the path is longer than a socket's may be.
    """

    def __init__(self, path: Path) -> None:
        if len(str(path).encode()) > _PATH_BYTES:
            raise UsageError(f"{path}: is longer than the {_PATH_BYTES} bytes of a socket's name", hint="set TMPDIR")
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._pending = b""

    def __enter__(self) -> Self:
        self._socket.settimeout(_TIMEOUT_S)
        try:
            self._socket.connect(str(self._path))
            # QEMU lets single registers be written by those who have asked what they are.
            self.ask("qXfer:features:read:target.xml:0,400")
            self.ask("Hg1")
        except OSError as exc:
            self._socket.close()
            raise ProcessError(f"qemu's debugger stub: {exc.strerror or exc}") from exc
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ProcessError):
            self.ask("D")
        self._socket.close()

    def read_register(self, number: int) -> int:
        """Read a register of the first processor."""
        answer = self.ask(f"p{number:x}")
        try:
            return int.from_bytes(bytes.fromhex(answer), "little")
        except ValueError:
            raise ProcessError(f"qemu's debugger stub: register {number}: {answer[:40]!r}") from None

    def write_register(self, number: int, value: int) -> None:
        """Write a register of the first processor, one of 64 bits."""
        self._command(f"P{number:x}={value.to_bytes(_WIDTH_BYTES, 'little').hex()}")

    def write_memory(self, vaddr: int, data: bytes) -> None:
        """Write to memory as the first processor sees it, read-only memory included."""
        self._command(f"M{vaddr:x},{len(data):x}:{data.hex()}")

    def _command(self, request: str) -> None:
        answer = self.ask(request)
        if answer != "OK":
            raise ProcessError(f"qemu's debugger stub refuses {request[:40]!r}: {answer[:40]!r}")

    def ask(self, request: str) -> str:
        """Send a packet, and return what is answered; that the machine has stopped is no answer."""
        self._socket.sendall(f"${request}#{sum(request.encode()) & 0xFF:02x}".encode())
        while True:
            start = self._pending.find(b"$")
            end = self._pending.find(b"#", start)
            if start >= 0 and 0 <= end <= len(self._pending) - 3:
                answer = self._pending[start + 1 : end].decode(errors="replace")
                self._pending = self._pending[end + 3 :]
                self._socket.sendall(b"+")
                if not answer.startswith(("T", "S")):
                    return answer
                continue
            data = self._socket.recv(4096)
            if not data or len(self._pending) > _LIMIT_BYTES:
                raise ProcessError(f"qemu's debugger stub: no answer to {request[:40]!r}")
            self._pending += data


def _call_null(stub: Stub) -> None:
    """Let it call a null pointer: the way back is on the stack."""
    stack = stub.read_register(_RSP) - _WIDTH_BYTES
    stub.write_memory(stack, stub.read_register(_RIP).to_bytes(_WIDTH_BYTES, "little"))
    stub.write_register(_RSP, stack)
    stub.write_register(_RIP, 0)


def _loop(stub: Stub) -> None:
    stub.write_memory(stub.read_register(_RIP), _LOOP)


def _end_stack(stub: Stub) -> None:
    """Leave no room on the stack: what is put there next meets the guard page."""
    stub.write_register(_RSP, stub.read_register(_RSP) & ~(_STACK_BYTES - 1))


STRIKES: Mapping[str, Callable[[Stub], None]] = MappingProxyType(
    {"null": _call_null, "softlockup": _loop, "stack": _end_stack}
)
"""By the kind of crash: what is done to a processor."""


def list_strikes(machine: str) -> tuple[str, ...]:
    """
    List the kinds of crashes that can be made on a machine of an architecture.

    >>> list_strikes("x86_64"), list_strikes("aarch64")
    (('null', 'softlockup', 'stack'), ())
    """
    return tuple(STRIKES) if machine == _MACHINE else ()


def strike(path: Path, kind: str) -> None:
    """
    Crash, as soon as the first processor is in the kernel and may be interrupted there.

    Raises
    ------
    ProcessError
        If it never is, or QEMU refuses.
    UsageError
        If the path of the socket is too long.
    """
    for _ in range(_ATTEMPTS):
        with Stub(path) as stub:
            in_kernel = stub.read_register(_CS) & 3 == 0 and stub.read_register(_RIP) & _KERNEL_HALF
            if in_kernel and stub.read_register(_EFLAGS) & _INTERRUPTS:
                STRIKES[kind](stub)
                return
        time.sleep(_RETRY_S)
    raise ProcessError(f"no chance to crash the machine by {kind}: its first processor is never in the kernel")
