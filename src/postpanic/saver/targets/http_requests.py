"""
Requests that put something on a server of HTTP, again and again where that makes sense.

A connection that is lost and a server that is overloaded are tried again,
with pauses that grow; what a server refuses for a reason is not.
"""

from __future__ import annotations

import binascii
import hashlib
import time
from collections.abc import Sequence

from postpanic.errors import NoSpaceError, OutputError
from postpanic.saver.targets.http_address import HttpAddress
from postpanic.saver.targets.http_connection import HttpConnection, HttpDropError, Response

__all__ = ["HttpRequests", "HttpStatusError", "Tries", "is_resumable"]

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_TRIES = 8
_PAUSES_S = (0.3, 1.0, 2.0, 4.0, 8.0)
_MAX_RETRY_AFTER_S = 30.0
_PATIENCE = 2.0
"""Times the timeout: how long one request is tried again."""
_MAX_REDIRECTS = 3
_HINTS = {
    401: "the server wants to know who it is: headers, or user and password in the address",
    403: "the server does not allow it: presigned addresses run out",
    404: "is the address right?",
    405: "the server takes no PUT there",
    411: "the server wants to know the length beforehand: mode parts tells it",
    413: "a smaller part_bytes makes smaller requests",
    501: "the server cannot do this kind of request: try another mode",
}


class HttpStatusError(OutputError):
    """
    The server refused.

    Attributes
    ----------
    status : int
        Of RFC 9110 §15.
    """

    def __init__(
        self, message: str, *, status: int, retry_after_s: float = 0.0, where: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s


class Tries:
    """
    How often something is tried, and for how long.

    Parameters
    ----------
    timeout_s : float
        Of one try; twice as long is tried in all.
    """

    def __init__(self, timeout_s: float) -> None:
        self._deadline = time.monotonic() + _PATIENCE * timeout_s
        self._count = 0

    def pause(self, error: OutputError) -> None:
        """Wait before the next try; raise the error where there is no hope, or no time."""
        after = error.retry_after_s if isinstance(error, HttpStatusError) and error.status in _BUSY else 0.0
        is_passing = isinstance(error, HttpDropError) or (isinstance(error, HttpStatusError) and error.status in _BUSY)
        pause = max(_PAUSES_S[min(self._count, len(_PAUSES_S) - 1)], after)
        self._count += 1
        if not is_passing or self._count >= _MAX_TRIES or time.monotonic() + pause > self._deadline:
            raise error
        time.sleep(pause)


class HttpRequests:
    """
    Requests to one server.

    Parameters
    ----------
    address : HttpAddress
        Of the server.
    headers : sequence of tuple of str
        Sent with every request.
    name : str
        For messages.
    timeout_s : float
        Without a byte in either direction.
    ca_file : str
        Certificates to trust.
    """

    def __init__(
        self,
        address: HttpAddress,
        *,
        headers: Sequence[tuple[str, str]] = (),
        name: str,
        timeout_s: float,
        ca_file: str = "",
    ) -> None:
        self.connection = HttpConnection(address, name=name, timeout_s=timeout_s, ca_file=ca_file)
        self._headers = [*headers]
        if address.credentials and not any(name.lower() == "authorization" for name, _value in headers):
            self._headers.append(("Authorization", address.credentials))
        self.name = name
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Let the connection go."""
        self.connection.close()

    def begin(self, method: str, address: HttpAddress, headers: Sequence[tuple[str, str]]) -> None:
        """Send the head of a request, with what is sent with every one."""
        self.connection.begin(method, address.target, [*headers, ("User-Agent", "postpanic"), *self._headers])

    def put(self, address: HttpAddress, content: memoryview, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """
        Put an object, or a part of one, with its SHA-256 (RFC 9530).

        Raises
        ------
        HttpStatusError
            If the server refuses it.
        NoSpaceError
            If it has no room for it.
        OutputError
            If it cannot be reached, or did not answer, each time that it was tried.
        """
        tries = Tries(self._timeout_s)
        while True:
            try:
                return self.put_once(address, content, headers)
            except OutputError as exc:
                tries.pause(exc)

    def put_once(self, address: HttpAddress, content: memoryview, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """Put an object, or a part of one, without trying again."""
        digest = binascii.b2a_base64(hashlib.sha256(content).digest(), newline=False).decode()
        fields = [
            ("Content-Length", str(len(content))),
            ("Content-Type", "application/octet-stream"),
            ("Content-Digest", f"sha-256=:{digest}:"),
            *headers,
        ]
        for _ in range(_MAX_REDIRECTS):
            self.begin("PUT", address, fields)
            has_all = self.connection.send([content])
            response = self.connection.finish()
            if not has_all:
                # What is left of the body would be taken for the next request.
                self.connection.close()
            if response.status not in (307, 308):
                break
            other = address.follow(response.headers.get("location", ""))
            if other is None:
                break
            address = other
        return self.judge(response)

    def ask(self, address: HttpAddress) -> Response:
        """Ask for the head of an object; whatever the answer is."""
        self.begin("HEAD", address, [])
        return self.connection.finish(is_head=True)

    def tries(self) -> Tries:
        """Begin to count."""
        return Tries(self._timeout_s)

    def judge(self, response: Response) -> Response:
        """Give a response back that means success, or that more is expected; raise what another means."""
        if 200 <= response.status < 300 or is_resumable(response):
            return response
        raise self.refuse(response)

    def refuse(self, response: Response) -> OutputError:
        """Make an error of a response."""
        said = f": {response.first_line}" if response.first_line else ""
        reason = f" {response.reason}" if response.reason else ""
        if response.status == 507:
            return NoSpaceError(f"the server has no room (507{reason}){said}", where=self.name)
        message = f"the server answers {response.status}{reason}{said}"
        if 300 <= response.status < 400:
            there = response.headers.get("location", "").partition("?")[0][:200]
            message = f"the server sends us elsewhere ({response.status}): {there or 'nobody knows where'}"
            return HttpStatusError(message, status=response.status, where=self.name, hint="give that address")
        return HttpStatusError(
            message,
            status=response.status,
            retry_after_s=_read_retry_after(response),
            where=self.name,
            hint=_HINTS.get(response.status, ""),
        )


def is_resumable(response: Response) -> bool:
    """Whether the server has taken a part, and expects more: 308 as Google's object storage means it."""
    return response.status == 308 and "location" not in response.headers


def _read_retry_after(response: Response) -> float:
    """Read how many seconds the server asks us to wait; a date is not understood."""
    value = response.headers.get("retry-after", "")
    return min(float(value), _MAX_RETRY_AFTER_S) if value.isascii() and value.isdecimal() else 0.0
