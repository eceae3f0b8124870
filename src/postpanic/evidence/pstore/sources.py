"""
Find out what a path is, and read the records in it.

A directory is a mounted pstore (or a copy, or an archive) or efivarfs, by the
names in it; a file or device by its contents, since images have no names.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from postpanic.errors import CorruptError, FileFaultError, NotADumpError, UsageError
from postpanic.evidence.pstore.directory import decode_file, is_record_name, read_directory
from postpanic.evidence.pstore.efivars import (
    decode_efi_variable,
    is_dump_variable,
    read_efi_store,
    read_efivars,
)
from postpanic.evidence.pstore.erst import read_erst
from postpanic.evidence.pstore.model import Record
from postpanic.evidence.pstore.mtdoops import find_pages, read_mtdoops
from postpanic.evidence.pstore.ramoops import read_ramoops
from postpanic.evidence.pstore.ramoops_layout import BLOCK_BYTES, Bytes, Layout, fit_layout
from postpanic.evidence.pstore.ramoops_search import find_layout
from postpanic.evidence.pstore.zone import KMSG_MAGIC, read_pstore_blk
from postpanic.units import format_size

__all__ = ["Format", "Source", "read_source"]

_MOST_DEVICE_BYTES = 128 << 20
"""pstore_blk uses no more of a device."""
_MOST_SEARCHED_BYTES = 64 << 20
_STORE_SIGNATURE = b"_FVH"
_STORE_AT = 40
_ERST_SIGNATURE = b"ERSTSTOR"
_CPER_BEGIN = re.compile(rb"CPER..\xff\xff\xff\xff", re.DOTALL)
_KMSG = re.escape(KMSG_MAGIC.to_bytes(4, "little"))
# A kernel's code has either number; side by side they are a zone.
_DUMP_ZONE = re.compile(rb"DBGC.{8}" + _KMSG + rb"|CGBD.{8}" + re.escape(KMSG_MAGIC.to_bytes(4, "big")), re.DOTALL)
_ZONE_BEGIN = re.compile(rb"[FGC]BGC|CGB[FGC]")
_SIZES = ("mem_size", "record_size", "console_size", "ftrace_size", "pmsg_size")


class Format(StrEnum):
    """What records are kept in."""

    PSTORE = "pstore"
    """Files of a mounted pstore, or an archive of them."""
    EFIVARS = "efivars"
    EFI_STORE = "efi-store"
    """An image of the firmware's flash."""
    RAMOOPS = "ramoops"
    MTDOOPS = "mtdoops"
    PSTORE_BLK = "pstore_blk"
    ERST = "erst"


class Source(msgspec.Struct, frozen=True):
    """
    A place that records were read from.

    Parameters
    ----------
    path : Path
    format : Format
    records : tuple of Record
    layout : str
        Of the zones, where there are any; one line.
    """

    path: Path
    format: Format
    records: tuple[Record, ...] = ()
    layout: str = ""


def read_source(path: Path, *, kind: Format | None = None, parameters: Mapping[str, int] | None = None) -> Source:
    """
    Read the records of one place.

    Parameters
    ----------
    path : Path
        A directory, a file or a device.
    kind : Format, optional
        What it is; by default found out.
    parameters : mapping, optional
        Geometry, as the modules name it: ``mem_size``, ``record_size``, ``console_size``, ``ftrace_size``,
        ``pmsg_size``, ``ecc`` (bytes). Those of a ramoops area that are not given are then the module's defaults.

    Raises
    ------
    FileFaultError
        If it cannot be read, or is none of the formats.
    UsageError
        If the geometry cannot be.
    """
    given = dict(parameters or {})
    try:
        is_directory = path.is_dir()
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    if is_directory:
        return _read_directory(path, kind)
    if kind in (None, Format.PSTORE, Format.EFIVARS) and (is_record_name(path.name) or is_dump_variable(path.name)):
        return _read_one_file(path)
    return _with_bytes(path, lambda data: _read_image(path, data, kind, given))


def _read_directory(path: Path, kind: Format | None) -> Source:
    if kind is None:
        try:
            has_variables = any(is_dump_variable(entry.name) for entry in path.iterdir())
        except OSError as exc:
            raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
        kind = Format.EFIVARS if has_variables or path.name == "efivars" else Format.PSTORE
    if kind not in (Format.PSTORE, Format.EFIVARS):
        raise UsageError(f"{path} is a directory, and {kind} is an image")
    records = read_efivars(path) if kind is Format.EFIVARS else read_directory(path)
    return Source(path, kind, tuple(records))


