"""
The directory that is served: names, handles, content.

Names lead from the root's descriptor down, one by one, and no link is followed:
nothing outside is reached. A handle is a number that no other file ever gets
(RFC 1813 §2.3.3, RFC 8881 §4.2.2): it outlives renames, and every process knows
it. Mode and owner are what the client wants them to be; on disk all is the
server's own.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from postpanic.rehearse.servers.nfs.room import Room
from postpanic.rehearse.servers.nfs.store import Store

__all__ = ["MOST_FILE_BYTES", "MOST_NAME_BYTES", "Node", "Tree"]

MOST_NAME_BYTES = 255
MOST_FILE_BYTES = 1 << 44
_MOST_FILES = 10_000
_MOST_DEPTH = 64
_ROOT = 1
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600
_FOR_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What has a reader or a device at its other end is not waited for.
_FOR_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_Row = tuple[int, int | None, int, int, int, bytes | None]
_COLUMNS = "id, mode, uid, gid, change, verifier"


@dataclass(frozen=True)
class Node:
    """
    A file or a directory.

    Attributes
    ----------
    number : int
        Its alone for ever.
    names : tuple of bytes
        From the root to it.
    status : os.stat_result
        On disk.
    mode : int
        Its permissions, as the client wants them.
    change : int
        Grows with every change of it.
    verifier : bytes
        Of whoever made it exclusively.
    is_exported : bool
        Else it is only a step on the way to what is, and cannot be changed.
    """

    number: int
    names: tuple[bytes, ...]
    status: os.stat_result
    mode: int
    uid: int
    gid: int
    change: int
    verifier: bytes
    is_exported: bool

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return stat.S_ISDIR(self.status.st_mode)


class Tree:
    """
    The directory.

    Parameters
    ----------
    root : Path
        What clients of version 4 see as ``/``.
    export : tuple of bytes
        Names from there to what is exported, which is there already.
    room_bytes : int or None
        The most that may be stored; None: as much as there is.
    """

    def __init__(self, root: Path, export: tuple[bytes, ...], store: Store, room_bytes: int | None = None) -> None:
        self.export = export
        self._store = store
        self._rows = store.rows
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.room = Room(self._root_fd, room_bytes)
        self._rows.execute("INSERT OR IGNORE INTO files (id, parent, name, mode) VALUES (?, 0, ?, 493)", [_ROOT, b""])

    def close(self) -> None:
        """Let go."""
        os.close(self._root_fd)

    def root(self) -> Node:
        """Give the root."""
        return self._describe(self._find_row(_ROOT), (), os.fstat(self._root_fd))

    def encode_handle(self, node: Node) -> bytes:
        """Give the handle of a file, 16 bytes."""
        return self._store.instance + node.number.to_bytes(8, "big")

    def resolve(self, handle: bytes) -> Node:
        """
        Find what a handle is of.

        Raises
        ------
        OSError
            EBADF if it is none of ours, ESTALE if the file is gone.
        """
        if len(handle) != 16 or not handle.startswith(self._store.instance):
            raise OSError(errno.EBADF, "no handle of this server")
        return self._resolve(int.from_bytes(handle[8:], "big"))

    def lookup(self, directory: Node, name: bytes) -> Node:
        """
        Find a name in a directory.

        Raises
        ------
        OSError
            ENOENT also if it is there and neither file nor directory.
        """
        _check_name(name)
        with self._open_directory(directory) as fd:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            raise FileNotFoundError(errno.ENOENT, "neither file nor directory")
        return self._identify(directory, name, status)

    def parent(self, node: Node) -> Node:
        """Find the directory above; the root is its own."""
        if not node.names:
            return node
        row = self._rows.execute("SELECT parent FROM files WHERE id = ?", [node.number]).fetchone()
        return self._resolve(row[0] if row else 0)

    def list(self, directory: Node) -> list[tuple[bytes, Node]]:
        """List a directory, in the order of the numbers, in which nothing ever changes its place."""
        with self._open_directory(directory) as fd, os.scandir(fd) as entries:
            names = [os.fsencode(entry.name) for entry in itertools.islice(entries, _MOST_FILES)]
        found: list[tuple[bytes, Node]] = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found.append((name, self.lookup(directory, name)))
        return sorted(found, key=lambda one: one[1].number)

    def create(self, directory: Node, name: bytes, mode: int, verifier: bytes = b"") -> Node:
        """
        Make a file.

        Parameters
        ----------
        verifier : bytes
            Of an exclusive creation.

        Raises
        ------
        OSError
            EEXIST if there is one.
        """
        self._check_new(directory, name)
        with self._open_directory(directory) as fd:
            os.close(os.open(name, _FOR_FILE | os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=fd))
        return self._admit(directory, name, mode, verifier)

    def make_directory(self, directory: Node, name: bytes, mode: int) -> Node:
        """Make a directory."""
        self._check_new(directory, name)
        with self._open_directory(directory) as fd:
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=fd)
        return self._admit(directory, name, mode)

    def remove(self, directory: Node, name: bytes, *, wants_directory: bool | None = None) -> None:
        """
        Remove a file, or an empty directory.

        Parameters
        ----------
        wants_directory : bool or None
            What it has to be; None: either.
        """
        self._check_writable(directory)
        node = self.lookup(directory, name)
        if wants_directory is not None and wants_directory != node.is_directory:
            code = errno.ENOTDIR if wants_directory else errno.EISDIR
            raise OSError(code, os.strerror(code))
        with self._open_directory(directory) as fd:
            if node.is_directory:
                os.rmdir(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
        self._rows.execute("DELETE FROM files WHERE id = ?", [node.number])
        self._touch(directory)

    def rename(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        """Rename, also over what is there."""
        for directory in (old, new):
            self._check_writable(directory)
        node = self.lookup(old, old_name)
        _check_name(new_name)
        with self._open_directory(old) as old_fd, self._open_directory(new) as new_fd:
            os.replace(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        place = [new.number, new_name]
        self._rows.execute("DELETE FROM files WHERE parent = ? AND name = ? AND id != ?", [*place, node.number])
        self._rows.execute("UPDATE files SET parent = ?, name = ? WHERE id = ?", [*place, node.number])
        for directory in (old, new):
            self._touch(directory)

    def read(self, node: Node, offset: int, count: int) -> tuple[bytes, bool]:
        """Read, and tell whether that is the end."""
        _check_range(offset, 0)
        with self._open_file(node, os.O_RDONLY) as fd:
            content = os.pread(fd, count, offset)
            return content, offset + len(content) >= os.fstat(fd).st_size

    def write(self, node: Node, offset: int, content: bytes) -> None:
        """Write all, or raise ENOSPC and write nothing, if the room is bounded."""
        _check_range(offset, len(content))
        with self._open_file(node, os.O_WRONLY) as fd:
            self.room.check(offset + len(content) - os.fstat(fd).st_size)
            view = memoryview(content)
            while view:
                done = os.pwrite(fd, view, offset)
                view, offset = view[done:], offset + done
        self._touch(node)

    def resize(self, node: Node, size_bytes: int) -> None:
        """Cut a file, or let it grow by a hole."""
        _check_range(size_bytes, 0)
        with self._open_file(node, os.O_WRONLY) as fd:
            self.room.check(size_bytes - os.fstat(fd).st_size)
            os.ftruncate(fd, size_bytes)
        self._touch(node)

    def seek(self, node: Node, offset: int, *, is_for_data: bool) -> int | None:
        """Find data, or a hole, from an offset on; None: there are no data any more."""
        _check_range(offset, 0)
        with self._open_file(node, os.O_RDONLY) as fd:
            try:
                return os.lseek(fd, offset, os.SEEK_DATA if is_for_data else os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno == errno.ENXIO and is_for_data and offset < os.fstat(fd).st_size:
                    return None
                raise

    def set_permissions(self, node: Node, *, mode: int | None, uid: int | None, gid: int | None) -> None:
        """Set what is not None."""
        self._check_writable(node)
        for column, value in (("mode", mode), ("uid", uid), ("gid", gid)):
            if value is not None:
                self._rows.execute(f"UPDATE files SET {column} = ? WHERE id = ?", [value, node.number])  # noqa: S608
        self._touch(node)

    def set_times(self, node: Node, atime_ns: int, mtime_ns: int) -> None:
        """Set the times, nanoseconds since 1970."""
        self._check_writable(node)
        opened = self._open_directory(node) if node.is_directory else self._open_file(node, os.O_RDONLY)
        with opened as fd:
            try:
                os.utime(fd, ns=(atime_ns, mtime_ns))
            except OverflowError:
                raise OSError(errno.EINVAL, "no time") from None
        self._touch(node)

    def count_room(self) -> tuple[int, int]:
        """Tell how many files there may be in all, and how many may be added."""
        (count,) = self._rows.execute("SELECT COUNT(*) FROM files").fetchone()
        return _MOST_FILES, max(_MOST_FILES - count, 0)

    def _resolve(self, number: int) -> Node:
        row = self._find_row(number)
        names: list[bytes] = []
        at = number
        while at != _ROOT:
            found = self._rows.execute("SELECT parent, name FROM files WHERE id = ?", [at]).fetchone()
            if found is None or len(names) >= _MOST_DEPTH:
                raise OSError(errno.ESTALE, "the file is gone")
            at = found[0]
            names.append(found[1])
        if not names:
            return self.root()
        names.reverse()
        try:
            with self._open_path(tuple(names[:-1])) as fd:
                status = os.stat(names[-1], dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise OSError(errno.ESTALE, "the file is gone") from None
        return self._describe(row, tuple(names), status)

    def _find_row(self, number: int) -> _Row:
        if number >= 1 << 63:
            raise OSError(errno.EBADF, "no handle of this server")
        query = f"SELECT {_COLUMNS} FROM files WHERE id = ?"  # noqa: S608
        row: _Row | None
        row = self._rows.execute(query, [number]).fetchone()
        if row is None:
            raise OSError(errno.ESTALE, "the file is gone")
        return row

    def _describe(self, row: _Row, names: tuple[bytes, ...], status: os.stat_result) -> Node:
        number, mode, uid, gid, change, verifier = row
        if mode is None:
            mode = 0o755 if stat.S_ISDIR(status.st_mode) else 0o644
        is_exported = names[: len(self.export)] == self.export
        return Node(number, names, status, mode, uid, gid, change, verifier or b"", is_exported)

    def _identify(self, directory: Node, name: bytes, status: os.stat_result) -> Node:
        query = f"SELECT {_COLUMNS} FROM files WHERE parent = ? AND name = ?"  # noqa: S608
        values = [directory.number, name]
        row = self._rows.execute(query, values).fetchone()
        if row is None:
            self._rows.execute("INSERT INTO files (parent, name) VALUES (?, ?)", values)
            row = self._rows.execute(query, values).fetchone()
        return self._describe(row, (*directory.names, name), status)

    def _admit(self, directory: Node, name: bytes, mode: int, verifier: bytes = b"") -> Node:
        # What was named so before was removed behind our back.
        self._rows.execute("DELETE FROM files WHERE parent = ? AND name = ?", [directory.number, name])
        self._rows.execute(
            "INSERT INTO files (parent, name, mode, verifier) VALUES (?, ?, ?, ?)",
            [directory.number, name, mode & 0o7777, verifier],
        )
        self._touch(directory)
        return self.lookup(directory, name)

    def _touch(self, node: Node) -> None:
        self._rows.execute("UPDATE files SET change = change + 1 WHERE id = ?", [node.number])

    def _check_new(self, directory: Node, name: bytes) -> None:
        self._check_writable(directory)
        _check_name(name)
        if self.count_room()[1] == 0 or len(directory.names) >= _MOST_DEPTH - 1:
            raise OSError(errno.ENOSPC, "too many files")

    def _check_writable(self, node: Node) -> None:
        if not node.is_exported:
            raise OSError(errno.EROFS, "not exported")

    @contextlib.contextmanager
    def _open_path(self, names: tuple[bytes, ...]) -> Iterator[int]:
        fd = os.dup(self._root_fd)
        try:
            for name in names:
                below = os.open(name, _FOR_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _open_directory(self, node: Node) -> Iterator[int]:
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with self._open_path(node.names) as fd:
            yield fd

    @contextlib.contextmanager
    def _open_file(self, node: Node, flags: int) -> Iterator[int]:
        if node.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if flags != os.O_RDONLY:
            self._check_writable(node)
        with self._open_path(node.names[:-1]) as directory_fd:
            fd = os.open(node.names[-1], flags | _FOR_FILE, dir_fd=directory_fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            yield fd
        finally:
            os.close(fd)


def _check_name(name: bytes) -> None:
    if len(name) > MOST_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "no name")


def _check_range(offset: int, size_bytes: int) -> None:
    if offset + size_bytes > MOST_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
