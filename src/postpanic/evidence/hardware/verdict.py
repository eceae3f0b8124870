"""
Hardware or software: the verdict on an error, its reason, and what to do.

The rules are tried in order; the first whose hint the finding carries decides.
An error that an ECC, a parity bit or a link's own checksum found is hardware's.
What a device or an address did not answer, or what was refused, may be either's:
there the verdict says so instead of guessing.
"""

from __future__ import annotations

import msgspec

from postpanic.evidence.hardware.model import (
    Confidence,
    Finding,
    HardwareError,
    MachineCheck,
    Part,
    Severity,
    Source,
    Verdict,
)
from postpanic.evidence.hardware.verdict_rules import RULES

__all__ = ["Judgement", "judge", "make_error"]


class Judgement(msgspec.Struct, frozen=True):
    """A verdict with its grounds."""

    verdict: Verdict
    confidence: Confidence
    reason: str
    advice: str


_ELSE = Judgement(
    Verdict.HARDWARE,
    Confidence.LOW,
    "hardware or firmware reported it, without a code that says more",
    "look for further records of the same time, and at the management controller's event log",
)


def judge(finding: Finding, *, is_guest: bool = False) -> Judgement:
    """
    Say whether hardware or software is at fault.

    Parameters
    ----------
    finding : Finding
    is_guest : bool
        Whether the machine is a virtual one, whose hardware errors are the host's.
    """
    rule = next((rule for rule in RULES if rule.hint in finding.hints), None)
    if rule is None:
        return _ELSE
    is_saved = finding.severity in {Severity.CORRECTED, Severity.INFORMATIONAL} and rule.corrected
    advice = (rule.corrected if is_saved else rule.advice).format(
        place=_name_of(finding), processor=_processor_of(finding)
    )
    reason = rule.reason
    if is_guest and rule.verdict is not Verdict.INJECTED:
        reason += "; this is a virtual machine, so that its host was hit, or made the error up"
        advice = f"on the host: {advice}"
    return Judgement(rule.verdict, rule.confidence, reason, advice)


def make_error(
    source: Source,
    finding: Finding,
    *,
    is_guest: bool = False,
    machine_check: MachineCheck | None = None,
    cpu: int | None = None,
    count: int = 1,
) -> HardwareError:
    """Join a finding and the verdict on it; where it stood in a text is left to the caller."""
    judgement = judge(finding, is_guest=is_guest)
    return HardwareError(
        source=source,
        part=finding.part,
        severity=finding.severity,
        what=finding.what,
        unit=finding.unit,
        location=finding.location,
        paddr=finding.paddr,
        cpu=cpu,
        details=finding.details,
        verdict=judgement.verdict,
        confidence=judgement.confidence,
        reason=judgement.reason,
        advice=judgement.advice,
        count=count,
        machine_check=machine_check,
    )


_MODULE = {Part.MEMORY, Part.MEMORY_CONTROLLER}
_MODULE_NAMES = ("dimm_label", "dimm", "module_name", "fru")


def _name_of(finding: Finding) -> str:
    location = finding.location
    for name in _MODULE_NAMES:
        if location.get(name):
            return f"memory module {location[name]}" if finding.part in _MODULE else location[name]
    if finding.part in _MODULE:
        place = ", ".join(
            f"{name.replace('_', ' ')} {location[name]}"
            for name in ("socket", "node", "card", "module", "channel", "chip_select", "rank")
            if name in location
        )
        return f"the memory module at {place}" if place else "the memory module"
    if "device" in location:
        return f"the device {location['device']}"
    return "the device" if finding.part in {Part.PCIE, Part.PCI, Part.IO} else "the part"


def _processor_of(finding: Finding) -> str:
    socket = finding.location.get("socket")
    return f"the processor in socket {socket}" if socket is not None else "the processor"
