"""
Tell what a file is from its first bytes, and say so when it is no dump.

A raw image of RAM has no header, so it is never recognised.
"""

from __future__ import annotations

import enum
import shlex
from dataclasses import dataclass

from postpanic.errors import FileFaultError, NotADumpError, TruncatedError, UnsupportedError

__all__ = ["FileKind", "detect_kind", "explain_foreign"]


class FileKind(enum.Enum):
    """What a file is, as far as the readers care."""

    ELF = "ELF"
    KDUMP = "kdump-compressed"
    FLATTENED = "flattened"
    FOREIGN = "foreign"


_SIGNATURES = (
    (b"\x7fELF", FileKind.ELF),
    (b"KDUMP   ", FileKind.KDUMP),
    (b"DISKDUMP", FileKind.KDUMP),
    (b"makedumpfile\0\0\0\0", FileKind.FLATTENED),
)


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A format that is known by its first bytes and not read here."""

    magic: bytes
    words: str
    hint: str = ""


_COMPRESSED = (
    _Foreign(b"\x1f\x8b", "compressed with gzip", "gzip -dk {}"),
    _Foreign(b"\xfd7zXZ\0", "compressed with xz", "xz -dk {}"),
    _Foreign(b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -d {}"),
    _Foreign(b"BZh", "compressed with bzip2", "bzip2 -dk {}"),
    _Foreign(b"\x04\x22\x4d\x18", "compressed with lz4", "lz4 -d {}"),
    _Foreign(b"\x89LZO\0\r\n\x1a\n", "compressed with lzop", "lzop -d {}"),
    _Foreign(b"PK\x03\x04", "a zip archive", "unzip {}"),
    _Foreign(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {}"),
)

_OTHER_DUMPS = (
    _Foreign(b"PAGEDUMP", "a Windows crash dump"),
    _Foreign(b"PAGEDU64", "a Windows crash dump"),
    _Foreign(b"EMiL", "a LiME image of RAM"),
    _Foreign(b"AVML", "an AVML image of RAM"),
    _Foreign(b"\xed\x23\x8f\x61\x73\x01\x19\xa8", "an LKCD dump"),
    _Foreign(b"\xa8\x19\x01\x73\x61\x8f\x23\xed", "an LKCD dump"),
    _Foreign(b"QFI\xfb", "a qcow2 disk image"),
    _Foreign(b"QEVM", "a saved QEMU machine", "in QEMU's monitor: dump-guest-memory FILE"),
    _Foreign(b"LibvirtQemudSave", "a machine saved by libvirt", "virsh dump --memory-only writes a dump"),
)

_TEXT_BYTES = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r\f\x1b")


def detect_kind(head: bytes) -> FileKind:
    """Tell the format from the first bytes of a file."""
    for magic, kind in _SIGNATURES:
        if head.startswith(magic):
            return kind
    return FileKind.FOREIGN


def explain_foreign(head: bytes, name: str) -> FileFaultError:
    """
    Build the error for a file that is no dump.

    Parameters
    ----------
    head : bytes
        The first bytes, 4096 where the file has as many.
    """
    if not head:
        return TruncatedError("the file is empty", where=name)
    for foreign in _COMPRESSED:
        if head.startswith(foreign.magic):
            command = foreign.hint.format(shlex.quote(name))
            return UnsupportedError(foreign.words, where=name, hint=f"decompress it first: {command}")
    for foreign in _OTHER_DUMPS:
        if head.startswith(foreign.magic):
            return UnsupportedError(f"{foreign.words}, which is not read here", where=name, hint=foreign.hint)
    if any(magic.startswith(head) for magic, _ in _SIGNATURES):
        return TruncatedError(f"the file ends after {len(head)} bytes", where=name)
    if head[257:262] == b"ustar":
        return UnsupportedError("a tar archive", where=name, hint=f"unpack it first: tar -xf {shlex.quote(name)}")
    if not any(head):
        return NotADumpError(f"the file begins with {len(head)} zero bytes", where=name)
    if len(head) >= 4 and all(byte in _TEXT_BYTES for byte in head):
        return NotADumpError("a text file, not a dump", where=name)
    return NotADumpError(f"no known dump format: it begins with {head[:8].hex(' ')}", where=name)
