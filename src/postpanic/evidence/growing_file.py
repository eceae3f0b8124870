"""
Read what is appended to a file, as ``tail -F`` does: logs of serial lines, and the lines themselves.

A file that is rotated away is read to its end, then the new one of that name
from its beginning; a file that became shorter was truncated and is read from
its beginning. Terminals and pipes are read as they come.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from postpanic.errors import FileFaultError

__all__ = ["GrowingFile"]

READ_BYTES = 1 << 20


class GrowingFile:
    """
    A file that grows.

    Parameters
    ----------
    path : Path
        Need not be there yet.
    from_start : bool
        Read what is in it already.

    Raises
    ------
    FileFaultError
        If it is a directory, or cannot be read.
    """

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self.path = path
        self.rotations = 0
        """How often another file took its place, or it was truncated."""
        self._descriptor: int | None = None
        self._position = 0
        self._is_regular = False
        self._from_start = from_start
        self._open(is_first=True)
        # A file that appears later is new, all of it.
        self._from_start = True

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None

    def read_new(self) -> bytes:
        """Return what is new, at most a mebibyte; empty: nothing is, now."""
        if self._descriptor is None and not self._open():
            return b""
        data = self._read()
        if data:
            return data
        if not self._is_regular:
            return b""
        if self._is_shorter():
            self.rotations += 1
            self._position = 0
            return self._read()
        if self._is_replaced():
            self.rotations += 1
            self.close()
            return self._read() if self._open() else b""
        return b""

    def _open(self, *, is_first: bool = False) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as exc:
            if not is_first:
                return False
            raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(self.path)) from exc
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            os.close(descriptor)
            raise FileFaultError("a directory; name the files in it", where=str(self.path))
        self._descriptor = descriptor
        self._is_regular = stat.S_ISREG(state.st_mode)
        self._position = 0 if self._from_start else state.st_size
        return True

    def _read(self) -> bytes:
        assert self._descriptor is not None  # noqa: S101 - only an open file is read
        try:
            if self._is_regular:
                data = os.pread(self._descriptor, READ_BYTES, self._position)
            else:
                data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            # A line that was hung up, a file system that is gone: it may come back.
            self.close()
            return b""
        self._position += len(data)
        return data

    def _is_shorter(self) -> bool:
        assert self._descriptor is not None  # noqa: S101 - only an open file is read
        return os.fstat(self._descriptor).st_size < self._position

    def _is_replaced(self) -> bool:
        """Tell whether the name is another file's now; a name that is gone keeps the old file open."""
        assert self._descriptor is not None  # noqa: S101 - only an open file is read
        try:
            there = self.path.stat()
        except OSError:
            return False
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
