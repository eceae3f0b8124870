"""
Read an image of the memory that ramoops writes to, and put right what parity can.

Sources: the kernel's ``fs/pstore/ram_core.c`` (``struct persistent_ram_buffer``,
``persistent_ram_init_ecc``, ``persistent_ram_ecc_old``), ``fs/pstore/ram.c``
(``ramoops_read_kmsg_hdr``: ``====<seconds>.<microseconds>-<C|D>``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import msgspec

from postpanic.evidence.pstore.content import make_dump
from postpanic.evidence.pstore.model import Quality, Record, RecordType
from postpanic.evidence.pstore.ramoops_layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    SIGNATURE,
    Bytes,
    Layout,
    RamoopsZone,
    buffer_size,
)
from postpanic.evidence.pstore.ramoops_search import find_layout
from postpanic.evidence.pstore.reed_solomon import reed_solomon

__all__ = ["read_ramoops"]

BACKEND = "ramoops"
_HOPELESS = 256
_KMSG_HEADER = re.compile(rb"====(-?\d{1,19})\.(\d{1,9})(?:-([CD]))?\n")
_DAMAGED_HEADER = re.compile(rb"[^\n]{8,36}\n")


class _Contents(msgspec.Struct, frozen=True):
    """What a zone holds, oldest byte first."""

    data: bytes
    quality: Quality
    signature: int


def read_ramoops(data: Bytes, layout: Layout | None = None) -> list[Record]:
    """
    Read the records of a ramoops area.

    Parameters
    ----------
    data : bytes or mmap
        Image of the area; without *layout* it may be of more memory than that.
    layout : Layout, optional
        Its geometry; by default what :func:`~postpanic.evidence.pstore.ramoops_search.find_layout` finds.

    Raises
    ------
    CorruptError
        If no layout was given and none is found.
    """
    layout = find_layout(data) if layout is None else layout
    return [record for zone in layout.zones for record in _read_record(data, layout, zone)]


def _read_record(data: Bytes, layout: Layout, zone: RamoopsZone) -> Iterator[Record]:
    raw = data[zone.offset : zone.offset + zone.size]
    contents = _read_zone(raw, zone, layout)
    if contents is None or not contents.data:
        return
    name = f"{zone.type}-{BACKEND}-{zone.number}"
    record = Record(
        type=zone.type,
        backend=BACKEND,
        name=name,
        source=f"+{zone.offset:#x}",
        data=contents.data,
        raw=raw,
        id=zone.number,
        quality=contents.quality,
    )
    if zone.type is RecordType.DMESG:
        record = _make_dump(record, contents)
    elif zone.type is RecordType.FTRACE:
        record = msgspec.structs.replace(record, release=_version(contents.signature))
    yield record


def _read_zone(raw: bytes, zone: RamoopsZone, layout: Layout) -> _Contents | None:
    """Take a zone apart; None: it has nothing that could be told from noise."""
    room = buffer_size(zone.size, layout.ecc)
    if len(raw) < HEADER_BYTES or room <= 0:
        return None
    whole = len(raw) == zone.size
    header, quality = raw[:HEADER_BYTES], Quality(is_checked=layout.ecc > 0)
    if not whole:
        quality = quality.noted(f"the image ends inside the zone: {len(raw)} of {zone.size} bytes")
    elif layout.ecc:
        header, quality = _corrected_header(raw, layout.ecc, quality)
    signature, start, size = struct.unpack("<III" if layout.byte_order == "little" else ">III", header)
    if not _is_signature(signature, zone.type):
        # The kernel throws such a zone away. What is plausible beside it is worth a look.
        if not 0 < size <= room or start > size or not _looks_used(raw[HEADER_BYTES : HEADER_BYTES + 8]):
            return None
        quality = quality.noted(f"signature {signature:#010x} is damaged")
    elif size > room or start > size:
        quality = quality.noted(f"header damaged: start {start}, length {size}, room {room}")
        start, size = 0, room
    data, quality = (
        _corrected_data(raw, room, size, layout.ecc, quality) if whole else (raw[HEADER_BYTES:][:room], quality)
    )
    data = data[:size]
    return _Contents(data[start:] + data[:start], quality, signature)


def _is_signature(signature: int, kind: RecordType) -> bool:
    return signature == SIGNATURE or (kind is RecordType.FTRACE and (signature ^ SIGNATURE) >> 24 == 0)


def _looks_used(begin: bytes) -> bool:
    return begin.startswith(b"====")


def _corrected_header(raw: bytes, ecc: int, quality: Quality) -> tuple[bytes, Quality]:
    found = reed_solomon(ecc).correct(raw[:HEADER_BYTES], raw[-ecc:])
    if found is None:
        return raw[:HEADER_BYTES], msgspec.structs.replace(quality, bad_blocks=quality.bad_blocks + 1)
    return found[0], msgspec.structs.replace(quality, corrected_bytes=quality.corrected_bytes + found[1])


def _corrected_data(raw: bytes, room: int, size: int, ecc: int, quality: Quality) -> tuple[bytes, Quality]:
    """Put the blocks right that hold what was written; the last block of the room may be short."""
    data = raw[HEADER_BYTES : HEADER_BYTES + room]
    if not ecc:
        return data, quality
    code, parity_at = reed_solomon(ecc), HEADER_BYTES + room
    blocks: list[bytes] = []
    corrected = bad = 0
    for number, place in enumerate(range(0, size, BLOCK_BYTES)):
        block = data[place : min(place + BLOCK_BYTES, room)]
        parity = raw[parity_at + number * ecc : parity_at + (number + 1) * ecc]
        if bad > _HOPELESS and bad > 9 * (number - bad):
            # Memory that has decayed as a whole: trying to put it right takes long, and is in vain.
            found = (block, 0) if code.encode(block) == parity else None
        else:
            found = code.correct(block, parity)
        if found is None:
            bad += 1
            blocks.append(block)
        else:
            corrected += found[1]
            blocks.append(found[0])
    fixed = b"".join(blocks)
    return fixed + data[len(fixed) :], msgspec.structs.replace(
        quality, corrected_bytes=quality.corrected_bytes + corrected, bad_blocks=quality.bad_blocks + bad
    )


def _make_dump(record: Record, contents: _Contents) -> Record:
    header = _KMSG_HEADER.match(contents.data)
    if header is None:
        record = msgspec.structs.replace(
            record, quality=record.quality.noted("the line ====TIME at the beginning is damaged or missing")
        )
        damaged = _DAMAGED_HEADER.match(contents.data) if contents.data[:2] == b"==" else None
        return make_dump(record, contents.data[damaged.end() if damaged else 0 :])
    seconds, micros, kind = int(header[1]), int(header[2]), header[3]
    record = msgspec.structs.replace(record, time_s=seconds + micros / 1e6)
    return make_dump(record, contents.data[header.end() :], is_compressed=None if kind is None else kind == b"C")


def _version(signature: int) -> str:
    """Give the kernel's version that a zone of ftrace has in its signature (``LINUX_VERSION_CODE``)."""
    code = signature ^ SIGNATURE
    return f"{code >> 16}.{(code >> 8) & 0xFF}.{code & 0xFF}" if code and code >> 24 == 0 else ""
