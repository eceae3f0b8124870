"""
Build kdump-compressed files out of Python values.

Written from makedumpfile's IMPLEMENTATION and diskdump_mod.h: header, sub
header, two bitmaps, page descriptors in the order of the frames, page data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import cramjam
import lzallright
import zstandard

RAW, ZLIB, LZO, SNAPPY, ZSTD = 0x0, 0x1, 0x2, 0x4, 0x20
INCOMPLETE, EXCLUDED_VMEMMAP = 0x8, 0x10
LAYOUTS = ("lp64", "packed", "aligned")
"""Of the sub header: 64-bit machines; 32-bit x86; 32-bit machines that align 64-bit integers."""

UTSNAME_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")

COMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    RAW: lambda page: page,
    ZLIB: lambda page: zlib.compress(page, 1),
    LZO: lambda page: bytes(lzallright.LZOCompressor().compress(page)),
    SNAPPY: lambda page: bytes(cramjam.snappy.compress_raw(page)),
    ZSTD: lambda page: zstandard.ZstdCompressor(level=1).compress(page),
}


@dataclass
class KdumpSpec:
    """
    Everything that a kdump-compressed file is made of.

    ``pages`` are the frames that are dumped; ``ram`` the frames that exist
    beside them. ``per_page`` overrides the compression of single frames.
    ``overrides`` sets header fields after everything has been laid out.
    """

    pages: Mapping[int, bytes]
    ram: Collection[int] = ()
    max_mapnr: int | None = None
    version: int = 6
    layout: str = "lp64"
    byte_order: str = "little"
    block_size: int = 4096
    compression: int = ZLIB
    per_page: Mapping[int, int] = field(default_factory=dict)
    status: int | None = None
    dump_level: int = 31
    phys_base: int = 0x1000000
    split: tuple[int, int] | None = None
    vmcoreinfo: bytes = b""
    notes: bytes = b""
    eraseinfo: bytes = b""
    utsname: Mapping[str, str] | None = None
    timestamp_s: int = 1_700_000_000
    signature: bytes = b"KDUMP   "
    share_zero_page: bool = True
    unwritten: Collection[int] = ()
    """Frames whose descriptor stays zero."""
    one_bitmap: bool = False
    """As the old diskdump, when it dumped all of RAM."""
    overrides: Mapping[str, int] = field(default_factory=dict)


@dataclass
class KdumpImage:
    """A finished file, and where its structures lie."""

    raw: bytes
    fields: dict[str, tuple[int, int]]
    """Name to (offset, size) of each length, offset, count and flag field."""
    boundaries: list[int]
    """Offsets at which a structure begins or ends."""
    descriptors: dict[int, int]
    """Frame to the offset of its descriptor."""


HEADER_FIELDS = {
    "lp64": {
        "header_version": (8, "i"), "utsname": (12, "390s"), "tv_sec": (408, "q"), "tv_usec": (416, "q"),
        "status": (424, "I"), "block_size": (428, "i"), "sub_hdr_size": (432, "i"), "bitmap_blocks": (436, "I"),
        "max_mapnr": (440, "I"), "total_ram_blocks": (444, "I"), "device_blocks": (448, "I"),
        "written_blocks": (452, "I"), "current_cpu": (456, "I"), "nr_cpus": (460, "i"),
    },
    "ilp32": {
        "header_version": (8, "i"), "utsname": (12, "390s"), "tv_sec": (404, "I"), "tv_usec": (408, "I"),
        "status": (412, "I"), "block_size": (416, "i"), "sub_hdr_size": (420, "i"), "bitmap_blocks": (424, "I"),
        "max_mapnr": (428, "I"), "total_ram_blocks": (432, "I"), "device_blocks": (436, "I"),
        "written_blocks": (440, "I"), "current_cpu": (444, "I"), "nr_cpus": (448, "i"),
    },
}  # fmt: skip

SUB_HEADER_FIELDS = {
    "lp64": {
        "phys_base": (0, "Q"), "dump_level": (8, "i"), "split": (12, "i"), "start_pfn": (16, "Q"),
        "end_pfn": (24, "Q"), "offset_vmcoreinfo": (32, "Q"), "size_vmcoreinfo": (40, "Q"),
        "offset_note": (48, "Q"), "size_note": (56, "Q"), "offset_eraseinfo": (64, "Q"),
        "size_eraseinfo": (72, "Q"), "start_pfn_64": (80, "Q"), "end_pfn_64": (88, "Q"), "max_mapnr_64": (96, "Q"),
    },
    "packed": {
        "phys_base": (0, "I"), "dump_level": (4, "i"), "split": (8, "i"), "start_pfn": (12, "I"),
        "end_pfn": (16, "I"), "offset_vmcoreinfo": (20, "Q"), "size_vmcoreinfo": (28, "I"),
        "offset_note": (32, "Q"), "size_note": (40, "I"), "offset_eraseinfo": (44, "Q"),
        "size_eraseinfo": (52, "I"), "start_pfn_64": (56, "Q"), "end_pfn_64": (64, "Q"), "max_mapnr_64": (72, "Q"),
    },
    "aligned": {
        "phys_base": (0, "I"), "dump_level": (4, "i"), "split": (8, "i"), "start_pfn": (12, "I"),
        "end_pfn": (16, "I"), "offset_vmcoreinfo": (24, "Q"), "size_vmcoreinfo": (32, "I"),
        "offset_note": (40, "Q"), "size_note": (48, "I"), "offset_eraseinfo": (56, "Q"),
        "size_eraseinfo": (64, "I"), "start_pfn_64": (72, "Q"), "end_pfn_64": (80, "Q"), "max_mapnr_64": (88, "Q"),
    },
}  # fmt: skip

FIELD_SINCE = {
    "phys_base": 1, "dump_level": 1, "split": 2, "start_pfn": 2, "end_pfn": 2, "offset_vmcoreinfo": 3,
    "size_vmcoreinfo": 3, "offset_note": 4, "size_note": 4, "offset_eraseinfo": 5, "size_eraseinfo": 5,
    "start_pfn_64": 6, "end_pfn_64": 6, "max_mapnr_64": 6,
}  # fmt: skip


def build_kdump(spec: KdumpSpec) -> KdumpImage:
    """Lay out a file; split files hold the descriptors and pages of their range only."""
    block = spec.block_size
    frames = sorted(spec.pages)
    max_mapnr = spec.max_mapnr if spec.max_mapnr is not None else max([*frames, *spec.ram, 0]) + 1
    blobs = {"vmcoreinfo": spec.vmcoreinfo, "note": spec.notes, "eraseinfo": spec.eraseinfo}
    since = {"vmcoreinfo": 3, "note": 4, "eraseinfo": 5}
    blobs = {name: blob for name, blob in blobs.items() if blob and spec.version >= since[name]}
    places: dict[str, int] = {}
    sub_size = 104
    at = block + sub_size
    for name in ("vmcoreinfo", "note"):
        if name in blobs:
            places[name] = at
            at += len(blobs[name])
    sub_blocks = max((at - 1) // block, 1)
    bitmap_bytes = (max_mapnr + 8 * block - 1) // (8 * block) * block
    bitmap_at = (1 + sub_blocks) * block
    maps = [_bitmap({*frames, *spec.ram}, bitmap_bytes), _bitmap(set(frames), bitmap_bytes)]
    if spec.one_bitmap:
        maps = maps[1:]
    table_at = bitmap_at + len(maps) * bitmap_bytes
    start, end = spec.split or (0, max_mapnr)
    held = [frame for frame in frames if start <= frame < end]
    descriptors, data = _pages(spec, held, table_at + 24 * len(held))
    if "eraseinfo" in blobs:
        places["eraseinfo"] = table_at + 24 * len(held) + len(data)
        data += blobs["eraseinfo"]
    values = _field_values(spec, max_mapnr, sub_blocks, len(maps) * bitmap_bytes // block, blobs, places)
    image = bytearray(table_at)
    fields = _write_headers(image, spec, values)
    for name in ("vmcoreinfo", "note"):
        if name in blobs:
            image[places[name] : places[name] + len(blobs[name])] = blobs[name]
    image[bitmap_at:table_at] = b"".join(maps)
    table_places = {frame: table_at + 24 * number for number, frame in enumerate(held)}
    for frame, place in table_places.items():
        fields |= {
            f"offset[{frame}]": (place, 8),
            f"size[{frame}]": (place + 8, 4),
            f"flags[{frame}]": (place + 12, 4),
        }
    raw = bytes(image) + descriptors + data
    bounds = {0, 8, 464, block, block + sub_size, bitmap_at, bitmap_at + bitmap_bytes, table_at, len(raw)}
    bounds |= set(places.values()) | set(table_places.values()) | {table_at + 24 * len(held)}
    return KdumpImage(raw, fields, sorted(place for place in bounds if place <= len(raw)), table_places)


def _bitmap(frames: Collection[int], size: int) -> bytes:
    bits = bytearray(size)
    for frame in frames:
        bits[frame >> 3] |= 1 << (frame & 7)
    return bytes(bits)


def _pages(spec: KdumpSpec, frames: list[int], data_at: int) -> tuple[bytes, bytes]:
    """Descriptors and data; frames of zeroes may share one page."""
    form = struct.Struct(("<" if spec.byte_order == "little" else ">") + "QIIQ")
    descriptors = bytearray()
    data = bytearray()
    zero_place: tuple[int, int, int] | None = None
    for frame in frames:
        page = spec.pages[frame]
        if frame in spec.unwritten:
            descriptors += bytes(form.size)
            continue
        is_zero = not any(page)
        if is_zero and spec.share_zero_page and zero_place is not None:
            descriptors += form.pack(*zero_place, 0)
            continue
        kind = spec.per_page.get(frame, spec.compression)
        packed = COMPRESSORS[kind](page)
        if len(packed) >= len(page) and kind != RAW:
            packed, kind = page, RAW
        place = (data_at + len(data), len(packed), kind)
        if is_zero:
            zero_place = place
        descriptors += form.pack(*place, 0)
        data += packed
    return bytes(descriptors), bytes(data)


def _field_values(
    spec: KdumpSpec,
    max_mapnr: int,
    sub_blocks: int,
    bitmap_blocks: int,
    blobs: Mapping[str, bytes],
    places: Mapping[str, int],
) -> dict[str, int]:
    start, end = spec.split or (0, 0)
    values = {
        "header_version": spec.version,
        "tv_sec": spec.timestamp_s,
        "tv_usec": 250_000,
        "status": spec.compression if spec.status is None else spec.status,
        "block_size": spec.block_size,
        "sub_hdr_size": sub_blocks,
        "bitmap_blocks": bitmap_blocks,
        "max_mapnr": min(max_mapnr, 0xFFFFFFFF),
        "total_ram_blocks": len({*spec.pages, *spec.ram}) & 0xFFFFFFFF,
        "device_blocks": 0,
        "written_blocks": len(spec.pages),
        "current_cpu": 0,
        "nr_cpus": 2,
        "phys_base": spec.phys_base,
        "dump_level": spec.dump_level,
        "split": 1 if spec.split else 0,
        "start_pfn": start & 0xFFFFFFFF,
        "end_pfn": min(end, 0xFFFFFFFF),
        "start_pfn_64": start,
        "end_pfn_64": end,
        "max_mapnr_64": max_mapnr,
    }
    for name in ("vmcoreinfo", "note", "eraseinfo"):
        values[f"offset_{name}"] = places.get(name, 0)
        values[f"size_{name}"] = len(blobs.get(name, b""))
    return {**values, **spec.overrides}


def _write_headers(image: bytearray, spec: KdumpSpec, values: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Write both headers; where each field is."""
    prefix = "<" if spec.byte_order == "little" else ">"
    machine = {"lp64": "x86_64", "packed": "i686", "aligned": "armv7l"}[spec.layout]
    names = spec.utsname if spec.utsname is not None else {"sysname": "Linux", "release": "6.1.0", "machine": machine}
    uts = b"".join(names.get(name, "").encode().ljust(65, b"\0") for name in UTSNAME_FIELDS)
    image[0:8] = spec.signature
    fields: dict[str, tuple[int, int]] = {}
    for name, (place, form) in HEADER_FIELDS["lp64" if spec.layout == "lp64" else "ilp32"].items():
        struct.pack_into(prefix + form, image, place, uts if name == "utsname" else values[name])
        fields[name] = (place, struct.calcsize("<" + form))
    if spec.signature == b"KDUMP   ":
        for name, (place, form) in SUB_HEADER_FIELDS[spec.layout].items():
            if spec.version >= FIELD_SINCE[name]:
                struct.pack_into(prefix + form, image, spec.block_size + place, values[name])
                fields[name] = (spec.block_size + place, struct.calcsize("<" + form))
    return fields
