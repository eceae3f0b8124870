"""
Files with symbols: where the kernel's and the modules' lie, and what they say of themselves.

Looked for by build ID (``.build-id/ab/cdef….debug``) and by release, at the places of the distributions:
Debian and Fedora ``/usr/lib/debug``, Ubuntu's and SUSE's ``.debug`` endings, a build tree behind
``/lib/modules/RELEASE/build``.
"""

from __future__ import annotations

import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from postpanic.errors import CorruptError, FileFaultError, TruncatedError
from postpanic.units import MIB, format_size

__all__ = [
    "ElfFacts",
    "FileKind",
    "ModuleFiles",
    "detect_file",
    "find_kernel_files",
    "module_directories",
    "read_elf_facts",
    "read_release",
    "unpack_module",
]

_ELF_MAGIC = b"\x7fELF"
_ET_REL, _ET_CORE = 1, 4
_SHF_ALLOC = 2
_SHF_EXECINSTR = 4
_NT_GNU_BUILD_ID = 3
_MODULE = re.compile(r"(?P<name>[\w-]{1,64})\.ko(?:\.debug)?(?P<packed>\.(?:gz|xz|zst))?\Z")
_LARGEST_MODULE_BYTES = 512 * MIB
_MOST_FILES = 1 << 20
_MOST_SECTIONS = 1 << 16
_BUILD_ID = re.compile(r"[0-9a-f]{16,64}\Z")
_RELEASE = re.compile(r"[\w.+~-]{1,128}\Z")
_BANNER = re.compile(rb"Linux version ([\w.+~-]{1,128}) \(")


class FileKind(StrEnum):
    """What a file on the command line is."""

    KERNEL = "vmlinux"
    MODULE = "module"
    MAP = "symbol map"
    DUMP = "dump"
    TEXT = "text"


class Section(NamedTuple):
    """A part of an ELF file: where it is linked to, its size in bytes, and its place in the file; None: it has none."""

    vaddr: int
    size: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class ElfFacts:
    """
    What the headers of an ELF file say.

    Parameters
    ----------
    build_id : str
        Hexadecimal digits; empty: it has none.
    has_lines : bool
        Whether it has source lines (``.debug_line``).
    sections : dict
        Those that take memory, by name, in the order of the file.
    code : tuple of int
        Lowest address and end of the sections that hold code.
    """

    build_id: str
    has_lines: bool
    sections: dict[str, Section]
    code: tuple[int, int] = (0, 0)


