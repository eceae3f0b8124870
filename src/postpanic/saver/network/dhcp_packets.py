"""
The packets of DHCP for IPv4, down to the headers of IP and UDP.

Sources: RFC 2131 §2 (packet), RFC 2132 (options), RFC 3396 (long options),
RFC 3442 (routes), RFC 791, RFC 768.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

__all__ = ["Kind", "Lease", "Reply", "encode_request", "parse_reply", "read_lease"]

_BOOTP = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = bytes([99, 130, 83, 99])
_REQUEST, _REPLY, _ETHERNET = 1, 2, 1
_SERVER_PORT, _CLIENT_PORT = 67, 68
_PAD, _MASK, _ROUTER, _DNS, _DOMAIN, _MTU = 0, 1, 3, 6, 15, 26
_REQUESTED, _LEASE, _OVERLOAD, _KIND, _SERVER, _PARAMETERS, _MAX_SIZE = 50, 51, 52, 53, 54, 55, 57
_CLIENT_ID, _ROUTES, _END = 61, 121, 255
_MAX_OPTION_BYTES = 1024
_MAX_PACKET_BYTES = 1472
_MAX_ROUTES = 32
_MIN_MTU = 576
"""RFC 791: what every host takes."""


class Kind:
    """Of a message: option 53."""

    DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK = range(1, 7)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server sent, as far as it can be believed."""

    kind: int
    address: bytes
    server: bytes
    options: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server gave."""

    address: str
    prefix_length: int
    routers: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    """Destination and gateway; ``0.0.0.0`` is the link itself."""
    nameservers: tuple[str, ...] = ()
    mtu: int = 0
    server: str = ""
    seconds: int = 0


def encode_request(
    kind: int, mac: bytes, transaction: int, elapsed_s: int, *, address: bytes = b"", server: bytes = b""
) -> bytes:
    """Make a packet to all servers, from nobody yet."""
    options = bytes([_KIND, 1, kind]) + bytes([_CLIENT_ID, len(mac) + 1, _ETHERNET]) + mac
    if address:
        options += bytes([_REQUESTED, 4]) + address
    if server:
        options += bytes([_SERVER, 4]) + server
    options += bytes([_MAX_SIZE, 2]) + struct.pack(">H", _MAX_PACKET_BYTES)
    wanted = bytes([_MASK, _ROUTES, _ROUTER, _DNS, _DOMAIN, _MTU])
    options += bytes([_PARAMETERS, len(wanted)]) + wanted + bytes([_END])
    none = bytes(4)
    body = _BOOTP.pack(
        *(_REQUEST, _ETHERNET, len(mac), 0, transaction, min(elapsed_s, 0xFFFF), 0),
        *(none, none, none, none, mac, b"", b"", _COOKIE),
    )
    # Relays of old drop what is shorter than BOOTP's packets were.
    return _wrap((body + options).ljust(300, b"\0"))


def parse_reply(packet: bytes, mac: bytes, transaction: int) -> Reply | None:
    """
    Read a packet of IP; None unless it is an answer to us.

    Checksums are not looked at: between machines on one host they are not
    filled in. What counts is the transaction, whose number nobody can guess.
    """
    payload = _unwrap(packet)
    if payload is None or len(payload) < _BOOTP.size:
        return None
    fields = _BOOTP.unpack_from(payload)
    operation, hardware, mac_bytes, _hops, number = fields[:5]
    yours, client, sname, file, cookie = fields[8], fields[11], fields[12], fields[13], fields[14]
    if (operation, hardware, mac_bytes, number, cookie) != (_REPLY, _ETHERNET, len(mac), transaction, _COOKIE):
        return None
    if client[: len(mac)] != mac:
        return None
    options: dict[int, bytes] = {}
    _take_options(payload[_BOOTP.size :], options)
    overload = options.get(_OVERLOAD, b"\0")[:1]
    if overload in (b"\1", b"\3"):
        _take_options(file, options)
    if overload in (b"\2", b"\3"):
        _take_options(sname, options)
    kind = options.get(_KIND, b"")
    server = options.get(_SERVER, b"")
    if len(kind) != 1 or len(server) != 4:
        return None
    return Reply(kind[0], yours, server, options)


def read_lease(reply: Reply) -> Lease | None:
    """Read what was given; None if it is no address that a machine can have."""
    if not _is_host_address(reply.address):
        return None
    options = reply.options
    address = socket.inet_ntoa(reply.address)
    mtu = options.get(_MTU, b"")
    lease = options.get(_LEASE, b"")
    return Lease(
        address,
        _read_prefix_length(options.get(_MASK, b""), reply.address[0]),
        _read_addresses(options.get(_ROUTER, b"")),
        _read_routes(options.get(_ROUTES, b"")),
        _read_addresses(options.get(_DNS, b"")),
        size if len(mtu) == 2 and (size := int.from_bytes(mtu, "big")) >= _MIN_MTU else 0,
        socket.inet_ntoa(reply.server),
        int.from_bytes(lease, "big") if len(lease) == 4 else 0,
    )


def _take_options(area: bytes, options: dict[int, bytes]) -> None:
    """Take options out of an area; parts of one are put together."""
    at = 0
    while at < len(area) and area[at] != _END:
        if area[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(area) or at + 2 + area[at + 1] > len(area):
            return
        code, length = area[at], area[at + 1]
        options[code] = (options.get(code, b"") + area[at + 2 : at + 2 + length])[:_MAX_OPTION_BYTES]
        at += 2 + length


def _is_host_address(address: bytes) -> bool:
    return address[0] not in (0, 127) and address[0] < 224


def _read_addresses(value: bytes) -> tuple[str, ...]:
    parts = [value[at : at + 4] for at in range(0, len(value) - 3, 4)]
    return tuple(socket.inet_ntoa(part) for part in parts[:8] if _is_host_address(part) or part[0] == 127)


def _read_prefix_length(mask: bytes, first_byte: int) -> int:
    if len(mask) == 4:
        bits = int.from_bytes(mask, "big")
        length = bits.bit_count()
        if length and bits == ((1 << length) - 1) << (32 - length):
            return length
    # Classes of addresses: RFC 791.
    return 8 if first_byte < 128 else 16 if first_byte < 192 else 24


def _read_routes(value: bytes) -> tuple[tuple[str, str], ...]:
    """Read routes: length of the prefix, its bytes that are not zero, gateway."""
    routes: list[tuple[str, str]] = []
    at = 0
    while at < len(value) and len(routes) < _MAX_ROUTES:
        length = value[at]
        size = -(-length // 8)
        if length > 32 or at + 1 + size + 4 > len(value):
            break
        prefix = value[at + 1 : at + 1 + size].ljust(4, b"\0")
        gateway = value[at + 1 + size : at + 5 + size]
        destination = f"{socket.inet_ntoa(prefix)}/{length}" if length else "default"
        routes.append((destination, socket.inet_ntoa(gateway)))
        at += 5 + size
    return tuple(routes)


def _wrap(payload: bytes) -> bytes:
    """Put headers of IP and UDP before a packet from 0.0.0.0 to 255.255.255.255."""
    source, target = bytes(4), b"\xff" * 4
    length = 8 + len(payload)
    pseudo = source + target + struct.pack(">HH", socket.IPPROTO_UDP, length)
    udp = struct.pack(">HHHH", _CLIENT_PORT, _SERVER_PORT, length, 0)
    udp = udp[:6] + struct.pack(">H", _checksum(pseudo + udp + payload) or 0xFFFF)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0x10, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0, source, target)
    ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
    return ip + udp + payload


def _unwrap(packet: bytes) -> bytes | None:
    """Take the headers of IP and UDP off; None unless it is a whole packet from a server's port to ours."""
    if len(packet) < 28 or packet[0] >> 4 != 4:
        return None
    head = (packet[0] & 15) * 4
    total = int.from_bytes(packet[2:4], "big")
    is_fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    if head < 20 or not head + 8 <= total <= len(packet) or is_fragment or packet[9] != socket.IPPROTO_UDP:
        return None
    source, target, length, _sum = struct.unpack_from(">HHHH", packet, head)
    if (source, target) != (_SERVER_PORT, _CLIENT_PORT) or not 8 <= length <= total - head:
        return None
    return packet[head + 8 : head + length]


def _checksum(content: bytes) -> int:
    """Compute the sum of RFC 1071."""
    content += b"\0" * (len(content) % 2)
    total: int = sum(struct.unpack(f">{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