def _read_one_file(path: Path) -> Source:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_DEVICE_BYTES)
            mtime_s = os.fstat(stream.fileno()).st_mtime
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    if is_dump_variable(path.name):
        record = decode_efi_variable(path.name, content[4:])
        kind = Format.EFIVARS
    else:
        record = decode_file(path.name, content, mtime_s=mtime_s)
        kind = Format.PSTORE
    return Source(path, kind, (msgspec.structs.replace(record, source=str(path), raw=content, is_file=True),))


def _with_bytes(path: Path, read: Callable[[Bytes], Source]) -> Source:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_size:
                with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
                    return read(mapped)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
                raise NotADumpError("neither a directory, a file nor a device", where=str(path))
            return read(_read_device(descriptor))
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc


def _read_device(descriptor: int) -> bytes:
    content = bytearray()
    while len(content) < _MOST_DEVICE_BYTES and (piece := os.read(descriptor, 1 << 20)):
        content += piece
    return bytes(content)


def _read_image(path: Path, data: Bytes, kind: Format | None, given: dict[str, int]) -> Source:
    zones: Layout | None = None
    detected = kind
    if kind is None:
        detected, zones = _detect_image(data, given)
    layout = ""
    try:
        match detected:
            case Format.RAMOOPS:
                zones = zones or _layout(data, given)
                records, layout = read_ramoops(data, zones), _describe(zones)
            case Format.MTDOOPS:
                records = read_mtdoops(data, given.get("record_size", 0))
            case Format.PSTORE_BLK:
                records = read_pstore_blk(data)
            case Format.ERST:
                records = read_erst(data)
            case Format.EFI_STORE:
                records = read_efi_store(data)
            case _:
                raise NotADumpError(
                    "no records: neither a ramoops area, an mtdoops partition, a pstore_blk device, ERST records"
                    " nor a flash image with EFI variables"
                    if detected is None
                    else f"no directory, and {detected} is one",
                    where=str(path),
                    hint="--format says what it is; the sizes of a ramoops area can be given",
                )
    except CorruptError as exc:
        raise CorruptError(exc.message, where=str(path), hint="give its geometry, as the module's parameters") from exc
    located = [msgspec.structs.replace(record, source=f"{path}{record.source}") for record in records]
    return Source(path, detected, tuple(located), layout)


def _detect_image(data: Bytes, given: dict[str, int]) -> tuple[Format | None, Layout | None]:
    """Tell what an image is by its contents, the strongest signs first; of a ramoops area also its layout."""
    detected = _detect_marked(data)
    if detected is not None:
        return detected, None
    try:
        return Format.RAMOOPS, _layout(data, given)
    except CorruptError:
        pass
    limit = min(len(data), _MOST_SEARCHED_BYTES)
    if _ZONE_BEGIN.search(data, 0, limit) is not None and read_pstore_blk(data):
        return Format.PSTORE_BLK, None
    return (Format.ERST if _CPER_BEGIN.search(data, 0, limit) is not None else None), None


def _detect_marked(data: Bytes) -> Format | None:
    if data[_STORE_AT : _STORE_AT + 4] == _STORE_SIGNATURE:
        return Format.EFI_STORE
    if data[:8] in (_ERST_SIGNATURE, _ERST_SIGNATURE[::-1]):
        return Format.ERST
    if len(data) <= _MOST_DEVICE_BYTES and find_pages(data):
        return Format.MTDOOPS
    return Format.PSTORE_BLK if _DUMP_ZONE.search(data, 0, min(len(data), _MOST_SEARCHED_BYTES)) is not None else None


def _layout(data: Bytes, given: dict[str, int]) -> Layout:
    if any(name in given for name in _SIZES):
        return fit_layout(data, **given)
    return find_layout(data, ecc=given.get("ecc"))


def _describe(layout: Layout) -> str:
    """Say in one line what zones there are, in their order."""
    parts: list[str] = []
    runs: list[tuple[str, int, int]] = []
    for zone in layout.zones:
        if runs and runs[-1][:2] == (zone.type.value, zone.size):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((zone.type.value, zone.size, 1))
    for name, size, count in runs:
        parts.append(f"{name} {count} x {format_size(size)}" if count > 1 else f"{name} {format_size(size)}")
    parity = f"{layout.ecc} bytes of parity for each {BLOCK_BYTES}" if layout.ecc else "no parity"
    return f"{', '.join(parts)}; {parity}{', found by its signatures' if layout.is_found else ''}"
