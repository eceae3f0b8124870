"""
Build hardware error records out of Python values: CPER records, ACPI's status blocks and tables, ``struct mce``.

Written from the UEFI specification 2.10 (appendix N), the ACPI specification 6.5 (18.3) and the kernel's
arch/x86/include/uapi/asm/mce.h. A field that is given is marked as valid, the others are not.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence

PROCESSOR_GENERIC = "9876CCAD-47B4-4BDB-B65E-16F193C4F3DB"
PROCESSOR_X86 = "DC3EA0B0-A144-4797-B95B-53FA242B6E1D"
PROCESSOR_ARM = "E19E3D16-BC11-11E4-9CAA-C2051D5D46B0"
MEMORY = "A5BC1114-6F64-4EDE-B863-3E83ED7C83B1"
MEMORY_2 = "61EC04FC-48E6-D813-25C9-8DAA44750B12"
PCIE = "D995E954-BBC1-430F-AD91-B44DCB3C6F35"
FIRMWARE = "81212A96-09ED-4996-9471-8D729C8E69ED"
PCI_BUS = "C5753963-3B84-4095-BF78-EDDAD3F9C9DD"
PCI_DEVICE = "EB5E4685-CA66-4769-B6A2-26068B001326"
LINUX_DMESG = "C197E04E-D545-4A70-9C17-A5549419EB12"
LINUX_MCE = "FE08FFBE-95E4-4BE7-BC73-4096044A38FC"
LINUX_CREATOR = "75A574E3-5052-4B29-8A8E-BE2C6490B89D"
NOTIFY_MCE = "E8F56FFE-919C-4CC5-BA88-65ABE14913BB"

CACHE_CHECK = "A55701F5-E3EF-43DE-AC72-249B573FAD2C"
TLB_CHECK = "FC06B535-5E1F-4562-9F25-0A3B9ADB63C3"
BUS_CHECK = "1CF3F8B3-C5B1-49A2-AA59-5EEF92FFA63C"
MS_CHECK = "48AB7F57-DC34-4F6C-A7D3-B0B5B0A74314"

RECOVERABLE, FATAL, CORRECTED, INFORMATIONAL = range(4)

MEMORY_FIELDS = (
    ("error_status", "Q", 0),
    ("physical_address", "Q", 1),
    ("physical_address_mask", "Q", 2),
    ("node", "H", 3),
    ("card", "H", 4),
    ("module", "H", 5),
    ("bank", "H", 6),
    ("device", "H", 7),
    ("row", "H", 8),
    ("column", "H", 9),
    ("bit_position", "H", 10),
    ("requestor_id", "Q", 11),
    ("responder_id", "Q", 12),
    ("target_id", "Q", 13),
    ("error_type", "B", 14),
    ("extended", "B", None),
    ("rank", "H", 15),
    ("card_handle", "H", 16),
    ("module_handle", "H", 17),
)
"""Name, struct code and validation bit, in order."""
MEMORY_OLD_COUNT = 15

MEMORY_2_FIELDS = (
    ("error_status", "Q", 0),
    ("physical_address", "Q", 1),
    ("physical_address_mask", "Q", 2),
    ("node", "H", 3),
    ("card", "H", 4),
    ("module", "H", 5),
    ("bank", "H", 6),
    ("device", "I", 7),
    ("row", "I", 8),
    ("column", "I", 9),
    ("rank", "I", 10),
    ("bit_position", "I", 11),
    ("chip_id", "B", 12),
    ("error_type", "B", 13),
    ("status", "B", 14),
    ("reserved", "B", None),
    ("requestor_id", "Q", 15),
    ("responder_id", "Q", 16),
    ("target_id", "Q", 17),
    ("card_handle", "I", 18),
    ("module_handle", "I", 19),
)

GENERIC_FIELDS = (
    ("processor_type", "B", 0),
    ("isa", "B", 1),
    ("error_type", "B", 2),
    ("operation", "B", 3),
    ("flags", "B", 4),
    ("level", "B", 5),
    ("reserved", "H", None),
    ("version", "Q", 6),
    ("brand", "128s", 7),
    ("processor_id", "Q", 8),
    ("target_address", "Q", 9),
    ("requestor_id", "Q", 10),
    ("responder_id", "Q", 11),
    ("ip", "Q", 12),
)
Fields = Sequence[tuple[str, str, int | None]]


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def _pack(fields: Fields, values: dict[str, int], valid: int | None, more_bits: int = 0) -> bytes:
    unknown = set(values) - {name for name, _, _ in fields}
    assert not unknown, unknown
    bits = more_bits | sum(1 << bit for name, _, bit in fields if bit is not None and name in values)
    body = b"".join(
        struct.pack(f"<{code}", values.get(name, b"" if code.endswith("s") else 0)) for name, code, _ in fields
    )
    return struct.pack("<Q", bits if valid is None else valid) + body


def memory_section(*, is_old: bool = False, valid: int | None = None, more_bits: int = 0, **values: int) -> bytes:
    """Memory error section; old: of UEFI 2.1 and 2.2, which ends with the error type."""
    return _pack(MEMORY_FIELDS[:MEMORY_OLD_COUNT] if is_old else MEMORY_FIELDS, values, valid, more_bits)


def memory_2_section(*, more_bits: int = 0, **values: int) -> bytes:
    return _pack(MEMORY_2_FIELDS, values, None, more_bits)


def processor_section(**values: int) -> bytes:
    return _pack(GENERIC_FIELDS, values, None)


def pcie_section(
    *,
    segment: int = 0,
    bus: int = 0,
    device: int = 0,
    function: int = 0,
    slot: int = 0,
    vendor: int = 0x8086,
    device_id: int = 0x1234,
    class_code: int = 0x060400,
    port_type: int = 4,
    uncorrectable: int = 0,
    uncorrectable_mask: int = 0,
    uncorrectable_severity: int = 0,
    correctable: int = 0,
    correctable_mask: int = 0,
    tlp: tuple[int, int, int, int] = (0, 0, 0, 0),
    command: int = 0x0507,
    status: int = 0x0010,
) -> bytes:
    """PCI Express error section, with everything valid but the serial number and the capability."""
    aer = struct.pack(
        "<7I4I",
        0x00010001,
        uncorrectable,
        uncorrectable_mask,
        uncorrectable_severity,
        correctable,
        correctable_mask,
        0,
        *tlp,
    )
    return b"".join(
        (
            struct.pack("<QIBBH", 1 | 2 | 4 | 8 | 0x20 | 0x80, port_type, 0, 3, 0),
            struct.pack("<HHI", command, status, 0),
            struct.pack("<HH", vendor, device_id),
            class_code.to_bytes(3, "little"),
            struct.pack("<BBHBBHB", function, device, segment, bus, 5, slot << 3, 0),
            struct.pack("<IIHH", 0, 0, 0x4000, 0),
            bytes(60),
            aer.ljust(96, b"\0"),
        )
    )


def x86_error(kind: str, check_info: int, **values: int) -> bytes:
    names = ("target_address", "requestor_id", "responder_id", "ip")
    bits = 1 | sum(2 << place for place, name in enumerate(names) if name in values)
    return guid(kind) + struct.pack("<QQ4Q", bits, check_info, *(values.get(name, 0) for name in names))


def x86_context(msr: int, registers: Sequence[int]) -> bytes:
    """Context of MSRs, the first of which has the given number."""
    body = struct.pack(f"<{len(registers)}Q", *registers)
    return struct.pack("<HHIQ", 1, len(body), msr, 0) + body.ljust(-(-len(body) // 16) * 16, b"\0")


def x86_section(errors: Sequence[bytes], contexts: Sequence[bytes] = (), *, apic: int = 0, cpuid: int = 0) -> bytes:
    bits = 3 | len(errors) << 2 | len(contexts) << 8
    return struct.pack("<QQI44x", bits, apic, cpuid) + b"".join(errors) + b"".join(contexts)


def arm_error(kind: int, info: int | None = None, *, virtual: int | None = None, physical: int | None = None) -> bytes:
    bits = (4 if info is not None else 0) | (8 if virtual is not None else 0) | (16 if physical is not None else 0)
    return struct.pack("<BBHBHBQQQ", 0, 32, bits, kind, 0, 0, info or 0, virtual or 0, physical or 0)


def arm_section(errors: Sequence[bytes], *, mpidr: int = 0x80000000, midr: int = 0x410FD0C0) -> bytes:
    length = 40 + 32 * len(errors)
    return struct.pack("<IHHIB3xQQII", 1 | 4, len(errors), 0, length, 0, mpidr, midr, 1, 0) + b"".join(errors)


def firmware_section(kind: int, revision: int, identifier: int) -> bytes:
    return struct.pack("<BB6xQ16s", kind, revision, identifier, bytes(16))


def pci_bus_section(*, error_type: int, bus: int, address: int) -> bytes:
    return struct.pack("<QQHHIQQQQQQ", 2 | 4 | 8, 0, error_type, bus, 0, address, 0, 0, 0, 0, 0)


def timestamp(text: str) -> bytes:
    """``2026-11-21 20:15:09`` in binary-coded decimal, precise."""
    year, month, day, hour, minute, second = (int(part) for part in text.replace("-", " ").replace(":", " ").split())
    values = (second, minute, hour, 1, day, month, year % 100, year // 100)
    return bytes(value if place == 3 else value // 10 << 4 | value % 10 for place, value in enumerate(values))


def record(
    sections: Sequence[tuple[str, bytes]],
    *,
    severity: int = FATAL,
    section_severity: int | None = None,
    record_id: int = 0x6543210000000001,
    flags: int = 0,
    time: str = "",
    creator: str = LINUX_CREATOR,
    fru_text: str = "",
    length: int | None = None,
) -> bytes:
    """CPER record of sections, each a type and a body."""
    table, bodies = b"", b""
    offset = 128 + 72 * len(sections)
    for kind, body in sections:
        table += struct.pack(
            "<IIHBBI16s16sI20s",
            offset + len(bodies),
            len(body),
            0x300,
            2 if fru_text else 0,
            0,
            1,
            guid(kind),
            bytes(16),
            severity if section_severity is None else section_severity,
            fru_text.encode(),
        )
        bodies += body
    header = struct.pack(
        "<4sHIHIII8s16s16s16s16sQIQ12x",
        b"CPER",
        0x100,
        0xFFFFFFFF,
        len(sections),
        severity,
        2 if time else 0,
        offset + len(bodies) if length is None else length,
        timestamp(time) if time else bytes(8),
        bytes(16),
        bytes(16),
        guid(creator),
        guid(NOTIFY_MCE),
        record_id,
        flags,
        0,
    )
    return header + table + bodies


def status_block(
    entries: Sequence[tuple[str, bytes]],
    *,
    severity: int,
    fru_text: str = "",
    time: str = "",
    status: int | None = None,
) -> bytes:
    """Build a generic error status block; with a time, its entries are those of revision 3."""
    body = b""
    for kind, data in entries:
        body += guid(kind) + struct.pack(
            "<IHBBI16s20s",
            severity,
            0x300 if time else 0x201,
            (2 if fru_text else 0) | (4 if time else 0),
            0,
            len(data),
            bytes(16),
            fru_text.encode(),
        )
        body += (timestamp(time) if time else b"") + data
    if status is None:
        status = (2 if severity == CORRECTED else 1) | len(entries) << 4
    return struct.pack("<5I", status, 0, 0, len(body), severity) + body


def bert_table(paddr: int, size_bytes: int) -> bytes:
    """Body of ACPI's table BERT, behind the header: where the records of the last boot are."""
    return struct.pack("<IQ", size_bytes, paddr)


