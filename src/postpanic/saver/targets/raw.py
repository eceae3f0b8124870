"""
Save a dump onto a block device that has no file system, or into a swap area.

A power cut leaves the swap area as it was, or what has been saved so far, and
nothing in between: the signature of the swap area and ours take each other's
place, in one sector. ``docs/formats/raw.md`` describes what is on the device.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.sink import Sink
from postpanic.dumps.write_calls import as_output_error
from postpanic.errors import FileFaultError, NoSpaceError, OutputError
from postpanic.saver.blocks import BlockFinder
from postpanic.saver.plan import RawPlan
from postpanic.saver.superblocks import RAW_DUMP_SIGNATURE, SWAP_SIGNATURE, read_at, read_superblock
from postpanic.saver.targets.block_sink import BlockSink
from postpanic.saver.targets.raw_table import (
    ALIGNMENT,
    DATA_OFFSET,
    RawEntry,
    RawFile,
    RawTable,
    find_gaps,
    read_table,
    write_table,
)
from postpanic.saver.targets.retention import OldDump, select_for_deletion
from postpanic.units import format_size

__all__ = ["RawTarget", "mark_device", "measure_device", "open_device"]

_WAIT_S = 30.0
_PAGE_BYTES = 4096
"""Where our signature is on a device that was no swap area."""
_MAX_NUMBER = 999
_SMALL_BYTES = 16 << 20
"""Kept free before the dump for log, notes and manifest; of a small device a sixteenth."""
_LEAST_BYTES = 256 << 10


class RawTarget:
    """
    A block device without a file system, or a swap area.

    Dumps that nobody has taken off the device yet are never overwritten; a new
    one goes where there is room.

    Parameters
    ----------
    finder : BlockFinder, optional
        Finds the device; one of the saver's own knows how to bind what turns up.
    wait_s : float
        For the device to turn up.
    path : Path, optional
        The device itself, where it need not be found.
    """

    def __init__(
        self,
        plan: RawPlan,
        *,
        finder: BlockFinder | None = None,
        wait_s: float = _WAIT_S,
        path: Path | None = None,
    ) -> None:
        self.name = plan.name or ("swap area" if plan.swap else "raw device")
        self._plan = plan
        self._finder = finder or BlockFinder()
        self._wait_s = wait_s
        self._path = path
        self._device = path or Path()
        self._fd = -1
        self._table = RawTable(0, _PAGE_BYTES, b"")
        self._dump_name = ""
        self._asked_name = ""
        self._file_name = ""
        self._region: tuple[int, int] | None = None

    def open(self, dump_name: str) -> None:
        """Find the device, see to it that it may be overwritten, and make an entry for a new dump."""
        self.close()
        if self._path is None:
            self._device = self._finder.find(self._plan.device, wait_s=self._wait_s, where=self.name).path
        self._fd = open_device(self._device, self.name)
        try:
            size = measure_device(self._fd)
            table, generation = read_table(self._fd, size)
            if table is None:
                # Twice, so that neither copy is one of an earlier use.
                table = write_table(self._fd, self._prepare(size, generation))
                self._table = self._add_entry(table, dump_name)
                mark_device(self._fd, table.page_bytes, RAW_DUMP_SIGNATURE)
            else:
                self._check_use(table)
                self._table = self._add_entry(table, dump_name)
        except FileFaultError as exc:
            raise OutputError(exc.message, where=self.name) from exc
        except OSError as exc:
            raise as_output_error(exc, self.name, "prepare the device") from exc

    @property
    def place(self) -> str:
        """The dump's name, and the device."""
        return f"{self._dump_name} on {self._device}" if self._dump_name else ""

    @property
    def takes_small_files(self) -> bool:
        """There is room for them beside the dump."""
        return True

    def put(self, name: str, content: bytes) -> None:
        """Write a small file where nothing is, then the table; what had that name before stays until then."""
        entry = self._entry()
        offset = self._find_room(len(content))
        digest = hashlib.sha256(hashlib.sha256(content).digest() if content else b"").hexdigest()
        try:
            _write_all(self._fd, content, offset)
            os.fdatasync(self._fd)
            self._write(entry.with_file(RawFile(name, offset, len(content), digest)))
        except OSError as exc:
            raise as_output_error(exc, self.name, f"write {name}") from exc

    def open_dump(self, name: str) -> Sink:
        """Start the dump in the largest gap; what was written of one before, by any attempt, is dropped."""
        entry = self._entry()
        dropped = [
            replace(one, writing=None) if one.writing is not None and not one.is_committed else one
            for one in self._table.entries
        ]
        table = replace(self._table, entries=tuple(dropped))
        self._region = None
        start, end = max(find_gaps(table), key=lambda gap: gap[1] - gap[0], default=(0, 0))
        start += min(_SMALL_BYTES, (end - start) // 16) // ALIGNMENT * ALIGNMENT
        if end - start < _LEAST_BYTES:
            raise NoSpaceError(self._explain_room(), where=self.name, hint="recover the dumps that are on it")
        files = tuple(file for file in entry.files if file.name != name)
        mine = replace(entry, files=files, writing=RawFile(name, start, 0), is_committed=False)
        try:
            self._table = write_table(self._fd, table.with_entry(mine))
            fd = os.dup(self._fd)
        except OSError as exc:
            raise as_output_error(exc, self.name, f"begin {name}") from exc
        self._region, self._file_name = (start, end), name
        return BlockSink(
            f"{self._device} ({name})",
            fd,
            start=start,
            limit_bytes=end - start,
            record=self._record,
            finished=self._take_digest,
        )

    @property
    def dump_files(self) -> tuple[str, ...]:
        """The dump's name, once it was begun."""
        return (self._file_name,) if self._file_name else ()

    def read_back(self) -> str | None:
        """Nothing: no path leads to a part of a device."""
        return None

    def room_bytes(self) -> int | None:
        """Measure the room for the dump."""
        if self._region is not None:
            return self._region[1] - self._region[0]
        gaps = [end - start for start, end in find_gaps(self._table)]
        return max((gap - min(_SMALL_BYTES, gap // 16) for gap in gaps), default=0)

    def commit(self) -> None:
        """Tell in the table that the dump is finished."""
        entry = self._entry()
        if entry.is_committed or not self._file_name:
            return
        if not any(file.name == self._file_name for file in entry.files):
            raise OutputError(f"{self._file_name} was not finished", where=self.name)
        try:
            self._write(replace(entry, is_committed=True))
        except OSError as exc:
            raise as_output_error(exc, self.name, "commit the dump") from exc

    def rotate(self) -> list[str]:
        """Drop the oldest dumps beyond the plan's bounds; without bounds none, whoever may still want them."""
        if not self._entry().is_committed:
            return []
        dumps = [
            OldDump(f"{number:04}", 0, entry.name, entry.size_bytes) for number, entry in enumerate(self._table.entries)
        ]
        free = sum(end - start for start, end in find_gaps(self._table))
        chosen = [dump.name for dump in select_for_deletion(dumps, self._dump_name, self._plan.retention, free)]
        if chosen:
            try:
                self._table = write_table(self._fd, self._table.without(chosen))
            except OSError as exc:
                raise as_output_error(exc, self.name, "drop old dumps") from exc
        return chosen

    def close(self) -> None:
        """Close the device."""
        self._region = None
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _prepare(self, size_bytes: int, generation: int) -> RawTable:
        """Make sure that the device may be overwritten; return its table, empty."""
        found = read_superblock(self._fd, size_bytes)
        if found.kind != ("swap" if self._plan.swap else ""):
            raise self._refuse(f"{found.kind or 'nothing that is known'} is on {self._device}")
        if size_bytes < DATA_OFFSET + _LEAST_BYTES:
            raise NoSpaceError(f"{self._device} has {format_size(size_bytes)} only", where=self.name)
        page_bytes = found.page_bytes or _PAGE_BYTES
        replaced = read_at(self._fd, page_bytes - len(RAW_DUMP_SIGNATURE), len(RAW_DUMP_SIGNATURE))
        return RawTable(size_bytes, page_bytes, replaced, generation=generation)

    def _check_use(self, table: RawTable) -> None:
        """Make sure that a device that has dumps already is of the kind that is wanted."""
        is_swap = table.replaced == SWAP_SIGNATURE
        if is_swap != self._plan.swap:
            raise self._refuse(f"{self._device}, with dumps on it, is {'a' if is_swap else 'no'} swap area")

    def _refuse(self, reason: str) -> OutputError:
        wanted = "a swap area" if self._plan.swap else "a device with nothing on it"
        return OutputError(f"{reason}, {wanted} is wanted: not overwritten", where=self.name)

    def _add_entry(self, table: RawTable, dump_name: str) -> RawTable:
        """Make an entry for a new dump; one that an earlier attempt made is used again."""
        if self._asked_name == dump_name and table.find(self._dump_name) is not None:
            self._file_name = ""
            return table
        for number in range(_MAX_NUMBER):
            name = f"{dump_name}-{number}" if number else dump_name
            if table.find(name) is None:
                break
        self._dump_name, self._asked_name, self._file_name = name, dump_name, ""
        return write_table(self._fd, table.with_entry(RawEntry(name)))

    def _entry(self) -> RawEntry:
        entry = self._table.find(self._dump_name) if self._fd >= 0 else None
        if entry is None:
            raise OutputError("not open", where=self.name)
        return entry

    def _write(self, entry: RawEntry) -> None:
        self._table = write_table(self._fd, self._table.with_entry(entry))

    def _find_room(self, size_bytes: int) -> int:
        """Find the first gap that is large enough for a small file."""
        needed = max(-(-size_bytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        for start, end in find_gaps(self._table, [self._region] if self._region else []):
            if end - start >= needed:
                return start
        raise NoSpaceError(self._explain_room(), where=self.name, hint="recover the dumps that are on it")

    def _explain_room(self) -> str:
        others = [entry.name for entry in self._table.entries if entry.name != self._dump_name]
        beside = f", beside {len(others)} dumps ({', '.join(others[:3])})" if others else ""
        return f"no room on {self._device} of {format_size(self._table.device_bytes)}{beside}"

    def _record(self, reached_bytes: int) -> None:
        """Note how far the dump is."""
        if self._fd < 0 or self._region is None:
            return
        entry = self._entry()
        if entry.writing is not None:
            self._write(replace(entry, writing=replace(entry.writing, size_bytes=reached_bytes)))

    def _take_digest(self, digest: FileDigest) -> None:
        """Make a file of what was being written."""
        if self._region is None:
            raise OutputError("not open", where=self.name)
        entry = self._entry()
        file = RawFile(self._file_name, self._region[0], digest.size_bytes, digest.sha256)
        self._write(replace(entry.with_file(file), writing=None))
        self._region = None


def open_device(path: Path, where: str) -> int:
    """
    Open a device to write to it, if nothing else uses it.

    Raises
    ------
    OutputError
        If it cannot be opened, or is mounted or swapped to.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        # O_EXCL without O_CREAT: EBUSY where a block device is mounted or swapped to, open(2).
        fd = os.open(path, flags | (os.O_EXCL if stat.S_ISBLK(path.stat().st_mode) else 0))
    except OSError as exc:
        raise as_output_error(exc, where, f"open {path}") from exc
    return fd


def measure_device(fd: int) -> int:
    """Tell the size of a device or file, in bytes."""
    return os.lseek(fd, 0, os.SEEK_END)


def mark_device(fd: int, page_bytes: int, signature: bytes) -> None:
    """
    Put a signature at the end of the first page, and wait until it is there: one sector, so all of it or nothing.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    os.pwrite(fd, signature, page_bytes - len(signature))
    os.fsync(fd)


def _write_all(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
