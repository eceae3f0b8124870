"""
Sections of a binary firmware error record (CPER), decoded into fields.

References
----------
UEFI specification 2.10, appendix N.2.4 to N.2.10; include/linux/cper.h; drivers/firmware/efi/cper.c.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable

__all__ = ["SECTION_NAMES", "SectionFields", "decode_fields"]

SectionFields = dict[str, int | str]

SECTION_NAMES: dict[str, str] = {
    "9876ccad-47b4-4bdb-b65e-16f193c4f3db": "processor-generic",
    "dc3ea0b0-a144-4797-b95b-53fa242b6e1d": "processor-x86",
    "e429faf1-3cb7-11d4-bca7-0080c73c8881": "processor-ipf",
    "e19e3d16-bc11-11e4-9caa-c2051d5d46b0": "processor-arm",
    "a5bc1114-6f64-4ede-b863-3e83ed7c83b1": "memory",
    "61ec04fc-48e6-d813-25c9-8daa44750b12": "memory-2",
    "d995e954-bbc1-430f-ad91-b44dcb3c6f35": "pcie",
    "81212a96-09ed-4996-9471-8d729c8e69ed": "firmware",
    "c5753963-3b84-4095-bf78-eddad3f9c9dd": "pci-bus",
    "eb5e4685-ca66-4769-b6a2-26068b001326": "pci-device",
    "5b51fef7-c79d-4434-8f1b-aa62de3e2c64": "dmar",
    "71761d37-32b2-45cd-a7d0-b0fedd93e8cf": "dmar",
    "036f84e1-7f37-428c-a79e-575fdfaa84ec": "dmar",
    "80b9efb4-52b5-4de3-a777-68784b771048": "cxl",
    "fbcd0a77-c260-417f-85a9-088b1621eba6": "cxl",
    "601dcbb3-9c06-4eab-b8af-4e9bfb5c9624": "cxl",
    "fe927475-dd59-4339-a586-79bab113b774": "cxl",
    "c197e04e-d545-4a70-9c17-a5549419eb12": "linux-dmesg",
    "4f118707-04dd-4055-b5dd-956d34ddfac6": "linux-dmesg-compressed",
    "fe08ffbe-95e4-4be7-bc73-4096044a38fc": "linux-mce",
}
"""Section types; the last three are Linux's own (fs/pstore, arch/x86/kernel/cpu/mce/apei.c)."""

_MEMORY_OLD = struct.Struct("<4Q8H3QB")
_MEMORY_NEW = struct.Struct("<BHHH")
_MEMORY_2 = struct.Struct("<4Q4H5I4B3QII")
_PCIE = struct.Struct("<QI4BHHI HH3BBBHBBHB IIHH 60s 96s".replace(" ", ""))
_AER = struct.Struct("<6I4I")
_GENERIC = struct.Struct("<Q6BH Q128s5Q".replace(" ", ""))
_PCI_BUS = struct.Struct("<QQHHIQQQQQQ")
_PCI_DEVICE = struct.Struct("<QQHH3B4B5x")
_FIRMWARE = struct.Struct("<BB6xQ16s")

_PORT_TYPES = {
    0: "end point",
    1: "legacy PCI end point",
    4: "root port",
    5: "upstream switch port",
    6: "downstream switch port",
    7: "PCIe to PCI bridge",
    8: "PCI to PCIe bridge",
    9: "root complex integrated end point",
    10: "root complex event collector",
}
KINDS = ("cache", "tlb", "bus", "micro-architectural")
"""Bits of the error type of the generic processor section."""
_OPERATIONS = ("", "data read", "data write", "instruction execution")
_FLAGS = ("restartable", "precise IP", "overflow", "corrected")


def decode_fields(name: str, body: bytes) -> SectionFields:
    """
    Decode the body of a section.

    Parameters
    ----------
    name : str
        Of :data:`SECTION_NAMES`.
    body : bytes

    Returns
    -------
    dict
        Only what the section's validation bits say is valid; empty: the kind is not decoded.

    Raises
    ------
    struct.error
        If the body is shorter than its kind.
    """
    decoder = _DECODERS.get(name)
    return decoder(body) if decoder is not None else {}


def _valid(bits: int, values: tuple[tuple[int, str, int], ...]) -> SectionFields:
    return {name: value for bit, name, value in values if bits >> bit & 1}


def _memory(body: bytes) -> SectionFields:
    (
        bits,
        status,
        paddr,
        mask,
        node,
        card,
        module,
        bank,
        device,
        row,
        column,
        position,
        requestor,
        responder,
        target,
        kind,
    ) = _MEMORY_OLD.unpack_from(body)
    extended = rank = module_handle = 0
    if len(body) >= _MEMORY_OLD.size + _MEMORY_NEW.size:
        extended, rank, _array_handle, module_handle = _MEMORY_NEW.unpack_from(body, _MEMORY_OLD.size)
    else:
        bits &= 0x7FFF  # UEFI 2.1 and 2.2: what the other bits stand for is not there
    fields = _valid(
        bits,
        (
            (0, "error_status", status),
            (1, "physical_address", paddr),
            (2, "physical_address_mask", mask),
            (3, "node", node),
            (4, "card", card),
            (5, "module", module),
            (15, "rank", rank),
            (6, "bank", bank),
            (19, "bank_group", bank >> 8),
            (20, "bank_address", bank & 0xFF),
            (7, "device", device),
            (9, "column", column),
            (10, "bit_position", position),
            (11, "requestor_id", requestor),
            (12, "responder_id", responder),
            (13, "target_id", target),
            (14, "error_type", kind),
            (17, "module_handle", module_handle),
            (21, "chip_id", extended >> 5),
        ),
    )
    if bits & (1 << 8 | 1 << 18):
        fields["row"] = row | ((extended & 3) << 16 if bits & 1 << 18 else 0)
    return fields


