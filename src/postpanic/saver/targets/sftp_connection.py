"""
Requests and answers of the SSH file transfer protocol, on two pipes.

Writes are sent ahead of the server's answers, up to a window: so the speed
does not hang on how far away the server is. Whatever the server sends is
bounded, and it is given up when nothing moves for the time allowed.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from postpanic.errors import OutputError
from postpanic.saver.targets.sftp_wire import (
    MAX_PACKET_BYTES,
    STATUS_WORDS,
    Fields,
    Packet,
    Status,
    as_printable,
    divide_views,
    encode_string,
)

__all__ = ["WINDOW_BYTES", "SftpConnection", "SftpStatusError"]

WINDOW_BYTES = 2 << 20
"""Of writes that wait for their answers."""
_WINDOW_REQUESTS = 256
_VERSION = 3
_SAFE_TRANSFER = 1 << 15
"""What every server takes in one write (§3 of the draft)."""
_MAX_TRANSFER = 1 << 17
_LOGIN_HINT = "does its login script print something?"


class SftpStatusError(OutputError):
    """
    The server did not do what it was asked.

    Attributes
    ----------
    status : int
        See :class:`Status`.
    """

    def __init__(self, message: str, *, status: int, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Ticket:
    """A write that was sent; the answer comes later."""

    size_bytes: int
    doing: str


class SftpConnection:
    """
    A connection to a server of SFTP.

    Used by one thread at a time. Every method raises
    :class:`~postpanic.errors.OutputError` when the connection is lost or
    nothing moves for too long, and :class:`SftpStatusError` when the server
    refuses.

    Parameters
    ----------
    read_fd, write_fd : int
        The pipes; they are the caller's, and are set to not block.
    name : str
        Of the server, for messages.
    timeout_s : float
        Without a byte in either direction, after which it is given up.
    explain : callable
        Tells why the connection is gone, as an error to raise.
    """

    def __init__(
        self, read_fd: int, write_fd: int, *, name: str, timeout_s: float, explain: Callable[[], OutputError]
    ) -> None:
        self.name = name
        self._in, self._out = read_fd, write_fd
        self._timeout_s = timeout_s
        self._explain = explain
        self._received = bytearray()
        self._last_number = 0
        self._writes: dict[int, _Ticket] = {}
        self._write_bytes = 0
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._expected: set[int] = set()
        self._extensions: dict[str, bytes] = {}
        self._broken: OutputError | None = None
        self.write_failure: SftpStatusError | None = None
        """Of the first write that was refused."""
        self.transfer_bytes = _SAFE_TRANSFER
        """The most that is read or written by one request."""
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def shake_hands(self) -> None:
        """Agree on the protocol's version, and learn what the server can do beyond it."""
        self._send([struct.pack(">IBI", 5, Packet.INIT, _VERSION)])
        kind, body = self._take_packet()
        if kind != Packet.VERSION or len(body) < 4 or struct.unpack_from(">I", body)[0] < _VERSION:
            raise self._fail("does not speak SFTP version 3", hint=_LOGIN_HINT)
        fields = Fields(body[4:], self.bad)
        while not fields.is_empty:
            name = fields.take_string().decode(errors="replace")
            self._extensions[name] = fields.take_string()
        if self.has("limits@openssh.com", b"1"):
            limits = self.ask(
                Packet.EXTENDED, encode_string(b"limits@openssh.com"), "ask for limits", Packet.EXTENDED_REPLY
            )
            _packet, read, write = struct.unpack_from(">QQQ", limits) if len(limits) >= 24 else (0, 0, 0)
            if read and write:
                self.transfer_bytes = max(min(read, write, _MAX_TRANSFER), 4096)

    def start_write(self, handle: bytes, offset: int, views: Sequence[memoryview], doing: str) -> None:
        """
        Send writes; what the server says to them is found out later, see :meth:`drain`.

        Parameters
        ----------
        views : sequence of memoryview
            Of bytes; they are not needed any more on return.
        """
        for size, group in divide_views(views, self.transfer_bytes):
            self._wait_until(lambda more=size: self._has_window(more))  # type: ignore[misc]
            number = self._next_number()
            head = struct.pack(">IBI", 1 + 4 + 4 + len(handle) + 8 + 4 + size, Packet.WRITE, number)
            self._writes[number] = _Ticket(size, doing)
            self._write_bytes += size
            self._send([head + encode_string(handle) + struct.pack(">QI", offset, size), *group])
            offset += size

    def start_sync(self, handle: bytes) -> None:
        """Let the server write to its disk what it has, without waiting for that; it is refused as a write is."""
        if not self.has("fsync@openssh.com", b"1"):
            return
        self._wait_until(lambda: self._has_window(0))
        number = self._next_number()
        self._writes[number] = _Ticket(0, "sync")
        body = encode_string(b"fsync@openssh.com") + encode_string(handle)
        self._send([struct.pack(">IBI", 5 + len(body), Packet.EXTENDED, number) + body])

    @property
    def oldest_write(self) -> int | None:
        """Number of the oldest write that has no answer yet; answers may come in any order."""
        return next(iter(self._writes), None)

    @property
    def next_write(self) -> int:
        """Number that the next write will have, or a lower one."""
        return self._last_number + 1

    def drain(self) -> None:
        """Wait for all answers; what was refused is in :attr:`write_failure`."""
        self._wait_until(lambda: not self._writes)

    def look(self) -> None:
        """Take in what the server has said by now, without waiting."""
        if self._broken is not None:
            raise self._broken
        for _ in range(_WINDOW_REQUESTS):
            if not self._receive():
                break

    def has(self, extension: str, version: bytes) -> bool:
        """Whether the server announced an extension, in the version that is known here."""
        return self._extensions.get(extension) == version

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def start(self, kind: int, body: bytes) -> int:
        """Send a request, and give its number."""
        number = self._next_number()
        self._expected.add(number)
        self._send([struct.pack(">IBI", 5 + len(body), kind, number) + body])
        return number

    def wait_answer(self, number: int) -> tuple[int, bytes]:
        """Wait for the answer to a request: its type and fields."""
        self._wait_until(lambda: number in self._answers)
        self._expected.discard(number)
        return self._answers.pop(number)

    def ask(self, kind: int, body: bytes, doing: str, wanted: int) -> bytes:
        """Send a request, and give the answer's fields."""
        got, answer = self.wait_answer(self.start(kind, body))
        if got == Packet.STATUS:
            error = self.read_status(answer, doing)
            raise error if error is not None else self.bad(f"success, but no answer, when asked to {doing}")
        if got != wanted:
            raise self.bad(f"an answer of type {got} when asked to {doing}")
        return answer

    def do(self, kind: int, body: bytes, doing: str) -> None:
        """Send a request whose answer is a status."""
        got, answer = self.wait_answer(self.start(kind, body))
        if got != Packet.STATUS:
            raise self.bad(f"an answer of type {got} when asked to {doing}")
        error = self.read_status(answer, doing)
        if error is not None:
            raise error

    def forget(self, number: int) -> None:
        """Want the answer to a request no more."""
        self._expected.discard(number)
        self._answers.pop(number, None)

    def read_status(self, body: bytes, doing: str) -> SftpStatusError | None:
        """Make an error of a status; None where it says that all is well."""
        fields = Fields(body, self.bad)
        status = fields.take_u32()
        if status == Status.OK:
            return None
        said = "" if fields.is_empty else as_printable(fields.take_string())
        words = STATUS_WORDS.get(status, f"status {status}")
        if said and said.lower() not in {words, "failure", "no such file", "eof"}:
            words = said.lower() if status != Status.FAILURE else f"the server says: {said}"
        return SftpStatusError(f"cannot {doing}: {words}", status=status, where=self.name)

    def _has_window(self, more: int) -> bool:
        return not self._writes or (self._write_bytes + more <= WINDOW_BYTES and len(self._writes) < _WINDOW_REQUESTS)

    def _send(self, parts: Sequence[memoryview | bytes]) -> None:
        """Put bytes into the pipe, taking in answers meanwhile: or the two ends would wait for each other."""
        if self._broken is not None:
            raise self._broken
        views = [memoryview(part) for part in parts]
        deadline = time.monotonic() + self._timeout_s
        while views:
            try:
                sent = os.writev(self._out, views[:64])
            except BlockingIOError:
                sent = 0
            except OSError:
                raise self._lose() from None
            if sent:
                deadline = time.monotonic() + self._timeout_s
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
            elif self._wait(deadline, wants_out=True) and self._receive():
                deadline = time.monotonic() + self._timeout_s

    def _wait_until(self, is_done: Callable[[], bool]) -> None:
        """Take in answers until something is so."""
        if self._broken is not None:
            raise self._broken
        deadline = time.monotonic() + self._timeout_s
        while not is_done():
            self._wait(deadline, wants_out=False)
            if self._receive():
                deadline = time.monotonic() + self._timeout_s

    def _wait(self, deadline: float, *, wants_out: bool) -> bool:
        """Wait for the pipes; whether there is something to read."""
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        if wants_out:
            poll.register(self._out, select.POLLOUT)
        events = dict(poll.poll(max(deadline - time.monotonic(), 0) * 1000))
        if not events:
            raise self._fail(f"nothing moved for {self._timeout_s:g} s")
        return self._in in events

    def _receive(self) -> bool:
        """Take in what is there; whether there was anything."""
        try:
            data = os.read(self._in, MAX_PACKET_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            raise self._lose()
        self._received += data
        while (packet := self._cut_packet()) is not None:
            self._sort(*packet)
        return True

    def _take_packet(self) -> tuple[int, bytes]:
        """Take one packet, as it comes: the first has no request's number."""
        found: list[tuple[int, bytes]] = []

        def has_come() -> bool:
            packet = self._cut_packet()
            if packet is not None:
                found.append(packet)
            return bool(found)

        deadline = time.monotonic() + self._timeout_s
        while not has_come():
            self._wait(deadline, wants_out=False)
            try:
                data = os.read(self._in, 4096)
            except BlockingIOError:
                continue
            if not data:
                raise self._lose()
            self._received += data
        return found[0]

    def _cut_packet(self) -> tuple[int, bytes] | None:
        if len(self._received) < 5:
            return None
        length, kind = struct.unpack_from(">IB", self._received)
        if not 5 <= length <= MAX_PACKET_BYTES:
            start = as_printable(bytes(self._received[:60]))
            raise self._fail(f"does not speak SFTP: {start!r}", hint=_LOGIN_HINT)
        if len(self._received) < 4 + length:
            return None
        body = bytes(memoryview(self._received)[5 : 4 + length])
        del self._received[: 4 + length]
        return kind, body

    def _sort(self, kind: int, body: bytes) -> None:
        """Give an answer to whoever asked."""
        if len(body) < 4:
            raise self.bad(f"an answer of {len(body)} bytes")
        number = struct.unpack_from(">I", body)[0]
        ticket = self._writes.pop(number, None)
        if ticket is not None:
            self._write_bytes -= ticket.size_bytes
            if kind != Packet.STATUS:
                raise self.bad(f"an answer of type {kind} to a write")
            error = self.read_status(body[4:], ticket.doing)
            if error is not None and self.write_failure is None:
                self.write_failure = error
        elif number in self._expected:
            self._answers[number] = kind, body[4:]
        elif number > self._last_number:
            raise self.bad(f"an answer to request {number}, which was never sent")

    def bad(self, what: str) -> OutputError:
        """Make the error for an answer that no server may give; the connection is given up."""
        return self._fail(f"the server sent {what}")

    def _lose(self) -> OutputError:
        self._broken = self._broken or self._explain()
        return self._broken

    def _fail(self, message: str, hint: str = "") -> OutputError:
        """Give the connection up: what comes next would be out of step."""
        self._broken = self._broken or OutputError(message, where=self.name, hint=hint)
        return self._broken