def detect_file(path: Path) -> FileKind:
    """
    Tell what a file is, by its first bytes; by its name if it is packed.

    Raises
    ------
    FileFaultError
        If it cannot be read.
    """
    from postpanic.analysis.decode.maps import is_map
    from postpanic.dumps.detect import FileKind as DumpKind
    from postpanic.dumps.detect import detect_kind

    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    if head.startswith(_ELF_MAGIC) and len(head) >= 18:
        kind = int.from_bytes(head[16:18], "big" if head[5] == 2 else "little")
        return {_ET_REL: FileKind.MODULE, _ET_CORE: FileKind.DUMP}.get(kind, FileKind.KERNEL)
    if _MODULE.search(path.name) and (head.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"))):
        return FileKind.MODULE
    if is_map(head):
        return FileKind.MAP
    return FileKind.DUMP if detect_kind(head) in {DumpKind.KDUMP, DumpKind.FLATTENED} else FileKind.TEXT


def read_elf_facts(path: Path) -> ElfFacts:
    """
    Read the section headers and the build ID of an ELF file.

    Raises
    ------
    FileFaultError
        If it cannot be read or is damaged.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf.num_sections() > _MOST_SECTIONS:
                raise CorruptError(f"{elf.num_sections()} sections, at most {_MOST_SECTIONS} are read", where=str(path))
            return _collect_facts(elf)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    except (
        ELFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
        TypeError,
        OverflowError,
    ) as exc:
        raise CorruptError(f"not a sound ELF file: {exc or type(exc).__name__}", where=str(path)) from exc


def _collect_facts(elf: Any) -> ElfFacts:  # noqa: ANN401 - pyelftools has no types
    build_id = ""
    has_lines = False
    sections: dict[str, Section] = {}
    code: list[tuple[int, int]] = []
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_NOTE" and section["sh_size"] <= MIB and not build_id:
            build_id = _find_build_id(section)
        # Compressed debug sections keep their name (SHF_COMPRESSED) or are called .zdebug.
        has_lines = has_lines or (section.name in {".debug_line", ".zdebug_line"} and section["sh_size"] > 0)
        if section["sh_flags"] & _SHF_ALLOC and section["sh_size"]:
            offset = section["sh_offset"] if section["sh_type"] != "SHT_NOBITS" else None
            sections.setdefault(section.name, Section(section["sh_addr"], section["sh_size"], offset))
            if section["sh_flags"] & _SHF_EXECINSTR:
                code.append((section["sh_addr"], section["sh_addr"] + section["sh_size"]))
    bounds = (min(start for start, _ in code), max(end for _, end in code)) if code else (0, 0)
    return ElfFacts(build_id, has_lines, sections, bounds)


def _find_build_id(section: Any) -> str:  # noqa: ANN401 - pyelftools has no types
    for note in section.iter_notes():
        if note["n_name"] == "GNU" and note["n_type"] in {"NT_GNU_BUILD_ID", _NT_GNU_BUILD_ID}:
            return str(note["n_desc"])
    return ""


def find_kernel_files(roots: Sequence[Path], *, release: str = "", build_id: str = "") -> Iterator[Path]:
    """
    Yield the files that may hold the symbols of a kernel, the best first: by build ID, then by release.

    Parameters
    ----------
    roots : sequence of Path
        Directories with debug information, as ``/usr/lib/debug``.
    release, build_id : str
        As the log has them; they may be anything and are checked.
    """
    if _BUILD_ID.match(build_id):
        for root in roots:
            yield from _existing(root / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug")
    if not _RELEASE.match(release) or release in {".", ".."}:
        return
    for root in roots:
        for below in (
            f"boot/vmlinux-{release}",
            f"boot/vmlinux-{release}.debug",
            f"lib/modules/{release}/vmlinux",
            f"lib/modules/{release}/vmlinux.debug",
            f"usr/lib/modules/{release}/vmlinux",
            f"usr/lib/modules/{release}/vmlinux.debug",
            f"usr/lib/debug/boot/vmlinux-{release}",
            f"usr/lib/debug/lib/modules/{release}/vmlinux",
            f"lib/modules/{release}/build/vmlinux",
            f"{release}/vmlinux",
            f"vmlinux-{release}",
        ):
            yield from _existing(root / below)
    for root in roots:
        for below in (f"boot/System.map-{release}", f"lib/modules/{release}/System.map", f"System.map-{release}"):
            yield from _existing(root / below)


def _existing(path: Path) -> Iterator[Path]:
    try:
        if path.is_file():
            yield path
    except OSError:
        return


def module_directories(roots: Sequence[Path], release: str) -> Iterator[Path]:
    """Yield the directories that hold the modules of a kernel."""
    if not _RELEASE.match(release) or release in {".", ".."}:
        return
    for root in roots:
        for below in (f"lib/modules/{release}", f"usr/lib/modules/{release}", f"usr/lib/debug/lib/modules/{release}"):
            if (root / below).is_dir():
                yield root / below


@dataclass
class ModuleFiles:
    """
    The files of modules below some directories, by name.

    Parameters
    ----------
    directories : sequence of Path
        Walked when a module is first asked for.
    files : sequence of Path
        Single files of the user, which come first.
    """

    directories: Sequence[Path] = ()
    files: Sequence[Path] = ()
    roots: Sequence[Path] = ()
    """Where ``.build-id`` is looked for."""
    _index: dict[str, list[Path]] | None = field(default=None, repr=False)

    def find(self, name: str, build_id: str = "") -> Iterator[Path]:
        """Yield the files of a module, that by its build ID first, unpacked ones and those with ``.debug`` next."""
        if _BUILD_ID.match(build_id):
            for root in self.roots:
                yield from _existing(root / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug")
        if self._index is None:
            self._index = self._walk()
        yield from self._index.get(name.replace("-", "_"), ())

    def _walk(self) -> dict[str, list[Path]]:
        index: dict[str, list[Path]] = {}
        count = 0
        for path in self.files:
            _file(index, path)
        for directory in self.directories:
            found: list[Path] = []
            for parent, below, names in os.walk(directory):
                below.sort()
                count += len(names)
                found += [Path(parent, name) for name in names if _MODULE.match(name)]
                if count > _MOST_FILES:
                    break
            for path in sorted(found, key=_preference):
                _file(index, path)
        return index


def _file(index: dict[str, list[Path]], path: Path) -> None:
    match = _MODULE.match(path.name)
    name = match["name"] if match is not None else path.name.partition(".")[0]
    index.setdefault(name.replace("-", "_"), []).append(path)


def _preference(path: Path) -> tuple[bool, bool, str]:
    match = _MODULE.match(path.name)
    packed = match is not None and bool(match["packed"])
    return packed, ".ko.debug" not in path.name, str(path)


def unpack_module(path: Path, directory: Path) -> Path:
    """
    Give a module as a file that is not compressed, made below a directory if need be.

    Raises
    ------
    FileFaultError
        If it cannot be read, is damaged, or is larger unpacked than any module is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if head.startswith(_ELF_MAGIC):
            return path
        data = _unpack(path.read_bytes(), head, path)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    target = directory / f"{len(list(directory.iterdir()))}-{path.name.partition('.ko')[0]}.ko"
    target.write_bytes(data)
    return target


def _unpack(packed: bytes, head: bytes, path: Path) -> bytes:
    try:
        if head.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(31).decompress(packed, _LARGEST_MODULE_BYTES)
        elif head.startswith(b"\xfd7zXZ"):
            data = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed, _LARGEST_MODULE_BYTES)
        elif head.startswith(b"\x28\xb5\x2f\xfd"):
            data = _unpack_zstd(packed)
        else:
            raise CorruptError("neither an ELF file nor packed by gzip, xz or zstd", where=str(path))
    except (zlib.error, lzma.LZMAError) as exc:
        raise CorruptError(f"cannot be unpacked: {exc}", where=str(path)) from exc
    if len(data) >= _LARGEST_MODULE_BYTES:
        raise TruncatedError(f"more than {format_size(_LARGEST_MODULE_BYTES)} unpacked, no module is", where=str(path))
    return data


def _unpack_zstd(packed: bytes) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            return bytes(reader.read(_LARGEST_MODULE_BYTES))
    except zstandard.ZstdError as exc:
        raise zlib.error(str(exc)) from exc


def read_release(path: Path) -> str:
    """Read the release that a vmlinux says it is (``linux_banner``); empty: it does not."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            for section in ELFFile(file).iter_sections():
                if section.name in {".rodata", ".init.data", ".data"} and section["sh_size"] <= 64 * MIB:
                    match = _BANNER.search(section.data()) if section["sh_type"] != "SHT_NOBITS" else None
                    if match is not None:
                        return match[1].decode()
    except (OSError, ELFError, ValueError, KeyError, IndexError, AttributeError, AssertionError, TypeError):
        return ""
    return ""
