r"""
Messages as lines of a log, in the form that ``dmesg --raw`` prints: ``<4>[   12.500000][   T77] text``.

Whatever else reads kernel logs reads these. Control characters stay escaped,
so that a log can be looked at on a terminal whoever sent it.
"""

from __future__ import annotations

import re

from postpanic.evidence.netconsole.packets import Packet
from postpanic.evidence.netconsole.stream import Message

__all__ = ["clean_control", "format_continuation", "format_message", "is_continuation"]

_CONTROL = bytes(code for code in (*range(32), 127) if code not in {9, 10})
_UNSAFE = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


def clean_control(text: bytes) -> bytes:
    r"""
    Escape what would move a cursor or change colours; tabs and line ends stay.

    >>> clean_control(b"a\x1b[31m\n")
    b'a\\x1b[31m\n'
    """
    if len(text.translate(None, _CONTROL)) == len(text) and b"\xc2" not in text:
        return text
    return _UNSAFE.sub(lambda match: b"".join(b"\\x%02x" % value for value in match[0]), text)


def format_message(message: Message) -> bytes:
    """Return the lines of an extended message, each with its prefix and its end; of a basic one the text."""
    packet = message.packet
    text = message.text
    if len(text.translate(None, _CONTROL)) != len(text) or b"\xc2" in text:
        text = clean_control(text)
    if packet is None:
        return text
    seconds, micros = divmod(packet.time_us, 1_000_000)
    if packet.caller:
        prefix = b"<%d>[%5d.%06d][%6s] " % (packet.level, seconds, micros, packet.caller)
    else:
        prefix = b"<%d>[%5d.%06d] " % (packet.level, seconds, micros)
    if b"\n" in text:
        # A record of several lines: a console shows each with the prefix.
        return prefix + text.rstrip(b"\n").replace(b"\n", b"\n" + prefix) + b"\n"
    return prefix + text + b"\n"


def format_continuation(message: Message) -> bytes:
    """Return what a message puts behind the line before it."""
    return clean_control(message.text).rstrip(b"\n").replace(b"\n", b"\\x0a") + b"\n"


def is_continuation(packet: Packet, last_seq: int, last_caller: bytes, *, has_plus: bool = False) -> bool:
    """
    Tell whether a message continues the one before it.

    ``+`` says so, in Linux 4.2 to 4.9. Since then ``c`` marks what KERN_CONT
    printed and could not be put behind what it continues: it does when it is
    the next record of the same caller.

    Parameters
    ----------
    packet : Packet
    last_seq : int
    last_caller : bytes
        Of the message before.
    has_plus : bool
        Whether the sender has used ``+`` before: then its ``c`` begins a line.
    """
    if packet.flag != b"+" and (packet.flag != b"c" or has_plus):
        return False
    return last_seq + 1 == packet.seq and last_caller == packet.caller
