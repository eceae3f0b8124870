"""A dump on a part of a block device, where nothing is zero by itself."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.sink import DescriptorSink
from postpanic.dumps.write_calls import as_output_error
from postpanic.errors import NoSpaceError
from postpanic.units import format_size

__all__ = ["BlockSink"]

_ZERO_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_RECORD_BYTES = 256 << 20
"""After so much it is noted on the device how far the dump is: more is not lost by a power cut."""


class BlockSink(DescriptorSink):
    """
    A file on the bytes ``[start, start + limit)`` of a device.

    What was never written reads as zeroes, as it does in a file: room that is
    reserved is overwritten at once, gaps between what is written at the end.

    Parameters
    ----------
    fd : int
        The device; the sink closes it.
    record : callable
        Is told, now and then, that so many bytes of the file are on the disk.
    finished : callable
        Is told the digest, when all of it is on the disk.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        *,
        start: int,
        limit_bytes: int,
        record: Callable[[int], None],
        finished: Callable[[FileDigest], None],
    ) -> None:
        super().__init__(name, fd, base=start)
        self._limit = limit_bytes
        self._size = 0
        self._reached = 0
        self._recorded = 0
        self._gaps: list[tuple[int, int]] = []
        self._record = record
        self._finished = finished

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Write bytes from an offset of the file on."""
        end = offset + sum(memoryview(part).nbytes for part in parts)
        self._check_room(end)
        super().write_at(offset, parts)
        self._note(offset, end)
        if self._reached - self._recorded >= _RECORD_BYTES:
            self.flush()

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside, and make them zeroes: who reads a dump that was cut must find no old data."""
        self._check_room(size_bytes)
        if size_bytes > self._reached:
            self._fill(self._reached, size_bytes)
            self._reached = size_bytes
        self._size = max(self._size, size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long."""
        self._check_room(size_bytes)
        self._size = max(self._size, size_bytes)

    def flush(self) -> None:
        """Wait until all that was written is on the disk, and note how far it is."""
        super().flush()
        self._recorded = self._reached
        self._record(self._reached)

    def finish(self) -> FileDigest:
        """Fill the gaps, let all reach the disk, and close it."""
        try:
            for start, end in [*self._gaps, (self._reached, self._size)]:
                self._fill(start, end)
            self._gaps = []
            self._reached = max(self._reached, self._size)
            os.fsync(self._fd)
            digest = self._hashes.finish(self._size, self._read_range) if self._hashes else FileDigest(self._size)
        except OSError as exc:
            raise as_output_error(exc, self.name) from exc
        finally:
            self.close()
        self._finished(digest)
        return digest

    def _check_room(self, end: int) -> None:
        if end > self._limit:
            raise NoSpaceError(f"the device is full: there is room for {format_size(self._limit)}", where=self.name)

    def _note(self, start: int, end: int) -> None:
        """Take note of what was written: a gap before it, or a gap less."""
        if end <= start:
            return
        self._size = max(self._size, end)
        if start > self._reached:
            self._gaps.append((self._reached, start))
        elif start < self._reached and self._gaps:
            self._close_gaps(start, end)
        self._reached = max(self._reached, end)

    def _close_gaps(self, start: int, end: int) -> None:
        first = bisect_left(self._gaps, start, key=lambda gap: gap[1])
        if first < len(self._gaps) and self._gaps[first][1] == start:
            first += 1
        last = first
        left: list[tuple[int, int]] = []
        while last < len(self._gaps) and self._gaps[last][0] < end:
            gap_start, gap_end = self._gaps[last]
            left += [(gap_start, start)] if gap_start < start else []
            left += [(end, gap_end)] if end < gap_end else []
            last += 1
        self._gaps[first:last] = left

    def _fill(self, start: int, end: int) -> None:
        """Write zeroes; the digest learns of them by reading."""
        zeroes = bytes(min(_ZERO_BYTES, max(end - start, 0)))
        try:
            while start < end:
                start += os.pwrite(self._fd, zeroes[: end - start], self._base + start)
        except OSError as exc:
            raise as_output_error(exc, self.name) from exc

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        """Read what was written; what was not is zeroes, whatever the device holds there."""
        size = len(buffer)
        known = max(min(size, self._reached - offset), 0)
        super()._read_into(offset, buffer[:known])
        buffer[known:] = bytes(size - known)
        for start, end in self._gaps:
            first, last = max(start - offset, 0), min(end - offset, size)
            if first < last:
                buffer[first:last] = bytes(last - first)

    def _read_range(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            size = min(_READ_BYTES, end - start)
            yield self.read_at(start, size)
            start += size
