"""
Where dumps are written to: files, with a digest of what was written, and a limit on their size.

The digest is of chunks of 64 MiB, so that a copy can be checked, and a fault
placed, on several threads. Chunks that are written from front to back are
hashed on the way; a dump's first ones, whose headers and tables are filled in
as pages come, are read again at the end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import ChunkHashes, FileDigest
from postpanic.dumps.write_calls import as_output_error, as_views, find_row_groups, write_views
from postpanic.dumps.writing import ByteSink
from postpanic.errors import NoSpaceError, OutputError
from postpanic.units import format_size

__all__ = [
    "DescriptorSink",
    "FileSink",
    "LimitedSink",
    "NullSink",
    "Sink",
]

_GAP_BYTES = 2048
"""Rows of a table with no more than this between them are written together, with what lies there already."""

_MODE = 0o600
"""Memory holds everybody's secrets."""


class Sink(ByteSink, Protocol):
    """A :class:`~postpanic.dumps.writing.ByteSink` that whoever opened it also ends."""

    def finish(self) -> FileDigest:
        """Let the file reach the disk, close it, and tell its digest."""

    def close(self) -> None:
        """Close without another word; does nothing after :meth:`finish`."""


class DescriptorSink:
    """
    What a file and a part of a block device have in common: bytes at offsets of a descriptor.

    Parameters
    ----------
    name : str
        For messages.
    fd : int
        Open for reading and writing; the sink closes it.
    base : int
        Where byte 0 of the file is.
    """

    is_stream = False

    def __init__(self, name: str, fd: int, *, base: int = 0, hashed: bool = True, synced: bool = True) -> None:
        self.name = name
        self._fd = fd
        self._base = base
        self._hashes = ChunkHashes() if hashed else None
        self._synced = synced

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Write bytes from an offset of the file on."""
        views = as_views(parts)
        fd = self._fd
        try:
            write_views(lambda some, at: os.pwritev(fd, some, at), views, self._base + offset)
        except OSError as exc:
            if self._hashes is not None:
                self._hashes.spoil(offset, offset + sum(len(view) for view in views))
            raise as_output_error(exc, self.name) from exc
        if self._hashes is not None:
            for view in views:
                self._hashes.update(offset, view)
                offset += len(view)

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write rows of a table; those close together in one go, around what is there between them."""
        size = rows.shape[1]
        for first, last in find_row_groups(numbers, _GAP_BYTES // size):
            base, count = int(numbers[first]), int(numbers[last - 1]) + 1 - int(numbers[first])
            offset = table_offset + base * size
            if count == last - first:
                self.write_at(offset, [rows[first:last].reshape(-1).data])
                continue
            span = np.zeros((count, size), dtype=np.uint8)
            self._read_into(offset, span.reshape(-1).data)
            span[numbers[first:last] - base] = rows[first:last]
            self.write_at(offset, [span.reshape(-1).data])

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Read back what was written; zeroes where nothing was, also beyond the end."""
        buffer = bytearray(size_bytes)
        self._read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        if not self._synced:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            raise as_output_error(exc, self.name) from exc

    def fileno(self) -> int:
        """Give the descriptor, for who writes in another way."""
        return self._fd

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        try:
            while done < len(buffer) and (got := os.preadv(self._fd, [buffer[done:]], self._base + offset + done)):
                done += got
        except OSError as exc:
            raise as_output_error(exc, self.name, "read back") from exc


class FileSink(DescriptorSink):
    """
    A file on disk.

    Parameters
    ----------
    path : Path
        Is created, with mode 0600.
    overwrite : bool
        Whether a file that is there is replaced.
    hashed : bool
        Whether :meth:`finish` gives digests.
    synced : bool
        Whether :meth:`flush` and :meth:`finish` wait for the disk.
    sources : sequence of Path
        Files that are being read, and must not be the output.

    Raises
    ------
    OutputError
        If the file is there already, is a source, is no regular file, or
        cannot be opened.
    NoSpaceError
        If the disk has no room for another file.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool,
        hashed: bool = True,
        synced: bool = True,
        sources: Sequence[Path] = (),
    ) -> None:
        name = str(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(path, flags if overwrite else flags | os.O_EXCL, _MODE)
        except FileExistsError as exc:
            raise OutputError("exists already", where=name, hint="-f overwrites") from exc
        except OSError as exc:
            raise as_output_error(exc, name, "open") from exc
        except ValueError as exc:
            raise OutputError(f"cannot open: {exc}", where=name) from exc
        super().__init__(name, fd, hashed=hashed, synced=synced)
        try:
            self._check_target(sources)
            if os.fstat(self._fd).st_size:
                # Not otherwise: what was cut to nothing ext4 takes for being replaced, and writes out on close.
                os.ftruncate(self._fd, 0)
        except OSError as exc:
            self.close()
            raise as_output_error(exc, self.name) from exc
        except OutputError:
            self.close()
            raise

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside; they take no room until they are written."""
        self.extend(size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long; what was never written takes no room, and reads as zeroes."""
        try:
            if os.fstat(self._fd).st_size < size_bytes:
                os.ftruncate(self._fd, size_bytes)
        except OSError as exc:
            raise as_output_error(exc, self.name) from exc

    def finish(self) -> FileDigest:
        """
        Let the file reach the disk, and close it.

        Returns
        -------
        FileDigest
            Without hashes if they were not asked for.
        """
        try:
            if self._synced:
                os.fsync(self._fd)
            size = os.fstat(self._fd).st_size
            return self._hashes.finish(size, self._fd) if self._hashes is not None else FileDigest(size)
        except OSError as exc:
            raise as_output_error(exc, self.name) from exc
        finally:
            self.close()

    def _check_target(self, sources: Sequence[Path]) -> None:
        """Make sure that what was opened may be emptied."""
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise OutputError("not a regular file", where=self.name, hint="-F writes a stream to standard output")
        for source in sources:
            try:
                other = source.stat()
            except OSError:
                continue
            if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
                raise OutputError(f"is the file that is read ({source})", where=self.name, hint="name another file")


class LimitedSink:
    """
    A sink whose file must not take more than so much room.

    What was reserved counts, and everything that is written beyond it; gaps do
    not, so an ELF file, whose pages of zeroes are gaps, may look larger. A
    write that does not fit is refused as a whole.

    Parameters
    ----------
    limit_bytes : int
        The most that the file may take.
    reason : str
        What to say when it is reached; without it, that the limit is.
    """

    def __init__(self, sink: Sink, limit_bytes: int, reason: str = "") -> None:
        self._sink = sink
        self._limit = limit_bytes
        self._reason = reason or f"the limit of {format_size(limit_bytes)} is reached"
        self._reserved = 0
        self._used = 0

    @property
    def name(self) -> str:
        """The name of the sink below."""
        return self._sink.name

    @property
    def is_stream(self) -> bool:
        """Whether the sink below is a stream."""
        return self._sink.is_stream

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Write bytes from an offset of the file on."""
        needed = self._measure(offset, offset + sum(memoryview(part).nbytes for part in parts))
        self._sink.write_at(offset, parts)
        self._used += needed

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write rows of a table."""
        needed = 0
        if len(numbers):
            size = rows.shape[1]
            needed = self._measure(table_offset + int(numbers[0]) * size, table_offset + (int(numbers[-1]) + 1) * size)
        self._sink.write_rows(table_offset, numbers, rows)
        self._used += needed

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside."""
        needed = self._measure(0, size_bytes)
        self._sink.reserve(size_bytes)
        self._used += needed
        self._reserved = max(self._reserved, size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long."""
        self._sink.extend(size_bytes)

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        self._sink.flush()

    def finish(self) -> FileDigest:
        """Let the file reach the disk, close it, and tell its digest."""
        return self._sink.finish()

    def close(self) -> None:
        """Close the sink below."""
        self._sink.close()

    def _measure(self, start: int, end: int) -> int:
        """Count the bytes that a write takes beyond what is reserved; they must fit."""
        needed = max(end - max(start, self._reserved), 0)
        if self._used + needed > self._limit:
            raise NoSpaceError(self._reason, where=self.name)
        return needed


class NullSink:
    """
    A sink that keeps nothing, and counts what a file would have.

    Parameters
    ----------
    name : str
        What to call it.
    """

    is_stream = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.size_bytes = 0
        """How large the file would be."""

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Take note of the size."""
        self.extend(offset + sum(memoryview(part).nbytes for part in parts))

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Take note of the size."""
        if len(numbers):
            self.extend(table_offset + (int(numbers[-1]) + 1) * rows.shape[1])

    def reserve(self, size_bytes: int) -> None:
        """Take note of the size."""
        self.extend(size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Take note of the size."""
        self.size_bytes = max(self.size_bytes, size_bytes)

    def flush(self) -> None:
        """Do nothing."""

    def finish(self) -> FileDigest:
        """Tell the size; there is nothing to hash."""
        return FileDigest(self.size_bytes)

    def close(self) -> None:
        """Do nothing."""
