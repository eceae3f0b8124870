"""
A cache of files that are expensive to make and must not be trusted blindly.

Each file ends in a digest of its contents (readers of ELF do not look behind the
last section), so that a file cut or damaged in any way is not used. Files appear
by renaming, complete or not at all: two processes may write the same one. The
directory must be ours alone: what others could write is not read.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import PostpanicError

__all__ = ["CacheRefusedError", "DebuginfoCache"]

_MAGIC = b"postpanic cache1"
_TRAILER_BYTES = len(_MAGIC) + 32
_CHUNK_BYTES = 1 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

Part = bytes | NDArray[np.uint8]


class CacheRefusedError(PostpanicError):
    """The cache directory cannot be used: not ours, writable by others, or not writable."""

    code = "cache-refused"


class DebuginfoCache:
    """
    Files in a directory of ours, by key and name.

    Parameters
    ----------
    directory : Path
        Made on first use, for the user alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def detect(self, key: str, name: str) -> Path | None:
        """
        Give the path of a file if it is there, ours, and whole.

        Parameters
        ----------
        key : str
            What the contents depend on, as a directory's name.
        name : str
            May contain ``/``.
        """
        path = self.directory / key / name
        try:
            self._check_directories(path.parent)
            return path if _is_whole(path) else None
        except (OSError, CacheRefusedError):
            return None

    def read(self, key: str, name: str) -> bytes | None:
        """Give the contents of a (small) file if it is there, ours, and whole."""
        path = self.detect(key, name)
        return None if path is None else path.read_bytes()[:-_TRAILER_BYTES]

    def store(self, key: str, name: str, parts: Sequence[Part]) -> Path:
        """
        Write a file, given in parts; replaces one that is there.

        Raises
        ------
        CacheRefusedError
            If the directory is not ours alone, or writing fails.
        """
        path = self.directory / key / name
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            for directory in reversed([path.parent, *path.parent.parents]):
                # The mode that mkdir() is given does not hold for the parents it makes.
                if directory == self.directory or self.directory in directory.parents:
                    directory.mkdir(mode=0o700, exist_ok=True)
            self._check_directories(path.parent)
            _write(path, parts)
        except OSError as error:
            raise CacheRefusedError(
                f"{error.strerror or error}", where=str(path), hint="name another cache directory"
            ) from error
        return path

    def _check_directories(self, directory: Path) -> None:
        """Refuse if any directory from the cache's own down is another user's or open to others."""
        while True:
            status = directory.lstat() if directory != self.directory else directory.stat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
                raise CacheRefusedError(
                    f"not a directory that only user {os.geteuid()} can write to",
                    where=str(directory),
                    hint="remove it, or correct its owner and its permissions",
                )
            if directory == self.directory:
                return
            directory = directory.parent


def _write(path: Path, parts: Sequence[Part]) -> None:
    digest = hashlib.blake2b(digest_size=32)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                data = part.data if isinstance(part, np.ndarray) else part
                digest.update(data)
                file.write(data)
            file.write(_MAGIC + digest.digest())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _is_whole(path: Path) -> bool:
    """Tell whether a file is a regular one of ours and matches its digest."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - of a descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
            return False
        left = status.st_size - _TRAILER_BYTES
        if left < 0:
            return False
        digest = hashlib.blake2b(digest_size=32)
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                return False
            digest.update(chunk)
            left -= len(chunk)
        return file.read() == _MAGIC + digest.digest()
