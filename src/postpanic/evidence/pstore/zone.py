"""
Read a device that pstore_blk or mtdpstore writes to: zones of ``pstore/zone``.

They look like those of ramoops and are not: the length stands before the start,
the type is in the signature, there is no parity, and a dump has a header of
its own. A zone says how long it is, so no geometry is needed.

Sources: the kernel's ``fs/pstore/zone.c`` (``struct psz_buffer``, ``struct
psz_kmsg_header``), ``fs/pstore/blk.c``, ``drivers/mtd/mtdpstore.c``.
"""

from __future__ import annotations

import re
import struct
from typing import Literal

import msgspec

from postpanic.evidence.pstore.content import REASONS, make_dump
from postpanic.evidence.pstore.model import Quality, Record, RecordType
from postpanic.evidence.pstore.ramoops_layout import Bytes

__all__ = ["KMSG_MAGIC", "read_pstore_blk"]

BACKEND = "pstore_blk"
KMSG_MAGIC = 0x4DFC3AE5
_SIGNATURE = 0x43474244
_HEADER_BYTES = 12
_MOST_ZONES = 65536
_MOST_ZONE_BYTES = 128 << 20
_TYPES = {0: RecordType.DMESG, 2: RecordType.CONSOLE, 3: RecordType.FTRACE, 7: RecordType.PMSG}
"""``enum pstore_type_id`` of include/linux/pstore.h."""
_BILLION = 1_000_000_000

# Of the header of a dump: time (seconds), nanoseconds, whether compressed, counter, reason; and its size.
_KMSG_FORMS = {
    ("little", 40): struct.Struct("<4x4xqI4xB3xII4x"),
    ("little", 28): struct.Struct("<4xqIB3xII"),
    ("big", 40): struct.Struct(">4x4xqQB3xII4x"),
}


def read_pstore_blk(data: Bytes) -> list[Record]:
    """
    Read the records of a pstore_blk device.

    Parameters
    ----------
    data : bytes or mmap
        The device, or an image of it.
    """
    records: list[Record] = []
    numbers: dict[RecordType, int] = {}
    for order, pattern in (("little", rb"[DFGC]BGC"), ("big", rb"CGB[DFGC]")):
        position = zones = 0
        compiled = re.compile(pattern)
        while zones < _MOST_ZONES and (found := compiled.search(data, position)) is not None:
            zones += 1
            record, size = _read_zone(data, found.start(), "little" if order == "little" else "big", numbers)
            position = found.start() + (size if record is not None else 1)
            if record is not None:
                records.append(record)
    return records


def _read_zone(
    data: Bytes, offset: int, order: Literal["little", "big"], numbers: dict[RecordType, int]
) -> tuple[Record | None, int]:
    header = data[offset : offset + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES:
        return None, 0
    signature, size, start = struct.unpack("<III" if order == "little" else ">III", header)
    kind = _TYPES.get(signature ^ _SIGNATURE)
    if kind is None or not 0 < size <= _MOST_ZONE_BYTES:
        return None, 0
    if kind is not RecordType.DMESG and start > size:
        return None, 0
    held = min(size, len(data) - offset - _HEADER_BYTES)
    magic = int.from_bytes(data[offset + _HEADER_BYTES : offset + _HEADER_BYTES + 4], order)
    # Noise has the signature now and then; a device that was cut short has its last zone cut.
    if magic != KMSG_MAGIC if kind is RecordType.DMESG else held < size:
        return None, 0
    raw = data[offset : offset + _HEADER_BYTES + held]
    contents = raw[_HEADER_BYTES:]
    quality = Quality()
    if held < size:
        quality = quality.noted(f"the image ends inside the zone: {held} of {size} bytes")
    number = numbers.get(kind, 0)
    record = Record(
        type=kind,
        backend=BACKEND,
        name=f"{kind}-{BACKEND}-{number}",
        source=f"+{offset:#x}",
        data=contents[start:] + contents[:start],
        raw=raw,
        id=number,
        quality=quality,
        release="5.9" if kind is RecordType.FTRACE else "",
    )
    numbers[kind] = number + 1
    return (_make_dump(record, contents, order) if kind is RecordType.DMESG else record), len(raw)


def _make_dump(record: Record, contents: bytes, order: Literal["little", "big"]) -> Record:
    """Take the header off a dump."""
    for (form_order, size), form in _KMSG_FORMS.items():
        if form_order != order or len(contents) < size:
            continue
        seconds, nanos, compressed, counter, reason = form.unpack(contents[:size])
        if nanos >= _BILLION:
            # 32 bits of a big-endian machine, with padding behind them.
            nanos >>= 32
        if nanos < _BILLION and compressed < 2 and reason < len(REASONS) + 4 and 0 <= seconds < 1 << 40:
            record = msgspec.structs.replace(
                record,
                time_s=seconds + nanos / 1e9,
                sequence=counter,
                reason=REASONS[reason] if reason < len(REASONS) else "",
            )
            return make_dump(record, contents[size:], is_compressed=bool(compressed))
    record = msgspec.structs.replace(record, quality=record.quality.noted("the header of the dump is damaged"))
    return make_dump(record, contents[40:])
