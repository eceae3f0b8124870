r"""
One packet of netconsole, basic or extended.

A basic packet is the text that a console would print, in pieces of up to
1,000 bytes. An extended one has a header::

    [<release>,]<level>,<seq>,<time us>,<flag>[,caller=T12][,ncfrag=<offset>/<total>];<text>\n[ KEY=value\n …]

*level* is the facility times 8 plus the level; *flag* is ``-``, ``c`` or ``+``
for pieces of a line. What cannot be printed is ``\xNN`` in the text. Behind the
text stand the record's properties (``SUBSYSTEM=``, ``DEVICE=``), then what the
administrator (``userdata``) and the kernel (``cpu=``, ``taskname=``,
``release=``, ``msgid=``) put there.

Whatever a packet says, decoding it costs time in proportion to its length.

References
----------
drivers/net/netconsole.c ``send_msg_no_fragmentation``, ``send_fragmented_body``;
kernel/printk/printk.c ``info_print_ext_header``, ``msg_print_ext_body``;
Documentation/networking/netconsole.rst; Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import re

import msgspec

__all__ = ["BODY_LIMIT", "PACKET_LIMIT", "Packet", "decode_packet", "decode_properties", "decode_text"]

PACKET_LIMIT = 4096
"""Bytes of a packet that are read; netconsole sends up to 1,000 (``MAX_PRINT_CHUNK``)."""

BODY_LIMIT = 8192 + 256 * 256
"""Bytes of a message in fragments: a record of printk, and 256 entries of user data of 256 bytes each."""

_PROPERTIES_LIMIT = 300
_FIELDS = rb"(\d{1,5}),(\d{1,20}),(\d{1,20}),([-c+f])(?:,caller=([TC]\d{1,10}))?(,[^;\n]{1,512})?;"
_HEADER = re.compile(_FIELDS)
_RELEASED = re.compile(rb"(\d[^,;\s]{0,127})," + _FIELDS)
_FRAGMENT = re.compile(rb"(\d{1,7})/(\d{1,7})\Z")
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_BYTES = {b"%02x" % value: bytes((value,)) for value in range(256)}


class Packet(msgspec.Struct, frozen=True, gc=False):
    """
    An extended packet.

    Parameters
    ----------
    level, facility : int
    seq : int
        printk's number of the record; the console's level may leave numbers out.
    time_us : int
        Since the kernel started.
    flag : bytes
        ``-``, or a piece of a line: ``c``, ``+``.
    body : bytes
        What stands behind the header, escapes as they came.
    caller : bytes
        ``T12`` (a task), ``C1`` (a CPU), or empty.
    release : bytes
        The kernel's, where the header has it.
    fragment_offset, fragment_total : int
        Of the body; total 0: the packet has it whole.
    is_emergency : bool
        Sent again on demand (``ncemg``).
    """

    level: int
    facility: int
    seq: int
    time_us: int
    flag: bytes
    body: bytes
    caller: bytes = b""
    release: bytes = b""
    fragment_offset: int = 0
    fragment_total: int = 0
    is_emergency: bool = False


def decode_packet(data: bytes) -> Packet | None:
    r"""
    Decode a packet; None: it has no extended header, so it is basic, or nothing of netconsole's.

    >>> packet = decode_packet(b"6.12.0,4,21,1500000,-,caller=T7,ncfrag=16/31;rest\n")
    >>> packet.release, packet.level, packet.seq, packet.caller, packet.fragment_offset, packet.body
    (b'6.12.0', 4, 21, b'T7', 16, b'rest\n')
    >>> decode_packet(b"[    1.500000] eth0: link up\n")
    """
    match = _HEADER.match(data)
    if match is not None:
        release = b""
        priority, seq, time_us, flag, caller, fields = match.groups()
    else:
        match = _RELEASED.match(data)
        if match is None:
            return None
        release, priority, seq, time_us, flag, caller, fields = match.groups()
        if b"." not in release:
            return None
    number, body = int(priority), data[match.end() :]
    packet = Packet(number & 7, number >> 3, int(seq), int(time_us), flag, body, caller or b"", release)
    return packet if fields is None else _with_fields(packet, fields)


def _with_fields(packet: Packet, fields: bytes) -> Packet | None:
    offset, total, is_emergency = 0, 0, False
    for field in fields[1:].split(b","):
        name, _, value = field.partition(b"=")
        if name == b"ncfrag":
            match = _FRAGMENT.match(value)
            if match is None:
                return None
            offset, total = int(match[1]), int(match[2])
            if not 0 < total <= BODY_LIMIT or offset + len(packet.body) > total or not packet.body:
                return None
        elif name == b"ncemg":
            is_emergency = True
    return msgspec.structs.replace(packet, fragment_offset=offset, fragment_total=total, is_emergency=is_emergency)


def decode_text(text: bytes) -> bytes:
    r"""
    Put the bytes back that were escaped.

    >>> decode_text(rb"caf\xc3\xa9 \x5cx").decode()
    'café \\x'
    """
    return _ESCAPE.sub(lambda match: _BYTES[match[1].lower()], text) if b"\\x" in text else text


def decode_properties(lines: bytes) -> dict[bytes, bytes]:
    r"""
    Decode what stands behind the text; of a key that is there twice the last counts, which is the kernel's own.

    >>> decode_properties(b" cpu=9\n DEVICE=+pci:0000:00:1f.6\n cpu=2\n")
    {b'cpu': b'2', b'DEVICE': b'+pci:0000:00:1f.6'}
    """
    found: dict[bytes, bytes] = {}
    for line in lines.split(b"\n", _PROPERTIES_LIMIT)[:_PROPERTIES_LIMIT]:
        name, equals, value = line.partition(b"=")
        if equals and name[:1] == b" ":
            found[decode_text(name[1:])] = decode_text(value)
    return found
