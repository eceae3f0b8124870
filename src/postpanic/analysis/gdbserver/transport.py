"""
Connections: where to listen, the bytes of one client, and those who have to wait.

A dump holds the memory of everything that ran: without being asked for more, it
is shown on the machine itself only, to its own user on a Unix socket.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from postpanic.analysis.gdbserver.packets import Control, PacketReader, ProtocolError, encode_packet
from postpanic.analysis.gdbserver.session import PACKET_BYTES, Session, View
from postpanic.errors import OutputError, UsageError

__all__ = ["Address", "open_listener", "parse_address", "serve"]

_RECEIVE_BYTES = 1 << 16
_SEND_TIMEOUT_S = 60.0
_REFUSAL_TIMEOUT_S = 2.0
_WAKE_UP_S = 0.25
_BUSY = b"E.another gdb is at this dump already"
_MAX_RESENDS = 16


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where to listen: a port of an interface, or the path of a Unix socket.

    ``str()`` gives it as gdb's ``target remote`` takes it.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, anywhere: bool = False) -> Address:
    """
    Parse an address: ``PORT``, ``:PORT``, ``HOST:PORT``, or a path with a slash in it.

    Parameters
    ----------
    anywhere : bool
        Whether other machines may be listened to.

    Raises
    ------
    UsageError
        If it is none, or would be open to other machines.
    """
    if "/" in text:
        return Address(path=Path(text))
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or not 0 <= int(port) <= 0xFFFF:
        raise UsageError(f"{text!r} is not an address", hint="PORT, HOST:PORT, or a path with a slash: ./socket")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise UsageError(
            f"{host!r} is not an IP address", hint="an address of this machine, such as 127.0.0.1"
        ) from None
    if not is_loopback and not anywhere:
        raise UsageError(
            f"{host} can be reached from other machines, and there is no password",
            hint="127.0.0.1 and a tunnel (ssh -L), or --anywhere if the network is to be trusted",
        )
    return Address(host, int(port))


@contextlib.contextmanager
def open_listener(address: Address) -> Iterator[tuple[socket.socket, Address]]:
    """
    Listen; gives the socket and the address that it has, with a port where 0 was asked for.

    A Unix socket is for its owner alone, and is removed at the end.

    Raises
    ------
    OutputError
        If the address is taken, or may not be used.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(socket.AF_UNIX if address.path is not None else family, socket.SOCK_STREAM)
    try:
        try:
            if address.path is not None:
                _bind_path(listener, address.path)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address.host, address.port))
                address = Address(address.host, listener.getsockname()[1])
            listener.listen(4)
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(address)) from exc
        try:
            yield listener, address
        finally:
            if address.path is not None:
                address.path.unlink(missing_ok=True)
    finally:
        listener.close()


def _bind_path(listener: socket.socket, path: Path) -> None:
    """Bind a Unix socket; one that nobody listens at any more is replaced."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def serve(
    listener: socket.socket,
    view: View,
    *,
    is_over: Callable[[], bool] = lambda: False,
    many: bool = False,
) -> None:
    """
    Serve one client after the other; while one is served, others are told so and sent away.

    Parameters
    ----------
    is_over : callable
        Asked several times a second; the server ends when it says so.
    many : bool
        Whether to wait for another client when one has left; otherwise the server ends then.
    """
    while not is_over():
        connection = _accept(listener, _WAKE_UP_S)
        if connection is None:
            continue
        with connection:
            _serve_client(_Client(connection, view), listener, is_over)
        if not many:
            return


def _accept(listener: socket.socket, timeout_s: float) -> socket.socket | None:
    listener.settimeout(timeout_s)
    try:
        return listener.accept()[0]
    except OSError:
        return None


def _serve_client(client: _Client, listener: socket.socket, is_over: Callable[[], bool]) -> None:
    """Serve one until it leaves; between its packets look for others."""
    looked = time.monotonic()
    while client.serve_once():
        if (now := time.monotonic()) - looked < _WAKE_UP_S:
            continue
        looked = now
        if is_over():
            return
        other = _accept(listener, 0)
        if other is not None:
            _refuse(other)


def _refuse(connection: socket.socket) -> None:
    """Answer each packet with why there is nothing to be had, until the client leaves or time is up."""
    reader = PacketReader(PACKET_BYTES)
    until = time.monotonic() + _REFUSAL_TIMEOUT_S
    with connection, contextlib.suppress(OSError, ProtocolError):
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(_RECEIVE_BYTES)
            if not data:
                return
            for item in reader.feed(data):
                if isinstance(item, bytes):
                    connection.sendall(b"+" + encode_packet(_BUSY))


class _Client:
    """The connection of a client, and its session."""

    def __init__(self, connection: socket.socket, view: View) -> None:
        self.connection = connection
        # Of the system's own: each packet then costs one call to receive and one to send.
        connection.settimeout(None)
        for option, timeout_s in ((socket.SO_RCVTIMEO, _WAKE_UP_S), (socket.SO_SNDTIMEO, _SEND_TIMEOUT_S)):
            seconds = int(timeout_s)
            timeval = struct.pack("@ll", seconds, int((timeout_s - seconds) * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, option, timeval)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._view = view
        self._session = Session(view)
        self._arrivals = select.poll()
        self._arrivals.register(connection, select.POLLIN)
        self._looks_ahead = True
        self._reader = PacketReader(PACKET_BYTES)
        self._last = b""
        self._resends = 0

    def serve_once(self) -> bool:
        """Take what arrives within a moment, and answer it; False: the client is gone, or is to go."""
        try:
            self._look_ahead()
            try:
                data = self.connection.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            for item in self._reader.feed(data):
                if not self._take(item):
                    return False
        except (OSError, ProtocolError):
            return False
        return True

    def _look_ahead(self) -> None:
        """Read what will be asked for, as long as nothing is asked."""
        while self._looks_ahead and not self._arrivals.poll(0):
            self._looks_ahead = self._view.read_ahead()

    def _take(self, item: bytes | Control) -> bool:
        if item is Control.NACK and self._session.needs_acks:
            self._resends += 1
            if self._resends > _MAX_RESENDS:
                return False
            self.connection.sendall(self._last)
        elif item is Control.DAMAGED and self._session.needs_acks:
            self.connection.sendall(b"-")
        elif isinstance(item, bytes):
            self._resends = 0
            if self._session.needs_acks:
                self.connection.sendall(b"+")
            for reply in self._session.answer(item):
                # gdb closes the connection behind "k", which has no reply.
                if self._session.ended and not reply:
                    return False
                self._last = encode_packet(reply)
                self.connection.sendall(self._last)
        return not self._session.ended
