"""
Bytes of a dump, addressed by offset: a file, or a view that hides a container.

A format reader sees only a :class:`ByteSource`, so it neither knows nor cares
whether the bytes are a file's own or scattered over a flattened stream.
Reads are positioned (``pread``), not mapped: a file on a failing disk, or one
that shrinks while it is open, then gives short reads instead of killing the
process with ``SIGBUS``. ``/proc/vmcore`` is the exception: it cannot shrink, and
the kernel maps old memory at once but copies it page by page.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path
from typing import Protocol

import numpy as np

from postpanic.errors import FileFaultError, NotADumpError

__all__ = ["ByteSource", "FileSource", "MappedSource", "open_file"]

_BLOCK_BYTES = 512
"""Of ``st_blocks``, whatever the file system's blocks are."""
_SMALLEST_HOLE = 1 << 16

_VMCORE = Path("/proc/vmcore")
_SMALLEST_MAP = 1 << 16
"""Below this a copy costs less than setting up and tearing down a mapping."""
_LARGEST_MAP = 1 << 24

_LARGEST_READ = 1 << 30
"""Linux moves at most 2 GiB - 4 KiB in one call."""


class ByteSource(Protocol):
    """Random access to the bytes of one dump file."""

    name: str
    """The path, as the user gave it."""
    container: str
    """What the bytes are wrapped in: empty, or ``flattened``."""
    size_bytes: int
    """One more than the last offset that can be read."""
    file_size_bytes: int
    """Of the file on disk."""
    incomplete: str
    """Why the source is known to be cut short; empty if it is not."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Read from an offset; short where the bytes are not there."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read from an offset into a buffer; the count, short where the bytes are not there."""

    def find_data(self, offset: int) -> int:
        """Find the first offset from one on whose byte is there; ``size_bytes`` if there is none."""

    def close(self) -> None:
        """Let go of the file."""


class FileSource:
    """
    A regular file.

    Raises
    ------
    FileFaultError
        If the file cannot be opened.
    NotADumpError
        If it is a directory, a device or another thing that holds no bytes.
    """

    container = ""
    incomplete = ""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            # O_NONBLOCK: opening a FIFO must not wait for its writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise FileFaultError(f"cannot open: {reason.lower()}", where=self.name) from exc
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise NotADumpError(
                f"{_describe_mode(status.st_mode)}, not a dump file", where=self.name, hint=_hint_mode(status.st_mode)
            )
        self.size_bytes = status.st_size
        self.file_size_bytes = status.st_size
        self._is_sparse = status.st_blocks * _BLOCK_BYTES < status.st_size

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Read from an offset; short at the end of the file or where the disk fails."""
        if size_bytes <= 0 or offset < 0 or offset >= self.size_bytes:
            return b""
        size_bytes = min(size_bytes, self.size_bytes - offset)
        try:
            data = os.pread(self._fd, min(size_bytes, _LARGEST_READ), offset)
        except OSError:
            return b""
        if len(data) == size_bytes or not data:
            return data
        buffer = bytearray(size_bytes)
        buffer[: len(data)] = data
        got = len(data) + self.read_into(offset + len(data), memoryview(buffer)[len(data) :])
        return bytes(buffer[:got])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from an offset; the count of bytes that were there."""
        wanted = len(buffer)
        if 0 < wanted < _SMALLEST_HOLE and offset >= 0:
            # One call, with nothing about it: pages are read in thousands.
            try:
                if os.preadv(self._fd, (buffer,), offset) == wanted:
                    return wanted
            except (OSError, OverflowError):
                pass
        done = 0
        while offset >= 0 and done < wanted:
            try:
                if self._is_sparse and wanted - done >= _SMALLEST_HOLE:
                    got = self._fill_from_hole(offset + done, buffer[done:])
                    if got:
                        done += got
                        continue
                got = os.preadv(self._fd, [buffer[done : done + _LARGEST_READ]], offset + done)
            except (OSError, OverflowError):
                break
            if got == 0:
                break
            done += got
        return done

    def _fill_from_hole(self, offset: int, buffer: memoryview) -> int:
        """Zero what lies in a hole of the file, whose pages need not be made up and copied; the count of bytes."""
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                self._is_sparse = False
                return 0
            # There is nothing but a hole up to the end.
            data = self.size_bytes
        size = max(min(data - offset, len(buffer)), 0)
        if size:
            np.frombuffer(buffer, dtype=np.uint8)[:size] = 0
        return size

    def find_data(self, offset: int) -> int:
        """Find the first offset from one on whose byte is there: a file has no gaps."""
        return min(offset, self.size_bytes)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MappedSource(FileSource):
    """
    A file whose long reads go through short-lived mappings: ``/proc/vmcore``.

    ``read()`` there maps and unmaps each page of old memory by itself
    (``copy_oldmem_page()``), ``mmap()`` all at once (83086978c63a, "vmcore:
    support mmap() on /proc/vmcore", Linux 3.11). Where it does not, as in a
    kernel without an MMU, reading goes on with ``read()``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._maps = True

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from an offset of the file; the count of bytes that were there."""
        done = 0
        wanted = max(min(len(buffer), self.size_bytes - offset), 0) if offset >= 0 else 0
        while self._maps and wanted - done >= _SMALLEST_MAP:
            got = self._copy_mapped(offset + done, buffer[done : min(wanted, done + _LARGEST_MAP)])
            if got == 0:
                break
            done += got
        return done + super().read_into(offset + done, buffer[done:])

    def _copy_mapped(self, offset: int, buffer: memoryview) -> int:
        lead = offset % mmap.ALLOCATIONGRANULARITY
        try:
            window = mmap.mmap(
                self._fd, lead + len(buffer), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, offset=offset - lead
            )
        except (OSError, ValueError):
            self._maps = False
            return 0
        # numpy lets other threads run meanwhile; slices of memoryviews do not.
        np.frombuffer(buffer, dtype=np.uint8)[:] = np.frombuffer(window, dtype=np.uint8)[lead:]
        window.close()
        return len(buffer)


def open_file(path: Path) -> FileSource:
    """Open a file in the way that suits it; raises as :class:`FileSource` does."""
    return MappedSource(path) if path == _VMCORE else FileSource(path)


def _describe_mode(mode: int) -> str:
    for test, words in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return words
    return "not a regular file"


def _hint_mode(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "name the dump file in it"
    if stat.S_ISBLK(mode):
        return "copy the dump from the device to a file first"
    return "save the stream to a file first"
