"""
Dumps on a block device without a file system: what is where, in a table that no power cut spoils.

Specification: ``docs/formats/raw.md``. The table is there twice; the copy that
is written is never the one that counts, until it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from postpanic.errors import CorruptError, NoSpaceError
from postpanic.saver.superblocks import RAW_DUMP_SIGNATURE, find_signature, read_at

__all__ = [
    "ALIGNMENT",
    "DATA_OFFSET",
    "HEAD_BYTES",
    "RawEntry",
    "RawFile",
    "RawTable",
    "find_gaps",
    "read_table",
    "write_table",
]

HEAD_BYTES = 64 << 10
"""What a swap area's header may take; left as it is but for its signature."""
TABLE_OFFSETS = (64 << 10, 128 << 10)
TABLE_BYTES = 64 << 10
DATA_OFFSET = 1 << 20
ALIGNMENT = 4096

MAGIC = b"postpanic table\0"
VERSION = 1
HEADER = struct.Struct("<16sIIQ32s")
"""Magic, version, bytes of text, generation, SHA-256 of the four before and the text."""
_PREFIX = struct.Struct("<16sIIQ")
_MAX_DUMPS = 100
_MAX_FILES = 100
_MAX_NAME = 255


@dataclass(frozen=True)
class RawFile:
    """
    A file on the device.

    Attributes
    ----------
    offset : int
        On the device.
    sha256 : str
        As a manifest has it: of the digests of chunks of 64 MiB (``docs/formats/manifest.md``); empty where the file
        was never finished.
    """

    name: str
    offset: int
    size_bytes: int
    sha256: str = ""

    @property
    def end(self) -> int:
        """Where the next file may be."""
        return -(-(self.offset + self.size_bytes) // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class RawEntry:
    """
    A dump on the device.

    Attributes
    ----------
    name : str
        Of what would be its directory.
    is_committed : bool
        Whether the dump has its final name.
    files : tuple of RawFile
        Whole, and checked by their digests.
    writing : RawFile or None
        The dump, while it is written: as far as it is known to be on the disk.
    """

    name: str
    is_committed: bool = False
    files: tuple[RawFile, ...] = ()
    writing: RawFile | None = None

    @property
    def size_bytes(self) -> int:
        """The room that it takes."""
        return sum(file.end - file.offset for file in self.ranges)

    @property
    def ranges(self) -> tuple[RawFile, ...]:
        """All that is of use on the device."""
        return (*self.files, *([self.writing] if self.writing else []))

    def with_file(self, file: RawFile) -> RawEntry:
        """Return the entry with a file more, in place of one of that name."""
        return replace(self, files=(*(other for other in self.files if other.name != file.name), file))


@dataclass(frozen=True)
class RawTable:
    """
    What is on the device.

    Attributes
    ----------
    device_bytes : int
        The device's size.
    page_bytes : int
        The signature is in the last 10 bytes of the first page of this size.
    replaced : bytes
        What was where the signature is, 10 bytes: ``SWAPSPACE2`` of a swap area.
    entries : tuple of RawEntry
        Oldest first.
    generation : int
        Grows with each writing; of two copies the one with the larger counts.
    """

    device_bytes: int
    page_bytes: int
    replaced: bytes
    entries: tuple[RawEntry, ...] = field(default=())
    generation: int = 0

    def find(self, name: str) -> RawEntry | None:
        """Return the entry of a dump."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def with_entry(self, entry: RawEntry) -> RawTable:
        """Return the table with an entry changed, or added at the end."""
        if self.find(entry.name) is None:
            return replace(self, entries=(*self.entries, entry))
        return replace(self, entries=tuple(entry if one.name == entry.name else one for one in self.entries))

    def without(self, names: Iterable[str]) -> RawTable:
        """Return the table without some entries."""
        gone = set(names)
        return replace(self, entries=tuple(entry for entry in self.entries if entry.name not in gone))


def read_table(fd: int, device_bytes: int) -> tuple[RawTable | None, int]:
    """
    Read the table that counts.

    Returns
    -------
    table : RawTable or None
        None where the signature is missing: then whatever looks like a table is of no use.
    generation : int
        The largest that either copy has, used or not.

    Raises
    ------
    CorruptError
        If the signature is there and no copy is whole.
    OSError
        If the device cannot be read.
    """
    page_bytes = find_signature(read_at(fd, 0, min(HEAD_BYTES, device_bytes)), RAW_DUMP_SIGNATURE)
    tables: list[RawTable] = []
    reason = "the device is too small"
    for offset in TABLE_OFFSETS:
        try:
            tables.append(_decode(read_at(fd, offset, TABLE_BYTES)))
        except CorruptError as exc:
            reason = exc.message
    newest = max(tables, key=lambda table: table.generation, default=None)
    generation = newest.generation if newest is not None else 0
    if not page_bytes:
        return None, generation
    if newest is None:
        raise CorruptError(f"dumps are on the device, but their table is damaged: {reason}")
    if newest.device_bytes > device_bytes or newest.page_bytes != page_bytes:
        raise CorruptError(f"the table is of a device of {newest.device_bytes} bytes, this one has {device_bytes}")
    return newest, generation


def write_table(fd: int, table: RawTable) -> RawTable:
    """
    Write a table in place of the older copy, and wait until it is on the disk.

    Everything that it tells of must be on the disk already.

    Returns
    -------
    RawTable
        With its new generation.

    Raises
    ------
    NoSpaceError
        If there is too much to tell.
    OSError
        If it cannot be written; the table before still counts.
    """
    table = replace(table, generation=table.generation + 1)
    text = _encode(table)
    if HEADER.size + len(text) > TABLE_BYTES:
        raise NoSpaceError(f"the table of dumps is full, with {len(table.entries)} dumps")
    prefix = _PREFIX.pack(MAGIC, VERSION, len(text), table.generation)
    data = memoryview(prefix + hashlib.sha256(prefix + text).digest() + text)
    offset = TABLE_OFFSETS[table.generation % 2]
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
    os.fsync(fd)
    return table


def find_gaps(table: RawTable, taken: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """
    Find the room between what is on the device.

    Parameters
    ----------
    taken : iterable of tuple
        Ranges ``[start, end)`` besides those of the table.

    Returns
    -------
    list of tuple
        Ranges ``[start, end)``, aligned, in order.
    """
    files = [file for entry in table.entries for file in entry.ranges if file.size_bytes]
    ranges = sorted([*((file.offset, file.end) for file in files), *taken])
    gaps: list[tuple[int, int]] = []
    at = DATA_OFFSET
    end = table.device_bytes // ALIGNMENT * ALIGNMENT
    for first, last in ranges:
        if first > at:
            gaps.append((at, min(first, end)))
        at = max(at, last)
    if at < end:
        gaps.append((at, end))
    return gaps


def _encode(table: RawTable) -> bytes:
    value = {
        "device_bytes": table.device_bytes,
        "page_bytes": table.page_bytes,
        "replaced": table.replaced.hex(),
        "dumps": [
            {
                "name": entry.name,
                "committed": entry.is_committed,
                "files": [_encode_file(file) for file in entry.files],
                "writing": _encode_file(entry.writing) if entry.writing else None,
            }
            for entry in table.entries
        ],
    }
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _encode_file(file: RawFile) -> dict[str, object]:
    return {"name": file.name, "offset": file.offset, "size_bytes": file.size_bytes, "sha256": file.sha256}


def _decode(block: bytes) -> RawTable:
    if len(block) < HEADER.size:
        raise CorruptError("it is cut")
    magic, version, length, generation, digest = HEADER.unpack_from(block)
    if magic != MAGIC:
        raise CorruptError("it has no magic number")
    if version != VERSION:
        raise CorruptError(f"its version is {version}, known is {VERSION}")
    text = block[HEADER.size : HEADER.size + length]
    if len(text) != length or hashlib.sha256(block[: _PREFIX.size] + text).digest() != digest:
        raise CorruptError("its checksum is wrong")
    try:
        return _decode_value(json.loads(text), generation)
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise CorruptError(f"it is no table: {exc}") from exc


def _decode_value(value: Any, generation: int) -> RawTable:  # noqa: ANN401 - whatever is in the JSON
    device_bytes = _number(value["device_bytes"])
    dumps = value["dumps"]
    replaced = bytes.fromhex(value["replaced"])
    if len(dumps) > _MAX_DUMPS or len(replaced) != len(RAW_DUMP_SIGNATURE):
        raise ValueError("too many dumps, or a wrong signature")
    entries = [
        RawEntry(
            _name(one["name"]),
            one["committed"] is True,
            tuple(_decode_file(file, device_bytes) for file in one["files"][:_MAX_FILES]),
            _decode_file(one["writing"], device_bytes) if one["writing"] is not None else None,
        )
        for one in dumps
    ]
    return RawTable(device_bytes, _number(value["page_bytes"]), replaced, tuple(entries), generation)


def _decode_file(value: Any, device_bytes: int) -> RawFile:  # noqa: ANN401 - whatever is in the JSON
    file = RawFile(_name(value["name"]), _number(value["offset"]), _number(value["size_bytes"]), str(value["sha256"]))
    if file.offset < DATA_OFFSET or file.offset % ALIGNMENT or file.offset + file.size_bytes > device_bytes:
        raise ValueError(f"{file.name} is not on the device")
    return file


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no size")
    return value


def _name(value: object) -> str:
    """Take a name that may become one of a file: nothing that leads elsewhere."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or value in (".", ".."):
        raise ValueError(f"{value!r} is no name")
    if "/" in value or not value.isprintable():
        raise ValueError(f"{value!r} is no name of a file")
    return value
