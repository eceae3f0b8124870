"""
The files and directories of tar archives that others made, and nothing else of them.

``tarfile`` itself keeps names from leading elsewhere since 3.11.4 only; Debian 12 has 3.11.2.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from postpanic.errors import CorruptError

__all__ = ["unpack_files"]


def unpack_files(archive: tarfile.TarFile, directory: Path, want: Callable[[str], bool] = lambda _: True) -> list[Path]:
    """
    Unpack regular files, with the times at which they were written, and directories.

    Links and devices are left out; owners and permissions are not taken over.

    Parameters
    ----------
    archive : tarfile.TarFile
        May be a stream (``r|``).
    directory : Path
        Is made if need be, and is to hold no links that lead out of it.
    want : callable
        Whether a file or directory is to be unpacked; takes its name, without ``./``.

    Returns
    -------
    list of Path
        The files, in the order of the archive.

    Raises
    ------
    CorruptError
        If a name leads out of the directory.
    tarfile.TarError
        If it is no such archive, or ends too early.
    """
    unpacked = []
    for member in archive:
        name = member.name.removeprefix("./")
        if not (member.isfile() or member.isdir()) or not want(name):
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CorruptError(f"tar archive: {name!r} leads out of the directory it is unpacked to")
        path = directory / name
        (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        if source is None:
            continue
        with source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        os.utime(path, (member.mtime, member.mtime))
        unpacked.append(path)
    return unpacked
