"""
Machine checks of AMD and Hygon processors.

Since family 17h the banks are "scalable" (SMCA): the register MCA_IPID names
the unit that a bank belongs to, and the extended error code counts that unit's
errors. Before, a bank's number was enough.

References
----------
AMD64 Architecture Programmer's Manual volume 2, "Machine Check Architecture"; Processor Programming References of
families 17h to 1Ah, "MCA Banks"; arch/x86/kernel/cpu/mce/amd.c ``smca_hwid_mcatypes``; drivers/edac/mce_amd.c,
drivers/edac/amd64_edac.c ``umc_get_err_info``.
"""

from __future__ import annotations

from postpanic.evidence.hardware.model import Finding, MachineCheck, Part, Severity
from postpanic.evidence.hardware.smca import Unit, find_unit
from postpanic.evidence.hardware.status import (
    ADDRV,
    BUS_PARTICIPATION,
    DEFERRED,
    MISCV,
    PCC,
    POISON,
    SCRUB,
    SYNDV,
    TCC,
    TRANSACTIONS,
    UC,
    VAL,
    flag_names,
)

__all__ = ["interpret"]

_LEVELS = ("reserved level", "L1", "L2", "L3 or generic level")
_REQUESTS = (
    "generic error",
    "read",
    "write",
    "data read",
    "data write",
    "instruction read",
    "prefetch",
    "eviction",
    "snoop",
)
_FIRST_SMCA_FAMILY = 0x17

_OLD_BANKS = (
    ("data cache", Part.CACHE),
    ("instruction cache", Part.CACHE),
    ("bus unit (L2 cache)", Part.CACHE),
    ("load/store unit", Part.PROCESSOR),
    ("northbridge", Part.BUS),
    ("execution unit", Part.PROCESSOR),
    ("floating point unit", Part.PROCESSOR),
)
# Extended error codes of the northbridge (bank 4) of families 0Fh to 16h: part, words, hint.
_NORTHBRIDGE: dict[int, tuple[Part, str, str]] = {
    0x0: (Part.MEMORY, "DRAM ECC error", "memory"),
    0x1: (Part.BUS, "CRC error on a HyperTransport link", "bus"),
    0x2: (Part.BUS, "sync error: sync packets on a HyperTransport link", "bus"),
    0x3: (Part.BUS, "HyperTransport master abort", "unmapped"),
    0x4: (Part.BUS, "HyperTransport target abort", "unmapped"),
    0x5: (Part.BUS, "invalid GART entry during a table walk", "gart"),
    0x6: (Part.BUS, "atomic request from I/O that is not supported", "io"),
    0x7: (Part.BUS, "northbridge watchdog: a request was not answered in time", "timeout"),
    0x8: (Part.MEMORY, "DRAM ECC error", "memory"),
    0x9: (Part.BUS, "SVM DMA exclusion vector error", "software-access"),
    0xA: (Part.BUS, "HyperTransport link data error", "bus"),
    0xB: (Part.BUS, "protocol error on a link, in L3 or in the probe filter", "bus"),
    0xC: (Part.PROCESSOR, "parity error in an array of the northbridge", "internal"),
    0xD: (Part.MEMORY, "parity error on the address or control lines of DRAM", "command-address"),
    0xE: (Part.BUS, "a HyperTransport link had to be retried", "bus"),
    0x1C: (Part.CACHE, "ECC error in the data of the L3 cache", "cache"),
    0x1D: (Part.CACHE, "ECC error in a tag of the L3 cache", "cache"),
    0x1E: (Part.CACHE, "parity error in the LRU bits of the L3 cache", "cache"),
    0x1F: (Part.CACHE, "ECC error in the probe filter directory", "cache"),
}


def interpret(check: MachineCheck) -> Finding:
    """Say what an AMD machine check means, by its registers alone."""
    details = _details(check)
    location = {} if check.socket is None else {"socket": str(check.socket)}
    if check.ipid or check.family >= _FIRST_SMCA_FAMILY:
        part, what, unit, hints = _scalable(check, location, details)
    else:
        part, what, unit, hints = _old(check)
    if check.status & POISON:
        hints.add("poison")
    if check.status & SCRUB:
        hints.add("scrub")
    if not check.status & VAL:
        hints.add("not-valid")
    return Finding(
        part=part,
        severity=_severity(check),
        what=what,
        unit=unit,
        location=location,
        paddr=_paddr(check),
        details=details,
        hints=frozenset(hints),
    )


