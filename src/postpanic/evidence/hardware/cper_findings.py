"""
What the sections of a firmware error record mean.

Binary records and the kernel's text of them give the same fields, by the names
that the kernel prints; here they become findings.

References
----------
UEFI specification 2.10, appendix N "Common Platform Error Record"; drivers/firmware/efi/cper.c, cper-arm.c, cper-x86.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from postpanic.evidence.hardware import pcie
from postpanic.evidence.hardware.model import Finding, Part, Severity

__all__ = [
    "ERROR_STATUS",
    "MEMORY_ERRORS",
    "SEVERITIES",
    "Fields",
    "firmware_finding",
    "memory_finding",
    "other_finding",
    "pci_finding",
    "pcie_finding",
    "processor_finding",
]

Fields = Mapping[str, int | str]

SEVERITIES = {
    0: Severity.RECOVERABLE,
    1: Severity.FATAL,
    2: Severity.CORRECTED,
    3: Severity.INFORMATIONAL,
}
"""``CPER_SEV_*``."""

MEMORY_ERRORS: dict[int, tuple[str, str]] = {
    0: ("error of unknown kind", "memory"),
    1: ("no error", "no-error"),
    2: ("single-bit ECC error", "memory"),
    3: ("multi-bit ECC error", "memory"),
    4: ("single-symbol chipkill ECC error", "memory"),
    5: ("multi-symbol chipkill ECC error", "memory"),
    6: ("master abort", "unmapped"),
    7: ("target abort", "unmapped"),
    8: ("parity error", "memory"),
    9: ("watchdog timeout", "timeout"),
    10: ("invalid address", "unmapped"),
    11: ("a mirror is broken", "memory"),
    12: ("a spare was put in place", "memory"),
    13: ("scrubbing corrected an error", "memory"),
    14: ("scrubbing found an uncorrectable error", "memory"),
    15: ("memory was taken out of the map", "memory"),
}
"""Memory error types: words and the verdict's hint."""

ERROR_STATUS = {
    1: "error inside the component",
    4: "storage error in DRAM",
    5: "storage error in a TLB",
    6: "storage error in a cache",
    7: "error in a functional unit",
    8: "the component failed its self-test",
    9: "overflow of an internal queue",
    16: "error on the bus",
    17: "address not found by the IOMMU",
    18: "improper access",
    19: "access to an address that nothing answers to",
    20: "loss of lockstep",
    21: "an answer that nobody asked for",
    22: "parity error on the bus",
    23: "protocol error",
    24: "path error",
    25: "timeout of a bus operation",
    26: "poisoned data was read",
}
"""Bits 15:8 of an error status."""

_STATUS_HINTS = {17: "software-access", 18: "software-access", 19: "unmapped", 25: "timeout", 26: "poison"}
_MEMORY_PLACE = (
    "node",
    "card",
    "module",
    "rank",
    "bank",
    "bank_group",
    "bank_address",
    "device",
    "row",
    "column",
    "bit_position",
    "chip_id",
)
_PROCESSOR_KINDS: dict[str, tuple[Part, str]] = {
    "cache": (Part.CACHE, "cache"),
    "tlb": (Part.TLB, "tlb"),
    "bus": (Part.BUS, "bus"),
    "micro-architectural": (Part.PROCESSOR, "internal"),
    "vendor": (Part.PROCESSOR, "internal"),
}


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name, "")
    return value if isinstance(value, str) else str(value)


def _number(fields: Fields, name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) else None


def _hex(fields: Fields, names: tuple[str, ...]) -> dict[str, str]:
    return {name: f"{value:#x}" for name in names if (value := _number(fields, name)) is not None}


def memory_finding(fields: Fields, severity: Severity, fru: str = "") -> Finding:
    """Say what a memory section means; ``fru`` is the name that firmware gives the module."""
    location = {name: _text(fields, name) for name in _MEMORY_PLACE if name in fields}
    label = _text(fields, "dimm_location") or fru
    if label:
        location = {"dimm": label, **location}
    if (handle := _number(fields, "module_handle")) is not None:
        location["dmi_handle"] = f"{handle:#06x}"
    kind = _number(fields, "error_type")
    words, hint = (
        MEMORY_ERRORS.get(kind, (f"error of type {kind}", "memory")) if kind is not None else ("error", "memory")
    )
    details = _hex(fields, ("error_status", "physical_address_mask", "requestor_id", "responder_id", "target_id"))
    hints = {hint}
    if (status := _number(fields, "error_status")) is not None:
        number = status >> 8 & 0xFF
        details["error_status"] += f": {ERROR_STATUS.get(number, 'reserved')}"
        if number in _STATUS_HINTS and hint == "memory" and number in {17, 18, 19, 26}:
            hints = {_STATUS_HINTS[number]}
    return Finding(
        part=Part.MEMORY,
        severity=severity,
        what=f"memory: {words}" + (f" at {label}" if label else ""),
        unit=label,
        location=location,
        paddr=_number(fields, "physical_address"),
        details=details,
        hints=frozenset(hints),
    )


