"""
Device trees that a board is described by, as files.

Source: Devicetree Specification 0.4, chapter 5 (flattened format).
"""

from __future__ import annotations

import struct
from pathlib import Path

from postpanic.errors import CorruptError, NotReadyError

__all__ = ["pack_device_tree", "read_device_tree"]

_MAGIC = 0xD00D_FEED
_HEADER = struct.Struct(">10I")
_RESERVATION_BYTES = 16
_LIMIT_BYTES = 2 << 20
"""``MAX_FDT_SIZE`` (``arch/arm64/include/asm/boot.h``)."""


def read_device_tree(path: Path) -> bytes:
    """
    Read a device tree without the room that it has at its end.

    QEMU doubles what it is given, room and all, and a kernel for arm64 takes no
    more than 2 MiB: a tree that QEMU itself wrote (``dumpdtb``) would be refused
    before anything could be printed.

    Raises
    ------
    NotReadyError
        If it cannot be read.
    CorruptError
        If it is none, damaged, or longer than a kernel takes.
    """
    try:
        with path.open("rb") as stream:
            # Twice as much, so that the room of one that is too long otherwise does not count.
            data = stream.read(2 * _LIMIT_BYTES)
    except OSError as exc:
        raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    packed = pack_device_tree(data, where=str(path))
    if 2 * len(packed) > _LIMIT_BYTES:
        raise CorruptError(
            f"a device tree of {len(packed)} bytes: an emulated board takes {_LIMIT_BYTES // 2}", where=str(path)
        )
    return packed


def pack_device_tree(data: bytes, *, where: str = "") -> bytes:
    """
    Leave away what is behind the last block of a device tree.

    Raises
    ------
    CorruptError
        If it is none, or a block is not whole.
    """
    if len(data) < _HEADER.size or int.from_bytes(data[:4], "big") != _MAGIC:
        raise CorruptError(
            f"not a device tree: it begins with {data[:4].hex() or 'nothing'}, not d00dfeed", where=where
        )
    _, total, structure, strings, reservations, *_, strings_bytes, structure_bytes = _HEADER.unpack_from(data)
    end = max(structure + structure_bytes, strings + strings_bytes, reservations + _RESERVATION_BYTES)
    while any(data[reservations : reservations + _RESERVATION_BYTES]):
        reservations += _RESERVATION_BYTES
        end = max(end, reservations + _RESERVATION_BYTES)
    if end > min(total, len(data)):
        raise CorruptError(
            f"a device tree of {min(total, len(data))} bytes, whose blocks need {end}: it was cut", where=where
        )
    size = -(-end // 8) * 8
    packed = bytearray(data[:end].ljust(size, b"\0"))
    packed[4:8] = size.to_bytes(4, "big")
    return bytes(packed)
