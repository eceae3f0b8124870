"""
``DUMP.manifest.json``: what a dump is, how it came about, and by what it can be checked.

A manifest is hostile input like any other: :func:`read_manifest` takes nothing
for granted. It is written where nothing but the standard library may be there.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from postpanic.errors import CorruptError, FileFaultError, UnsupportedError
from postpanic.pages.json_values import JsonObject, clean_text
from postpanic.pages.manifest_schema import (
    MAX_LOST_RANGES,
    SCHEMA_VERSION,
    KernelRecord,
    Manifest,
    OutputFile,
    OutputRecord,
    PageRecord,
    RedactionRecord,
    SourceRecord,
    decode_manifest,
)
from postpanic.units import MIB

__all__ = [
    "MAX_LOST_RANGES",
    "SCHEMA_VERSION",
    "KernelRecord",
    "Manifest",
    "OutputFile",
    "OutputRecord",
    "PageRecord",
    "RedactionRecord",
    "SourceRecord",
    "find_lost_ranges",
    "manifest_path",
    "read_manifest",
    "write_manifest",
]

_LIMIT_BYTES = 64 * MIB
"""The digests of 50 TiB of dump, and all the ranges, have room in it."""
_SUFFIX = ".manifest.json"
_MODE = 0o644


def manifest_path(dump_path: Path) -> Path:
    """
    Name the manifest of a dump; of a split set, that of its first file.

    >>> manifest_path(Path("/var/crash/dump.kdump")).name
    'dump.kdump.manifest.json'
    """
    return dump_path.with_name(dump_path.name + _SUFFIX)


def find_lost_ranges(pfns: Iterable[int]) -> tuple[tuple[tuple[int, int], ...], int]:
    """
    Make ranges of frame numbers, at most :data:`MAX_LOST_RANGES`, and count those left out.

    >>> find_lost_ranges([7, 3, 4, 4])
    (((3, 5), (7, 8)), 0)
    """
    ranges: list[list[int]] = []
    for pfn in sorted(set(pfns)):
        if ranges and ranges[-1][1] == pfn:
            ranges[-1][1] = pfn + 1
        else:
            ranges.append([pfn, pfn + 1])
    kept = tuple((start, end) for start, end in ranges[:MAX_LOST_RANGES])
    return kept, len(ranges) - len(kept)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """
    Write a manifest so that there is always either the whole of it or none.

    Raises
    ------
    OutputError
        If it cannot be written; :class:`~postpanic.errors.NoSpaceError` if the disk is full.
    """
    data = (json.dumps(manifest.to_json(), indent=1) + "\n").encode("ascii")
    temporary = path.with_name(f".manifest-{os.getpid()}-{time.monotonic_ns():x}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as exc:
        # What follows needs numpy, and is imported when a dump has been written anyway.
        from postpanic.dumps.write_calls import as_output_error

        raise as_output_error(exc, str(path)) from exc


def read_manifest(path: Path) -> Manifest:
    """
    Read a manifest.

    Keys that this version does not know are ignored.

    Raises
    ------
    FileFaultError
        If the file cannot be read.
    CorruptError
        If it is no JSON, or a key is missing or holds what it must not; names the key.
    UnsupportedError
        If its schema is newer than what is known here.
    """
    where = str(path)
    value = _load(path)
    top = JsonObject(value, where, "")
    version = top.integer("schema_version", least=1)
    if version > SCHEMA_VERSION:
        raise UnsupportedError(
            f"a manifest of schema version {version}, known is {SCHEMA_VERSION}",
            where=where,
            hint="a newer postpanic wrote it and can read it",
        )
    return decode_manifest(top)


def _load(path: Path) -> object:
    where = str(path)
    try:
        # Opening a FIFO must not wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise FileFaultError("not a regular file", where=where)
            data = stream.read(_LIMIT_BYTES + 1)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=where) from None
    if len(data) > _LIMIT_BYTES:
        raise CorruptError(f"a manifest has at most {_LIMIT_BYTES} bytes", where=where)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise CorruptError(f"no JSON: {clean_text(reason)}", where=where) from None


def _sync_directory(path: Path) -> None:
    """Let the new name reach the disk; file systems that cannot do so say EINVAL."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
