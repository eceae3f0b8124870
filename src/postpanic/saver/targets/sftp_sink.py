"""
A dump's file on a server of SFTP.

Writes are under way while the next pages are made. So that a dump never says
of a page that it is there when the write of its data was refused, the rows of
tables wait until the server has taken all that was written before them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import ChunkHashes, FileDigest
from postpanic.dumps.write_calls import as_views, find_row_groups
from postpanic.errors import OutputError
from postpanic.saver.targets.sftp import SftpClient

__all__ = ["SftpSink"]

_SHADOW_BYTES = 4 << 20
"""Of a table that is kept here too, so that rows close together are sent in one go."""
_GAP_BYTES = 2048
_SYNC_BYTES = 64 << 20
"""After so many the server is told to write to its disk: or the last sync would take longer than anybody waits."""
_READ_BACK_S = 60.0


class _TooSlowError(OSError):
    """Reading back takes too long."""


class _Row(NamedTuple):
    """Rows that wait for what was written before them."""

    after: int
    """They may go when no write with a lower number waits for its answer."""
    offset: int
    content: bytes


class SftpSink:
    """
    A file on the server, written at any place.

    Parameters
    ----------
    path : str
        Is created, or emptied.
    refuse : callable
        Makes the error to raise of the one that the server gave for a write, which does not say that the disk is full.
    read_back_s : float
        The longest that :meth:`finish` reads back what it has to; on a slower line the digest is left out.

    Raises
    ------
    OutputError
        If it cannot be created.
    """

    is_stream = False

    def __init__(
        self,
        client: SftpClient,
        path: str,
        *,
        refuse: Callable[[OutputError], OutputError],
        name: str = "",
        read_back_s: float = _READ_BACK_S,
    ) -> None:
        self.name = name or path
        self._client = client
        self._refuse = refuse
        self._hashes = ChunkHashes()
        self._rows: deque[_Row] = deque()
        self._shadow: NDArray[np.uint8] | None = None
        self._reserved = 0
        self._refused: OutputError | None = None
        self._size = 0
        self._unsynced = 0
        self._read_back_s = read_back_s
        self._read_until = 0.0
        self._handle: bytes | None = client.open_file(path)

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Write bytes from an offset of the file on."""
        views = as_views(parts)
        end = offset + sum(len(view) for view in views)
        if self._refused is not None and end > self._size:
            raise self._refused
        self._size = max(self._size, end)
        self._client.write(self._get_handle(), offset, views)
        self._unsynced += end - offset
        if self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            self._client.connection.start_sync(self._get_handle())
        at = offset
        for view in views:
            self._hashes.update(at, view)
            at += len(view)
        self._settle()

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write rows of a table, once all that was written before is there; those close together in one go."""
        if self._refused is not None:
            raise self._refused
        if not len(numbers):
            return
        size = rows.shape[1]
        shadow = self._find_shadow(table_offset, (int(numbers[-1]) + 1) * size)
        after = self._client.connection.next_write
        if shadow is not None:
            shadow[: len(shadow) // size * size].reshape(-1, size)[numbers] = rows
        for first, last in find_row_groups(numbers, _GAP_BYTES // size if shadow is not None else 0):
            start, end = int(numbers[first]) * size, (int(numbers[last - 1]) + 1) * size
            content = rows[first:last] if shadow is None else shadow[start:end]
            self._rows.append(_Row(after, table_offset + start, content.tobytes()))
            self._size = max(self._size, table_offset + end)
        self._settle()

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside; they take no room until they are written."""
        self._reserved = max(self._reserved, size_bytes)
        self.extend(size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long; what was never written reads as zeroes."""
        if size_bytes > self._size:
            self._client.set_size(self._get_handle(), size_bytes)
            self._size = size_bytes

    def flush(self) -> None:
        """Wait until all that was written is on the server's disk, where the server can tell."""
        client = self._client
        client.connection.drain()
        self._settle()
        client.connection.drain()
        self._settle()
        client.sync(self._get_handle())

    def finish(self) -> FileDigest:
        """Let the file reach the server's disk, check its length, close it, and tell its digest."""
        handle = self._get_handle()
        self.flush()
        size = self._client.read_attributes(handle).size_bytes
        if self._refused is None and size != self._size:
            raise OutputError(f"has {size} bytes on the server, {self._size} were written", where=self.name)
        self._read_until = time.monotonic() + self._read_back_s
        try:
            digest = self._hashes.finish(size, self._read_range)
        except _TooSlowError:
            # The dump is there; that nobody could check its beginning is no reason to lose it.
            digest = FileDigest(size)
        except OSError as exc:
            raise OutputError(f"cannot read back: {exc.strerror}", where=self.name) from exc
        self._handle = None
        self._client.close_handle(handle)
        return digest

    def close(self) -> None:
        """Close the file, as far as that can still be done; does nothing after :meth:`finish`."""
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                self._client.close_handle(handle)
            except OutputError:
                return

    def _settle(self) -> None:
        """Take in answers, send the rows that may go, and raise what the server refused."""
        connection = self._client.connection
        connection.look()
        failure = connection.write_failure
        if failure is not None:
            self._rows.clear()
            self._hashes.spoil(0, max(self._size, 1))
            # What else is under way has the same fate; what is tried later is judged by itself.
            connection.drain()
            connection.write_failure = None
            self._refused = self._refuse(failure)
            raise self._refused
        while self._rows:
            oldest = connection.oldest_write
            if oldest is not None and oldest < self._rows[0].after:
                return
            row = self._rows.popleft()
            view = memoryview(row.content)
            self._client.write(self._get_handle(), row.offset, [view])
            self._hashes.update(row.offset, view)

    def _find_shadow(self, table_offset: int, end: int) -> NDArray[np.uint8] | None:
        """Give the copy of the table, which lies at the end of what was reserved; None where it is too long to keep."""
        if self._shadow is None:
            table_bytes = self._reserved - table_offset
            # Memory that is not touched is not taken.
            self._shadow = np.zeros(table_bytes if 0 < table_bytes <= _SHADOW_BYTES else 0, dtype=np.uint8)
        if end > len(self._shadow):
            self._shadow = self._shadow[:0]
            return None
        return self._shadow

    def _read_range(self, start: int, end: int) -> Iterator[bytes]:
        for part in self._client.read(self._get_handle(), start, end - start):
            if time.monotonic() > self._read_until:
                raise _TooSlowError
            yield part

    def _get_handle(self) -> bytes:
        if self._handle is None:
            raise OutputError("is closed already", where=self.name)
        return self._handle
