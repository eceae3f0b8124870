"""
Read the EFI variables that a dump was written to: efivarfs, or a copy of its files.

Each variable holds one part. The name has type, part, count, time and whether
it is compressed; the first line of the content is what is believed.

Sources: the kernel's ``drivers/firmware/efi/efi-pstore.c`` (names, and how they
were before), ``Documentation/filesystems/efivarfs.rst`` (four bytes of attributes come first).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from postpanic.errors import FileFaultError
from postpanic.evidence.pstore.content import make_dump
from postpanic.evidence.pstore.model import Record, RecordType

__all__ = ["CRASH_GUID", "decode_efi_variable", "is_dump_variable", "read_efivars"]

BACKEND = "efi_pstore"
CRASH_GUID = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
_NAME = re.compile(
    r"dump-type(?P<type>\d{1,3})-(?P<part>\d{1,9})-(?:(?P<count>\d{1,9})-)?(?P<time>\d{1,15})(?:-(?P<kind>[CD]))?"
    rf"(?:-{CRASH_GUID})?"
)
_ATTRIBUTES_BYTES = 4
_MOST_VARIABLE_BYTES = 1 << 20
_MOST_VARIABLES = 16384
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
