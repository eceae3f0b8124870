"""One kernel module: its file in any compression, and what it says about itself."""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import zstandard

from postpanic.errors import CorruptError

__all__ = ["ModuleInfo", "decode_module_info", "decompress", "read_module"]

MODULE_SIZE_LIMIT_BYTES = 64 << 20
_EHDR = struct.Struct("<40xQ10xHHH")
_SHDR = struct.Struct("<II16xQQ24x")
_SECTION_NAME = b".modinfo\0"
_SOFT = re.compile(r"(pre|post):")
_GZIP_WINDOW_BITS = 31


@dataclass(frozen=True)
class ModuleInfo:
    """
    Of a module's ``.modinfo`` section (``include/linux/module.h``).

    Attributes
    ----------
    depends : tuple of str
        Modules that have symbols it uses.
    soft_before, soft_after : tuple of str
        Modules or aliases that should be loaded too, if there are any.
    firmware : tuple of str
        Files below ``/lib/firmware`` that it may ask for; may hold wildcards.
    aliases : tuple of str
        Patterns of what it drives.
    release : str
        Of the kernel that it is for (``vermagic``, ``include/linux/vermagic.h``); empty: it does not say.
    """

    depends: tuple[str, ...] = ()
    soft_before: tuple[str, ...] = ()
    soft_after: tuple[str, ...] = ()
    firmware: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    release: str = ""


def decode_module_info(content: bytes) -> ModuleInfo:
    """Decode what a module says about itself; a file without the section says nothing."""
    values: dict[str, list[str]] = {}
    for entry in _find_section(content).split(b"\0"):
        key, _, value = entry.partition(b"=")
        values.setdefault(key.decode(errors="replace"), []).append(value.decode(errors="replace"))
    before: list[str] = []
    after: list[str] = []
    for text in values.get("softdep", ()):
        # As in "pre: crc32c post: xxhash", include/linux/module.h.
        parts = _SOFT.split(text)
        for kind, names in zip(parts[1::2], parts[2::2], strict=True):
            (before if kind == "pre" else after).extend(names.split())
    return ModuleInfo(
        depends=tuple(name for text in values.get("depends", ()) for name in text.split(",") if name),
        soft_before=tuple(before),
        soft_after=tuple(after),
        firmware=tuple(values.get("firmware", ())),
        aliases=tuple(values.get("alias", ())),
        release=next(iter(values.get("vermagic", [""])[0].split()), ""),
    )


def read_module(path: Path) -> bytes:
    """
    Read a kernel module, decompressed by the ending of its name: ``.ko``, ``.ko.xz``, ``.ko.zst``, ``.ko.gz``.

    Raises
    ------
    CorruptError
        If it cannot be read, the compressed file is damaged, or it is larger than any module.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise CorruptError(f"cannot be read: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    return decompress(content, path.suffix, str(path), "module")


def decompress(content: bytes, suffix: str, where: str, kind: str) -> bytes:
    """
    Decompress a file by the ending of its name; one without such an ending stays as it is.

    Parameters
    ----------
    kind : str
        What it is, for messages.

    Raises
    ------
    CorruptError
        If it is damaged, or too large.
    """
    limit = MODULE_SIZE_LIMIT_BYTES
    try:
        if suffix == ".xz":
            content = lzma.LZMADecompressor().decompress(content, limit + 1)
        elif suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(content) as reader:
                content = reader.read(limit + 1)
        elif suffix == ".gz":
            content = zlib.decompressobj(_GZIP_WINDOW_BITS).decompress(content, limit + 1)
    except (lzma.LZMAError, zstandard.ZstdError, zlib.error) as exc:
        raise CorruptError(f"not a compressed {kind}: {exc}", where=where) from exc
    if len(content) > limit:
        raise CorruptError(f"a {kind} of more than {limit} bytes", where=where)
    return content


def _find_section(content: bytes) -> bytes:
    """Return the section, of a 64-bit little-endian ELF file; of anything else what may hold it."""
    try:
        offset, entry_bytes, count, names_index = _EHDR.unpack_from(content)
        if content[:6] != b"\x7fELF\x02\x01" or entry_bytes != _SHDR.size or count == 0:
            return content
        sections = [_SHDR.unpack_from(content, offset + index * entry_bytes) for index in range(count)]
        names_at = sections[names_index][2]
        for name, _, at, size in sections:
            if content[names_at + name : names_at + name + len(_SECTION_NAME)] == _SECTION_NAME:
                return content[at : at + size]
    except (struct.error, IndexError):
        pass
    return content
