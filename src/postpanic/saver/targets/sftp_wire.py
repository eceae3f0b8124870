"""
The bytes of the SSH file transfer protocol, version 3: draft-ietf-secsh-filexfer-02.

::

    packet = u32 length | u8 type | u32 request | fields          (big endian; a string is u32 length | bytes)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from postpanic.errors import OutputError

__all__ = [
    "MAX_PACKET_BYTES",
    "STATUS_WORDS",
    "Attributes",
    "Entry",
    "Fields",
    "Flag",
    "OpenFlag",
    "Packet",
    "Status",
    "as_printable",
    "divide_views",
    "encode_path",
    "encode_string",
]

MAX_PACKET_BYTES = 1 << 18
"""Of what the server sends; OpenSSH's own bound (``SFTP_MAX_MSG_LENGTH``)."""
_MAX_NAMES = 1 << 14
"""Of one packet; each takes at least 12 bytes."""
_S_IFMT, _S_IFDIR = 0o170000, 0o040000


class Packet:
    """Types of packets (§3 of the draft)."""

    INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = range(1, 13)
    REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME = range(13, 19)
    STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
    EXTENDED, EXTENDED_REPLY = 200, 201


class Status:
    """What a request came to (§7 of the draft)."""

    OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = range(
        9
    )


class Flag:
    """Which attributes are there (§5 of the draft)."""

    SIZE, OWNER, MODE, TIMES, EXTENDED = 1, 2, 4, 8, 1 << 31


class OpenFlag:
    """How a file is opened (§6.3 of the draft)."""

    READ, WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32


STATUS_WORDS = {
    Status.EOF: "end of file",
    Status.NO_SUCH_FILE: "no such file or directory",
    Status.PERMISSION_DENIED: "permission denied",
    Status.FAILURE: "the server does not say why",
    Status.BAD_MESSAGE: "the server did not understand",
    Status.UNSUPPORTED: "the server does not know how to",
}


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is known of a file; times in seconds since 1970."""

    size_bytes: int = 0
    mode: int = 0
    mtime_s: int = 0

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode & _S_IFMT == _S_IFDIR


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a directory."""

    name: str
    attributes: Attributes


class Fields:
    """
    The fields of a packet, taken one after the other.

    Parameters
    ----------
    fail : callable
        Makes the error to raise where the packet is too short, from words that say what the server sent.
    """

    def __init__(self, body: bytes, fail: Callable[[str], OutputError]) -> None:
        self._body = body
        self._at = 0
        self._fail = fail

    @property
    def is_empty(self) -> bool:
        """Whether all was taken."""
        return self._at >= len(self._body)

    def take(self, size_bytes: int) -> bytes:
        """Take so many bytes."""
        end = self._at + size_bytes
        if end > len(self._body):
            raise self._fail("an answer that ends too early")
        taken = self._body[self._at : end]
        self._at = end
        return taken

    def take_u32(self) -> int:
        """Take a number of 32 bits."""
        return int.from_bytes(self.take(4), "big")

    def take_u64(self) -> int:
        """Take a number of 64 bits."""
        return int.from_bytes(self.take(8), "big")

    def take_string(self) -> bytes:
        """Take a string."""
        return self.take(self.take_u32())

    def take_attributes(self) -> Attributes:
        """Take the attributes of a file."""
        flags = self.take_u32()
        size = self.take_u64() if flags & Flag.SIZE else 0
        if flags & Flag.OWNER:
            self.take(8)
        mode = self.take_u32() if flags & Flag.MODE else 0
        mtime = 0
        if flags & Flag.TIMES:
            self.take(4)
            mtime = self.take_u32()
        if flags & Flag.EXTENDED:
            for _ in range(min(self.take_u32(), _MAX_NAMES)):
                self.take_string()
                self.take_string()
        return Attributes(size, mode, mtime)

    def take_names(self) -> Iterator[Entry]:
        """Take the names of a directory."""
        for _ in range(min(self.take_u32(), _MAX_NAMES)):
            name = self.take_string()
            self.take_string()
            yield Entry(name.decode(errors="surrogateescape"), self.take_attributes())


def encode_string(content: bytes) -> bytes:
    """Put the length before some bytes."""
    return struct.pack(">I", len(content)) + content


def encode_path(path: str) -> bytes:
    """Encode a path as a string."""
    return encode_string(path.encode(errors="surrogateescape"))


def divide_views(views: Sequence[memoryview], size_bytes: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Divide bytes into groups of at most so many: the number of bytes, and where they are."""
    group: list[memoryview] = []
    total = 0
    for view in views:
        while len(view):
            part = view[: size_bytes - total]
            group.append(part)
            total += len(part)
            view = view[len(part) :]
            if total == size_bytes:
                yield total, group
                group, total = [], 0
    if total:
        yield total, group


def as_printable(content: bytes) -> str:
    """Make one short line of what a server says, without what moves a cursor."""
    text = content[:300].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
