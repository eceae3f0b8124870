"""
Processor sections of a binary firmware error record: x86's and ARM's.

Both hold a list of errors and a list of register contexts. The registers that
firmware copied out of a machine check bank are given back as a machine check.

References
----------
UEFI specification 2.10, N.2.4.2 "IA32/X64 Processor Error Section", N.2.4.4 "ARM Processor Error Section";
drivers/firmware/efi/cper-x86.c, cper-arm.c; arch/x86/kernel/cpu/mce/apei.c ``apei_smca_report_x86_error``.
"""

from __future__ import annotations

import struct
import uuid

from postpanic.evidence.hardware.cper_sections import SectionFields
from postpanic.evidence.hardware.model import MachineCheck

__all__ = ["MICRO_ERRORS", "decode_arm", "decode_x86"]

_X86_INFO = struct.Struct("<16s6Q")
_X86_CONTEXT = struct.Struct("<HHIQ")
_ARM = struct.Struct("<IHHIB3xQQII")
_ARM_INFO = struct.Struct("<BBHBHBQQQ")

_X86_KINDS = {
    "a55701f5-e3ef-43de-ac72-249b573fad2c": "cache",
    "fc06b535-5e1f-4562-9f25-0a3b9adb63c3": "tlb",
    "1cf3f8b3-c5b1-49a2-aa59-5eef92ffa63c": "bus",
    "48ab7f57-dc34-4f6c-a7d3-b0b5b0a74314": "micro-architectural",
}
_TRANSACTIONS = ("instruction", "data access", "generic", "")
_OPERATIONS = (
    "generic error",
    "generic read",
    "generic write",
    "data read",
    "data write",
    "instruction fetch",
    "prefetch",
    "eviction",
    "snoop",
)
MICRO_ERRORS = ("no error", "unclassified", "microcode ROM parity", "external", "FRC", "internal unclassified")
_X86_FLAGS = (
    (25, 3, "context corrupt"),
    (26, 4, "uncorrected"),
    (27, 5, "precise IP"),
    (28, 6, "restartable"),
    (29, 7, "overflow"),
)
_MICRO_FLAGS = (
    (19, 1, "context corrupt"),
    (20, 2, "uncorrected"),
    (21, 3, "precise IP"),
    (22, 4, "restartable"),
    (23, 5, "overflow"),
)
_MSR_CONTEXT = 1
_SMCA_BASE, _LEGACY_BASE = 0xC0002000, 0x400
_ARM_KINDS = {1: "cache", 2: "tlb", 3: "bus", 4: "vendor"}


