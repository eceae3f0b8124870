"""
MCi_STATUS: the bits that all x86 vendors share, and the words of the compound error codes.

References
----------
Intel SDM volume 3, "IA32_MCi_STATUS MSRs"; AMD64 Architecture Programmer's Manual volume 2, "MCi_STATUS";
arch/x86/include/asm/mce.h.
"""

from __future__ import annotations

__all__ = [
    "ADDRV",
    "BUS_PARTICIPATION",
    "DEFERRED",
    "EN",
    "LEVELS",
    "MISCV",
    "OVER",
    "PCC",
    "POISON",
    "REQUESTS",
    "SYNDV",
    "TCC",
    "TRANSACTIONS",
    "UC",
    "VAL",
    "flag_names",
    "is_amd",
]

VAL, OVER, UC, EN, MISCV, ADDRV, PCC = (1 << bit for bit in range(63, 56, -1))
TCC, SYNDV, CECC, UECC, DEFERRED, POISON, SCRUB = (1 << bit for bit in (55, 53, 46, 45, 44, 43, 40))
"""AMD's: task context corrupt, syndrome valid, (un)correctable ECC, deferred, poison consumed, found by scrubbing."""

AMD_VENDORS = frozenset({2, 9})
"""``X86_VENDOR_AMD`` and ``X86_VENDOR_HYGON``."""

LEVELS = ("L0", "L1", "L2", "generic level")
TRANSACTIONS = ("instruction", "data", "generic", "unknown transaction")
REQUESTS = {
    0: "generic error",
    1: "generic read",
    2: "generic write",
    3: "data read",
    4: "data write",
    5: "instruction fetch",
    6: "prefetch",
    7: "eviction",
    8: "snoop",
}
BUS_PARTICIPATION = (
    "this processor made the request",
    "this processor responded",
    "this processor observed it as a third party",
    "generic participation",
)

_SHARED = ((VAL, "VAL"), (OVER, "OVER"), (UC, "UC"), (EN, "EN"), (MISCV, "MISCV"), (ADDRV, "ADDRV"), (PCC, "PCC"))
_INTEL = ((1 << 56, "S"), (1 << 55, "AR"))
_AMD = (
    (TCC, "TCC"),
    (SYNDV, "SYNDV"),
    (CECC, "CECC"),
    (UECC, "UECC"),
    (DEFERRED, "DEFERRED"),
    (POISON, "POISON"),
    (SCRUB, "SCRUB"),
)


def is_amd(vendor: int | None) -> bool:
    """Tell whether a vendor's banks are AMD's."""
    return vendor in AMD_VENDORS


def flag_names(status: int, vendor: int | None) -> str:
    """
    Name the flags that are set in a status register.

    >>> flag_names(0xBE00000000800400, 0)
    'VAL UC EN MISCV ADDRV PCC'
    >>> flag_names(0xDC2040000000011B, 2)
    'VAL OVER EN MISCV ADDRV SYNDV CECC'
    """
    flags = (*_SHARED, *(_AMD if is_amd(vendor) else _INTEL if status & UC else ()))
    return " ".join(name for bit, name in flags if status & bit)
