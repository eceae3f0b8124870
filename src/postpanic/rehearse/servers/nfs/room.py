"""How much may be stored: as much as there is, or less."""

from __future__ import annotations

import errno
import os

__all__ = ["Room"]


class Room:
    """
    The room of a directory.

    Parameters
    ----------
    fd : int
        Of the directory.
    most_bytes : int or None
        That may be in its files; None: as much as the file system has.
    """

    def __init__(self, fd: int, most_bytes: int | None) -> None:
        self._fd = fd
        self._most_bytes = most_bytes

    def measure(self) -> tuple[int, int]:
        """Tell how many bytes there are in all, and how many are free."""
        if self._most_bytes is None:
            found = os.fstatvfs(self._fd)
            return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        used = 0
        for _, _, names, fd in os.fwalk(".", dir_fd=self._fd):
            used += sum(os.stat(name, dir_fd=fd, follow_symlinks=False).st_size for name in names)
        return self._most_bytes, max(self._most_bytes - used, 0)

    def check(self, grown_bytes: int) -> None:
        """
        Look whether a file may grow so much.

        Raises
        ------
        OSError
            ENOSPC; of a room that is not bounded the file system says so itself.
        """
        if self._most_bytes is not None and grown_bytes > 0 and grown_bytes > self.measure()[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
