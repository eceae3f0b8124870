"""
The subsystem of an SSH server that receives dumps into one directory, and reaches nothing else.

``sshd`` starts it in place of its own sftp-server, because that one would give
the virtual machine all files of the user who rehearses. Paths are taken as
below the directory: ``..`` does not lead out of it, and no request makes a
link.

Sources: draft-ietf-secsh-filexfer-02; OpenSSH's ``PROTOCOL`` for
``posix-rename``, ``fsync`` and ``statvfs``.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from postpanic.errors import OutputError
from postpanic.saver.targets.sftp_wire import (
    MAX_PACKET_BYTES,
    Fields,
    Flag,
    OpenFlag,
    Packet,
    Status,
    encode_path,
    encode_string,
)

__all__ = ["SftpServer", "main"]

_VERSION = 3
_MOST_HANDLES = 64
_MOST_READ_BYTES = 1 << 17
_EXTENSIONS = (("posix-rename@openssh.com", b"1"), ("fsync@openssh.com", b"1"), ("statvfs@openssh.com", b"2"))
_STATUS_OF = {errno.ENOENT: Status.NO_SUCH_FILE, errno.EACCES: Status.PERMISSION_DENIED}
_NO_ROOM = "no space left on device"
_FRAGMENT_BYTES = 4096

Answer = tuple[int, bytes]


class SftpServer:
    """
    Answers requests, one after the other.

    Parameters
    ----------
    root : Path
        What clients see as ``/``.
    room_bytes : int or None
        The most that may be stored below it; None: as much as there is.
    """

    def __init__(self, root: Path, room_bytes: int | None = None) -> None:
        self._root = root
        self._room_bytes = room_bytes
        self._handles: dict[bytes, int | list[Path]] = {}
        self._last_handle = 0
        self._requests: dict[int, Callable[[Fields], Answer]] = {
            Packet.OPEN: self._open,
            Packet.CLOSE: self._close,
            Packet.READ: self._read,
            Packet.WRITE: self._write,
            Packet.LSTAT: self._stat,
            Packet.STAT: self._stat,
            Packet.FSTAT: self._fstat,
            Packet.SETSTAT: lambda _: _say(Status.OK),
            Packet.FSETSTAT: self._fsetstat,
            Packet.OPENDIR: self._opendir,
            Packet.READDIR: self._readdir,
            Packet.REMOVE: self._remove,
            Packet.MKDIR: self._mkdir,
            Packet.RMDIR: self._rmdir,
            Packet.REALPATH: self._realpath,
            Packet.RENAME: self._rename,
            Packet.EXTENDED: self._extended,
        }

    def answer(self, packet: bytes) -> bytes:
        """Answer one packet, both without their lengths."""
        if packet[:1] == bytes([Packet.INIT]):
            names = b"".join(encode_string(name.encode()) + encode_string(version) for name, version in _EXTENSIONS)
            return struct.pack(">BI", Packet.VERSION, _VERSION) + names
        kind, number = struct.unpack_from(">BI", packet.ljust(5, b"\0"))
        try:
            got, body = self._requests[kind](Fields(packet[5:], _refuse))
        except KeyError:
            got, body = _say(Status.UNSUPPORTED)
        except OutputError as exc:
            got, body = _say(Status.BAD_MESSAGE, exc.message)
        except (ValueError, OverflowError):
            got, body = _say(Status.FAILURE, "no such name or offset")
        except OSError as exc:
            text = _NO_ROOM if exc.errno == errno.ENOSPC else (exc.strerror or str(exc)).lower()
            got, body = _say(_STATUS_OF.get(exc.errno or 0, Status.FAILURE), text)
        return struct.pack(">BI", got, number) + body

    def close(self) -> None:
        """Close what the client has left open."""
        for handle in self._handles.values():
            if isinstance(handle, int):
                os.close(handle)
        self._handles.clear()

    def _place(self, fields: Fields) -> Path:
        return self._root.joinpath(*_normalize(fields.take_string())[1:])

    def _place_below(self, fields: Fields) -> Path:
        place = self._place(fields)
        if place == self._root:
            raise OSError(errno.EBUSY, "device or resource busy")
        return place

    def _file(self, fields: Fields) -> int:
        handle = self._handles.get(fields.take_string())
        if not isinstance(handle, int):
            raise OSError(errno.EBADF, "no such handle")
        return handle

    def _keep(self, opened: int | list[Path]) -> Answer:
        self._last_handle += 1
        name = b"%d" % self._last_handle
        self._handles[name] = opened
        return Packet.HANDLE, encode_string(name)

    def _open(self, fields: Fields) -> Answer:
        place, flags = self._place(fields), fields.take_u32()
        if len(self._handles) >= _MOST_HANDLES:
            raise OSError(errno.EMFILE, "too many open files")
        mode = os.O_RDWR if flags & OpenFlag.WRITE else os.O_RDONLY
        for flag, bit in (
            (OpenFlag.CREATE, os.O_CREAT),
            (OpenFlag.TRUNCATE, os.O_TRUNC),
            (OpenFlag.EXCLUSIVE, os.O_EXCL),
        ):
            mode |= bit if flags & flag else 0
        return self._keep(os.open(place, mode | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def _close(self, fields: Fields) -> Answer:
        handle = self._handles.pop(fields.take_string(), None)
        if isinstance(handle, int):
            os.close(handle)
        return _say(Status.OK if handle is not None else Status.FAILURE)

    def _read(self, fields: Fields) -> Answer:
        fd, offset, size = self._file(fields), fields.take_u64(), fields.take_u32()
        data = os.pread(fd, min(size, _MOST_READ_BYTES), offset)
        return (Packet.DATA, encode_string(data)) if data else _say(Status.EOF)

    def _write(self, fields: Fields) -> Answer:
        fd, offset, data = self._file(fields), fields.take_u64(), fields.take_string()
        grown = offset + len(data) - os.fstat(fd).st_size
        if self._room_bytes is not None and grown > 0 and grown > self._left_bytes():
            raise OSError(errno.ENOSPC, _NO_ROOM)
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
        return _say(Status.OK)

    def _stat(self, fields: Fields) -> Answer:
        return Packet.ATTRS, _encode_attributes(self._place(fields).lstat())

    def _fstat(self, fields: Fields) -> Answer:
        return Packet.ATTRS, _encode_attributes(os.fstat(self._file(fields)))

    def _fsetstat(self, fields: Fields) -> Answer:
        fd, attributes = self._file(fields), fields.take_u32()
        if attributes & Flag.SIZE:
            os.ftruncate(fd, fields.take_u64())
        return _say(Status.OK)

    def _opendir(self, fields: Fields) -> Answer:
        return self._keep(sorted(self._place(fields).iterdir()))

    def _readdir(self, fields: Fields) -> Answer:
        names = self._handles.get(fields.take_string())
        if not isinstance(names, list) or not names:
            return _say(Status.EOF)
        found, names[:] = names[:256], names[256:]
        body = struct.pack(">I", len(found))
        for path in found:
            body += encode_path(path.name) + encode_path(path.name) + _encode_attributes(path.lstat())
        return Packet.NAME, body

    def _remove(self, fields: Fields) -> Answer:
        self._place_below(fields).unlink()
        return _say(Status.OK)

    def _mkdir(self, fields: Fields) -> Answer:
        self._place(fields).mkdir(mode=0o700)
        return _say(Status.OK)

    def _rmdir(self, fields: Fields) -> Answer:
        self._place_below(fields).rmdir()
        return _say(Status.OK)

    def _realpath(self, fields: Fields) -> Answer:
        path = "/".join(_normalize(fields.take_string())).replace("//", "/")
        return Packet.NAME, struct.pack(">I", 1) + encode_path(path) * 2 + struct.pack(">I", 0)

    def _rename(self, fields: Fields) -> Answer:
        self._place_below(fields).rename(self._place_below(fields))
        return _say(Status.OK)

    def _extended(self, fields: Fields) -> Answer:
        name = fields.take_string()
        if name == b"posix-rename@openssh.com":
            return self._rename(fields)
        if name == b"fsync@openssh.com":
            os.fsync(self._file(fields))
            return _say(Status.OK)
        if name == b"statvfs@openssh.com":
            self._place(fields).lstat()
            blocks = self._left_bytes() // _FRAGMENT_BYTES
            total = (self._room_bytes or blocks * _FRAGMENT_BYTES) // _FRAGMENT_BYTES
            fields_ = (_FRAGMENT_BYTES, _FRAGMENT_BYTES, total, blocks, blocks, 1 << 20, 1 << 20, 1 << 20, 1, 0, 255)
            return Packet.EXTENDED_REPLY, struct.pack(">11Q", *fields_)
        return _say(Status.UNSUPPORTED)

    def _left_bytes(self) -> int:
        if self._room_bytes is None:
            found = os.statvfs(self._root)
            return found.f_bavail * found.f_frsize
        used = sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())
        return max(self._room_bytes - used, 0)


def main() -> None:
    """Serve on standard input and output: ``… DIRECTORY [ROOM_BYTES]``."""
    server = SftpServer(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
    try:
        while (packet := _read_packet()) is not None:
            _write_all(encode_string(server.answer(packet)))
    finally:
        server.close()


def _read_packet() -> bytes | None:
    head = _read_exactly(4)
    size = int.from_bytes(head, "big")
    if len(head) < 4 or not 0 < size <= MAX_PACKET_BYTES:
        return None
    packet = _read_exactly(size)
    return packet if len(packet) == size else None


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(0, size - len(data))):
        data += more
    return data


def _write_all(data: bytes) -> None:
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(1, data) :]


def _refuse(what: str) -> OutputError:
    return OutputError(what)


def _say(status: int, text: str = "") -> Answer:
    return Packet.STATUS, struct.pack(">I", status) + encode_string(text.encode(errors="replace")) + encode_string(b"")


def _encode_attributes(found: os.stat_result) -> bytes:
    times = (int(found.st_atime) & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF)
    flags = Flag.SIZE | Flag.MODE | Flag.TIMES
    mode = found.st_mode if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode) else 0
    return struct.pack(">IQIII", flags, found.st_size, mode, *times)


def _normalize(path: bytes) -> tuple[str, ...]:
    """Resolve ``.`` and ``..``; what is not absolute is below the root too."""
    parts: list[str] = []
    for part in PurePosixPath(path.decode(errors="surrogateescape")).parts:
        if part == "..":
            parts[-1:] = []
        elif part not in {"/", "//", "."}:
            parts.append(part)
    return ("/", *parts)


if __name__ == "__main__":
    main()
