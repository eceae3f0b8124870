"""
Dumps of devices, which drivers add to ``/proc/vmcore`` (``CONFIG_PROC_VMCORE_DEVICE_DUMP``).

Each is a note of owner ``LINUX`` and type ``NT_VMCOREDD`` (``struct
vmcoredd_header`` of ``include/uapi/linux/vmcore.h``): a name of 44 bytes, then
what the driver wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.dumps.notes import decode_notes

__all__ = ["DeviceDump", "find_device_dumps"]

_NT_VMCOREDD = 0x700
_NAME_BYTES = 44


@dataclass(frozen=True, slots=True)
class DeviceDump:
    """What one driver wrote."""

    name: str
    offset: int
    """Of the contents, in the notes of the dump."""
    contents: bytes


def find_device_dumps(notes: bytes, *, byte_order: str) -> list[DeviceDump]:
    """Find the device dumps among the notes of a dump (``Elf64_Nhdr`` records)."""
    found = []
    search_from = 0
    for note in decode_notes(notes, byte_order=byte_order):
        if note.type != _NT_VMCOREDD or note.name != b"LINUX" or len(note.desc) < _NAME_BYTES:
            continue
        offset = notes.index(note.desc, search_from)
        search_from = offset + len(note.desc)
        name = note.desc[:_NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        found.append(DeviceDump(name, offset + _NAME_BYTES, note.desc[_NAME_BYTES:]))
    return found
