"""
A stream of bytes to a server of HTTP: as many objects, as parts of one, or as one request.

A part is kept until the server has it, so a connection that drops costs one
part. One request cannot be taken up again; servers that want to know its
length beforehand learn it at the second attempt, the first one has counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from postpanic.errors import OutputError
from postpanic.saver.targets.http_address import HttpAddress
from postpanic.saver.targets.http_connection import HttpDropError, Response
from postpanic.saver.targets.http_requests import HttpRequests, Tries, is_resumable

__all__ = ["NEEDS_LENGTH", "Output", "PartsOutput", "RangeOutput", "WholeOutput"]

NEEDS_LENGTH = frozenset({400, 411, 501})
"""What servers answer that do not take a request of unknown length: RFC 9110 §15.5.12, and what is seen of others."""
_CHUNK_BYTES = 256 << 10


class Output(Protocol):
    """Where a stream goes."""

    def write(self, views: Sequence[memoryview]) -> None:
        """Take bytes."""

    def finish(self) -> None:
        """See that the server has all."""

    def abort(self) -> None:
        """Leave it as it is."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the objects that the server has."""


class _Buffer:
    """Collects bytes until a part is full; its memory is used again for the next."""

    def __init__(self, size_bytes: int) -> None:
        self._content = bytearray(size_bytes)
        self._used = 0

    def fill(self, view: memoryview) -> memoryview:
        """Take what fits, and give back what does not."""
        count = min(len(view), len(self._content) - self._used)
        self._content[self._used : self._used + count] = view[:count]
        self._used += count
        return view[count:]

    @property
    def is_full(self) -> bool:
        return self._used == len(self._content)

    def take(self) -> memoryview:
        """Give what is in it; it is empty then, but keeps the bytes until it is filled again."""
        used, self._used = self._used, 0
        return memoryview(self._content)[:used]


class PartsOutput:
    """
    One object for each so many bytes: ``NAME.00000``, ``NAME.00001``.

    Parameters
    ----------
    addresses : callable
        Gives the address of an object by its name.
    """

    def __init__(
        self, requests: HttpRequests, addresses: Callable[[str], HttpAddress], name: str, part_bytes: int
    ) -> None:
        self._requests = requests
        self._addresses = addresses
        self._name = name
        self._buffer = _Buffer(part_bytes)
        self._names: list[str] = []

    def write(self, views: Sequence[memoryview]) -> None:
        """Take bytes, and put the part when it is full."""
        for view in views:
            while len(view):
                view = self._buffer.fill(view)
                if self._buffer.is_full:
                    self._put(self._buffer.take())

    def finish(self) -> None:
        """Put the last part."""
        last = self._buffer.take()
        if len(last) or not self._names:
            self._put(last)

    def abort(self) -> None:
        """Do nothing: what is there stays, and is written over by the next attempt."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts."""
        return tuple(self._names)

    def _put(self, content: memoryview) -> None:
        name = f"{self._name}.{len(self._names):05d}"
        self._requests.put(self._addresses(name), content)
        self._names.append(name)