def hest_table(sources: Sequence[tuple[int, int, int]]) -> bytes:
    """
    Body of ACPI's table HEST with polled sources.

    Each is the address of the pointer to its status block, the bytes of the block, and milliseconds between two looks.
    """
    body = b""
    for number, (pointer_paddr, size_bytes, poll_ms) in enumerate(sources, 1):
        address = struct.pack("<BBBBQ", 0, 64, 0, 4, pointer_paddr)
        notify = struct.pack("<BBHIIIII", 0, 28, 0, poll_ms, 0, 0, 0, 0) + bytes(4)
        body += struct.pack("<HHHBBIII", 9, number, 0xFFFF, 0, 1, 1, 4, size_bytes) + address + notify
        body += struct.pack("<I", size_bytes)
    return struct.pack("<I", len(sources)) + body


MCE_FIELDS = (
    ("status", "Q"),
    ("misc", "Q"),
    ("addr", "Q"),
    ("mcgstatus", "Q"),
    ("ip", "Q"),
    ("tsc", "Q"),
    ("time", "Q"),
    ("cpuvendor", "B"),
    ("inject_flags", "B"),
    ("severity", "B"),
    ("pad", "B"),
    ("cpuid", "I"),
    ("cs", "B"),
    ("bank", "B"),
    ("cpu", "B"),
    ("finished", "B"),
    ("extcpu", "I"),
    ("socketid", "I"),
    ("apicid", "I"),
    ("mcgcap", "Q"),
    ("synd", "Q"),
    ("ipid", "Q"),
    ("ppin", "Q"),
    ("microcode", "I"),
    ("kflags", "Q"),
)


def struct_mce(*, size_bytes: int = 128, **values: int) -> bytes:
    """``struct mce`` as a C compiler lays it out, cut to the size that an older kernel has."""
    unknown = set(values) - {name for name, _ in MCE_FIELDS}
    assert not unknown, unknown
    raw = b""
    for name, code in MCE_FIELDS:
        raw = raw.ljust(-(-len(raw) // struct.calcsize(code)) * struct.calcsize(code), b"\0")
        raw += struct.pack(f"<{code}", values.get(name, 0))
    return raw[:size_bytes]
