"""
A client of HTTP/1.1 that sends, for as little memory as possible.

One connection to one server, kept from request to request (RFC 9112). A server
that answers before it has everything is listened to: it says no, and why.
Whatever it sends is bounded. Nothing that is secret is in a message: neither
headers nor what follows the ``?`` of an address, which of presigned addresses
is the signature.
"""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from postpanic.errors import OutputError
from postpanic.saver.targets.http_address import HttpAddress

if TYPE_CHECKING:
    import ssl

__all__ = ["HttpConnection", "HttpDropError", "Response"]

_CONNECT_S = 15.0
_MAX_HEAD_BYTES = 32 << 10
_MAX_INTERIM = 8
"""Answers 1xx before the real one."""
_MAX_BODY_BYTES = 64 << 10
"""Of an answer, that is read so that the connection can be kept."""
_SEND_BYTES = 256 << 10
"""At once, and in the kernel: memory that is not swept up by buffers, and a view of what moves."""
_READ_BYTES = 16 << 10


class HttpDropError(OutputError):
    """The connection is lost, could not be made, or the server makes no sense: it may work another time."""


@dataclass(frozen=True, slots=True)
class Response:
    """What the server said; header names in small letters."""

    status: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    """Its beginning."""

    @property
    def first_line(self) -> str:
        """The first line of the body that says something, cut and without what moves a cursor."""
        for line in self.body[:2000].decode(errors="replace").splitlines():
            text = "".join(char if char.isprintable() else " " for char in line).strip()
            if text and not text.startswith("<?xml") and not text.lower().startswith("<!doctype"):
                return text[:200]
        return ""


