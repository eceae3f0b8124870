"""
Kernel images: which machine they are for, what a loader makes of them, and out of their compression.

Sources: the kernel's ``Documentation/arch/x86/boot.rst`` (setup header),
``Documentation/arch/arm64/booting.rst`` (``Image``),
``drivers/firmware/efi/libstub/zboot-header.S`` (EFI zboot).
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import zstandard

from postpanic.errors import CorruptError, FileFaultError, ProcessError, UnsupportedError
from postpanic.process import find_program, run

__all__ = ["ImageFormat", "KernelImage", "decode_image", "find_release", "read_image"]

ImageFormat = Literal["bzImage", "Image", "vmlinux", "unknown"]

SIZE_LIMIT_BYTES = 512 << 20
MACHINES = {3: "i686", 62: "x86_64", 183: "aarch64", 243: "riscv64", 22: "s390x", 21: "ppc64", 258: "loongarch64"}

_HEADER_MAGIC = b"HdrS"
_HEADER_PLACE = 0x202
_SETUP_SECTORS_PLACE = 0x1F1
_SETUP_BYTES = 0x268
_RELEASE_LIMIT_BYTES = 256
_DEFAULT_SETUP_SECTORS = 4
_SECTOR_BYTES = 512
_XLF_KERNEL_64 = 1
_ARM64_MAGIC = b"ARM\x64"
_ARM64_MAGIC_PLACE = 56
_ARM64_HEADER_BYTES = 64
_ZBOOT_MAGIC = b"zimg"
# What /proc/version is made of has %s in these places.
_BANNER = re.compile(rb"Linux version (\d[!-~]{0,126}) \(")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x5d\x00\x00": "lzma",
    b"\x89LZO\x00": "lzo",
}


@dataclass(frozen=True)
class KernelImage:
    """
    A kernel as a loader takes it.

    Attributes
    ----------
    format : str
        ``bzImage`` (x86), ``Image`` (arm64), ``vmlinux`` (ELF).
    machine : str
        As ``uname -m`` spells it; empty where that is not known.
    content : bytes
        Of the file, taken out of *packing*.
    packing : str
        What the file was packed in, empty for nothing: ``gzip``, ``EFI zboot, zstd``.
    payload : bytes
        What a loader puts into memory as it stands.
    memory_bytes : int
        What the kernel needs to start, by its own word; 0 where it does not say.
    command_line_limit : int
        Bytes of command line that it takes, the NUL not counted; 0 where it does not say.
    """

    format: ImageFormat
    machine: str
    content: bytes
    packing: str
    payload: bytes
    memory_bytes: int = 0
    command_line_limit: int = 0


def read_image(path: Path) -> KernelImage:
    """
    Read a kernel image.

    Raises
    ------
    FileFaultError
        If the file cannot be read, is empty or is no kernel.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(SIZE_LIMIT_BYTES + 1)
    except OSError as exc:
        raise FileFaultError(f"cannot read the kernel: {exc.strerror}", where=str(path)) from exc
    return decode_image(raw, where=str(path))


def decode_image(raw: bytes, *, where: str = "") -> KernelImage:
    """
    Tell what a kernel image is; one that is packed is unpacked.

    Raises
    ------
    UnsupportedError
        If it is no kernel, or packed in a way that cannot be read here.
    CorruptError
        If what it is packed in is damaged.
    """
    if len(raw) > SIZE_LIMIT_BYTES:
        raise UnsupportedError(f"a kernel of more than {SIZE_LIMIT_BYTES >> 20} MiB", where=where)
    if not raw:
        raise CorruptError("the kernel's file is empty", where=where)
    content, packing = raw, ""
    if raw[:2] == b"MZ" and raw[4:8] == _ZBOOT_MAGIC:
        start, size = struct.unpack_from("<II", raw, 8)
        name = raw[24:56].split(b"\0", 1)[0].decode(errors="replace")
        content, packing = unpack(raw[start : start + size], where=where), f"EFI zboot, {name}"
    elif kind := detect_compression(raw):
        content, packing = unpack(raw, where=where), kind
    image = _decode_plain(content, packing)
    if image is None:
        raise UnsupportedError(
            f"not a kernel: it begins with {content[:4].hex(' ')}",
            where=where,
            hint="x86-64 needs a bzImage or vmlinux, arm64 an Image",
        )
    return image


def find_release(image: KernelImage) -> str:
    """
    Tell a kernel's release, as ``uname -r`` would have it; empty where it does not say.

    A bzImage says so in its setup header (``Documentation/arch/x86/boot.rst``:
    *kernel_version*, at 0x20e, is the offset of the text less 0x200), others
    in ``linux_banner`` (``init/version-timestamp.c``).
    """
    if image.format == "bzImage":
        (offset,) = struct.unpack_from("<H", image.content, 0x20E)
        words = image.content[offset + 0x200 :][:_RELEASE_LIMIT_BYTES].split(b"\0", 1)[0].split()
        return words[0].decode(errors="replace") if offset and words else ""
    found = _BANNER.search(image.content)
    return found[1].decode() if found else ""


