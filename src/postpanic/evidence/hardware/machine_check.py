"""What a machine check says: the vendor's reading of its registers."""

from __future__ import annotations

from postpanic.evidence.hardware import amd, intel
from postpanic.evidence.hardware.model import Finding, MachineCheck
from postpanic.evidence.hardware.status import is_amd

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


def interpret(check: MachineCheck) -> Finding:
    """
    Say which part failed and what became of the data, by the registers of one bank.

    Without a vendor the architectural codes are taken as Intel defines them, unless the record has registers that
    only AMD has. Zhaoxin and Centaur follow Intel.
    """
    if is_amd(check.vendor) or (check.vendor is None and check.ipid):
        return amd.interpret(check)
    return intel.interpret(check)
