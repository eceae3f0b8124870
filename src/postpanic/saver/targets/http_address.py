"""Addresses of HTTP, taken apart without the libraries that are made for all addresses (RFC 3986)."""

from __future__ import annotations

import binascii
from dataclasses import dataclass, replace

from postpanic.errors import OutputError

__all__ = ["HttpAddress", "parse_address", "quote_segment"]

_PORTS = {"http": 80, "https": 443}
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_MAX_CHARACTERS = 8192


@dataclass(frozen=True)
class HttpAddress:
    """Where an object is, and who may put it there."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""
    credentials: str = ""
    """For the header ``Authorization``; empty if the address has none."""

    @property
    def is_secure(self) -> bool:
        """Whether it is https."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Host and port, as the header ``Host`` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """Give the address without its secrets."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"

    def follow(self, location: str) -> HttpAddress | None:
        """Give the address that a redirect names; None unless it is of the same server."""
        if location.startswith("/") and not location.startswith("//"):
            return replace(self, target=location)
        try:
            other = parse_address(location)
        except OutputError:
            return None
        if (other.scheme, other.host, other.port) != (self.scheme, self.host, self.port):
            return None
        return replace(self, target=other.target)


def parse_address(text: str, where: str = "") -> HttpAddress:
    """
    Take an address apart.

    Raises
    ------
    OutputError
        If it is none of HTTP; the message does not have what may be secret in it.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PORTS:
        raise OutputError("the address must begin with http:// or https://", where=where)
    if len(text) > _MAX_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
        raise OutputError("the address has characters that no address may have, or too many", where=where)
    cut = min((at for at in (rest.find(mark) for mark in "/?#") if at >= 0), default=len(rest))
    authority, target = rest[:cut], rest[cut:].partition("#")[0]
    user, _, place = authority.rpartition("@")
    if place.startswith("["):
        host, _, tail = place[1:].partition("]")
        port = tail[1:] if tail.startswith(":") else ""
    else:
        host, _, port = place.partition(":")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 1 << 16)):
        raise OutputError("the address has no host, or a port that is none", where=where)
    if not target.startswith("/"):
        target = f"/{target}"
    credentials = f"Basic {binascii.b2a_base64(_unquote(user), newline=False).decode()}" if user else ""
    return HttpAddress(scheme, host.lower(), int(port) if port else _PORTS[scheme], target, credentials)


def quote_segment(text: str) -> str:
    """
    Spell a name so that it can stand in a path.

    >>> quote_segment("web 7")
    'web%207'
    """
    return "".join(
        chr(byte) if chr(byte) in _SAFE else f"%{byte:02X}" for byte in text.encode(errors="surrogateescape")
    )


def _unquote(text: str) -> bytes:
    first, *parts = text.encode().split(b"%")
    done = [first]
    for part in parts:
        try:
            done.append(bytes.fromhex(part[:2].decode()) + part[2:])
        except ValueError:
            done.append(b"%" + part)
    return b"".join(done)
