"""
Read the EFI variables that a dump was written to: efivarfs, or a copy of its files.

Each variable holds one part. The name has type, part, count, time and whether
it is compressed; the first line of the content is what is believed. An image of the firmware's flash has them, too.

Sources: the kernel's ``drivers/firmware/efi/efi-pstore.c`` (names, and how they
were before), ``Documentation/filesystems/efivarfs.rst`` (four bytes of attributes come first);
EDK II's ``MdeModulePkg/Include/Guid/VariableFormat.h`` (variables in flash).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import msgspec

from postpanic.errors import FileFaultError
from postpanic.evidence.pstore.content import make_dump
from postpanic.evidence.pstore.model import Record, RecordType
from postpanic.evidence.pstore.ramoops_layout import Bytes

__all__ = ["CRASH_GUID", "decode_efi_variable", "is_dump_variable", "read_efi_store", "read_efivars"]

BACKEND = "efi_pstore"
CRASH_GUID = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
_NAME = re.compile(
    r"dump-type(?P<type>\d{1,3})-(?P<part>\d{1,9})-(?:(?P<count>\d{1,9})-)?(?P<time>\d{1,15})(?:-(?P<kind>[CD]))?"
    rf"(?:-{CRASH_GUID})?"
)
_ATTRIBUTES_BYTES = 4
_MOST_VARIABLE_BYTES = 1 << 20
_MOST_VARIABLES = 16384
_MOST_NAME = 1024
_START_ID = b"\xaa\x55"
_HEADERS_BEFORE = (44, 16)
"""Bytes of a variable's header before its GUID: with and without authentication."""
_ADDED = (0x3F, 0x3E)
_DELETED = (0x3D, 0x3C)
_TYPES = tuple(RecordType)[:9]
"""By their number: ``enum pstore_type_id``."""


def is_dump_variable(name: str) -> bool:
    """Tell whether a file of efivarfs is a part of a dump."""
    return _NAME.fullmatch(name) is not None


def read_efivars(path: Path) -> list[Record]:
    """
    Read the dumps among the variables of a directory.

    Raises
    ------
    FileFaultError
        If the directory cannot be read.
    """
    try:
        names = sorted(entry.name for entry in path.iterdir() if is_dump_variable(entry.name))
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    return list(_read_variables(path, names[:_MOST_VARIABLES]))


def _read_variables(path: Path, names: list[str]) -> Iterator[Record]:
    for name in names:
        try:
            with (path / name).open("rb") as stream:
                content = stream.read(_MOST_VARIABLE_BYTES)
        except FileNotFoundError:
            # Somebody else has erased it meanwhile.
            continue
        except OSError as exc:
            raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path / name)) from exc
        yield msgspec.structs.replace(
            decode_efi_variable(name, content[_ATTRIBUTES_BYTES:]),
            source=str(path / name),
            raw=content,
            is_file=True,
        )


def read_efi_store(data: Bytes, *, with_deleted: bool = False) -> list[Record]:
    """
    Read the dumps among the variables in an image of the firmware's flash.

    Parameters
    ----------
    data : bytes or mmap
        As EDK II and most firmware made of it keeps variables.
    with_deleted : bool
        Also those that were erased and are still there, until the firmware needs the room.
    """
    records: list[Record] = []
    guid = UUID(CRASH_GUID).bytes_le
    place = data.find(guid)
    while place >= 0 and len(records) < _MOST_VARIABLES:
        record = _read_stored(data, place, (*_ADDED, *_DELETED) if with_deleted else _ADDED)
        if record is not None:
            records.append(record)
        place = data.find(guid, place + len(guid))
    return records


def _read_stored(data: Bytes, place: int, states: tuple[int, ...]) -> Record | None:
    starts = [place - before for before in _HEADERS_BEFORE if place >= before]
    start = next((start for start in starts if data[start : start + 2] == _START_ID), None)
    if start is None or data[start + 2] not in states:
        return None
    name_size, size = struct.unpack("<II", data[place - 8 : place])
    if not 2 <= name_size <= 2 * _MOST_NAME or size > _MOST_VARIABLE_BYTES:
        return None
    name_at = place + 16
    name = data[name_at : name_at + name_size].decode("utf-16-le", "replace").rstrip("\0")
    content = data[name_at + name_size : name_at + name_size + size]
    if not is_dump_variable(name):
        return None
    record = msgspec.structs.replace(
        decode_efi_variable(name, content), source=f"+{start:#x}", raw=data[start : name_at + name_size + size]
    )
    if data[start + 2] in _DELETED:
        record = msgspec.structs.replace(record, quality=record.quality.noted("the variable was erased"))
    return record


def decode_efi_variable(name: str, content: bytes) -> Record:
    """
    Decode one variable.

    Parameters
    ----------
    name : str
        With or without the GUID.
    content : bytes
        Without the attributes.
    """
    found = _NAME.fullmatch(name)
    number = int(found["type"]) if found else 0
    kind = _TYPES[number] if number < len(_TYPES) else RecordType.UNKNOWN
    record = Record(type=kind, backend=BACKEND, name=name, data=content, raw=content)
    if found is not None:
        part, count, seconds = int(found["part"]), int(found["count"] or 0), int(found["time"])
        record = msgspec.structs.replace(
            record, time_s=float(seconds), part=part, count=count, id=(seconds * 100 + part) * 1000 + count
        )
    if kind is not RecordType.DMESG:
        return record
    letter = found["kind"] if found else None
    return make_dump(record, content, is_compressed=None if letter is None else letter == "C")