def _scalable(
    check: MachineCheck, location: dict[str, str], details: dict[str, str]
) -> tuple[Part, str, str, set[str]]:
    extended = check.status >> 16 & 0x3F
    details["extended_error_code"] = str(extended)
    code_words, code_part, hints = _decode_code(check.status & 0xFFFF)
    if code_words:
        details["error_code"] = code_words
    unit = find_unit(check.ipid) if check.ipid else None
    if unit is None:
        if check.ipid:
            details["hardware_id"] = f"{check.ipid >> 32 & 0xFFF:#x}, type {check.ipid >> 48:#x}"
        words = code_words or f"error code {check.status & 0xFFFF:#06x}"
        return code_part, f"{words} (extended code {extended})", "", hints
    error = unit.errors.get(extended)
    part, what = unit.part, error.words if error is not None else f"extended error code {extended}"
    if error is not None:
        part = error.part or unit.part
        hints = {error.hint} if error.hint else hints
    if part is Part.MEMORY:
        _memory_place(check, unit, location)
    return part, f"{unit.name}: {what}", unit.name, hints


def _memory_place(check: MachineCheck, unit: Unit, location: dict[str, str]) -> None:
    """
    Say which channel and chip select a memory controller means.

    The channel is the controller's instance (IPID bits 31:20), the chip select is in the syndrome (bits 2:0):
    drivers/edac/amd64_edac.c ``find_umc_channel``, ``umc_get_err_info``.
    """
    if unit.key != "umc":
        return
    location["channel"] = str(check.ipid >> 20 & 0xFFF)
    if check.status & SYNDV:
        location["chip_select"] = str(check.synd & 7)


def _old(check: MachineCheck) -> tuple[Part, str, str, set[str]]:
    extended = check.status >> 16 & 0x1F
    words, part, hints = _decode_code(check.status & 0xFFFF)
    if check.bank == 4 and extended in _NORTHBRIDGE:
        part, what, hint = _NORTHBRIDGE[extended]
        return part, f"northbridge: {what}", "northbridge", {hint}
    if 0 <= check.bank < len(_OLD_BANKS):
        unit, unit_part = _OLD_BANKS[check.bank]
        if part in {Part.UNKNOWN, Part.PROCESSOR}:
            part = unit_part
        if check.bank == 5 and extended == 0:
            return part, f"{unit}: watchdog timeout", unit, {"timer"}
        return part, f"{unit}: {words or 'unknown error'} (extended code {extended})", unit, hints
    return part, words or f"error code {check.status & 0xFFFF:#06x}", "", hints


def _decode_code(code: int) -> tuple[str, Part, set[str]]:
    level, kind = _LEVELS[code & 3], TRANSACTIONS[code >> 2 & 3]
    number = code >> 4 & 0xF
    request = _REQUESTS[number] if number < len(_REQUESTS) else "unknown request"
    if code & 0xFFF0 == 0x0010:
        return f"{kind} TLB error, {level}", Part.TLB, {"tlb"}
    if code & 0xFF00 == 0x0100:
        return f"{kind} memory hierarchy error, {level}, {request}", Part.CACHE, {"cache"}
    if code & 0xF800 == 0x0800:
        target = ("memory access", "reserved", "I/O", "generic")[code >> 2 & 3]
        words = f"bus error: {request}, {target}, {BUS_PARTICIPATION[code >> 9 & 3]}, {level}"
        hints = {"bus"}
        if code & 0x100:
            words += ", the request timed out"
            hints.add("timeout")
        return words, Part.BUS, hints
    if code & 0xFC00 == 0x0400:
        return "internal unclassified error", Part.PROCESSOR, {"internal"}
    return "", Part.UNKNOWN, set()


def _severity(check: MachineCheck) -> Severity:
    status = check.status
    if status & PCC:
        return Severity.FATAL
    if status & UC:
        if check.family >= _FIRST_SMCA_FAMILY or check.ipid:
            # Without TCC the task's context is whole as well: mce_severity_amd() lets the machine go on either way.
            return Severity.RECOVERABLE
        return Severity.UNCORRECTED
    return Severity.DEFERRED if status & DEFERRED else Severity.CORRECTED


def _details(check: MachineCheck) -> dict[str, str]:
    status = check.status
    details = {"status": f"{status:#018x}", "flags": flag_names(status, check.vendor)}
    if status & UC and not status & PCC:
        details["class"] = "the task's context is corrupt" if status & TCC else "software can restart"
    if status & MISCV and check.misc:
        details["misc"] = f"{check.misc:#x}"
    if status & ADDRV and check.addr:
        details["address"] = f"{check.addr:#x}"
    if check.synd:
        details["syndrome"] = f"{check.synd:#x}"
    if check.ipid:
        details["ipid"] = f"{check.ipid:#x}"
    return details


def _paddr(check: MachineCheck) -> int | None:
    """
    Return the address where it is a physical one of the system.

    A memory controller reports an address of its own ("normalized"), which the kernel's EDAC driver translates;
    the caches of the core report the system's.
    """
    if not check.status & ADDRV or not check.addr:
        return None
    if check.ipid:
        unit = find_unit(check.ipid)
        if unit is None or not unit.has_system_address:
            return None
    return check.addr & (1 << 56) - 1
