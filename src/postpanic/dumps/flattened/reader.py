"""
Random access to what a flattened stream holds, without rearranging it.

The stream is a chain of records, each found through the one before, so its
index takes one small read for each: writers flush buffers of 16 KiB and more.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.extents import resolve_overlaps
from postpanic.dumps.flattened.layout import FLAT_HEADER_BYTES, RECORD, check_flat_header
from postpanic.dumps.source import ByteSource
from postpanic.errors import TruncatedError, UnsupportedError

__all__ = ["MAX_RECORDS", "FlattenedSource"]

MAX_RECORDS = 1 << 24
"""Their index takes 24 bytes each; at makedumpfile's 64 KiB for a record this is a dump of 1 TiB."""

_OFFSET_LIMIT = 1 << 62
_WINDOW_BYTES = 64 << 10


class FlattenedSource:
    """
    The dump inside a flattened stream, as a :class:`~postpanic.dumps.source.ByteSource`.

    What no record wrote reads as missing, not as zeroes: in a stream that was
    cut, nothing tells a gap from what would have come.

    Raises
    ------
    TruncatedError
        If there is no whole record.
    CorruptError
        If the records overlap each other beyond reason.
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

    def find_data(self, offset: int) -> int:
        """Find the first offset from one on that a record wrote; ``size_bytes`` if there is none."""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._starts) and self._ends[index] <= offset:
            index += 1
        return max(self._starts[index], offset) if index < len(self._starts) else self.size_bytes

    def close(self) -> None:
        """Close the stream's file."""
        self._stream.close()

    def _index_records(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """
        Follow the chain of records to its end, or to where it breaks.

        Returns
        -------
        offsets, sizes, places : ndarray of int64
            Offset in the dump, size, and place of the data in the stream.
        """
        offsets, sizes, places = array("q"), array("q"), array("q")
        position = FLAT_HEADER_BYTES
        window, window_at = b"", position
        while True:
            at = position - window_at
            if at + RECORD.size > len(window):
                # Records smaller than a window come by the dozen: read them together.
                small = len(sizes) > 0 and sizes[-1] < _WINDOW_BYTES // 4
                window, window_at, at = (
                    self._stream.read(position, _WINDOW_BYTES if small else RECORD.size),
                    position,
                    0,
                )
                if len(window) < RECORD.size:
                    self._fault("the flattened stream has no end record")
                    break
            offset, size = RECORD.unpack_from(window, at)
            if offset == size == -1:
                break
            if not 0 <= offset < _OFFSET_LIMIT or size < 0:
                self._fault(
                    f"the flattened stream breaks off at {position:#x}: a record of {size} bytes for {offset:#x}"
                )
                break
            if len(sizes) >= MAX_RECORDS:
                raise UnsupportedError(
                    f"more than {MAX_RECORDS} records",
                    where=self.name,
                    hint="rearrange the stream into a file first: makedumpfile -R",
                )
            position += RECORD.size
            if size:
                offsets.append(offset)
                sizes.append(size)
                places.append(position)
            position += size
        found = _as_array(places)
        # The last record may be cut.
        return _as_array(offsets), np.minimum(_as_array(sizes), self._stream.size_bytes - found), found

    def _fault(self, reason: str) -> None:
        """Note why the stream is not whole."""
        self.incomplete = "; ".join(filter(None, [self.incomplete, reason]))


def _as_array(numbers: array[int]) -> NDArray[np.int64]:
    """View collected numbers as a numpy array, which refuses an empty buffer."""
    return np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
