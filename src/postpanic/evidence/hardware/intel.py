"""
Machine checks of Intel processors: what the registers of a bank say.

References
----------
Intel SDM volume 3, "Machine-Check Architecture" (IA32_MCi_STATUS, MISC, simple and compound error codes, software
recoverable errors, threshold-based status) and "Interpreting Machine Check Error Codes" (banks and model-specific
codes of server processors); errata "Instruction Fetch May Cause Machine Check if Page Size Was Changed Without
Invalidation" (Documentation/admin-guide/hw-vuln/multihit.rst).
"""

from __future__ import annotations

from postpanic.evidence.hardware.model import Finding, MachineCheck, Part, Severity
from postpanic.evidence.hardware.status import (
    ADDRV,
    BUS_PARTICIPATION,
    EN,
    LEVELS,
    MISCV,
    OVER,
    PCC,
    REQUESTS,
    TRANSACTIONS,
    UC,
    flag_names,
)

__all__ = ["find_bank", "interpret"]

_S, _AR = 1 << 56, 1 << 55
_CMCI_P, _TES_P, _SER_P = 1 << 10, 1 << 11, 1 << 24
_ADDRESS_MODES = ("segment offset", "linear", "physical", "memory", "", "", "", "generic")
_PHYSICAL, _MEMORY = 2, 3

_SIMPLE: dict[int, tuple[Part, str, str]] = {
    0x0000: (Part.UNKNOWN, "no error is recorded in the bank", "no-error"),
    0x0001: (Part.PROCESSOR, "unclassified error", ""),
    0x0002: (Part.PROCESSOR, "parity error in the microcode ROM", "internal"),
    0x0003: (Part.PLATFORM, "another agent signalled an error to this processor (BINIT# or the like)", "external"),
    0x0004: (Part.PROCESSOR, "functional redundancy check: master and slave disagree", "internal"),
    0x0005: (Part.PROCESSOR, "internal parity error", "internal"),
    0x0006: (Part.FIRMWARE, "the SMM handler tried to run code outside of SMRAM", "smm"),
    0x0400: (Part.PROCESSOR, "internal timer error: an instruction did not finish in time (three-strike)", "timer"),
    0x0E0B: (Part.IO, "generic I/O error", "io"),
}
# SDM, "Software Recoverable Action Required": the data came bad from memory or a cache farther out, and was used.
_CONSUMED = {0x0134: "bad data was loaded", 0x0150: "bad data was fetched as instructions"}
_MEMORY_REQUESTS = ("generic", "read", "write", "address or command", "scrubbing")

# Since Sandy Bridge the first banks of a core are the same in clients and servers.
_CORE_BANKS = {
    0: "instruction fetch unit",
    1: "data cache unit",
    2: "data TLB",
    3: "mid-level cache (L2)",
    4: "power control unit",
}
_SKYLAKE = {
    **_CORE_BANKS,
    5: "UPI link 0",
    6: "integrated I/O",
    7: "mesh to memory 0",
    8: "mesh to memory 1",
    **dict.fromkeys((9, 10, 11), "last-level cache (CHA)"),
    12: "UPI link 1",
    **dict.fromkeys(range(13, 19), "integrated memory controller"),
    19: "UPI link 2",
}
_ICE_LAKE = {
    **_CORE_BANKS,
    5: "UPI link 0",
    6: "integrated I/O",
    7: "UPI link 1",
    8: "UPI link 2",
    **dict.fromkeys((9, 10, 11), "last-level cache (CHA)"),
    **dict.fromkeys((12, 16, 20, 24), "mesh to memory"),
    **dict.fromkeys((13, 14, 17, 18, 21, 22, 25, 26), "integrated memory controller"),
}
_SAPPHIRE_RAPIDS = {
    **_CORE_BANKS,
    5: "UPI link",
    6: "UBOX",
    **dict.fromkeys((9, 10, 11), "last-level cache (CHA)"),
    12: "mesh to memory",
    **dict.fromkeys(range(13, 21), "integrated memory controller"),
}
_E5 = {
    **_CORE_BANKS,
    5: "QPI link 0",
    6: "integrated I/O",
    **dict.fromkeys((7, 8), "home agent"),
    **dict.fromkeys(range(9, 17), "integrated memory controller"),
    **dict.fromkeys(range(17, 20), "last-level cache"),
    20: "QPI link 1",
    21: "QPI link 2",
}
_SANDY_BRIDGE_E5 = {
    **_CORE_BANKS,
    5: "home agent",
    6: "QPI link 0",
    7: "integrated I/O",
    **dict.fromkeys(range(8, 12), "integrated memory controller"),
}
_NEHALEM = {0: "QPI link 0", 1: "QPI link 1", 2: "data TLB", 3: "", 5: "", 8: "integrated memory controller"}
_BANKS: dict[int, dict[int, str]] = {
    **dict.fromkeys((0x1A, 0x1E, 0x2C, 0x25), _NEHALEM),
    0x2D: _SANDY_BRIDGE_E5,
    **dict.fromkeys((0x3E, 0x3F, 0x4F, 0x56), _E5),
    0x55: _SKYLAKE,
    **dict.fromkeys((0x6A, 0x6C), _ICE_LAKE),
    **dict.fromkeys((0x8F, 0xCF, 0xAD, 0xAE), _SAPPHIRE_RAPIDS),
}
"""By the model of family 6."""

