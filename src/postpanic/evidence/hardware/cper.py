"""
Firmware's binary error records: CPER, and the status blocks of ACPI's APEI.

A record of the Common Platform Error Record format has a header, descriptors
and sections. Firmware keeps such records in its store (ERST), where Linux also
puts its own (pstore). What it tells the running kernel (GHES), and what it
leaves for the next boot (BERT), are "generic error status blocks": the same
sections behind another header.

References
----------
UEFI specification 2.10, appendix N; ACPI specification 6.5, 18.3.2.7 "Generic Hardware Error Source" (Generic Error
Status Block); include/linux/cper.h, include/acpi/actbl1.h.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from postpanic.errors import CorruptError, NotADumpError, PostpanicError, TruncatedError
from postpanic.evidence.hardware import cper_findings as findings
from postpanic.evidence.hardware import machine_check
from postpanic.evidence.hardware.cper_processors import decode_arm, decode_x86
from postpanic.evidence.hardware.cper_sections import SECTION_NAMES, SectionFields, decode_fields
from postpanic.evidence.hardware.mce_record import decode_mce_record
from postpanic.evidence.hardware.model import Finding, HardwareError, MachineCheck, Severity, Source
from postpanic.evidence.hardware.verdict import make_error

__all__ = ["CperRecord", "CperSection", "decode_cper", "decode_error_status", "errors_of"]

SECTIONS_LIMIT = 256
"""Sections of one record; firmware writes a handful."""

BODY_LIMIT = 256 << 10
"""Bytes of one section; firmware's stores have less altogether."""

_HEADER = struct.Struct("<4sHIHIIIQ16s16s16s16sQIQ12x")
_DESCRIPTOR = struct.Struct("<IIHBxI16s16sI20s")
_STATUS_BLOCK = struct.Struct("<5I")
_DATA_ENTRY = struct.Struct("<16sIHBBI16s20s")
_ENTRY_WITH_TIME = 72
_WITH_TIME = 0x300

_PREVIOUS_BOOT, _SIMULATED = 2, 4
_SECTION_FLAGS = (
    "primary",
    "containment warning: bad data may have reached a disk or the network",
    "the component must be reset",
    "threshold exceeded",
    "resource not accessible",
    "latent: contained, not yet used",
    "propagated",
    "overflow",
)
_NOTIFICATIONS = {
    "2dce8bb1-bdd7-450e-b9ad-9cf4ebd4f890": "corrected machine check",
    "4e292f96-d843-4a55-a8c2-d481f27ebeee": "corrected platform error",
    "e8f56ffe-919c-4cc5-ba88-65abe14913bb": "machine check exception",
    "cf93c01f-1a16-4dfc-b8bc-9c4daf67c104": "PCI Express error",
    "cc5263e8-9308-454a-89d0-340bd39bc98e": "INIT",
    "5bad89ff-b7e6-42c9-814a-cf2485d6e98a": "NMI",
    "3d61a466-ab40-409a-a698-f362d464b38f": "boot",
    "667dd791-c6b3-4c27-8a6b-0f8e722deb41": "DMA remapping",
    "9a78788a-bbe8-11e4-809e-67611e5d46b0": "synchronous external abort",
    "5c284c81-b0ae-4e87-a322-b04c85624323": "SError interrupt",
    "09a9d5ac-5204-4214-96e5-94992e752bcd": "PEI",
}
_LINUX = "75a574e3-5052-4b29-8a8e-be2c6490b89d"
"""``CPER_CREATOR_PSTORE`` and ``CPER_CREATOR_MCE``: the record was written by the kernel."""


