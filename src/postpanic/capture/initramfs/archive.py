"""
Initramfs images: the tree of files and the cpio archive of it.

The archive is the "newc" format that the kernel unpacks
(Documentation/driver-api/early-userspace/buffer-format.rst): a header of
``070701`` and thirteen fields of eight hexadecimal digits, the name with its
NUL, the content; name and content each padded to four bytes.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from postpanic.capture.initramfs.libraries import find_libraries
from postpanic.errors import UsageError

__all__ = ["ImageTree"]


class ImageTree:
    """
    The files of an image, in memory, and the archive that holds them.

    Parents of every path are added as directories. All belongs to root and has
    no times, so that equal trees make equal archives.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; one that is there stays."""
        name = self._claim(path)
        self._entries.setdefault(name, (stat.S_IFDIR | mode, b""))

    def add_bytes(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file with this content."""
        self._entries[self._claim(path)] = (stat.S_IFREG | mode, content)

    def add_file(self, path: str, source: Path, mode: int = 0o644) -> None:
        """Add a regular file of the host."""
        self.add_bytes(path, source.read_bytes(), mode)

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entries[self._claim(path)] = (stat.S_IFLNK | 0o777, target.encode())

    def list_sizes(self) -> dict[str, int]:
        """Return the size of each regular file in bytes, by path."""
        return {name: len(content) for name, (mode, content) in self._entries.items() if stat.S_ISREG(mode)}

    def add_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device, such as the console that PID 1 is given."""
        self._entries[self._claim(path)] = (stat.S_IFCHR | mode, b"%d:%d" % (major, minor))

    def add_program(self, path: str, source: Path) -> None:
        """Add a program and the shared libraries that it is linked with, where it looks for them."""
        self.add_file(path, source, 0o755)
        for library in find_libraries(source):
            self.add_file(str(library), library, 0o755)

    def encode(self) -> bytes:
        """Return the archive, uncompressed."""
        archive = bytearray()
        for number, (name, (mode, content)) in enumerate(self._entries.items(), start=1):
            _append_entry(archive, number, name, mode, content)
        _append_entry(archive, 0, "TRAILER!!!", 0, b"")
        # The kernel reads padding up to a block as nothing; boot loaders expect it.
        archive += bytes(-len(archive) % 512)
        return bytes(archive)

    def digest(self) -> str:
        """Return the SHA-256 of what is in the tree, whatever order it was added in, as hexadecimal text."""
        digest = hashlib.sha256()
        for name, (mode, content) in sorted(self._entries.items()):
            digest.update(b"%s\0%o %d\0" % (name.encode(), mode, len(content)) + content)
        return digest.hexdigest()

    def _claim(self, path: str) -> str:
        name = path.strip("/")
        if not name or ".." in PurePosixPath(name).parts:
            raise UsageError(f"not a path inside an image: {path!r}")
        for parent in reversed(PurePosixPath(name).parents):
            if str(parent) != ".":
                self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b""))
        return name


def _append_entry(archive: bytearray, inode: int, name: str, mode: int, content: bytes) -> None:
    device = (0, 0)
    if stat.S_ISCHR(mode):
        major, minor = content.split(b":")
        device, content = (int(major), int(minor)), b""
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    archive += bytes(-len(archive) % 4)
    archive += content
    archive += bytes(-len(archive) % 4)