def _decode_plain(content: bytes, packing: str) -> KernelImage | None:
    if content[_HEADER_PLACE : _HEADER_PLACE + 4] == _HEADER_MAGIC and len(content) >= _SETUP_BYTES:
        sectors = content[_SETUP_SECTORS_PLACE] or _DEFAULT_SETUP_SECTORS
        (limit,) = struct.unpack_from("<I", content, 0x238)
        (memory_bytes,) = struct.unpack_from("<I", content, 0x260)
        is_64bit = content[0x236] & _XLF_KERNEL_64
        machine = "x86_64" if is_64bit else "i686"
        payload = content[(sectors + 1) * _SECTOR_BYTES :]
        return KernelImage("bzImage", machine, content, packing, payload, memory_bytes, limit)
    if content[_ARM64_MAGIC_PLACE : _ARM64_MAGIC_PLACE + 4] == _ARM64_MAGIC and len(content) >= _ARM64_HEADER_BYTES:
        (memory_bytes,) = struct.unpack_from("<Q", content, 16)
        return KernelImage("Image", "aarch64", content, packing, content, memory_bytes, 2047)
    if content[:4] == b"\x7fELF" and len(content) >= 64 and content[4] in (1, 2):
        (machine_number,) = struct.unpack_from("<H" if content[5] == 1 else ">H", content, 18)
        return KernelImage("vmlinux", MACHINES.get(machine_number, ""), content, packing, _first_load(content))
    return None


def _first_load(content: bytes) -> bytes:
    """Return what the first PT_LOAD of a 64-bit little-endian ELF file has in the file; empty for others."""
    if content[4:6] != b"\2\1":
        return b""
    offset, entry_bytes, count = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
    for number in range(min(count, 64)):
        at = offset + number * entry_bytes
        if at + 56 > len(content):
            break
        kind, _, file_offset, _, _, size = struct.unpack_from("<IIQQQQ", content, at)
        if kind == 1:
            return content[file_offset : file_offset + size]
    return b""


def detect_compression(raw: bytes) -> str:
    """Name the compression that a file begins like; empty for none."""
    return next((name for magic, name in _COMPRESSED.items() if raw.startswith(magic)), "")


def unpack(raw: bytes, *, where: str = "") -> bytes:
    """
    Take bytes out of the compression that they begin like, of the kernel's kinds.

    Raises
    ------
    UnsupportedError
        If it is one that neither Python nor a program here reads.
    CorruptError
        If it is damaged, or larger than any kernel.
    """
    kind = detect_compression(raw)
    if kind == "lz4":
        return _check_unpacked(_unpack_lz4(raw, where), where, kind)
    maker = _UNPACKERS.get(kind)
    if maker is None:
        raise UnsupportedError(f"compressed with {kind or 'what is not known'}", where=where)
    unpacker = maker()
    content = bytearray()
    try:
        for at in range(0, len(raw), _CHUNK_BYTES):
            content += unpacker.decompress(raw[at : at + _CHUNK_BYTES])
            if unpacker.eof or len(content) > SIZE_LIMIT_BYTES:
                break
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, ValueError, EOFError) as exc:
        raise CorruptError(f"the kernel's {kind} is damaged: {exc}", where=where) from exc
    if not unpacker.eof and len(content) <= SIZE_LIMIT_BYTES:
        raise CorruptError(f"the kernel's {kind} ends too early, after {len(content)} bytes", where=where)
    return _check_unpacked(bytes(content), where, kind)


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


# A chunk of zstd or gzip becomes a thousand times as much at most.
_CHUNK_BYTES = 64 << 10
_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "xz": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
    "bzip2": bz2.BZ2Decompressor,
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


def _check_unpacked(content: bytes, where: str, kind: str) -> bytes:
    if len(content) > SIZE_LIMIT_BYTES:
        raise CorruptError(f"the kernel's {kind} has more than {SIZE_LIMIT_BYTES >> 20} MiB in it", where=where)
    return content


def _unpack_lz4(raw: bytes, where: str) -> bytes:
    try:
        program = find_program("lz4")
    except ProcessError as exc:
        raise UnsupportedError("compressed with lz4", where=where, hint="install lz4, or unpack the kernel") from exc
    try:
        return run([program, "-dc"], stdin=raw, timeout_s=60.0).stdout
    except ProcessError as exc:
        raise CorruptError(f"the kernel's lz4 is damaged: {exc}", where=where) from exc
