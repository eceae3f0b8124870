"""
Take dumps off devices without a file system, when the machine is up again.

A library for the command line: find what is there, copy it into a directory,
and only then give the device back, as it was: a swap area is one again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from postpanic.dumps.digest import ChunkHashes
from postpanic.dumps.write_calls import as_output_error
from postpanic.errors import CorruptError, FileFaultError
from postpanic.saver.superblocks import SWAP_SIGNATURE
from postpanic.saver.targets.directory import INCOMPLETE_SUFFIX, DirectoryTarget
from postpanic.saver.targets.raw import mark_device, measure_device, open_device
from postpanic.saver.targets.raw_table import RawEntry, RawFile, RawTable, read_table, write_table

__all__ = ["RawDump", "RecoveredDump", "find_raw_dumps", "recover_raw_dump", "release_raw_dump"]

_READ_BYTES = 1 << 20
_SMALL_BYTES = 64 << 20
_DUMP_NAMES = frozenset({"vmcore", "vmcore.flat"})


@dataclass(frozen=True)
class RawDump:
    """
    A dump on a device.

    Attributes
    ----------
    name : str
        Of the directory it would be in.
    is_complete : bool
        Whether the dump was finished; else there are at least the log and what else was put before.
    is_swap : bool
        Whether the device is a swap area, and is one again when its last dump is released.
    size_bytes : int
        Of all its files.
    """

    device: Path
    name: str
    is_complete: bool
    is_swap: bool
    file_names: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class RecoveredDump:
    """
    What was copied.

    Attributes
    ----------
    directory : Path
        Of the dump.
    files : tuple of Path
        In it.
    damaged : tuple of str
        Names of files that are not what was written; the device should not be released then.
    """

    directory: Path
    files: tuple[Path, ...]
    damaged: tuple[str, ...] = ()


def find_raw_dumps(devices: Iterable[Path]) -> list[RawDump]:
    """
    Find the dumps on devices; what cannot be opened or has none is passed over.

    Raises
    ------
    CorruptError
        If there are dumps on a device, the table that tells where is damaged, and no other device has any.
    """
    found: list[RawDump] = []
    damaged: CorruptError | None = None
    for device in devices:
        try:
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            table = read_table(fd, measure_device(fd))[0]
        except CorruptError as exc:
            damaged = CorruptError(exc.message, where=str(device))
            continue
        except OSError:
            continue
        finally:
            os.close(fd)
        if table is not None:
            found += [_describe(device, table, entry) for entry in table.entries]
    if damaged is not None and not found:
        raise damaged
    return found


def recover_raw_dump(dump: RawDump, directory: Path) -> RecoveredDump:
    """
    Copy a dump from its device into a directory of its own name, and check every file.

    Parameters
    ----------
    directory : Path
        Where the dump's directory is made; a number is added to a name that is taken.

    Raises
    ------
    FileFaultError
        If the device cannot be read, or does not have the dump any more.
    OutputError
        If a file cannot be written.
    """
    try:
        fd = os.open(dump.device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise FileFaultError(f"cannot open: {(exc.strerror or str(exc)).lower()}", where=str(dump.device)) from exc
    try:
        entry = _find_entry(_read(fd, dump.device), dump)
        return _copy(fd, entry, DirectoryTarget(directory))
    except OSError as exc:
        raise FileFaultError(f"cannot read: {(exc.strerror or str(exc)).lower()}", where=str(dump.device)) from exc
    finally:
        os.close(fd)


def release_raw_dump(dump: RawDump) -> None:
    """
    Give up a dump on its device; with the last one the device is what it was before.

    Raises
    ------
    FileFaultError
        If the device does not have the dump any more.
    OutputError
        If the device cannot be written to.
    """
    where = str(dump.device)
    fd = open_device(dump.device, where)
    try:
        table = _read(fd, dump.device)
        _find_entry(table, dump)
        left = table.without([dump.name])
        if left.entries:
            write_table(fd, left)
        else:
            # All in one step: without our signature the table is nothing.
            mark_device(fd, table.page_bytes, table.replaced)
    except OSError as exc:
        raise as_output_error(exc, where, "give the device back") from exc
    finally:
        os.close(fd)


def _describe(device: Path, table: RawTable, entry: RawEntry) -> RawDump:
    files = entry.ranges
    return RawDump(
        device=device,
        name=entry.name,
        is_complete=entry.is_committed,
        is_swap=table.replaced == SWAP_SIGNATURE,
        file_names=tuple(file.name for file in files),
        size_bytes=sum(file.size_bytes for file in files),
    )


def _read(fd: int, device: Path) -> RawTable:
    try:
        table = read_table(fd, measure_device(fd))[0]
    except CorruptError as exc:
        raise CorruptError(exc.message, where=str(device)) from exc
    if table is None:
        raise FileFaultError("there are no dumps on it", where=str(device))
    return table


def _find_entry(table: RawTable, dump: RawDump) -> RawEntry:
    entry = table.find(dump.name)
    if entry is None:
        raise FileFaultError(f"the dump {dump.name} is not on it any more", where=str(dump.device))
    return entry


def _copy(fd: int, entry: RawEntry, target: DirectoryTarget) -> RecoveredDump:
    target.open(entry.name)
    damaged: list[str] = []
    names: list[str] = []
    # The small ones first: they are what is looked at first, and the disk may be full.
    for file in sorted(entry.files, key=lambda file: file.name in _DUMP_NAMES):
        if file.name not in _DUMP_NAMES and file.size_bytes <= _SMALL_BYTES:
            if not _copy_small(fd, file, target):
                damaged.append(file.name)
            names.append(file.name)
            continue
        is_good = _copy_dump(fd, file, target)
        if is_good and entry.is_committed:
            target.commit()
            names.append(file.name)
        else:
            names.append(f"{file.name}{INCOMPLETE_SUFFIX}")
        if not is_good:
            damaged.append(file.name)
    if entry.writing is not None and entry.writing.size_bytes:
        # Of a dump that was never finished there is no digest: it says itself what is missing.
        _copy_dump(fd, entry.writing, target)
        names.append(f"{entry.writing.name}{INCOMPLETE_SUFFIX}")
    target.close()
    directory = Path(target.place)
    return RecoveredDump(directory, tuple(directory / name for name in names), tuple(damaged))


def _copy_small(fd: int, file: RawFile, target: DirectoryTarget) -> bool:
    parts = list(_read_parts(fd, file))
    hashes = ChunkHashes()
    offset = 0
    for part in parts:
        hashes.update(offset, memoryview(part))
        offset += len(part)
    target.put(file.name, b"".join(parts))
    return hashes.finish(file.size_bytes, None).sha256 == file.sha256


def _copy_dump(fd: int, file: RawFile, target: DirectoryTarget) -> bool:
    sink = target.open_dump(file.name)
    try:
        offset = 0
        for part in _read_parts(fd, file):
            if part.count(0) != len(part):
                sink.write_at(offset, [part])
            offset += len(part)
        sink.extend(file.size_bytes)
        digest = sink.finish()
        return not file.sha256 or digest.sha256 == file.sha256
    finally:
        sink.close()


def _read_parts(fd: int, file: RawFile) -> Iterator[bytes]:
    done = 0
    while done < file.size_bytes:
        part = os.pread(fd, min(_READ_BYTES, file.size_bytes - done), file.offset + done)
        if not part:
            raise OSError(0, f"the device ends within {file.name}")
        yield part
        done += len(part)
