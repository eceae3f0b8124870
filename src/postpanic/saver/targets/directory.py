"""
Save a dump into a directory of a file system that is mounted: the common part of local and NFS targets.

::

    ROOT/NODE-20260131-235959/vmcore-dmesg.txt    whole or not there
                              vmcore-incomplete   vmcore from the commit on
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from postpanic.dumps.sink import FileSink, Sink
from postpanic.dumps.write_calls import as_output_error
from postpanic.errors import OutputError
from postpanic.saver.plan import RetentionPlan
from postpanic.saver.targets.retention import delete_old_dumps

__all__ = ["INCOMPLETE_SUFFIX", "DirectoryTarget", "resolve_inside"]

INCOMPLETE_SUFFIX = "-incomplete"
_PART_SUFFIX = ".part"
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
"""Memory holds everybody's secrets."""
_FINISHED = ("vmcore", "vmcore.flat")
_MAX_NUMBER = 999
_MAX_LINKS = 40


class DirectoryTarget:
    """
    A directory that is there, and has room for directories of dumps.

    Parameters
    ----------
    directory : Path
        Where the dumps' directories are; is made if it is not there.
    name : str
        For messages; without it the directory.
    """

    def __init__(self, directory: Path, *, name: str = "", retention: RetentionPlan | None = None) -> None:
        self.name = name or str(directory)
        self._root = directory
        self._retention = retention or RetentionPlan()
        self._dump_name = ""
        self._asked_name = ""
        self._file_name = ""
        self._is_committed = False
        self._is_open = False
        self._lock_fd = -1

    def open(self, dump_name: str) -> None:
        """Make the directory of a new dump; one that an earlier attempt made is used again."""
        try:
            _make_directories(self._root)
            is_ours = self._dump_name and self._asked_name == dump_name
            if not (is_ours and (self._root / self._dump_name).is_dir()):
                self._dump_name = self._make_dump_directory(dump_name)
                self._asked_name = dump_name
            _sync_directory(self._root)
        except OSError as exc:
            raise as_output_error(exc, self.name, "make a directory") from exc
        self._file_name = ""
        self._is_committed = False
        self._is_open = True

    @property
    def place(self) -> str:
        """The dump's directory."""
        return str(self._directory) if self._dump_name else ""

    @property
    def dump_files(self) -> tuple[str, ...]:
        """The dump's final name, once it was begun."""
        return (self._file_name,) if self._file_name else ()

    @property
    def takes_small_files(self) -> bool:
        """There is room for them beside the dump."""
        return True

    def put(self, name: str, content: bytes) -> None:
        """Write a small file under another name, let it reach the disk, and rename it."""
        path = self._place_of(name)
        part = path.with_name(f"{name}{_PART_SUFFIX}")
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            try:
                _write_all(fd, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            part.rename(path)
            _sync_directory(path.parent)
        except OSError as exc:
            _remove(part)
            raise as_output_error(exc, self.name, f"write {name}") from exc

    def open_dump(self, name: str) -> Sink:
        """Start the dump, in place of one that an earlier attempt began."""
        path = self._place_of(name)
        incomplete = path.with_name(f"{name}{INCOMPLETE_SUFFIX}")
        # A new file, not the old one emptied: what crashed in between must not look like either.
        _remove(incomplete)
        sink = FileSink(incomplete, overwrite=True)
        try:
            _sync_directory(path.parent)
        except OSError as exc:
            sink.close()
            raise as_output_error(exc, self.name, f"make {name}") from exc
        self._file_name = name
        self._is_committed = False
        return sink

    def read_back(self) -> str | None:
        """Give the dump's path."""
        if not self._file_name:
            return None
        suffix = "" if self._is_committed else INCOMPLETE_SUFFIX
        return str(self._directory / f"{self._file_name}{suffix}")

    def room_bytes(self) -> int | None:
        """Ask the file system; what it keeps for the superuser is left to whoever mends the machine."""
        try:
            status = os.statvfs(self._root)
        except OSError as exc:
            raise as_output_error(exc, self.name, "ask for its room") from exc
        return status.f_bavail * status.f_frsize

    def commit(self) -> None:
        """Rename the dump, and let the name reach the disk; a second time it does nothing."""
        if not self._file_name or self._is_committed:
            return
        path = self._place_of(self._file_name)
        try:
            path.with_name(f"{self._file_name}{INCOMPLETE_SUFFIX}").rename(path)
            _sync_directory(path.parent)
        except OSError as exc:
            raise as_output_error(exc, self.name, "rename the dump") from exc
        self._is_committed = True

    def rotate(self) -> list[str]:
        """Delete the oldest dumps of this machine beyond the plan's bounds; never the new one."""
        if not self._is_committed:
            return []
        try:
            return delete_old_dumps(self._root, self._dump_name, self._retention)
        except OSError as exc:
            raise as_output_error(exc, self.name, "delete old dumps") from exc

    def close(self) -> None:
        """Let go."""
        self._is_open = False
        self._unlock()

    @property
    def _directory(self) -> Path:
        return self._root / self._dump_name

    def _place_of(self, name: str) -> Path:
        if not self._is_open:
            raise OutputError("not open", where=self.name)
        if "/" in name or name in ("", ".", ".."):
            raise OutputError(f"no name of a file: {name!r}", where=self.name)
        return self._directory / name

    def _make_dump_directory(self, dump_name: str) -> str:
        if "/" in dump_name or dump_name in ("", ".", ".."):
            raise OutputError(f"no name of a dump: {dump_name!r}", where=self.name)
        for number in range(_MAX_NUMBER):
            name = f"{dump_name}-{number}" if number else dump_name
            try:
                (self._root / name).mkdir(mode=_DIRECTORY_MODE)
            except FileExistsError:
                if not self._take_over(name):
                    continue
            else:
                self._lock(name)
            return name
        raise OutputError(f"{_MAX_NUMBER} dumps are named {dump_name} already", where=self.name)

    def _take_over(self, name: str) -> bool:
        """Take the directory of a saver that has died: of the same crash, with nothing finished in it."""
        directory = self._root / name
        if any((directory / finished).exists() for finished in _FINISHED):
            return False
        return self._lock(name)

    def _lock(self, name: str) -> bool:
        """Hold a directory for as long as it is written to; tell whether nobody else does."""
        self._unlock()
        fd = -1
        try:
            fd = os.open(self._root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if fd >= 0:
                os.close(fd)
            return False
        self._lock_fd = fd
        return True

    def _unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


def resolve_inside(root: Path, path: str) -> Path:
    """
    Find what a path of the crashed system means below the directory where its file system is mounted.

    A link to an absolute path means one below *root*, and ``..`` never leads out of it.

    Raises
    ------
    OSError
        ELOOP after 40 links.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")][::-1]
    found: list[str] = []
    links = 0
    while parts:
        part = parts.pop()
        if part == "..":
            del found[-1:]
            continue
        here = root.joinpath(*found, part)
        if not here.is_symlink():
            found.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = str(here.readlink())
        if target.startswith("/"):
            found = []
        parts += [part for part in target.split("/") if part not in ("", ".")][::-1]
    return root.joinpath(*found)


def _make_directories(path: Path) -> None:
    """Make a directory and those above it, each safe before the next."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        _sync_directory(directory.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        # Some file systems cannot, and need not: EINVAL of fsync(2).
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        # Not there, or the error comes again from what is done next.
        return
