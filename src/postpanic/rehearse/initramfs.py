"""
Initramfs images: the cpio archive, kernel modules and program libraries.

The archive is the "newc" format that the kernel unpacks
(Documentation/driver-api/early-userspace/buffer-format.rst): a header of
``070701`` and thirteen fields of eight hexadecimal digits, the name with its
NUL, the content; name and content each padded to four bytes.
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import zstandard

from postpanic.errors import CorruptError, FactAbsentError, UsageError
from postpanic.process import find_program, run

__all__ = ["ImageTree", "ModuleTree", "find_libraries", "read_module"]

MODULE_SIZE_LIMIT_BYTES = 64 << 20
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_LIBRARY = re.compile(rb"(/\S+) \(0x[0-9a-f]+\)")


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


def find_libraries(program: Path) -> list[Path]:
    """
    Return the shared libraries of a program, the dynamic loader included; none when it is static.

    Raises
    ------
    ProcessError
        If the dynamic loader cannot resolve them.
    """
    # ldd exits 1 for a static program, which is no failure here.
    listed = run([find_program("ldd"), program], check=False)
    return [Path(match[1].decode()) for match in _LIBRARY.finditer(listed.stdout)]


def read_module(path: Path) -> bytes:
    """
    Read a kernel module, decompressed by the ending of its name: ``.ko``, ``.ko.xz``, ``.ko.zst``.

    Raises
    ------
    CorruptError
        If the compressed file is damaged, or larger than any module.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".xz":
            content = lzma.LZMADecompressor().decompress(content, MODULE_SIZE_LIMIT_BYTES + 1)
        elif path.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(content) as reader:
                content = reader.read(MODULE_SIZE_LIMIT_BYTES + 1)
    except (lzma.LZMAError, zstandard.ZstdError) as exc:
        raise CorruptError(f"not a compressed module: {exc}", where=str(path)) from exc
    if len(content) > MODULE_SIZE_LIMIT_BYTES:
        raise CorruptError(f"a module of more than {MODULE_SIZE_LIMIT_BYTES} bytes", where=str(path))
    return content


class ModuleTree:
    """
    The modules of one kernel, found by name, each after those it depends on.

    Dependencies come from the modules' own ``depends=`` (``.modinfo``), so no
    index made by depmod is needed.

    Parameters
    ----------
    directory : Path
        ``lib/modules/RELEASE`` of the kernel.
    """

    def __init__(self, directory: Path) -> None:
        self._paths = {
            _module_name(path): path
            for path in sorted(directory.rglob("*.ko*"))
            if path.suffix in {".ko", ".xz", ".zst"}
        }
        self._contents: dict[str, bytes] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.replace("-", "_") in self._paths

    def read(self, name: str) -> bytes:
        """
        Return the module's content, decompressed.

        Raises
        ------
        FactAbsentError
            If the kernel has no such module; it may be built in.
        """
        name = name.replace("-", "_")
        if name not in self._paths:
            raise FactAbsentError(f"module {name}: not among the kernel's {len(self._paths)} modules")
        if name not in self._contents:
            self._contents[name] = read_module(self._paths[name])
        return self._contents[name]

    def sort_by_dependency(self, names: Iterable[str]) -> list[str]:
        """
        Return *names* and all they need, each after what it needs.

        Names of which there is no module are left out: they are built in, or
        the kernel does not have them.
        """
        order: list[str] = []
        visiting: set[str] = set()

        def visit(name: str) -> None:
            name = name.replace("-", "_")
            if name in visiting or name in order or name not in self._paths:
                return
            visiting.add(name)
            found = _DEPENDS.search(self.read(name))
            for needed in (found[1].decode() if found else "").split(","):
                visit(needed)
            order.append(name)

        for name in names:
            visit(name)
        return order


def _module_name(path: Path) -> str:
    return path.name.split(".ko", 1)[0].replace("-", "_")
