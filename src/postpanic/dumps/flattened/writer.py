"""
Write a dump as a flattened stream, which needs no seeking: a pipe will do.

Every write becomes a record. The stream has no notion of a gap that reads as
zeroes, so at the end whatever was never written is sent as zeroes, and then
the record that ends the stream.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import ChunkHashes, FileDigest
from postpanic.dumps.flattened.layout import RECORD, encode_flat_header
from postpanic.dumps.write_calls import as_output_error, as_views, find_row_groups, write_views
from postpanic.errors import NoSpaceError, OutputError
from postpanic.units import MIB

__all__ = ["FlattenedSink"]

_ZEROES = bytes(MIB)
_END_MARK = -1


class FlattenedSink:
    """
    A stream that carries a file.

    Where the stream goes to a regular file and the disk fills up, the record
    that did not fit is taken back, so that what follows is still understood.

    Parameters
    ----------
    output : int or callable
        Where to write: a descriptor, from its present position on, that is not closed; or what takes all views of
        bytes that it is given, or raises :class:`~postpanic.errors.OutputError`.
    name : str
        What to call it in errors.
    hashed : bool
        Whether :meth:`finish` gives digests, which are of the stream's own bytes.
    synced : bool
        Whether :meth:`finish` waits for the disk, if the stream goes to a regular file.

    Raises
    ------
    OutputError
        If the stream's header cannot be written.
    """

    is_stream = True

    def __init__(
        self,
        output: int | Callable[[list[memoryview]], None],
        name: str,
        *,
        hashed: bool = True,
        synced: bool = True,
    ) -> None:
        self.name = name
        self._synced = synced
        self._fd = output if isinstance(output, int) else -1
        self._put: Callable[[list[memoryview]], None] = self._write if isinstance(output, int) else output
        self._hashes = ChunkHashes() if hashed else None
        self._sent = 0
        self._broken: OutputError | None = None
        self._start = _find_position(self._fd) if self._fd >= 0 else None
        self._written = _Extents()
        self._end = 0
        self._send([memoryview(encode_flat_header())])

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Send bytes as one record."""
        views = as_views(parts)
        size = sum(len(view) for view in views)
        if size:
            self._send([memoryview(RECORD.pack(offset, size)), *views])
            self._written.add(offset, offset + size)
            self._end = max(self._end, offset + size)

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Send rows of a table, each run of neighbours as one record."""
        count, size = rows.shape
        groups = np.array(find_row_groups(numbers, 0), dtype=np.int64).reshape(-1, 2)
        if not len(groups):
            return
        # The rows in order, and before each run room for the head of its record.
        lengths = (groups[:, 1] - groups[:, 0]) * size
        heads = groups[:, 0] * size + np.arange(len(groups)) * RECORD.size
        stream = np.empty(count * size + len(groups) * RECORD.size, dtype=np.uint8)
        is_head = np.zeros(len(stream), dtype=np.bool_)
        is_head[(heads[:, None] + np.arange(RECORD.size)).reshape(-1)] = True
        starts = table_offset + numbers[groups[:, 0]] * size
        stream[is_head] = np.stack([starts, lengths], axis=1).astype(">i8").view(np.uint8).reshape(-1)
        stream[~is_head] = rows.reshape(-1)
        self._send([stream.data])
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            self._written.add(start, start + length)
        self._end = max(self._end, int(starts[-1] + lengths[-1]))

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside; what is never written is sent as zeroes at the end."""
        self.extend(size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long; what is never written is sent as zeroes at the end."""
        self._end = max(self._end, size_bytes)

    def flush(self) -> None:
        """Do nothing: who reads the stream decides when it reaches a disk."""

    def finish(self) -> FileDigest:
        """Send zeroes for what was never written, then the end record; the descriptor stays open."""
        self.send_gaps()
        self._send([memoryview(RECORD.pack(_END_MARK, _END_MARK))])
        if self._synced and self._start is not None:
            try:
                os.fsync(self._fd)
            except OSError as exc:
                raise as_output_error(exc, self.name) from exc
        if self._hashes is None:
            return FileDigest(self._sent)
        return self._hashes.finish(self._sent, None)

    def send_gaps(self) -> None:
        """Send zeroes for what was never written."""
        for start, end in self._written.find_gaps(self._end):
            for at in range(start, end, len(_ZEROES)):
                self.write_at(at, [memoryview(_ZEROES)[: min(len(_ZEROES), end - at)]])

    def close(self) -> None:
        """Do nothing: the descriptor is the caller's."""

    def _send(self, views: list[memoryview]) -> None:
        """Write all views one after the other, or, to a regular file, none of them."""
        if self._broken is not None:
            raise self._broken
        try:
            self._put(views)
        except OutputError as exc:
            if not (isinstance(exc, NoSpaceError) and self._take_back()):
                self._broken = exc
            raise
        for view in views:
            if self._hashes is not None:
                self._hashes.update(self._sent, view)
            self._sent += len(view)

    def _write(self, views: list[memoryview]) -> None:
        try:
            write_views(lambda some, _offset: os.writev(self._fd, some), views, 0)
        except OSError as exc:
            raise as_output_error(exc, self.name) from exc

    def _take_back(self) -> bool:
        """Cut off what was written of a record that did not fit; whether that was possible."""
        if self._start is None:
            return False
        try:
            os.ftruncate(self._fd, self._start + self._sent)
            os.lseek(self._fd, self._start + self._sent, os.SEEK_SET)
        except OSError:
            return False
        return True


def _find_position(fd: int) -> int | None:
    """Tell where a regular file stands; None for all else."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None


class _Extents:
    """What has been written: ``[start, end)`` ranges, joined now and then so that they stay few."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._limit = 1 << 14

    def add(self, start: int, end: int) -> None:
        if self._ranges and self._ranges[-1][1] == start:
            self._ranges[-1] = self._ranges[-1][0], end
            return
        self._ranges.append((start, end))
        if len(self._ranges) >= self._limit:
            self._join()
            self._limit = max(2 * len(self._ranges), 1 << 14)

    def find_gaps(self, end: int) -> list[tuple[int, int]]:
        """List what lies below *end* and was not written."""
        self._join()
        gaps: list[tuple[int, int]] = []
        reached = 0
        for start, stop in self._ranges:
            if start > reached:
                gaps.append((reached, min(start, end)))
            reached = max(reached, stop)
        if reached < end:
            gaps.append((reached, end))
        return gaps

    def _join(self) -> None:
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self._ranges):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], end)
            else:
                joined.append((start, end))
        self._ranges = joined