def _memory_2(body: bytes) -> SectionFields:
    (
        bits,
        status,
        paddr,
        mask,
        node,
        card,
        module,
        bank,
        device,
        row,
        column,
        rank,
        position,
        chip,
        kind,
        _st,
        _res,
    ) = _MEMORY_2.unpack_from(body)[:17]
    requestor, responder, target, _card_handle, module_handle = _MEMORY_2.unpack_from(body)[17:]
    return _valid(
        bits,
        (
            (0, "error_status", status),
            (1, "physical_address", paddr),
            (2, "physical_address_mask", mask),
            (3, "node", node),
            (4, "card", card),
            (5, "module", module),
            (10, "rank", rank),
            (6, "bank", bank),
            (20, "bank_group", bank >> 8),
            (21, "bank_address", bank & 0xFF),
            (7, "device", device),
            (8, "row", row),
            (9, "column", column),
            (11, "bit_position", position),
            (12, "chip_id", chip),
            (13, "error_type", kind),
            (15, "requestor_id", requestor),
            (16, "responder_id", responder),
            (17, "target_id", target),
            (19, "module_handle", module_handle),
        ),
    )


def _pcie(body: bytes) -> SectionFields:
    values = _PCIE.unpack_from(body)
    bits, port, _minor, _major, _r1, _r2, command, status, _r3 = values[:9]
    vendor, device_id, class0, class1, class2, function, device, segment, bus, secondary, slot, _r4 = values[9:21]
    _serial_low, _serial_high, secondary_status, _control, _capability, aer = values[21:]
    fields: SectionFields = {}
    if bits & 1:
        fields["port_type"] = _PORT_TYPES.get(port, f"type {port}")
    if bits & 4:
        fields |= {"command": command, "status": status}
    if bits & 8:
        fields["device"] = f"{segment:04x}:{bus:02x}:{device:02x}.{function:x}"
        fields["slot"] = slot >> 3
        fields["secondary_bus"] = f"{secondary:#04x}"
        fields["ids"] = f"{vendor:04x}:{device_id:04x}"
        fields["class_code"] = f"{class2:02x}{class1:02x}{class0:02x}"
    if bits & 0x20:
        fields["bridge_secondary_status"] = secondary_status
    if bits & 0x80:
        _header, uncorrectable, mask, severity, correctable, correctable_mask, *_ = _AER.unpack_from(aer)
        fields["aer_uncor_status"], fields["aer_uncor_mask"] = uncorrectable, mask
        fields["aer_uncor_severity"] = severity
        fields["aer_cor_status"], fields["aer_cor_mask"] = correctable, correctable_mask
        fields["tlp_header"] = " ".join(f"{word:08x}" for word in struct.unpack_from("<4I", aer, 28))
    return fields


def _processor(body: bytes) -> SectionFields:
    values = _GENERIC.unpack_from(body)
    bits, _kind, _isa, errors, operation, flags, level, _reserved, _version, _brand = values[:10]
    processor, target, requestor, responder, ip = values[10:]
    fields = _valid(
        bits,
        (
            (5, "level", level),
            (9, "target_address", target),
            (10, "requestor_id", requestor),
            (11, "responder_id", responder),
            (12, "ip", ip),
        ),
    )
    if bits & 1 << 8:
        fields["processor_id"] = f"{processor:#x}"
    if bits & 4:
        fields["kinds"] = " ".join(kind for bit, kind in enumerate(KINDS) if errors >> bit & 1)
    if bits & 8 and operation < len(_OPERATIONS):
        fields["operation"] = _OPERATIONS[operation]
    if bits & 0x10:
        fields["flags"] = ", ".join(name for bit, name in enumerate(_FLAGS) if flags >> bit & 1)
    return fields


def _pci_bus(body: bytes) -> SectionFields:
    bits, status, kind, bus, _reserved, address, _data, _command, requestor, completer, target = _PCI_BUS.unpack_from(
        body
    )
    fields = _valid(
        bits,
        (
            (0, "error_status", status),
            (1, "error_type", kind),
            (3, "bus_address", address),
            (6, "requestor_id", requestor),
            (7, "completer_id", completer),
            (8, "target_id", target),
        ),
    )
    if bits & 4:
        fields["bus"] = f"{bus >> 8:04x}:{bus & 0xFF:02x}"
    return fields


def _pci_device(body: bytes) -> SectionFields:
    bits, status, vendor, device_id, _c0, _c1, _c2, function, device, bus, segment = _PCI_DEVICE.unpack_from(body)
    fields = _valid(bits, ((0, "error_status", status),))
    if bits & 2:
        fields["device"] = f"{segment:04x}:{bus:02x}:{device:02x}.{function:x}"
        fields["ids"] = f"{vendor:04x}:{device_id:04x}"
    return fields


def _firmware(body: bytes) -> SectionFields:
    kind, revision, identifier, guid = _FIRMWARE.unpack_from(body.ljust(_FIRMWARE.size, b"\0"))
    fields: SectionFields = {"record_type": kind, "revision": revision}
    fields["record_id"] = str(uuid.UUID(bytes_le=guid)) if revision else f"{identifier:#x}"
    return fields


_DECODERS: dict[str, Callable[[bytes], SectionFields]] = {
    "memory": _memory,
    "memory-2": _memory_2,
    "pcie": _pcie,
    "processor-generic": _processor,
    "pci-bus": _pci_bus,
    "pci-device": _pci_device,
    "firmware": _firmware,
}