_FIRST_WITH_CORE_BANKS = 0x2A
_FIRST_WITH_CMCI = 0x1A

# Bits 31:16 of a memory controller's status: Skylake and Cascade Lake servers, and Ice Lake's where they agree.
_MEMORY_MSCOD = {
    0x0001: "address parity error",
    0x0002: "write data parity error from the home agent",
    0x0004: "write byte enable parity error from the home agent",
    0x0008: "corrected patrol scrub error",
    0x0010: "uncorrected patrol scrub error",
    0x0020: "corrected sparing error",
    0x0040: "uncorrected sparing error",
    0x0080: "home agent read error",
    0x0100: "write data buffer parity error",
    0x0200: "DDR4 command or address parity error",
    0x0400: "uncorrected address parity error",
}


def find_bank(check: MachineCheck) -> str:
    """Name the unit that a bank belongs to; empty: not known of this processor."""
    if check.family != 6:
        return ""
    known = _BANKS.get(check.model)
    if known is not None:
        return known.get(check.bank, "")
    return _CORE_BANKS.get(check.bank, "") if check.model >= _FIRST_WITH_CORE_BANKS else ""


def interpret(check: MachineCheck) -> Finding:
    """Say what an Intel machine check means, by its registers alone."""
    code = check.status & 0xFFFF
    part, what, hints, location = _decode_code(code & ~0x1000 if code & 0xEFFF else code)
    details = _details(check)
    if code & 0x1000:
        details["filtering"] = "on: further corrected errors of this place may not be reported"
    unit = find_bank(check)
    if code & 0xEF80 == 0x80 or "memory controller" in unit:
        _memory_controller(check, hints, details)
    if code in {0x0005, 0x0150} and check.status >> 16 & 0xFFFF == 0xF:
        hints.add("page-size-change")
    elif code in _CONSUMED and check.status & (UC | _S | _AR) == UC | _S | _AR:
        part, what, hints = Part.MEMORY, f"{_CONSUMED[code]} ({what})", {"poison"}
    if unit == "power control unit" and part is Part.PROCESSOR:
        part = Part.POWER
    paddr = _paddr(check)
    if part is Part.IO:
        _io_device(check, location)
    if check.socket is not None:
        location = {"socket": str(check.socket), **location}
    severity = _severity(check)
    if not check.status & 1 << 63:
        hints.add("not-valid")
    return Finding(
        part=part,
        severity=severity,
        what=what,
        unit=unit,
        location=location,
        paddr=paddr,
        details=details,
        hints=frozenset(hints),
    )


def _decode_code(code: int) -> tuple[Part, str, set[str], dict[str, str]]:
    """Decode MCACOD without its filtering bit; the compound codes are told apart by their highest bit."""
    if code in _SIMPLE:
        part, what, hint = _SIMPLE[code]
        return part, what, {hint} if hint else set(), {}
    level = LEVELS[code & 3]
    kind = TRANSACTIONS[code >> 2 & 3]
    request = REQUESTS.get(code >> 4 & 0xF, "unknown request")
    if code & 0xFFFC == 0x000C:
        return Part.CACHE, f"generic error of the cache hierarchy, {level}", {"cache"}, {"level": level}
    if code & 0xFFF0 == 0x0010:
        return Part.TLB, f"{kind} TLB error, {level}", {"tlb"}, {"level": level}
    if code & 0xFF00 == 0x0100:
        return Part.CACHE, f"{kind} cache error, {level}, {request}", {"cache"}, {"level": level, "type": kind}
    if code & 0xFF80 == 0x0080:
        return _memory_code(code, "memory controller")
    if code & 0xFF80 == 0x0280:
        return _memory_code(code, "cache of extended memory (memory used as a cache)")
    if code & 0xF800 == 0x0800:
        return _bus_code(code, level, request)
    if code & 0xFC00 == 0x0400:
        return Part.PROCESSOR, f"internal unclassified error {code & 0x3FF:#x}", {"internal"}, {}
    return Part.UNKNOWN, f"error code {code:#06x}, which the architecture does not define", set(), {}


def _memory_code(code: int, what: str) -> tuple[Part, str, set[str], dict[str, str]]:
    number, channel = code >> 4 & 7, code & 0xF
    request = _MEMORY_REQUESTS[number] if number < len(_MEMORY_REQUESTS) else "unknown"
    hints = {"memory", "command-address"} if number == 3 else {"memory"}
    if number == 4:
        hints.add("scrub")
    place = {} if channel == 0xF else {"channel": str(channel)}
    where = "" if channel == 0xF else f", channel {channel}"
    return Part.MEMORY, f"{what}: {request} error{where}", hints, place