class CperSection(msgspec.Struct, frozen=True, kw_only=True):
    """
    One section of a record.

    Parameters
    ----------
    kind : str
        ``memory``, ``pcie``, ``processor-x86``, ``linux-dmesg`` …; ``unknown``.
    guid : str
        Section type.
    severity : Severity
    flags : tuple of str
    fru_id, fru_text : str
        Which replaceable part firmware means; empty: not said.
    body : bytes
    findings : tuple of Finding
    checks : tuple of MachineCheck
        Machine check banks that the section holds.
    damage : str
        Why the section could not be decoded; empty: it could.
    """

    kind: str
    guid: str
    severity: Severity
    flags: tuple[str, ...] = ()
    fru_id: str = ""
    fru_text: str = ""
    body: bytes = b""
    findings: tuple[Finding, ...] = ()
    checks: tuple[MachineCheck, ...] = ()
    damage: str = ""


class CperRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    A firmware error record.

    Parameters
    ----------
    severity : Severity
    sections : tuple of CperSection
    record_id : int
        ``u64``; Linux counts it up from the time in its upper half. 0: a status block, which has none.
    creator : str
        GUID; empty: a status block.
    notification : str
        How the error was signalled.
    timestamp : str
        ``YYYY-MM-DD HH:MM:SS``; empty: not given.
    platform_id, partition_id : str
    is_previous_boot, is_simulated, is_linux : bool
    damage : tuple of str
        What is wrong with the record; empty: nothing.
    """

    severity: Severity
    sections: tuple[CperSection, ...] = ()
    record_id: int = 0
    creator: str = ""
    notification: str = ""
    timestamp: str = ""
    platform_id: str = ""
    partition_id: str = ""
    is_previous_boot: bool = False
    is_simulated: bool = False
    is_linux: bool = False
    damage: tuple[str, ...] = ()


def decode_cper(data: bytes, *, where: str = "") -> CperRecord:
    """
    Decode a record of the Common Platform Error Record format.

    Parameters
    ----------
    data : bytes
        From its signature ``CPER``; what follows the record is ignored.
    where : str
        Named in errors.

    Raises
    ------
    NotADumpError
        If the signature is another one.
    TruncatedError
        If the header or the descriptors are cut off. A section that is cut off is said in its ``damage``.
    CorruptError
        If the header holds what it must not.
    """
    header = _decode_header(data, where)
    length = header.length
    damage = [f"the record is cut short: {len(data)} of {length} bytes"] if length > len(data) else []
    creator, signalled = _guid(header.creator), _guid(header.notification)
    places = range(_HEADER.size, _HEADER.size + header.section_count * _DESCRIPTOR.size, _DESCRIPTOR.size)
    return CperRecord(
        severity=findings.SEVERITIES.get(header.severity, Severity.UNCORRECTED),
        sections=tuple(_described_section(data, place) for place in places),
        record_id=header.record_id,
        creator=creator,
        notification=_NOTIFICATIONS.get(signalled, signalled),
        timestamp=_decode_time(header.time_bcd.to_bytes(8, "little")) if header.valid & 2 else "",
        platform_id=_guid(header.platform) if header.valid & 1 else "",
        partition_id=_guid(header.partition) if header.valid & 4 else "",
        is_previous_boot=bool(header.flags & _PREVIOUS_BOOT),
        is_simulated=bool(header.flags & _SIMULATED),
        is_linux=creator == _LINUX,
        damage=tuple(damage),
    )


class _Header(NamedTuple):
    """``struct cper_record_header`` (``include/linux/cper.h``)."""

    signature: bytes
    revision: int
    signature_end: int
    section_count: int
    severity: int
    valid: int
    length: int
    time_bcd: int
    platform: bytes
    partition: bytes
    creator: bytes
    notification: bytes
    record_id: int
    flags: int
    persistence: int


def _decode_header(data: bytes, where: str) -> _Header:
    """Decode the header, all of which and of the descriptors must be there."""
    if data[:4] != b"CPER":
        raise NotADumpError(f"no error record begins here: {data[:4]!r} instead of b'CPER'", where=where)
    if len(data) < _HEADER.size:
        raise TruncatedError(f"the record's header is cut short: {len(data)} of {_HEADER.size} bytes", where=where)
    header = _Header(*_HEADER.unpack_from(data))
    if header.signature_end != 0xFFFFFFFF:
        raise CorruptError(f"the signature's end is {header.signature_end:#x}, must be 0xffffffff", where=where)
    count = header.section_count
    if count > SECTIONS_LIMIT:
        raise CorruptError(f"the record has {count} sections, at most {SECTIONS_LIMIT} are taken", where=where)
    table = _HEADER.size + count * _DESCRIPTOR.size
    if len(data) < table:
        raise TruncatedError(f"the section descriptors are cut short: {len(data)} of {table} bytes", where=where)
    return header


def _guid(raw: bytes) -> str:
    return str(uuid.UUID(bytes_le=raw))


def decode_error_status(data: bytes, *, where: str = "") -> CperRecord:
    """
    Decode a generic error status block: what GHES hands over and what BERT keeps.

    Raises
    ------
    TruncatedError
        If the block's header is cut off.
    CorruptError
        If the block holds no error, or its entries do not fit.
    """
    if len(data) < _STATUS_BLOCK.size:
        raise TruncatedError(f"the status block is cut short: {len(data)} of {_STATUS_BLOCK.size} bytes", where=where)
    status, _raw_offset, _raw_length, length, severity = _STATUS_BLOCK.unpack_from(data)
    if not status & 0xF:
        raise CorruptError(f"the status block holds no error: its status is {status:#x}", where=where)
    sections: list[CperSection] = []
    damage: list[str] = []
    offset, end = _STATUS_BLOCK.size, _STATUS_BLOCK.size + length
    timestamp = ""
    while offset < end and len(sections) < SECTIONS_LIMIT:
        if offset + _DATA_ENTRY.size > len(data):
            damage.append(f"the block is cut short: {len(data)} of {end} bytes")
            break
        guid, grade, revision, valid, flags, size, fru_id, fru_text = _DATA_ENTRY.unpack_from(data, offset)
        body = offset + (_ENTRY_WITH_TIME if revision >= _WITH_TIME else _DATA_ENTRY.size)
        if revision >= _WITH_TIME and valid & 4:
            timestamp = timestamp or _decode_time(data[offset + _DATA_ENTRY.size : body])
        sections.append(
            _section(guid, grade, valid, flags, fru_id, fru_text, data[body : body + min(size, BODY_LIMIT)], size)
        )
        offset = body + size
    return CperRecord(
        severity=findings.SEVERITIES.get(severity, Severity.UNCORRECTED),
        sections=tuple(sections),
        timestamp=timestamp,
        damage=tuple(damage),
    )


def _described_section(data: bytes, place: int) -> CperSection:
    offset, length, _revision, valid, flags, guid, fru_id, severity, fru_text = _DESCRIPTOR.unpack_from(data, place)
    return _section(
        guid, severity, valid, flags, fru_id, fru_text, data[offset : offset + min(length, BODY_LIMIT)], length
    )


def _section(
    guid: bytes, grade: int, valid: int, flags: int, fru_id: bytes, fru_text: bytes, body: bytes, length: int
) -> CperSection:
    name = str(uuid.UUID(bytes_le=guid))
    severity = findings.SEVERITIES.get(grade, Severity.UNCORRECTED)
    fru = fru_text.split(b"\0", 1)[0].decode("ascii", "backslashreplace").strip() if valid & 2 else ""
    section = CperSection(
        kind=SECTION_NAMES.get(name, "unknown"),
        guid=name,
        severity=severity,
        flags=tuple(words for bit, words in enumerate(_SECTION_FLAGS) if flags >> bit & 1),
        fru_id=str(uuid.UUID(bytes_le=fru_id)) if valid & 1 else "",
        fru_text=fru,
        body=body,
        damage=f"the section is cut short: {len(body)} of {length} bytes" if len(body) < length else "",
    )
    try:
        found, checks = _interpret(section)
    except (struct.error, PostpanicError) as exc:
        return msgspec.structs.replace(section, damage=section.damage or f"the section is too short: {exc}")
    return msgspec.structs.replace(section, findings=tuple(found), checks=tuple(checks))


def _interpret(section: CperSection) -> tuple[list[Finding], list[MachineCheck]]:
    kind, severity, body = section.kind, section.severity, section.body
    if kind == "linux-mce":
        return [], [decode_mce_record(body)]
    if kind.startswith("linux-"):
        return [], []
    if kind == "processor-x86":
        errors, checks = decode_x86(body)
        return [findings.processor_finding(fields, severity) for fields in errors], checks
    if kind == "processor-arm":
        return [findings.processor_finding(fields, severity) for fields in decode_arm(body)], []
    return [_finding_of(section, decode_fields(kind, body))], []


def _finding_of(section: CperSection, fields: SectionFields) -> Finding:
    severity = section.severity
    if section.kind in {"memory", "memory-2"}:
        return findings.memory_finding(fields, severity, section.fru_text)
    if section.kind == "pcie":
        return findings.pcie_finding(fields, severity)
    if section.kind == "processor-generic":
        return findings.processor_finding(fields, severity)
    if section.kind in {"pci-bus", "pci-device"}:
        return findings.pci_finding(fields, severity)
    if section.kind == "firmware":
        return findings.firmware_finding(fields, severity)
    name = section.kind if section.kind != "unknown" else section.guid
    return findings.other_finding(name, severity, {"section_bytes": str(len(section.body))})


def _decode_time(raw: bytes) -> str:
    """Read a timestamp: seconds, minutes, hours, flags, day, month, year, century, each in binary-coded decimal."""
    if len(raw) < 8 or any(byte >> 4 > 9 or byte & 0xF > 9 for place, byte in enumerate(raw) if place != 3):
        return ""
    second, minute, hour, _flags, day, month, year, century = (f"{byte:02x}" for byte in raw)
    return f"{century}{year}-{month}-{day} {hour}:{minute}:{second}"


def errors_of(record: CperRecord, *, is_guest: bool = False) -> list[HardwareError]:
    """Give the errors of a record, each with the verdict on it."""
    return list(_errors(record, is_guest=is_guest))


def _errors(record: CperRecord, *, is_guest: bool) -> Iterator[HardwareError]:
    for section in record.sections:
        common = {name: value for name, value in _common(record, section).items() if value}
        for finding in section.findings:
            hints = finding.hints | ({"injected"} if record.is_simulated else frozenset())
            changed = msgspec.structs.replace(finding, details={**finding.details, **common}, hints=hints)
            yield make_error(Source.APEI, changed, is_guest=is_guest)
        for check in section.checks:
            yield error_of_check(check, common, is_guest=is_guest, is_simulated=record.is_simulated)


def _common(record: CperRecord, section: CperSection) -> dict[str, str]:
    return {
        "record_id": f"{record.record_id:#x}" if record.record_id else "",
        "notification": record.notification,
        "timestamp": record.timestamp,
        "section": section.kind if section.kind != "unknown" else section.guid,
        "section_flags": "; ".join(section.flags),
        "fru": section.fru_text or section.fru_id,
        "previous_boot": "yes" if record.is_previous_boot else "",
        "damage": "; ".join((*record.damage, section.damage)) if section.damage else "; ".join(record.damage),
    }


def error_of_check(
    check: MachineCheck, details: dict[str, str] | None = None, *, is_guest: bool = False, is_simulated: bool = False
) -> HardwareError:
    """Give a machine check with the verdict on it."""
    finding = machine_check.interpret(check)
    hints = finding.hints | ({"injected"} if check.inject_flags or is_simulated else frozenset())
    finding = msgspec.structs.replace(finding, details={**finding.details, **(details or {})}, hints=hints)
    count = finding.details.get("corrected_count", "")
    return make_error(
        Source.MACHINE_CHECK,
        finding,
        is_guest=is_guest,
        machine_check=check,
        cpu=check.cpu,
        count=max(int(count), 1) if count.isdigit() else 1,
    )