class HttpConnection:
    """
    A connection to the server of an address; it is made when it is needed.

    Every method raises :class:`HttpDropError` when the connection is lost or
    nothing moves for too long.

    Parameters
    ----------
    address : HttpAddress
        Of which scheme, host and port count.
    name : str
        For messages.
    timeout_s : float
        Without a byte in either direction.
    ca_file : str
        Certificates to trust.
    """

    def __init__(self, address: HttpAddress, *, name: str, timeout_s: float, ca_file: str = "") -> None:
        self._address = address
        self._name = name
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._socket: socket.socket | None = None
        self._received = b""
        self._context: ssl.SSLContext | None = None

    def begin(self, method: str, target: str, headers: Sequence[tuple[str, str]]) -> None:
        """
        Send the head of a request.

        Parameters
        ----------
        target : str
            Path and query.
        headers : sequence of tuple of str
            Without ``Host``.
        """
        if self._socket is not None and self._has_spoken():
            # What comes unasked is the server's word that it has closed an idle connection.
            self.close()
        if self._socket is None:
            self._connect()
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._address.authority}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.send([memoryview("\r\n".join([*lines, "", ""]).encode("latin-1"))])

    def send(self, views: Sequence[memoryview]) -> bool:
        """
        Send bytes of the body; False if the server has answered already and wants no more.

        Then :meth:`finish` gives the answer.
        """
        sock = self._get_socket()
        for view in views:
            while len(view):
                if self._has_spoken():
                    return False
                try:
                    sent = sock.send(view[:_SEND_BYTES])
                except TimeoutError:
                    raise self._fail(f"nothing moved for {self._timeout_s:g} s") from None
                except OSError as exc:
                    if self._has_spoken() and self._received:
                        return False
                    raise self._fail(f"the connection is lost: {_word(exc)}") from None
                view = view[sent:]
        return True

    def finish(self, *, is_head: bool = False) -> Response:
        """Wait for the answer; a server that does not want the connection kept is left."""
        try:
            for _ in range(_MAX_INTERIM):
                response = self._read_head()
                if response.status >= 200:
                    break
            else:
                raise self._fail("the server answers 1xx without end")
            body, is_whole = (b"", True) if is_head or response.status == 204 else self._read_body(response)
        except HttpDropError:
            self.close()
            raise
        if not is_whole or "close" in response.headers.get("connection", "").lower():
            self.close()
        return Response(response.status, response.reason, response.headers, body)

    def close(self) -> None:
        """Let the connection go; the next request makes another."""
        sock, self._socket = self._socket, None
        self._received = b""
        if sock is not None:
            sock.close()

    def _connect(self) -> None:
        host, port = self._address.host, self._address.port
        try:
            # As bytes: a string would load the tables of international names.
            places = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise HttpDropError(f"the name {host} cannot be looked up: {_word(exc)}", where=self._name) from None
        failure = "no address"
        for family, kind, protocol, _name, place in places[:8]:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(min(self._timeout_s, _CONNECT_S))
            try:
                sock.connect(place)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
                self._socket = self._wrap(sock) if self._address.is_secure else sock
            except OSError as exc:
                sock.close()
                failure = _word(exc)
                continue
            except BaseException:
                sock.close()
                raise
            self._socket.settimeout(self._timeout_s)
            return
        raise HttpDropError(f"cannot connect to {self._address.authority}: {failure}", where=self._name)

    def _wrap(self, sock: socket.socket) -> socket.socket:
        """Make it a connection of TLS; a certificate that is not trusted is nothing to try again."""
        import ssl

        if self._context is None:
            self._context = self._make_context()
        try:
            return self._context.wrap_socket(sock, server_hostname=self._address.host.encode("ascii"))
        except ssl.SSLCertVerificationError as exc:
            hint = "ca_file must have who signed it, and the machine's clock must be right"
            message = f"the server's certificate is not trusted: {exc.verify_message}"
            raise OutputError(message, where=self._name, hint=hint) from None

    def _make_context(self) -> ssl.SSLContext:
        import ssl

        if not self._ca_file:
            raise OutputError(
                "https needs certificates to trust, and none are in the image", where=self._name, hint="set ca_file"
            )
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as exc:
            reason = getattr(exc, "reason", "") or _word(exc)
            raise OutputError(f"certificates cannot be read from {self._ca_file}: {reason}", where=self._name) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _get_socket(self) -> socket.socket:
        if self._socket is None:
            raise HttpDropError("the connection is lost", where=self._name)
        return self._socket

    def _has_spoken(self) -> bool:
        """Whether the server has sent anything, or closed; reads it."""
        sock = self._get_socket()
        if self._received:
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if not poll.poll(0) and not getattr(sock, "pending", int)():
            return False
        sock.settimeout(0)
        try:
            self._received = sock.recv(_READ_BYTES)
        except OSError as exc:
            # TLS has messages of its own, which are none of ours.
            return not isinstance(exc, BlockingIOError) and type(exc).__name__ != "SSLWantReadError"
        finally:
            sock.settimeout(self._timeout_s)
        return True

    def _read_more(self) -> None:
        sock = self._get_socket()
        waiting = self._count_unsent(sock)
        try:
            while True:
                try:
                    data = sock.recv(_READ_BYTES)
                except TimeoutError:
                    # On a slow line what the kernel has still to send takes longer than an answer may.
                    still_waiting = self._count_unsent(sock)
                    if still_waiting >= waiting:
                        raise self._fail(f"no answer for {self._timeout_s:g} s") from None
                    waiting = still_waiting
                else:
                    break
        except OSError as exc:
            raise self._fail(f"the connection is lost: {_word(exc)}") from None
        if not data:
            raise self._fail("the server closed the connection")
        self._received += data

    @staticmethod
    def _count_unsent(sock: socket.socket) -> int:
        """Tell how many bytes the other side has not acknowledged yet: SIOCOUTQ of tcp(7)."""
        try:
            return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def _read_head(self) -> Response:
        while b"\r\n\r\n" not in self._received:
            if len(self._received) > _MAX_HEAD_BYTES:
                raise self._fail("the server's answer has too long a head")
            self._read_more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status, _, reason = rest.partition(" ")
        if not version.startswith("HTTP/1.") or not (status.isdecimal() and status.isascii() and len(status) == 3):
            raise self._fail(f"the server does not speak HTTP/1.1: {first[:60]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.strip().lower(), value.strip())
        return Response(int(status), "".join(char for char in reason if char.isprintable())[:80], headers)

    def _read_body(self, response: Response) -> tuple[bytes, bool]:
        """Read the body as far as it is wanted: its beginning, and whether that was all."""
        length = response.headers.get("content-length", "")
        if "transfer-encoding" in response.headers or not (length.isascii() and length.isdecimal()):
            # Its end is not worth looking for; its beginning tells what is wrong.
            wanted = 0 if response.status < 300 else 512
            body = self._read_up_to(wanted)
            if "transfer-encoding" in response.headers:
                body = body.partition(b"\r\n")[2]
            return body, False
        size = int(length)
        body = self._read_up_to(min(size, _MAX_BODY_BYTES))
        if len(body) >= size:
            self._received = body[size:]
            return body[:size], True
        return body, False

    def _read_up_to(self, size_bytes: int) -> bytes:
        data = self._received
        with suppress(HttpDropError):
            while len(data) < size_bytes:
                self._read_more()
                data = self._received
        return data

    def _fail(self, message: str) -> HttpDropError:
        self.close()
        return HttpDropError(message, where=self._name)


def _word(exc: OSError) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer"
    return (exc.strerror or str(exc)).lower()