def _bus_code(code: int, level: str, request: str) -> tuple[Part, str, set[str], dict[str, str]]:
    target = ("memory access", "reserved", "I/O", "other transaction")[code >> 2 & 3]
    participation = BUS_PARTICIPATION[code >> 9 & 3]
    timed_out = bool(code & 0x100)
    what = f"bus and interconnect error: {request}, {target}, {participation}, {level}"
    hints = {"bus"}
    if timed_out:
        what += ", the request timed out"
        hints.add("timeout")
    if code >> 2 & 3 == 2:
        hints.add("io")
    return Part.BUS, what, hints, {}


def _severity(check: MachineCheck) -> Severity:
    status = check.status
    if not status & UC:
        return Severity.CORRECTED
    if status & PCC:
        # Without EN it raised no exception, and the machine went on: mostly what the BIOS left at start-up.
        return Severity.FATAL if status & EN else Severity.UNCORRECTED
    if not _has_recovery(check):
        return Severity.UNCORRECTED
    if not status & (_S | _AR):
        return Severity.DEFERRED
    # An overflow means that an error was lost: nobody knows what else was hit (SDM, "Machine-Check Error Recovery").
    return Severity.FATAL if status & OVER and status & _AR else Severity.RECOVERABLE


def _has_recovery(check: MachineCheck) -> bool:
    """Tell whether the processor knows errors that software recovers from (MCG_SER_P); texts do not print MCG_CAP."""
    if check.mcgcap:
        return bool(check.mcgcap & _SER_P)
    return bool(check.status & (_S | _AR)) or (check.family == 6 and check.model >= _FIRST_WITH_CORE_BANKS)


def _has(check: MachineCheck, capability: int) -> bool:
    """Tell whether corrected errors are counted and graded: by MCG_CAP, or by the model where that is not shown."""
    if check.mcgcap:
        return bool(check.mcgcap & capability)
    return check.family == 6 and check.model >= _FIRST_WITH_CMCI


def _details(check: MachineCheck) -> dict[str, str]:
    status = check.status
    details = {"status": f"{status:#018x}", "flags": flag_names(status, check.vendor)}
    if status & UC and _has_recovery(check) and not status & PCC:
        details["class"] = {
            0: "UCNA: uncorrected, no action required",
            _S: "SRAO: software recoverable, action optional",
            _S | _AR: "SRAR: software recoverable, action required",
        }.get(status & (_S | _AR), "reserved")
    if not status & UC and _has(check, _CMCI_P) and (count := status >> 38 & 0x7FFF):
        details["corrected_count"] = str(count)
    if not status & UC and _has(check, _TES_P) and (grade := status >> 53 & 3):
        details["threshold"] = ("", "green: below the threshold", "yellow: above the threshold", "reserved")[grade]
    if status & MISCV and check.misc:
        details["misc"] = f"{check.misc:#x}"
    if status & ADDRV and check.addr:
        details["address"] = f"{check.addr:#x}"
    if status & UC and not status & EN:
        details["enabled"] = "no: it raised no exception"
    if model_code := status >> 16 & 0xFFFF:
        details["model_specific_code"] = f"{model_code:#06x}"
    return details


def _paddr(check: MachineCheck) -> int | None:
    """Return the address where it is a physical one, without the bits that are not valid."""
    if not check.status & ADDRV or not check.addr:
        return None
    if check.status & MISCV:
        mode = check.misc >> 6 & 7
        if mode not in {_PHYSICAL, _MEMORY}:
            return None
        low = check.misc & 0x3F
        return check.addr >> low << low
    return check.addr


def _memory_controller(check: MachineCheck, hints: set[str], details: dict[str, str]) -> None:
    code = check.status >> 16 & 0xFFFF
    if check.family == 6 and check.model in {0x55, 0x6A, 0x6C} and code in _MEMORY_MSCOD:
        details["model_specific_code"] = f"{code:#06x}: {_MEMORY_MSCOD[code]}"
        if code in {0x0001, 0x0200, 0x0400}:
            hints.add("command-address")
        if code in {0x0008, 0x0010}:
            hints.add("scrub")


def _io_device(check: MachineCheck, location: dict[str, str]) -> None:
    """Read which PCI device an I/O error names: MISC holds its requester ID (SDM, "I/O MCA")."""
    if check.status & MISCV and check.misc >> 16:
        requester = check.misc >> 16 & 0xFFFF
        segment = check.misc >> 32 & 0xFF
        location["device"] = f"{segment:04x}:{requester >> 8:02x}:{requester >> 3 & 0x1F:02x}.{requester & 7}"
