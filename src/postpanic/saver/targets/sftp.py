"""
A client of the SSH file transfer protocol, version 3: the files and names of a server.

Of draft-ietf-secsh-filexfer-02 what a dump needs, and of OpenSSH's extensions
(``PROTOCOL`` in its source) those that make a file safe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postpanic.saver.targets.sftp_connection import WINDOW_BYTES, SftpConnection, SftpStatusError
from postpanic.saver.targets.sftp_wire import (
    Attributes,
    Entry,
    Fields,
    Flag,
    OpenFlag,
    Packet,
    Status,
    encode_path,
    encode_string,
)

__all__ = ["Room", "SftpClient", "SftpStatusError"]

_MAX_ENTRIES = 1 << 16
"""Of a directory."""
_MAX_HANDLE_BYTES = 256
"""§4 of the draft."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the server's file system has left for us, and in all."""

    free_bytes: int
    total_bytes: int


class SftpClient:
    """
    Files of a server.

    Every method raises what :class:`SftpConnection` raises.

    Parameters
    ----------
    connection : SftpConnection
        After the handshake.
    """

    def __init__(self, connection: SftpConnection) -> None:
        self.connection = connection

    # ---- files ----

    def open_file(self, path: str) -> bytes:
        """Make a file, with mode 0600, or empty it, and give a handle for writing and reading."""
        flags = OpenFlag.READ | OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.TRUNCATE
        body = encode_path(path) + struct.pack(">III", flags, Flag.MODE, 0o600)
        return self._ask_handle(Packet.OPEN, body, f"open {path}")

    def close_handle(self, handle: bytes) -> None:
        """Close a file or directory."""
        self.connection.do(Packet.CLOSE, encode_string(handle), "close")

    def write(self, handle: bytes, offset: int, views: Sequence[memoryview], doing: str = "write") -> None:
        """Send writes, without waiting for what the server says to them."""
        self.connection.start_write(handle, offset, views, doing)

    def read(self, handle: bytes, offset: int, size_bytes: int) -> Iterator[bytes]:
        """Read a range of a file, in order, sending requests ahead; ends where the file ends."""
        connection = self.connection
        waiting: list[tuple[int, int, int]] = []
        step = connection.transfer_bytes
        ahead = max(WINDOW_BYTES // 2 // step, 2)
        at, end = offset, offset + size_bytes
        try:
            while at < end or waiting:
                while at < end and len(waiting) < ahead:
                    size = min(step, end - at)
                    waiting.append((self._start_read(handle, at, size), at, size))
                    at += size
                number, start, size = waiting.pop(0)
                data = self._finish_read(number)
                if len(data) > size:
                    raise connection.bad(f"{len(data)} bytes where {size} were asked for")
                if not data:
                    return
                yield data
                if len(data) < size:
                    # A short answer: the rest is asked for again, before what was asked for after it.
                    start, size = start + len(data), size - len(data)
                    waiting.insert(0, (self._start_read(handle, start, size), start, size))
        finally:
            for number, _start, _size in waiting:
                connection.forget(number)

    def set_size(self, handle: bytes, size_bytes: int) -> None:
        """Cut or lengthen a file; what is new reads as zeroes."""
        body = encode_string(handle) + struct.pack(">IQ", Flag.SIZE, size_bytes)
        self.connection.do(Packet.FSETSTAT, body, "set the length")

    def read_attributes(self, handle: bytes) -> Attributes:
        """Ask for the attributes of an open file."""
        body = self.connection.ask(Packet.FSTAT, encode_string(handle), "stat", Packet.ATTRS)
        return self._fields(body).take_attributes()

    def sync(self, handle: bytes) -> bool:
        """Wait until a file is on the server's disk; False if the server knows no such request."""
        if not self.connection.has("fsync@openssh.com", b"1"):
            return False
        self.connection.do(Packet.EXTENDED, encode_string(b"fsync@openssh.com") + encode_string(handle), "sync")
        return True

    # ---- names ----

    def find_attributes(self, path: str) -> Attributes | None:
        """Ask for the attributes of a path; None if there is no such file."""
        try:
            body = self.connection.ask(Packet.STAT, encode_path(path), f"look at {path}", Packet.ATTRS)
        except SftpStatusError as exc:
            if exc.status == Status.NO_SUCH_FILE:
                return None
            raise
        return self._fields(body).take_attributes()

    def make_directory(self, path: str) -> None:
        """Make a directory, with mode 0700; most servers tell nothing more than failure where it exists."""
        body = encode_path(path) + struct.pack(">II", Flag.MODE, 0o700)
        self.connection.do(Packet.MKDIR, body, f"make the directory {path}")

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of one of that name: in one step where the server can."""
        doing = f"rename {old} to {new}"
        names = encode_path(old) + encode_path(new)
        if self.connection.has("posix-rename@openssh.com", b"1"):
            self.connection.do(Packet.EXTENDED, encode_string(b"posix-rename@openssh.com") + names, doing)
            return
        if self.find_attributes(new) is not None:
            self.remove(new)
        self.connection.do(Packet.RENAME, names, doing)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.connection.do(Packet.REMOVE, encode_path(path), f"remove {path}")

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        self.connection.do(Packet.RMDIR, encode_path(path), f"remove {path}")

    def list_directory(self, path: str) -> list[Entry]:
        """List a directory, without ``.`` and ``..``; of one with very many names only the first."""
        doing = f"list {path}"
        handle = self._ask_handle(Packet.OPENDIR, encode_path(path), doing)
        entries: list[Entry] = []
        try:
            while len(entries) < _MAX_ENTRIES:
                body = self.connection.ask(Packet.READDIR, encode_string(handle), doing, Packet.NAME)
                found = list(self._fields(body).take_names())
                if not found:
                    break
                entries += [entry for entry in found if entry.name not in {".", ".."} and "/" not in entry.name]
        except SftpStatusError as exc:
            if exc.status != Status.EOF:
                raise
        finally:
            self.close_handle(handle)
        return entries

    def find_room(self, path: str) -> Room | None:
        """Ask how much room a file system has; None if the server cannot tell."""
        if not self.connection.has("statvfs@openssh.com", b"2"):
            return None
        request = encode_string(b"statvfs@openssh.com") + encode_path(path)
        try:
            body = self.connection.ask(Packet.EXTENDED, request, "ask for room", Packet.EXTENDED_REPLY)
        except SftpStatusError:
            return None
        fields = self._fields(body)
        _block_bytes, unit_bytes, total, _free, available = [fields.take_u64() for _ in range(5)]
        return Room(unit_bytes * available, unit_bytes * total)

    def _fields(self, body: bytes) -> Fields:
        return Fields(body, self.connection.bad)

    def _ask_handle(self, kind: int, body: bytes, doing: str) -> bytes:
        handle = self._fields(self.connection.ask(kind, body, doing, Packet.HANDLE)).take_string()
        if len(handle) > _MAX_HANDLE_BYTES:
            raise self.connection.bad(f"a handle of {len(handle)} bytes")
        return handle

    def _start_read(self, handle: bytes, offset: int, size: int) -> int:
        return self.connection.start(Packet.READ, encode_string(handle) + struct.pack(">QI", offset, size))

    def _finish_read(self, number: int) -> bytes:
        got, answer = self.connection.wait_answer(number)
        if got == Packet.DATA:
            return self._fields(answer).take_string()
        error = self.connection.read_status(answer, "read back") if got == Packet.STATUS else None
        if error is not None and error.status == Status.EOF:
            return b""
        raise error or self.connection.bad(f"an answer of type {got} to a read")
