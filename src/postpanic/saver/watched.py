"""A sink that is watched: who waits in it, since when, and how much room is left for what comes last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.sink import Sink

__all__ = ["Patience", "WatchedSink"]

_PIECE_BYTES = 1 << 18
"""No call moves more, so that a slow target is told from one that is dead."""


class Patience:
    """Since when the thread that works for a target has been waiting for it."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark what is done inside as waiting for the target."""
        me = threading.get_ident()
        with self._lock:
            before = self._since.get(me)
            self._since[me] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                if before is None:
                    self._since.pop(me, None)
                else:
                    self._since[me] = time.monotonic()

    def waited_s(self) -> float:
        """Tell how long the longest wait that goes on has lasted; 0 if there is none."""
        with self._lock:
            return time.monotonic() - min(self._since.values()) if self._since else 0.0


class WatchedSink:
    """A sink whose every call is marked in a :class:`Patience`."""

    def __init__(self, sink: Sink, patience: Patience) -> None:
        self._sink = sink
        self._patience = patience

    @property
    def name(self) -> str:
        """The name of the sink below."""
        return self._sink.name

    @property
    def is_stream(self) -> bool:
        """Whether the sink below is a stream."""
        return self._sink.is_stream

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Write bytes from an offset of the file on, in small pieces."""
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), _PIECE_BYTES):
                piece = view[start : start + _PIECE_BYTES]
                with self._patience.waiting():
                    self._sink.write_at(offset, [piece])
                offset += len(piece)

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write rows of a table."""
        with self._patience.waiting():
            self._sink.write_rows(table_offset, numbers, rows)

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside."""
        with self._patience.waiting():
            self._sink.reserve(size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long."""
        with self._patience.waiting():
            self._sink.extend(size_bytes)

    def flush(self) -> None:
        """Wait until all that was written is safe."""
        with self._patience.waiting():
            self._sink.flush()

    def finish(self) -> FileDigest:
        """Let the file reach its place, and tell its digest."""
        with self._patience.waiting():
            return self._sink.finish()

    def close(self) -> None:
        """Close the sink below."""
        with self._patience.waiting():
            self._sink.close()
