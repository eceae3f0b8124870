"""
Read the files of a mounted pstore, of a copy of one, or of systemd-pstore's archive.

Sources: the kernel's ``fs/pstore/inode.c`` (``<type>-<backend>-<id>``, ``.enc.z`` for
what the kernel could not decompress; the time of the file is that of the record),
``drivers/firmware/efi/efi-pstore.c`` (``generic_id``), systemd's ``src/pstore/pstore.c``
(its archive: files in directories by time, the parts appended in ``dmesg.txt``).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from postpanic.errors import FileFaultError
from postpanic.evidence.pstore.content import find_type, make_dump, split_notice, with_header
from postpanic.evidence.pstore.model import Record, RecordType

__all__ = ["decode_file", "is_record_name", "read_directory"]

_NAME = re.compile(
    r"(?P<type>[a-z][a-z-]{0,40})-(?P<backend>[A-Za-z0-9_]{1,32})-(?P<id>\d{1,20})(?P<stored>\.enc\.z)?"
    # Before 4.4 what there is one of has no number.
    r"|(?P<single>console|ftrace|pmsg)-(?P<only>ramoops|[a-z_]{1,32})"
)
_JOINED = "dmesg.txt"
_MOST_FILES = 8192
_MOST_FILE_BYTES = 32 << 20
_MOST_TOTAL_BYTES = 512 << 20
_DEPTH = 3
_EFI = frozenset({"efi", "efi_pstore"})
_LEAST_EFI_ID = 10**12
"""The number has a time in it; before 3.12 it was the part alone."""
_PART = re.compile(rb"^[A-Z][a-z]{2,15}#\d{1,10} Part\d{1,10}$", re.MULTILINE)


def is_record_name(name: str) -> bool:
    """Tell whether a file is named as a record of pstore."""
    return _NAME.fullmatch(name) is not None


def read_directory(path: Path) -> list[Record]:
    """
    Read all records below a directory.

    A file that goes away meanwhile (somebody else archives, too) is passed over.

    Raises
    ------
    FileFaultError
        If the directory or a record in it cannot be read.
    """
    records: list[Record] = []
    total = 0
    for place, names in _walk(path):
        known = [name for name in names if is_record_name(name)]
        for name in known or [name for name in names if name == _JOINED]:
            content = _read_file(place / name)
            if content is None:
                continue
            total += len(content[0])
            if total > _MOST_TOTAL_BYTES or len(records) >= _MOST_FILES:
                return records
            if name == _JOINED:
                records += _split_joined(place / name, *content)
            else:
                record = decode_file(name, content[0], mtime_s=content[1])
                records.append(msgspec.structs.replace(record, source=str(place / name)))
    return records


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    def refuse(error: OSError) -> None:
        raise FileFaultError((error.strerror or str(error)).lower(), where=str(error.filename or path)) from error

    for place, directories, names in os.walk(path, onerror=refuse):
        depth = len(Path(place).relative_to(path).parts)
        directories[:] = sorted(name for name in directories if depth < _DEPTH and not name.startswith("."))
        yield Path(place), sorted(names)


def _read_file(path: Path) -> tuple[bytes, float] | None:
    try:
        # Neither a FIFO nor what a symbolic link points to is a record.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        try:
            return stream.read(_MOST_FILE_BYTES), status.st_mtime
        except OSError as exc:
            raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc


def decode_file(name: str, raw: bytes, *, mtime_s: float | None = None) -> Record:
    """
    Decode one file of a mounted pstore.

    Parameters
    ----------
    mtime_s : float, optional
        Time of the file, seconds since 1970.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return Record(type=RecordType.UNKNOWN, backend="", name=name, data=raw, raw=raw, is_file=True)
    kind, backend = find_type(found["type"] or found["single"]), found["backend"] or found["only"]
    number = int(found["id"] or 0)
    content, quality = split_notice(raw)
    record = Record(
        type=kind,
        backend=backend,
        name=name,
        data=content,
        raw=raw,
        is_file=True,
        id=number,
        sequence=number if backend == "erst" else None,
        time_s=_time_of(kind, backend, number, mtime_s),
        quality=quality,
    )
    if kind is not RecordType.DMESG:
        return record
    record = make_dump(record, content, is_compressed=True if found["stored"] else None)
    if record.part is None and backend in _EFI and number >= _LEAST_EFI_ID:
        record = msgspec.structs.replace(record, count=number % 1000, part=number // 1000 % 100)
    return record


def _time_of(kind: RecordType, backend: str, number: int, mtime_s: float | None) -> float | None:
    if backend in _EFI and number >= _LEAST_EFI_ID:
        return float(number // 100_000)
    if backend == "erst":
        # Seeded with the seconds at the first record of a boot; the file of the mounted file system is more exact.
        return mtime_s if mtime_s is not None else float(number >> 32)
    # Without a time in its header a record gets that of the mounting.
    return mtime_s if kind is RecordType.DMESG else None


def _split_joined(path: Path, content: bytes, mtime_s: float) -> Iterator[Record]:
    """Take a ``dmesg.txt`` apart whose parts are no longer there; each begins with the kernel's own line."""
    places = [found.start() for found in _PART.finditer(content)] or [0]
    places = places if places[0] == 0 else [0, *places]
    for number, (start, end) in enumerate(zip(places, [*places[1:], len(content)], strict=True)):
        record = Record(
            type=RecordType.DMESG,
            backend="archive",
            name=f"{path.name}+{start}" if number else path.name,
            source=str(path),
            raw=content[start:end],
            id=number,
            time_s=mtime_s,
        )
        yield with_header(record, content[start:end])