def pcie_finding(fields: Fields, severity: Severity) -> Finding:
    """Say what a PCI Express section means."""
    device = _text(fields, "device")
    is_correctable = severity in {Severity.CORRECTED, Severity.INFORMATIONAL}
    status = _number(fields, "aer_cor_status" if is_correctable else "aer_uncor_status")
    mask = _number(fields, "aer_cor_mask" if is_correctable else "aer_uncor_mask") or 0
    location = {name: _text(fields, name) for name in ("slot", "secondary_bus") if name in fields}
    details = {name: _text(fields, name) for name in ("port_type", "ids", "class_code", "tlp_header") if name in fields}
    details |= _hex(fields, ("command", "status", "aer_uncor_severity", "bridge_secondary_status"))
    return pcie.make_finding(
        severity, device, status, mask=mask, is_correctable=is_correctable, location=location, details=details
    )


def processor_finding(fields: Fields, severity: Severity) -> Finding:
    """
    Say what a processor section means: the generic one, x86's or ARM's.

    ``kinds`` holds the kinds of error, separated by blanks: ``cache``, ``tlb``, ``bus``, ``micro-architectural``,
    ``vendor``.
    """
    kinds = [kind for kind in _text(fields, "kinds").split() if kind in _PROCESSOR_KINDS]
    part, hint = _PROCESSOR_KINDS[kinds[0]] if kinds else (Part.PROCESSOR, "internal")
    words = " and ".join(kinds) or "processor"
    extra = [_text(fields, name) for name in ("transaction", "operation") if fields.get(name)]
    if (level := _number(fields, "level")) is not None:
        extra.append(f"level {level}")
    location = {
        name: _text(fields, name)
        for name in ("processor_id", "apic_id", "mpidr", "level")
        if fields.get(name) is not None
    }
    if part in {Part.PROCESSOR, Part.BUS}:
        location.pop("level", None)
    names = ("check_info", "error_info", "ip", "virtual_address", "target_address", "requestor_id", "responder_id")
    details = _hex(fields, (*names, "midr"))
    details |= {name: _text(fields, name) for name in ("flags", "micro_architectural_type") if fields.get(name)}
    hints = {hint}
    if fields.get("timed_out"):
        hints.add("timeout")
    return Finding(
        part=part,
        severity=severity,
        what=f"{words} error" + (f": {', '.join(extra)}" if extra else ""),
        unit=_text(fields, "unit"),
        location=location,
        paddr=_number(fields, "physical_address"),
        details=details,
        hints=frozenset(hints),
    )


def pci_finding(fields: Fields, severity: Severity) -> Finding:
    """Say what a section of a PCI bus or device means."""
    words = {
        1: "data parity error",
        2: "system error",
        3: "master abort",
        4: "timeout, or no device there",
        5: "master data parity error",
        6: "address parity error",
        7: "command parity error",
    }
    kind = _number(fields, "error_type") or 0
    device = _text(fields, "device")
    hint = {3: "unmapped", 4: "timeout"}.get(kind, "serr")
    return Finding(
        part=Part.PCI,
        severity=severity,
        what=f"PCI: {words.get(kind, 'error of unknown kind')}" + (f", {device}" if device else ""),
        unit=device,
        location={name: _text(fields, name) for name in ("device", "bus") if fields.get(name)},
        paddr=_number(fields, "bus_address"),
        details=_hex(fields, ("error_status", "requestor_id", "completer_id", "target_id")),
        hints=frozenset({hint}),
    )


def firmware_finding(fields: Fields, severity: Severity) -> Finding:
    """Say what a reference to a firmware's own record means."""
    kinds = ("IPF SAL error record", "SoC firmware error record, type 1", "SoC firmware error record, type 2")
    kind = _number(fields, "record_type")
    name = (
        kinds[kind] if kind is not None and kind < len(kinds) else _text(fields, "record_type_name") or "error record"
    )
    return Finding(
        part=Part.FIRMWARE,
        severity=severity,
        what=f"firmware: {name}",
        details={key: _text(fields, key) for key in ("revision", "record_id") if key in fields},
        hints=frozenset({"firmware"}),
    )


def other_finding(kind: str, severity: Severity, details: dict[str, str]) -> Finding:
    """Say what little is known of a section of another kind."""
    part, hint, words = {
        "dmar": (Part.IO, "software-access", "the IOMMU refused an access (DMA remapping)"),
        "cxl": (Part.MEMORY, "memory-page", "CXL error"),
    }.get(kind, (Part.UNKNOWN, "", f"section of a kind that is not known ({kind})"))
    return Finding(part=part, severity=severity, what=words, details=details, hints=frozenset({hint} if hint else ()))
