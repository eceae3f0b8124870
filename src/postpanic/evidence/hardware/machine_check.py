"""What a machine check says: the vendor's reading of its registers."""

from __future__ import annotations

import msgspec

from postpanic.evidence.hardware import amd, intel
from postpanic.evidence.hardware.model import Finding, MachineCheck
from postpanic.evidence.hardware.status import UC, is_amd

__all__ = ["VENDORS", "interpret"]

VENDORS = {
    0: "Intel",
    1: "Cyrix",
    2: "AMD",
    3: "UMC",
    5: "Centaur",
    7: "Transmeta",
    8: "NSC",
    9: "Hygon",
    10: "Zhaoxin",
    11: "Vortex",
}
"""``X86_VENDOR_*`` of arch/x86/include/asm/processor.h."""

_FIRMWARE_BANK = 255
_MCIP = 1 << 2
"""MCG_STATUS: a machine check exception is being handled."""


def interpret(check: MachineCheck) -> Finding:
    """
    Say which part failed and what became of the data, by the registers of one bank.

    Without a vendor the architectural codes are taken as Intel defines them, unless the record has registers that
    only AMD has. Zhaoxin and Centaur follow Intel.
    """
    is_of_amd = is_amd(check.vendor) or (check.vendor is None and check.ipid)
    # Bank 255 is the kernel's own, made of firmware's record of a memory error: with Intel's code on any processor.
    is_of_amd = is_of_amd and check.bank != _FIRMWARE_BANK
    finding = amd.interpret(check) if is_of_amd else intel.interpret(check)
    if check.time_s and check.status & UC and not check.mcgstatus & _MCIP and not check.tsc:
        # Banks keep their contents over a warm reset, and the kernel reads them when it starts, without a time stamp.
        when = "found in the bank, not signalled: as a rule at start-up, from before the reset"
        finding = msgspec.structs.replace(finding, details={**finding.details, "when": when})
    return finding
