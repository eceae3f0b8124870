"""
Packets of gdb's remote protocol: framing, checksums, escapes.

Source: gdb manual, "Overview" of the remote protocol. A packet is ``$data#xx``,
where xx is the sum of the data's bytes modulo 256; ``}`` escapes a byte, which
follows with bit 5 inverted; ``+`` and ``-`` acknowledge; byte 3 interrupts.
"""

from __future__ import annotations

import enum
import re

from postpanic.errors import PostpanicError

__all__ = [
    "Control",
    "PacketReader",
    "ProtocolError",
    "decode_hex",
    "decode_number",
    "encode_packet",
    "escape",
    "unescape",
]

_START, _END, _ESCAPE, _RUN = b"$"[0], b"#"[0], b"}"[0], b"*"[0]
_FLIP = 0x20
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_MOST_DIGITS = 16


class ProtocolError(PostpanicError):
    """What came is no packet of the remote protocol, and the connection is of no use any more."""

    code = "gdb-protocol"


class Control(enum.Enum):
    """What may come between packets."""

    ACK = "+"
    NACK = "-"
    INTERRUPT = "\x03"
    DAMAGED = "damaged"
    """A packet whose checksum is wrong."""


_CONTROLS = {ord("+"): Control.ACK, ord("-"): Control.NACK, 3: Control.INTERRUPT}


class PacketReader:
    """
    Takes packets out of a stream, however it is cut.

    Parameters
    ----------
    limit_bytes : int
        A packet that is longer ends the connection.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes | Control]:
        """
        Add what has arrived.

        Returns
        -------
        list of bytes and Control
            The data of each whole packet, still escaped, and what came between them.

        Raises
        ------
        ProtocolError
            If a packet is longer than the limit.
        """
        self._pending += data
        found: list[bytes | Control] = []
        at = 0
        pending = self._pending
        while at < len(pending):
            first = pending[at]
            if first != _START:
                # What is neither a packet nor a control is noise of a serial line.
                if first in _CONTROLS:
                    found.append(_CONTROLS[first])
                at += 1
                continue
            end = pending.find(_END, at)
            if end < 0 or end + 2 >= len(pending):
                break
            found.append(_check(bytes(pending[at + 1 : end]), bytes(pending[end + 1 : end + 3])))
            at = end + 3
        del pending[:at]
        if len(pending) > self._limit:
            raise ProtocolError(f"a packet of more than {self._limit} bytes")
        return found


def _check(data: bytes, digits: bytes) -> bytes | Control:
    if not _HEX_DIGITS.issuperset(digits) or sum(data) & 0xFF != int(digits, 16):
        return Control.DAMAGED
    return data


def encode_packet(data: bytes) -> bytes:
    """
    Frame the data of a packet, which is escaped already.

    >>> encode_packet(b"OK")
    b'$OK#9a'
    """
    return b"$%b#%02x" % (data, sum(data) & 0xFF)


_ESCAPED = re.compile(rb"\}(.?)", re.DOTALL)
_MUST_ESCAPE = bytes((_START, _END, _ESCAPE, _RUN))


def escape(data: bytes) -> bytes:
    r"""
    Escape binary data, so that it can stand in a packet.

    >>> escape(b"a#b")
    b'a}\x03b'
    """
    out = data.replace(b"}", bytes((_ESCAPE, _ESCAPE ^ _FLIP)))
    for byte in _MUST_ESCAPE:
        if byte != _ESCAPE:
            out = out.replace(bytes((byte,)), bytes((_ESCAPE, byte ^ _FLIP)))
    return out


def unescape(data: bytes) -> bytes:
    """Undo :func:`escape`; an escape at the very end stands for nothing."""
    return _ESCAPED.sub(lambda found: bytes(byte ^ _FLIP for byte in found[1]), data)


def decode_number(text: bytes) -> int:
    """
    Decode a number as the protocol writes it: hexadecimal, at most 64 bits, no sign.

    Raises
    ------
    ValueError
        If it is none.

    >>> decode_number(b"ffff800000000000")
    18446603336221196288
    """
    if not 0 < len(text) <= _MOST_DIGITS or not _HEX_DIGITS.issuperset(text):
        raise ValueError(f"no number: {text[:40]!r}")
    return int(text, 16)


def decode_hex(text: bytes) -> bytes:
    """
    Decode bytes that are written as pairs of digits.

    Raises
    ------
    ValueError
        If they are not.
    """
    if len(text) % 2 or not _HEX_DIGITS.issuperset(text):
        raise ValueError(f"no hexadecimal bytes: {text[:40]!r}")
    return bytes.fromhex(text.decode("ascii"))
