"""
Random access to what a flattened stream holds, without rearranging it.

The stream is a chain of records, each found through the one before. Writers
flush a buffer of one size again and again, so runs of records of equal size
are followed in bulk: as long as every header in a stride says the same size,
the next header is one stride on.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.extents import resolve_overlaps
from postpanic.dumps.flattened.layout import FLAT_HEADER_BYTES, RECORD, check_flat_header
from postpanic.dumps.source import ByteSource
from postpanic.errors import CorruptError, TruncatedError, UnsupportedError

__all__ = ["MAX_RECORDS", "FlattenedSource"]

MAX_RECORDS = 1 << 24
"""Their index takes 24 bytes each; at 64 KiB a record, makedumpfile's size, this is 1 TiB of dump."""

_OFFSET_LIMIT = 1 << 62
_LONGEST_STRIDE_RUN = 4096


class FlattenedSource:
    """
    The dump inside a flattened stream, as a :class:`~postpanic.dumps.source.ByteSource`.

    What no record wrote reads as missing, not as zeroes, except before the
    last offset of a record of a stream that is complete.

    Raises
    ------
    TruncatedError
        If there is no whole record.
    CorruptError
        If a record's offset or size is impossible.
    UnsupportedError
        If type or version are unknown, or there are more than :data:`MAX_RECORDS`.
    """

    container = "flattened"

    def __init__(self, stream: ByteSource) -> None:
        self._stream = stream
        self.name = stream.name
        self.file_size_bytes = stream.file_size_bytes
        check_flat_header(stream.read(0, 64), where=stream.name)
        self.incomplete = stream.incomplete
        offsets, sizes, places = self._index_records()
        starts, ends, owners = resolve_overlaps(offsets, offsets + sizes, where=stream.name)
        if len(starts) == 0:
            raise TruncatedError("a flattened stream without a single record", where=stream.name)
        # Where a piece lies in the stream, relative to where it belongs in the dump.
        shifts = (places - offsets)[owners]
        self._starts, self._ends, self._shifts = starts.data, ends.data, shifts.data
        self.size_bytes = int(ends[-1])

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Read from an offset of the dump; short where no record has the bytes."""
        if size_bytes <= 0 or offset < 0:
            return b""
        index = bisect_right(self._starts, offset) - 1
        if index < 0:
            return b""
        if offset + size_bytes <= self._ends[index]:
            return self._stream.read(offset + self._shifts[index], size_bytes)
        parts: list[bytes] = []
        while size_bytes > 0 and index < len(self._starts) and self._starts[index] <= offset < self._ends[index]:
            wanted = min(size_bytes, self._ends[index] - offset)
            part = self._stream.read(offset + self._shifts[index], wanted)
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
            if len(part) < wanted:
                break
            index += 1
        return b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from an offset of the dump; the count of bytes that were there."""
        done = 0
        index = bisect_right(self._starts, offset) - 1 if offset >= 0 else -1
        while 0 <= index < len(self._starts) and done < len(buffer):
            if not self._starts[index] <= offset < self._ends[index]:
                break
            wanted = min(len(buffer) - done, self._ends[index] - offset)
            got = self._stream.read_into(offset + self._shifts[index], buffer[done : done + wanted])
            done += got
            offset += got
            if got < wanted:
                break
            index += 1
        return done

    def close(self) -> None:
        """Close the stream's file."""
        self._stream.close()

    def _index_records(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """
        Follow the chain of records.

        Returns
        -------
        offsets, sizes, places : ndarray of int64
            Offset in the dump, size, and place of the data in the stream.
        """
        found: list[NDArray[np.int64]] = []
        count = 0
        position = FLAT_HEADER_BYTES
        fault = "the flattened stream has no end record"
        guess = 1
        while True:
            batch = self._follow(position, guess)
            if len(batch) == 0:
                break
            end_mark = np.flatnonzero((batch[:, 0] == -1) & (batch[:, 1] == -1))
            if len(end_mark):
                batch = batch[: int(end_mark[0])]
                fault = ""
            self._check(batch)
            found.append(batch)
            count += len(batch)
            if count > MAX_RECORDS:
                raise UnsupportedError(
                    f"more than {MAX_RECORDS} records",
                    where=self.name,
                    hint=f"rearrange the stream first: makedumpfile -R dump < {self.name}",
                )
            if not fault:
                break
            # A run that held to its end is probably longer: look further ahead.
            guess = min(guess * 4, _LONGEST_STRIDE_RUN) if len(batch) == guess else max(len(batch), 1)
            position = int(batch[-1, 2] + batch[-1, 1])
        table = np.concatenate(found) if found else np.empty((0, 3), dtype=np.int64)
        table = table[table[:, 1] > 0]
        offsets, sizes, places = (np.ascontiguousarray(column) for column in table.T)
        there = np.clip(self._stream.size_bytes - places, 0, sizes)
        if fault:
            self.incomplete = "; ".join(filter(None, [self.incomplete, fault]))
        return offsets, there, places

    def _follow(self, position: int, guess: int) -> NDArray[np.int64]:
        """
        Read the record at a position, and up to *guess* of the same size after it.

        Returns
        -------
        ndarray of int64, shape (n, 3)
            Offset, size, place of the data; empty at the end of the file. Only
            the last row may have another size than the first.
        """
        raw = self._stream.read(position, RECORD.size)
        if len(raw) < RECORD.size:
            return np.empty((0, 3), dtype=np.int64)
        offset, size = RECORD.unpack(raw)
        rows = [(offset, size, position + RECORD.size)]
        stride = size + RECORD.size
        if not 0 <= size < _OFFSET_LIMIT:
            guess = 1
        for _ in range(guess - 1):
            position += stride
            raw = self._stream.read(position, RECORD.size)
            if len(raw) < RECORD.size:
                break
            offset, following = RECORD.unpack(raw)
            rows.append((offset, following, position + RECORD.size))
            if following != size:
                break
        return np.array(rows, dtype=np.int64)

    def _check(self, batch: NDArray[np.int64]) -> None:
        """Refuse records that cannot be: the chain is broken from there on."""
        bad = np.flatnonzero((batch[:, 0] < 0) | (batch[:, 0] >= _OFFSET_LIMIT) | (batch[:, 1] < 0))
        if len(bad):
            offset, size, place = batch[int(bad[0])].tolist()
            raise CorruptError(
                f"a record of {size} bytes for offset {offset:#x}",
                where=f"{self.name}+{place - RECORD.size:#x}",
            )