class RangeOutput:
    """
    One object, put by ``Content-Range``: where a connection drops, the server is asked how much it has.

    It is asked by HEAD, or, where it answered 308 before, by an empty range, as
    resumable uploads of Google's object storage have it.
    """

    def __init__(self, requests: HttpRequests, address: HttpAddress, name: str, part_bytes: int) -> None:
        self._requests = requests
        self._address = address
        self._name = name
        self._buffer = _Buffer(part_bytes)
        self._start = 0
        self._answers_308 = False

    def write(self, views: Sequence[memoryview]) -> None:
        """Take bytes, and put the part when it is full."""
        for view in views:
            while len(view):
                view = self._buffer.fill(view)
                if self._buffer.is_full:
                    self._put(self._buffer.take(), "*")

    def finish(self) -> None:
        """Put the last part, and with it the length of all; then the server must have so much."""
        last = self._buffer.take()
        self._put(last, str(self._start + len(last)))
        reached = self._start if self._answers_308 else self._ask_reached("*")
        if reached != self._start:
            raise OutputError(
                f"the server has {reached} bytes of {self._start}",
                where=self._requests.name,
                hint="it may know no PUT with Content-Range: mode parts needs none",
            )

    def abort(self) -> None:
        """Do nothing: what is there stays."""

    @property
    def names(self) -> tuple[str, ...]:
        """It is one object."""
        return (self._name,)

    def _put(self, content: memoryview, total: str) -> None:
        """Put one part, or what the server does not have of it."""
        at, end = self._start, self._start + len(content)
        tries = self._requests.tries()
        is_certain = False
        while not is_certain:
            span = f"{at}-{end - 1}" if at < end else "*"
            try:
                if at < end or self._answers_308:
                    headers = [("Content-Range", f"bytes {span}/{total}")]
                    response = self._requests.put_once(self._address, content[at - self._start :], headers)
                    at = self._read_reached(response, end)
                is_certain = at == end
            except OutputError as exc:
                tries.pause(exc)
                at = self._find_reached(total, tries)
            if not self._start <= at <= end:
                message = f"the server has {at} bytes, and must have {self._start} to {end}"
                raise OutputError(message, where=self._requests.name, hint="mode parts needs no resuming")
        self._start = end

    def _find_reached(self, total: str, tries: Tries) -> int:
        """Ask how much the server has, until it says so."""
        while True:
            try:
                return self._ask_reached(total)
            except OutputError as exc:
                tries.pause(exc)

    def _ask_reached(self, total: str) -> int:
        if self._answers_308:
            nothing = memoryview(b"")
            response = self._requests.put_once(self._address, nothing, [("Content-Range", f"bytes */{total}")])
            return self._read_reached(response, int(total) if total != "*" else 0)
        response = self._requests.ask(self._address)
        if response.status == 404:
            return 0
        length = self._requests.judge(response).headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0

    def _read_reached(self, response: Response, end: int) -> int:
        """Tell how much the server has by its answer."""
        if not is_resumable(response):
            return end
        self._answers_308 = True
        # RFC 9110 has no Range in answers; this one is "bytes=0-LAST", and missing when nothing is there.
        last = response.headers.get("range", "").rpartition("-")[2]
        return int(last) + 1 if last.isascii() and last.isdecimal() and len(last) < 20 else 0


class WholeOutput:
    """
    One request for all.

    Parameters
    ----------
    size_bytes : int or None
        That the stream will have; None sends it in chunks (RFC 9112 §7.1), and
        goes on counting when the server does not take that.
    """

    def __init__(self, requests: HttpRequests, address: HttpAddress, name: str, size_bytes: int | None) -> None:
        self._requests = requests
        self._address = address
        self._name = name
        self._size = size_bytes
        self._sent = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._is_counting = False
        self._has_begun = False

    @property
    def sent_bytes(self) -> int:
        """How much was given to it."""
        return self._sent

    @property
    def needs_length(self) -> bool:
        """Whether the server has refused what has no length beforehand."""
        return self._is_counting

    def write(self, views: Sequence[memoryview]) -> None:
        """Send bytes, small ones together."""
        count = sum(len(view) for view in views)
        self._sent += count
        if self._is_counting:
            return
        if self._size is not None and self._sent > self._size:
            raise OutputError(f"the stream is longer than the {self._size} bytes announced", where=self._requests.name)
        if self._pending_bytes + count < _CHUNK_BYTES:
            self._pending += [bytes(view) for view in views]
            self._pending_bytes += count
        else:
            self._flush(views)

    def finish(self) -> None:
        """Send the end, and wait for the server's word."""
        if not self._is_counting:
            self._flush([])
        if (
            not self._is_counting
            and self._size is None
            and not self._requests.connection.send([memoryview(b"0\r\n\r\n")])
        ):
            self._hear()
        if self._is_counting:
            raise HttpDropError(
                f"the server wants to know the length beforehand: {self._sent} bytes, counted",
                where=self._requests.name,
            )
        self._requests.judge(self._requests.connection.finish())

    def abort(self) -> None:
        """Break the connection off: the server must not take what it has for the whole."""
        self._requests.close()

    @property
    def names(self) -> tuple[str, ...]:
        """It is one object."""
        return (self._name,)

    def _flush(self, views: Sequence[memoryview]) -> None:
        parts = [*(memoryview(content) for content in self._pending), *views]
        count = sum(len(part) for part in parts)
        self._pending, self._pending_bytes = [], 0
        if not self._has_begun:
            length = ("Content-Length", str(self._size)) if self._size is not None else ("Transfer-Encoding", "chunked")
            self._requests.begin("PUT", self._address, [length, ("Content-Type", "application/octet-stream")])
            self._has_begun = True
        if not count:
            return
        if self._size is None:
            parts = [memoryview(f"{count:x}\r\n".encode()), *parts, memoryview(b"\r\n")]
        if not self._requests.connection.send(parts):
            self._hear()

    def _hear(self) -> None:
        """Listen to a server that answers before it has everything."""
        response = self._requests.connection.finish()
        self._requests.close()
        if self._size is None and response.status in NEEDS_LENGTH:
            self._is_counting = True
            return
        error = self._requests.refuse(response)
        if 200 <= response.status < 300:
            error = HttpDropError("the server was content before it had everything", where=self._requests.name)
        raise error
