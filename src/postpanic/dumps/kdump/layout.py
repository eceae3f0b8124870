"""
The headers of a kdump-compressed file, decoded and bounded.

The structures were never given a fixed layout: they are whatever the compiler
of the dumping machine made of ``struct disk_dump_header`` and ``struct
kdump_sub_header``. There are two of the former (long of 4 or 8 bytes) and
three of the latter, as 32-bit machines align 64-bit integers to 4 bytes (x86)
or 8 (arm). Byte order and layout are found by trying which makes sense.

References: makedumpfile's ``diskdump_mod.h``, ``IMPLEMENTATION``; QEMU's
``dump/dump.c`` (always version 6, 32-bit sub header packed).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from postpanic.dumps.kdump.codecs import Compression
from postpanic.errors import CorruptError, TruncatedError, UnsupportedError

__all__ = [
    "DESCRIPTOR_BYTES",
    "HEADER_BYTES",
    "SIGNATURES",
    "SUB_HEADER_BYTES",
    "BlobPlace",
    "KdumpHeader",
    "Status",
    "decode_header",
    "decode_sub_header",
    "descriptor_dtype",
    "encode_header",
    "encode_sub_header",
]

SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
HEADER_BYTES = 464
"""Of the larger layout; the task pointers that follow are of no use."""
SUB_HEADER_BYTES = 104
"""Of the largest layout."""
DESCRIPTOR_BYTES = 24

_LATEST_VERSION = 6
_HIGHEST_VERSION = 64
_BLOCK_SIZES = frozenset(1 << shift for shift in range(9, 21))
_MAX_SUB_HEADER_BLOCKS = 1 << 20
_MAX_BITMAP_BYTES = 1 << 32
"""Of one bitmap: 128 TiB of RAM in pages of 4 KiB."""

_HEADER_FORMS = {8: "8si390s6xqqIiiIIIIIIi", 4: "8si390s2xIIIiiIIIIIIi"}
_SUB_HEADER_FORMS = {
    "lp64": "QiiQQQQQQQQQQQ",
    "packed": "IiiIIQIQIQIQQQ",
    "aligned": "IiiII4xQI4xQI4xQI4xQQQ",
}
_UTSNAME_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")
_UTSNAME_BYTES = 65


class Status:
    """Bits of ``disk_dump_header.status`` beside the compression."""

    INCOMPLETE = 0x08
    EXCLUDED_VMEMMAP = 0x10


class BlobPlace(NamedTuple):
    """Where a text or the notes lie in the file; size 0 when there are none."""

    offset: int
    size_bytes: int


_NOWHERE = BlobPlace(0, 0)


@dataclass(frozen=True, slots=True)
class KdumpHeader:
    """
    Header and sub header together.

    ``max_mapnr`` is the number of frames: one more than the highest. A file of
    a split set holds the frames ``[start_pfn, end_pfn)``.
    """

    signature: bytes
    version: int
    byte_order: str
    word_bytes: int
    utsname: dict[str, str]
    timestamp_s: int
    status: int
    block_size: int
    sub_header_blocks: int
    bitmap_blocks: int
    max_mapnr: int
    cpu_count: int
    phys_base: int | None = None
    dump_level: int | None = None
    is_split: bool = False
    start_pfn: int = 0
    end_pfn: int = 0
    vmcoreinfo: BlobPlace = _NOWHERE
    notes: BlobPlace = _NOWHERE
    eraseinfo: BlobPlace = _NOWHERE
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def prefix(self) -> str:
        """Byte order as :mod:`struct` and numpy spell it."""
        return "<" if self.byte_order == "little" else ">"

    @property
    def compression(self) -> tuple[str, ...]:
        """Names of the compressions that the status announces."""
        return tuple(str(kind.name).lower() for kind in Compression if self.status & kind)

    @property
    def has_two_bitmaps(self) -> bool:
        """
        Whether the file tells RAM (first bitmap) from what it holds (second).

        Everything but the old diskdump does; that one left the first out when
        it dumped all of RAM.
        """
        if self.signature == SIGNATURES[0]:
            return True
        bits_of_block = self.block_size * 8
        return self.bitmap_blocks >= 2 * ((self.max_mapnr + bits_of_block - 1) // bits_of_block)

    @property
    def bitmap_offset(self) -> int:
        """Of the first bitmap."""
        return (1 + self.sub_header_blocks) * self.block_size

    @property
    def dumped_bitmap_offset(self) -> int:
        """Of the bitmap of the frames that the file holds."""
        return self.bitmap_offset + (self.bitmap_blocks // 2 * self.block_size if self.has_two_bitmaps else 0)

    @property
    def bitmap_bits(self) -> int:
        """Frames that one bitmap has room for."""
        blocks = self.bitmap_blocks // 2 if self.has_two_bitmaps else self.bitmap_blocks
        return blocks * self.block_size * 8

    @property
    def descriptors_offset(self) -> int:
        """Of the first page descriptor."""
        return self.bitmap_offset + self.bitmap_blocks * self.block_size


def descriptor_dtype(prefix: str) -> np.dtype[np.void]:
    """Build the numpy type of ``struct page_desc``; ``off_t`` has 8 bytes everywhere."""
    return np.dtype(
        [("offset", prefix + "u8"), ("size", prefix + "u4"), ("flags", prefix + "u4"), ("page_flags", prefix + "u8")]
    )


def decode_header(raw: bytes, *, where: str = "") -> KdumpHeader:
    """
    Decode ``struct disk_dump_header``, whatever machine wrote it.

    Raises
    ------
    TruncatedError
        If *raw* is shorter than a header.
    CorruptError
        If no layout and byte order makes sense of it.
    UnsupportedError
        If the bitmaps are larger than any machine's.
    """
    if len(raw) < HEADER_BYTES:
        raise TruncatedError(f"{len(raw)} bytes of header, {HEADER_BYTES} are needed", where=where)
    candidates = list(_decode_candidates(raw))
    if not candidates:
        block_size = struct.unpack_from("<i", raw, 428)[0]
        raise CorruptError(
            f"the header makes no sense in any byte order (block size {block_size}, must be a power of two "
            f"from 512 to 1048576)",
            where=f"{where}+0x1ac",
        )
    header = max(candidates, key=_plausibility)
    if header.bitmap_blocks * header.block_size > 2 * _MAX_BITMAP_BYTES:
        raise UnsupportedError(
            f"bitmaps of {header.bitmap_blocks} blocks of {header.block_size} bytes, at most "
            f"{2 * _MAX_BITMAP_BYTES} bytes can be read",
            where=where,
        )
    if header.version > _LATEST_VERSION:
        text = f"header version {header.version} is read as version {_LATEST_VERSION}"
        header = replace(header, warnings=(*header.warnings, text))
    return header


def decode_sub_header(raw: bytes, header: KdumpHeader, *, file_size: int, where: str = "") -> KdumpHeader:
    """
    Add ``struct kdump_sub_header`` to a decoded header.

    Parameters
    ----------
    raw : bytes
        What the file has at block 1, up to 104 bytes.
    file_size : int
        To judge which of the 32-bit layouts points into the file.

    Raises
    ------
    TruncatedError
        If a field that the version promises is cut off.
    CorruptError
        If the numbers contradict each other.
    """
    if header.signature == SIGNATURES[1] or header.version < 1:
        return _bound(header, where=where)
    names = ["lp64"]
    if header.word_bytes == 4:
        x86 = header.utsname["machine"][2:] == "86"
        names = ["packed", "aligned"] if x86 or not header.utsname["machine"] else ["aligned", "packed"]
    needed = _needed_bytes(header.version, header.word_bytes)
    if len(raw) < needed:
        raise TruncatedError(
            f"{len(raw)} bytes of sub header, {needed} are needed", where=f"{where}+{header.block_size:#x}"
        )
    choices = [_decode_sub_fields(raw, header, name) for name in names]
    best = next((choice for choice in choices if _points_into_file(choice, file_size)), choices[0])
    return _bound(best, where=where)


def encode_header(header: KdumpHeader) -> bytes:
    """
    Encode ``struct disk_dump_header`` of a version 6 file, for 64-bit machines.

    The counts that only the old diskdump used stay 0, as makedumpfile leaves them.
    """
    utsname = b"".join(
        header.utsname.get(name, "")
        .encode("ascii", errors="replace")[: _UTSNAME_BYTES - 1]
        .ljust(_UTSNAME_BYTES, b"\0")
        for name in _UTSNAME_FIELDS
    )
    return struct.pack(
        header.prefix + _HEADER_FORMS[8],
        header.signature,
        header.version,
        utsname,
        header.timestamp_s,
        0,
        header.status,
        header.block_size,
        header.sub_header_blocks,
        header.bitmap_blocks,
        min(header.max_mapnr, 0xFFFF_FFFF),
        0,
        0,
        0,
        0,
        header.cpu_count,
    )


def encode_sub_header(header: KdumpHeader) -> bytes:
    """Encode ``struct kdump_sub_header`` of a version 6 file, for 64-bit machines."""
    return struct.pack(
        header.prefix + _SUB_HEADER_FORMS["lp64"],
        (header.phys_base or 0) & 0xFFFF_FFFF_FFFF_FFFF,
        header.dump_level or 0,
        int(header.is_split),
        header.start_pfn,
        header.end_pfn,
        *header.vmcoreinfo,
        *header.notes,
        *header.eraseinfo,
        header.start_pfn,
        header.end_pfn,
        header.max_mapnr,
    )


def _decode_candidates(raw: bytes) -> Iterator[KdumpHeader]:
    """Decode in each byte order and word size; give those that could be true."""
    for word_bytes, form in _HEADER_FORMS.items():
        for byte_order, prefix in (("little", "<"), ("big", ">")):
            values = struct.unpack_from(prefix + form, raw)
            signature, version, utsname, seconds, _usec, status, block_size, sub_blocks, bitmap_blocks = values[:9]
            max_mapnr, _ram, _device, _written, _cpu, cpu_count = values[9:]
            if block_size not in _BLOCK_SIZES or not 0 <= version <= _HIGHEST_VERSION:
                continue
            if not 0 < sub_blocks <= _MAX_SUB_HEADER_BLOCKS or not bitmap_blocks:
                continue
            names, warnings = _decode_utsname(utsname)
            yield KdumpHeader(
                signature=signature,
                version=version,
                byte_order=byte_order,
                word_bytes=word_bytes,
                utsname=names,
                timestamp_s=seconds,
                status=status,
                block_size=block_size,
                sub_header_blocks=sub_blocks,
                bitmap_blocks=bitmap_blocks,
                max_mapnr=max_mapnr,
                cpu_count=cpu_count,
                warnings=warnings,
            )


def _plausibility(header: KdumpHeader) -> int:
    """Count what speaks for a reading of the header."""
    return (
        (4 if header.block_size >= 4096 else 0)
        + (2 if header.bitmap_bits >= header.max_mapnr else 0)
        + (2 if header.version <= _LATEST_VERSION else 0)
        + (1 if 0 < header.cpu_count <= 1 << 16 else 0)
        + (1 if header.sub_header_blocks <= 1 << 12 else 0)
    )


def _decode_utsname(raw: bytes) -> tuple[dict[str, str], tuple[str, ...]]:
    """Decode ``struct new_utsname``; what is not printable ASCII is empty."""
    names: dict[str, str] = {}
    odd: list[str] = []
    for index, name in enumerate(_UTSNAME_FIELDS):
        value = raw[index * _UTSNAME_BYTES : (index + 1) * _UTSNAME_BYTES].split(b"\0")[0]
        text = value.decode("ascii", errors="replace")
        if not (text.isprintable() and text.isascii()):
            odd.append(name)
            text = ""
        names[name] = text
    return names, (f"the header's {', '.join(odd)} is not text",) if odd else ()


def _needed_bytes(version: int, word_bytes: int) -> int:
    """Size of the sub header up to the last field that a version has."""
    by_version = {8: (0, 12, 32, 48, 64, 80), 4: (0, 8, 20, 32, 44, 56)}[word_bytes]
    if version < len(by_version):
        return by_version[version]
    return 104 if word_bytes == 8 else 80


def _decode_sub_fields(raw: bytes, header: KdumpHeader, name: str) -> KdumpHeader:
    form = struct.Struct(header.prefix + _SUB_HEADER_FORMS[name])
    values = form.unpack(raw[: form.size].ljust(form.size, b"\0"))
    phys_base, level, split, start, end = values[:5]
    start_64, end_64, mapnr_64 = values[11:14]
    version = header.version
    is_split = version >= 2 and split != 0
    if version >= 6:
        start, end = start_64, end_64
    return replace(
        header,
        phys_base=phys_base,
        dump_level=level if 0 <= level <= 31 else None,
        is_split=is_split,
        start_pfn=start if is_split else 0,
        end_pfn=end if is_split else 0,
        vmcoreinfo=BlobPlace(*values[5:7]) if version >= 3 else _NOWHERE,
        notes=BlobPlace(*values[7:9]) if version >= 4 else _NOWHERE,
        eraseinfo=BlobPlace(*values[9:11]) if version >= 5 else _NOWHERE,
        max_mapnr=mapnr_64 if version >= 6 and mapnr_64 else header.max_mapnr,
    )


def _points_into_file(header: KdumpHeader, file_size: int) -> bool:
    """Whether offsets and sizes of the sub header could be true."""
    for offset, size in (header.vmcoreinfo, header.notes, header.eraseinfo):
        if size and not header.block_size < offset <= file_size - size:
            return False
        if offset and not size:
            return False
    return header.max_mapnr <= header.bitmap_bits


def _bound(header: KdumpHeader, *, where: str) -> KdumpHeader:
    """Check the number of frames and the range of a split file."""
    if header.max_mapnr == 0:
        raise CorruptError("the dump describes no page frames (max_mapnr is 0)", where=where)
    warnings = header.warnings
    max_mapnr = header.max_mapnr
    if max_mapnr > header.bitmap_bits:
        warnings = (*warnings, f"{max_mapnr} page frames, but bitmaps for {header.bitmap_bits} only")
        max_mapnr = header.bitmap_bits
    if max_mapnr == 0:
        raise CorruptError(f"{header.bitmap_blocks} blocks of bitmap, at least 2 are needed", where=where)
    if header.is_split and not header.start_pfn <= header.end_pfn:
        raise CorruptError(
            f"a split file of frames {header.start_pfn:#x} to {header.end_pfn:#x}: the start is beyond the end",
            where=where,
        )
    start, end = (header.start_pfn, min(header.end_pfn, max_mapnr)) if header.is_split else (0, max_mapnr)
    return replace(header, max_mapnr=max_mapnr, start_pfn=min(start, max_mapnr), end_pfn=end, warnings=warnings)
