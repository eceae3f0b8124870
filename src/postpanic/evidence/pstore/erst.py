"""
Read records of the error record serialization table (ERST): CPER, as the firmware keeps them.

The records are found in whatever they are in: one after the other, or in slots,
as in the file that QEMU keeps them in.

Sources: UEFI specification, appendix N (record header, section descriptor);
the kernel's ``drivers/acpi/apei/erst.c`` (``struct cper_pstore_record``, what it
puts into the timestamp: seconds since 1970, and not what the specification says).
"""

from __future__ import annotations

import struct
from uuid import UUID

import msgspec

from postpanic.evidence.pstore.content import make_dump
from postpanic.evidence.pstore.model import Quality, Record, RecordType
from postpanic.evidence.pstore.ramoops_layout import Bytes

__all__ = ["read_erst"]

BACKEND = "erst"
CREATOR = UUID("75a574e3-5052-4b29-8a8e-be2c6490b89d")
_DMESG = UUID("c197e04e-d545-4a70-9c17-a5549419eb12")
_DMESG_Z = UUID("4f118707-04dd-4055-b5dd-956d34ddfac6")
_MCE = UUID("fe08ffbe-95e4-4be7-bc73-4096044a38fc")
_TYPES = {_DMESG: RecordType.DMESG, _DMESG_Z: RecordType.DMESG, _MCE: RecordType.MCE}

_HEADER = struct.Struct("<4sHIHIIIQ16s16s16s16sQIQ12s")
_SECTION = struct.Struct("<IIHBBI16s16sI20s")
_BEGINS = b"CPER"
_SIGNATURE_END = 0xFFFFFFFF
_TIMESTAMP_VALID = 1 << 1
_MOST_RECORDS = 65536
_MOST_RECORD_BYTES = 16 << 20
_ID_SECONDS_SHIFT = 32


def read_erst(data: Bytes) -> list[Record]:
    """
    Read the CPER records of an image, those of pstore and the firmware's own.

    Parameters
    ----------
    data : bytes or mmap
    """
    records: list[Record] = []
    place = data.find(_BEGINS)
    while place >= 0 and len(records) < _MOST_RECORDS:
        record = _read_record(data, place)
        if record is not None:
            records.append(record)
        place = data.find(_BEGINS, place + (len(record.raw) if record is not None else 1))
    return sorted(records, key=lambda record: record.id or 0)


def _read_record(data: Bytes, place: int) -> Record | None:
    header = data[place : place + _HEADER.size]
    if len(header) < _HEADER.size:
        return None
    fields = _HEADER.unpack(header)
    signature_end, sections, valid, length, timestamp = fields[2], fields[3], fields[5], fields[6], fields[7]
    creator, record_id = UUID(bytes_le=fields[10]), fields[12]
    if signature_end != _SIGNATURE_END or not _HEADER.size <= length <= _MOST_RECORD_BYTES:
        return None
    raw = data[place : place + length]
    quality = Quality()
    if len(raw) < length:
        quality = quality.noted(f"the image ends inside the record: {len(raw)} of {length} bytes")
    record = Record(
        type=RecordType.CPER,
        backend=BACKEND,
        name=f"cper-{BACKEND}-{record_id}",
        source=f"+{place:#x}",
        data=raw,
        raw=raw,
        id=record_id,
        sequence=record_id,
        quality=quality,
    )
    if creator != CREATOR or not sections or len(raw) < _HEADER.size + _SECTION.size:
        return record
    return _make_own(record, raw, timestamp if valid & _TIMESTAMP_VALID else record_id >> _ID_SECONDS_SHIFT)


def _make_own(record: Record, raw: bytes, seconds: int) -> Record:
    """Make a record of what pstore has written: one section, behind the headers."""
    section = _SECTION.unpack(raw[_HEADER.size : _HEADER.size + _SECTION.size])
    offset, length, section_type = section[0], section[1], UUID(bytes_le=section[6])
    kind = _TYPES.get(section_type, RecordType.UNKNOWN)
    if not _HEADER.size + _SECTION.size <= offset <= len(raw):
        record = msgspec.structs.replace(
            record, quality=record.quality.noted(f"section at {offset}: not in the record")
        )
        offset = _HEADER.size + _SECTION.size
    content = raw[offset : offset + length]
    record = msgspec.structs.replace(
        record,
        type=kind,
        name=f"{kind}-{BACKEND}-{record.id}",
        data=content,
        time_s=float(seconds) if 0 < seconds < 1 << 40 else None,
    )
    return make_dump(record, content, is_compressed=section_type == _DMESG_Z) if kind is RecordType.DMESG else record
