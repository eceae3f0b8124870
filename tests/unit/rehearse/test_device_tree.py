"""Device trees: one that was put together by hand, with room at its end."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from postpanic.errors import CorruptError
from postpanic.rehearse.device_tree import pack_device_tree, read_device_tree

# A root node without a name, one property "model" of "x", the end (Devicetree Specification 0.4, 5.4).
STRUCTURE = struct.pack(">III", 1, 0, 3) + struct.pack(">II", 2, 0) + b"x\0\0\0" + struct.pack(">II", 2, 9)
STRINGS = b"model\0"
RESERVED = struct.pack(">QQQQ", 0x4000_0000, 0x1000, 0, 0)


def make(room: int = 0, total: int | None = None) -> bytes:
    reservations = 40
    structure = reservations + len(RESERVED)
    strings = structure + len(STRUCTURE)
    size = strings + len(STRINGS) + room
    header = (0xD00DFEED, size if total is None else total, structure, strings, reservations, 17, 16, 0)
    return struct.pack(">10I", *header, len(STRINGS), len(STRUCTURE)) + RESERVED + STRUCTURE + STRINGS + bytes(room)


def test_room_at_the_end_is_left_away() -> None:
    packed = pack_device_tree(make(1 << 20))

    assert len(packed) == -(-len(make()) // 8) * 8
    assert int.from_bytes(packed[4:8], "big") == len(packed)
    assert packed[8 : len(make())] == make()[8:]
    assert pack_device_tree(packed) == packed


def test_what_is_none_or_cut_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="not a device tree: it begins with 7f454c46"):
        pack_device_tree(b"\x7fELF" * 20)
    with pytest.raises(CorruptError, match="begins with nothing"):
        pack_device_tree(b"")
    whole = make()
    for size in range(40, len(whole)):
        with pytest.raises(CorruptError, match=r"cut"):
            pack_device_tree(whole[:size])
    with pytest.raises(CorruptError, match="cut"):
        pack_device_tree(make(total=60))
    path = tmp_path / "board.dtb"
    path.write_bytes(make(8 << 20))
    assert read_device_tree(path) == pack_device_tree(whole)
