"""Packets out of a capture file as QEMU's ``filter-dump`` writes it: pcap, Ethernet, little-endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Packet", "read_packets"]

MAGIC = 0xA1B2C3D4
FILE_HEADER = struct.Struct("<IHHiIII")
PACKET_HEADER = struct.Struct("<IIII")
ETHERNET_SIZE = 14
IPV4 = b"\x08\x00"
UDP = 17


@dataclass(frozen=True)
class Packet:
    """
    A UDP packet.

    Attributes
    ----------
    time_us : int
        When it passed.
    source : str
        Address and port that it came from.
    port : int
        Where it went.
    """

    time_us: int
    source: str
    port: int
    data: bytes


def read_packets(path: Path) -> list[Packet]:
    """Return the UDP packets of a capture file, in the order in which they passed."""
    content = path.read_bytes()
    magic, *_ = FILE_HEADER.unpack_from(content)
    assert magic == MAGIC, f"not a capture file: {path}"
    found = []
    at = FILE_HEADER.size
    while at + PACKET_HEADER.size <= len(content):
        seconds, microseconds, size, _ = PACKET_HEADER.unpack_from(content, at)
        at += PACKET_HEADER.size
        packet = _decode(content[at : at + size], seconds * 1_000_000 + microseconds)
        if packet is not None:
            found.append(packet)
        at += size
    return found


def _decode(frame: bytes, time_us: int) -> Packet | None:
    if frame[12:14] != IPV4 or frame[ETHERNET_SIZE + 9] != UDP:
        return None
    header = ETHERNET_SIZE + (frame[ETHERNET_SIZE] & 15) * 4
    source_port, port, size, _ = struct.unpack_from(">HHHH", frame, header)
    address = ".".join(map(str, frame[ETHERNET_SIZE + 12 : ETHERNET_SIZE + 16]))
    return Packet(time_us, f"{address}:{source_port}", port, frame[header + 8 : header + size])