def decode_x86(body: bytes) -> tuple[list[SectionFields], list[MachineCheck]]:
    """
    Decode an IA32/X64 processor section.

    Returns
    -------
    errors : list of dict
        Fields of each error in the section.
    checks : list of MachineCheck
        Banks whose registers are in the section.

    Raises
    ------
    struct.error
        If the section is shorter than it says.
    """
    bits, apic = struct.unpack_from("<QQ", body)
    count, contexts = bits >> 2 & 0x3F, bits >> 8 & 0x3F
    cpuid = struct.unpack_from("<I", body, 16)[0] if bits & 2 else 0
    offset = 64
    errors: list[SectionFields] = []
    for _ in range(count):
        fields = _x86_error(body, offset)
        if bits & 1:
            fields["apic_id"] = f"{apic:#x}"
        errors.append(fields)
        offset += _X86_INFO.size
    checks: list[MachineCheck] = []
    for _ in range(contexts):
        kind, size, msr, _memory = _X86_CONTEXT.unpack_from(body, offset)
        offset += _X86_CONTEXT.size
        check = (
            _bank(body[offset : offset + size], msr, cpuid, apic if bits & 1 else None)
            if kind == _MSR_CONTEXT
            else None
        )
        if check is not None:
            checks.append(check)
        offset += -(-size // 16) * 16
    return errors, checks


def _x86_error(body: bytes, offset: int) -> SectionFields:
    guid, bits, info, target, requestor, responder, ip = _X86_INFO.unpack_from(body, offset)
    kind = _X86_KINDS.get(str(uuid.UUID(bytes_le=guid)), "")
    fields: SectionFields = {"kinds": kind}
    if bits & 1:
        fields["check_info"] = info
        _check_info(kind, info, fields)
    for bit, name, value in (
        (1, "target_address", target),
        (2, "requestor_id", requestor),
        (3, "responder_id", responder),
        (4, "ip", ip),
    ):
        if bits >> bit & 1:
            fields[name] = value
    return fields


def _check_info(kind: str, info: int, fields: SectionFields) -> None:
    """Read what the check information says; its low 16 bits tell what is valid."""
    if kind == "micro-architectural":
        number = info >> 16 & 7
        if info & 1 and number < len(MICRO_ERRORS):
            fields["micro_architectural_type"] = MICRO_ERRORS[number]
        flags = _MICRO_FLAGS
    else:
        if info & 1:
            fields["transaction"] = _TRANSACTIONS[info >> 16 & 3]
        number = info >> 18 & 0xF
        if info & 2 and number < len(_OPERATIONS):
            fields["operation"] = _OPERATIONS[number]
        if info & 4:
            fields["level"] = info >> 22 & 7
        if kind == "bus" and info >> 9 & 1 and info >> 32 & 1:
            fields["timed_out"] = 1
        flags = _X86_FLAGS
    fields["flags"] = ", ".join(name for bit, valid, name in flags if info >> valid & 1 and info >> bit & 1)


def _bank(registers: bytes, msr: int, cpuid: int, apic: int | None) -> MachineCheck | None:
    """Take a context of MSRs as a machine check bank, if that is what it is; the first register is the status."""
    values = struct.unpack_from(f"<{min(len(registers) // 8, 16)}Q", registers)
    if msr & 0xFFFFF00F == _SMCA_BASE | 1 and len(values) >= 6:
        status, addr, misc, _config, ipid, synd = values[:6]
        return MachineCheck(
            status=status,
            addr=addr,
            misc=misc,
            ipid=ipid,
            synd=synd,
            bank=msr >> 4 & 0xFF,
            vendor=2,
            cpuid=cpuid,
            apic=apic,
        )
    if _LEGACY_BASE <= msr < _LEGACY_BASE + 0x80 and len(values) >= 3:
        skipped = (1 - (msr & 3)) % 4
        if len(values) >= skipped + 3:
            status, addr, misc = values[skipped : skipped + 3]
            return MachineCheck(
                status=status, addr=addr, misc=misc, bank=(msr - _LEGACY_BASE) // 4, vendor=0, cpuid=cpuid, apic=apic
            )
    return None


def decode_arm(body: bytes) -> list[SectionFields]:
    """
    Decode an ARM processor section.

    Returns
    -------
    list of dict
        Fields of each error in it.

    Raises
    ------
    struct.error
        If the section is shorter than it says.
    """
    bits, count, _contexts, _length, _affinity, mpidr, midr, _running, _psci = _ARM.unpack_from(body)
    offset = _ARM.size
    errors: list[SectionFields] = []
    for _ in range(count):
        fields = _arm_error(body, offset)
        fields["midr"] = midr
        if bits & 1:
            fields["mpidr"] = f"{mpidr:#x}"
        errors.append(fields)
        offset += _ARM_INFO.size
    return errors


def _arm_kinds(kind: int) -> str:
    """
    Name the kinds of error; a bit mask (1 to 4), or a number in records by older editions of the specification.

    A mask never has bit 0; the number 2 cannot be told from the mask of a cache error and is taken as the mask.
    """
    if kind in {0, 1, 3}:
        return ("cache", "tlb", "", "vendor")[kind]
    return " ".join(name for bit, name in _ARM_KINDS.items() if kind >> bit & 1)


def _arm_error(body: bytes, offset: int) -> SectionFields:
    _version, _length, bits, kind, multiple, flags, info, vaddr, paddr = _ARM_INFO.unpack_from(body, offset)
    fields: SectionFields = {"kinds": _arm_kinds(kind)}
    if bits & 1:
        fields["multiple"] = multiple
    if bits & 2:
        names = ("first", "last", "propagated", "overflow")
        fields["flags"] = ", ".join(name for bit, name in enumerate(names) if flags >> bit & 1)
    if bits & 4:
        fields["error_info"] = info
        _arm_info(info, fields)
    if bits & 8:
        fields["virtual_address"] = vaddr
    if bits & 0x10:
        fields["physical_address"] = paddr
    return fields


def _arm_info(info: int, fields: SectionFields) -> None:
    if info & 1:
        fields["transaction"] = _TRANSACTIONS[info >> 16 & 3]
    number = info >> 18 & 0xF
    if info & 2 and number < len(_OPERATIONS):
        fields["operation"] = _OPERATIONS[number]
    if info & 4:
        fields["level"] = info >> 22 & 7
    if info & 1 << 8 and info >> 31 & 1:
        fields["timed_out"] = 1
