"""Device dumps among the notes of a dump (``struct vmcoredd_header`` of ``include/uapi/linux/vmcore.h``)."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.devices.device_dumps import DeviceDump, find_device_dumps

NT_VMCOREDD = 0x700


def note(name: bytes, kind: int, contents: bytes, order: str = "<") -> bytes:
    padded = name + b"\0" * (-len(name) % 4) + contents + b"\0" * (-len(contents) % 4)
    return struct.pack(f"{order}III", len(name), len(contents), kind) + padded


def device_dump(name: bytes, contents: bytes) -> bytes:
    """Make what the kernel writes: the owner in 8 bytes, the dump's name in 44, then the contents."""
    return note(b"LINUX\0\0\0", NT_VMCOREDD, name.ljust(44, b"\0") + contents)


def test_dumps_are_found_among_other_notes() -> None:
    before = note(b"CORE\0", 1, bytes(336))
    first = device_dump(b"cxgb4_0000:02:00.4", b"register file" * 10)
    second = device_dump(b"cxgb4_0000:03:00.4", bytes(64))
    notes = before + first + note(b"VMCOREINFO\0", 0, b"OSRELEASE=6.1\n") + second
    found = find_device_dumps(notes, byte_order="little")
    assert [entry.name for entry in found] == ["cxgb4_0000:02:00.4", "cxgb4_0000:03:00.4"]
    for entry in found:
        assert notes[entry.offset : entry.offset + len(entry.contents)] == entry.contents
    assert found[0].contents == b"register file" * 10
    assert found[1] == DeviceDump("cxgb4_0000:03:00.4", len(notes) - 64, bytes(64))


def test_what_is_too_short_or_of_another_is_none() -> None:
    notes = note(b"LINUX\0\0\0", NT_VMCOREDD, b"short") + note(b"OTHER\0", NT_VMCOREDD, bytes(100))
    assert find_device_dumps(notes, byte_order="little") == []


@given(st.binary(max_size=400))
def test_whatever_is_in_the_notes(notes: bytes) -> None:
    for entry in find_device_dumps(notes, byte_order="little"):
        assert notes[entry.offset : entry.offset + len(entry.contents)] == entry.contents
