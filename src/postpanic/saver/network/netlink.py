"""
Requests to the kernel's routing tables: rtnetlink(7), as little of it as a dump needs.

Sources: RFC 3549, netlink(7), rtnetlink(7); ``include/uapi/linux/netlink.h``,
``rtnetlink.h``, ``if_link.h``, ``if_addr.h``. All numbers are in the machine's
byte order, addresses in the network's.

::

    message   = u32 length | u16 type | u16 flags | u32 sequence | u32 port | body      (padded to 4 bytes)
    attribute = u16 length | u16 type | value                                           (padded to 4 bytes)
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Self

from postpanic.errors import OutputError

__all__ = ["Attributes", "Message", "Netlink", "NetlinkError", "encode_attribute", "parse_attributes"]

NETLINK_ROUTE = 0
_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_ACK_TLVS, _NLM_F_CAPPED = 0x200, 0x100
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_NLMSGERR_ATTR_MSG = 1
_TYPE_MASK = 0x3FFF
"""Of an attribute: two bits above say that it is nested, or in the network's byte order."""
_RECEIVE_BYTES = 64 << 10
_MAX_MESSAGES = 100_000

Attributes = Mapping[int, bytes]
Message = tuple[int, bytes]
"""Type and body."""


class NetlinkError(OutputError):
    """
    The kernel refused.

    Attributes
    ----------
    number : int
        Of errno.
    """

    def __init__(self, message: str, *, number: int, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.number = number


class Netlink:
    """
    A socket to ask and tell the kernel.

    Parameters
    ----------
    timeout_s : float
        Of one request.

    Raises
    ------
    OutputError
        If the kernel has no network at all.
    """

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
            self._socket.bind((0, 0))
        except OSError as exc:
            raise OutputError(f"the kernel has no network: {_word(exc)}", where="network") from exc
        with suppress(OSError):
            # Since 4.12; then errors come with words.
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, body: bytes, *, flags: int = 0, doing: str) -> None:
        """
        Tell the kernel something, and wait for its word.

        Parameters
        ----------
        kind : int
            Type of the message.
        flags : int
            Beside those of every request.
        doing : str
            For errors: ``rename eth0``.

        Raises
        ------
        NetlinkError
            If the kernel refuses.
        """
        for _message in self._exchange(kind, body, flags | _NLM_F_ACK, doing):
            pass

    def ask(self, kind: int, body: bytes, *, doing: str) -> list[Message]:
        """Ask for one thing; the answer is one message, or more with words of the kernel."""
        return list(self._exchange(kind, body, _NLM_F_ACK, doing))

    def dump(self, kind: int, body: bytes, *, doing: str) -> list[Message]:
        """Ask for all things of a kind."""
        return list(self._exchange(kind, body, _NLM_F_DUMP, doing))

    def _exchange(self, kind: int, body: bytes, flags: int, doing: str) -> Iterator[Message]:
        self._sequence += 1
        head = _HEAD.pack(_HEAD.size + len(body), kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        deadline = time.monotonic() + self._timeout_s
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendto(head + body, (0, 0))
            for _ in range(_MAX_MESSAGES):
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                data, (sender, _groups) = self._socket.recvfrom(_RECEIVE_BYTES)
                if sender != 0:
                    # Only the kernel has port 0; whoever else writes to us is not believed.
                    continue
                for found, message_flags, sequence, content in _divide(data):
                    if sequence != self._sequence:
                        continue
                    if found == _NLMSG_DONE:
                        return
                    if found == _NLMSG_ERROR:
                        _check_error(content, message_flags, doing)
                        return
                    yield found, content
        except TimeoutError:
            raise OutputError(f"cannot {doing}: no answer of the kernel for {self._timeout_s:g} s") from None
        except OSError as exc:
            raise NetlinkError(f"cannot {doing}: {_word(exc)}", number=exc.errno or 0) from exc
        raise OutputError(f"cannot {doing}: the kernel's answer does not end")


def encode_attribute(kind: int, value: bytes) -> bytes:
    """
    Encode one attribute; the length is without the padding.

    >>> encode_attribute(3, b"lo").hex()
    '060003006c6f0000'
    """
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def parse_attributes(body: bytes) -> dict[int, bytes]:
    """
    Take a row of attributes apart; of several of one type the last counts.

    Raises
    ------
    OutputError
        If a length does not fit.
    """
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if not _ATTRIBUTE.size <= length <= len(body) - at:
            raise OutputError(f"an attribute of {length} bytes where {len(body) - at} are left", where="netlink")
        found[kind & _TYPE_MASK] = body[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found


def _divide(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Take a datagram apart: type, flags, sequence and body of each message."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, flags, sequence, _port = _HEAD.unpack_from(data, at)
        if not _HEAD.size <= length <= len(data) - at:
            raise OutputError(f"a message of {length} bytes where {len(data) - at} are left", where="netlink")
        yield kind, flags, sequence, data[at + _HEAD.size : at + length]
        at += -(-length // 4) * 4


def _check_error(content: bytes, flags: int, doing: str) -> None:
    """Raise what an error message says; number 0 is the word that all is well."""
    if len(content) < 4:
        raise OutputError("an error message without a number", where="netlink")
    number = -int.from_bytes(content[:4], sys.byteorder, signed=True)
    if number == 0:
        return
    words = os.strerror(number).lower()
    if flags & _NLM_F_ACK_TLVS and len(content) >= 4 + _HEAD.size:
        length = _HEAD.size if flags & _NLM_F_CAPPED else -(-_HEAD.unpack_from(content, 4)[0] // 4) * 4
        said = parse_attributes(content[4 + length :]).get(_NLMSGERR_ATTR_MSG, b"")
        text = said.split(b"\0")[0].decode(errors="replace")
        words = f"{text} ({errno.errorcode.get(number, number)})" if text else words
    raise NetlinkError(f"cannot {doing}: {words}", number=number)


def _word(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()
