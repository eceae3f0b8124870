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

__all__ = ["Judgement", "judge", "make_error"]

_HIGH, _MEDIUM, _LOW = Confidence.HIGH, Confidence.MEDIUM, Confidence.LOW


class Judgement(msgspec.Struct, frozen=True):
    """A verdict with its grounds."""

    verdict: Verdict
    confidence: Confidence
    reason: str
    advice: str


class _Rule(msgspec.Struct, frozen=True):
    """
    What a hint means.

    ``{place}`` in the advice is the failed part's name. ``corrected`` is the advice where the data was saved.
    """

    hint: str
    verdict: Verdict
    confidence: Confidence
    reason: str
    advice: str
    corrected: str = ""


_RULES = (
    _Rule(
        "injected",
        Verdict.INJECTED,
        _HIGH,
        "the record is marked as made on purpose, or an injection interface was at work",
        "nothing is broken; find out who tests this machine",
    ),
    _Rule(
        "not-valid",
        Verdict.UNCLEAR,
        _LOW,
        "the bank's valid bit is not set: its other bits mean nothing",
        "look for other records of the same time",
    ),
    _Rule(
        "no-error",
        Verdict.UNCLEAR,
        _LOW,
        "the bank says that there was no error",
        "look for other records of the same time",
    ),
    _Rule(
        "page-size-change",
        Verdict.SOFTWARE,
        _MEDIUM,
        "this code is what processors with the page-size erratum (iTLB multihit, CVE-2018-12207) report when a page "
        "changes its size without an invalidation, which a guest can do on purpose",
        "update the kernel and keep kvm.nx_huge_pages on; update the microcode; if it comes back without guests, "
        "suspect the processor",
    ),
    _Rule(
        "erratum-btb",
        Verdict.UNCLEAR,
        _MEDIUM,
        "some models report this error by a known erratum, without any effect; the kernel hides it there",
        "update the microcode (BIOS); a newer kernel filters it",
    ),
    _Rule(
        "gart",
        Verdict.SOFTWARE,
        _MEDIUM,
        "the graphics address table has no entry for an address that was used: a matter of the driver that fills it",
        "update the graphics driver and the BIOS; the error does no harm by itself",
    ),
    _Rule(
        "smm",
        Verdict.FIRMWARE,
        _HIGH,
        "only the BIOS's own management code can cause it",
        "update the BIOS, and report it to the vendor",
    ),
    _Rule(
        "firmware",
        Verdict.FIRMWARE,
        _MEDIUM,
        "the firmware refers to an error record of its own",
        "read the record with the vendor's tool; update the BIOS and the management controller",
    ),
    _Rule(
        "unmapped",
        Verdict.SOFTWARE,
        _LOW,
        "an address was used that nothing answers to; a driver or the BIOS may have set it up wrongly",
        "look at the driver that ran, and at what the BIOS assigned; update both",
    ),
    _Rule(
        "software-access",
        Verdict.SOFTWARE,
        _LOW,
        "an access was refused, which is a matter of how software or firmware set the protection up",
        "look at what ran (virtualisation, DMA, firmware); update the BIOS",
    ),
    _Rule(
        "command-address",
        Verdict.HARDWARE,
        _HIGH,
        "the lines between memory controller and module carried a wrong signal (parity or CRC)",
        "reseat {place}; if it comes back, replace the module, then suspect slot, board and processor socket",
        "watch {place}; reseat it when it comes back",
    ),
    _Rule(
        "poison",
        Verdict.HARDWARE,
        _MEDIUM,
        "the data was marked as bad earlier: this is where it was used, not where it went bad",
        "find the first report (memory controller, cache) of this address and act on that; else test the memory",
    ),
    _Rule(
        "memory",
        Verdict.HARDWARE,
        _HIGH,
        "the memory's error correction found bits that had changed; software cannot cause that",
        "replace {place}; until then take the page off-line, and test the memory",
        "watch the count: a few single errors are normal, many in one place mean: replace {place}",
    ),
    _Rule(
        "cache",
        Verdict.HARDWARE,
        _HIGH,
        "parity or error correction of the processor's own arrays failed; software cannot cause that",
        "replace {processor} if it comes back; before that update the microcode (BIOS), take back overclocking, "
        "and check power and cooling",
        "watch the count; replace {processor} when it grows",
    ),
    _Rule(
        "tlb",
        Verdict.HARDWARE,
        _HIGH,
        "an address cache of the processor failed its parity check or answered twice",
        "replace {processor} if it comes back; before that update the microcode (BIOS)",
        "watch the count; replace {processor} when it grows",
    ),
    _Rule(
        "pcie-signal",
        Verdict.HARDWARE,
        _HIGH,
        "the link's own checksums or the receiver found wrong signals; software cannot cause that",
        "reseat or replace {place}, its cable or riser; try another slot or a lower link speed",
        "reseat {place} when it goes on; power saving of the link (pcie_aspm=off) is worth a try",
    ),
    _Rule(
        "pcie-internal",
        Verdict.HARDWARE,
        _MEDIUM,
        "the device reports an error inside itself",
        "update the firmware of {place}; replace it if it comes back",
    ),
    _Rule(
        "pcie-poison",
        Verdict.HARDWARE,
        _MEDIUM,
        "data arrived that its sender had marked as bad: the fault is where it came from",
        "look for memory or cache errors of the same time; else suspect {place}",
    ),
    _Rule(
        "pcie-malformed",
        Verdict.HARDWARE,
        _MEDIUM,
        "a packet broke the rules of the bus: hardware or firmware of the sender makes such packets",
        "update the firmware of {place} and the BIOS; check the payload size; replace it if it goes on",
    ),
    _Rule(
        "pcie-timeout",
        Verdict.UNCLEAR,
        _LOW,
        "a device did not answer: it may be dead, hung by its firmware, switched off by its driver, or gone",
        "look at what the driver of {place} did before; update driver and firmware, then try another slot or device",
    ),
    _Rule(
        "pcie-down",
        Verdict.UNCLEAR,
        _LOW,
        "the link went down unexpectedly: the device was pulled, lost its power, or reset itself",
        "check power and seating of {place}, and whether somebody pulled it",
    ),
    _Rule(
        "pcie-unsupported",
        Verdict.SOFTWARE,
        _LOW,
        "a device refused a request that it does not know, as when a driver or the BIOS uses an address or register "
        "that is not there",
        "update the driver of {place} and the BIOS; harmless when it only comes while devices are looked for",
    ),
    _Rule(
        "pcie-acs",
        Verdict.SOFTWARE,
        _MEDIUM,
        "a transfer broke the access rules that were configured for the device",
        "look at the pass-through and IOMMU set-up of {place}",
    ),
    _Rule(
        "pcie-advisory",
        Verdict.UNCLEAR,
        _LOW,
        "the device only advises of an error that somebody else handles",
        "look for the uncorrectable bits of the same device",
    ),
    _Rule(
        "thermal",
        Verdict.HARDWARE,
        _MEDIUM,
        "the temperature went over the limit",
        "check fans, dust, heat sink and the room",
    ),
    _Rule(
        "timer",
        Verdict.UNCLEAR,
        _LOW,
        "the processor waited in vain for an instruction to end: mostly for a device or memory that did not answer, "
        "which hardware, firmware and drivers can cause",
        "look for PCIe and bus errors of the same time; update BIOS, microcode and the driver that ran; then suspect "
        "{processor} and the board",
    ),
    _Rule(
        "watchdog",
        Verdict.UNCLEAR,
        _LOW,
        "a watchdog found the machine hung, which says nothing of the cause",
        "look at the backtraces, and at the management controller's event log",
    ),
    _Rule(
        "timeout",
        Verdict.HARDWARE,
        _LOW,
        "a request on the bus was not answered in time",
        "look for the device or memory that was addressed; update the BIOS; then suspect board and {processor}",
    ),
    _Rule(
        "io",
        Verdict.HARDWARE,
        _LOW,
        "an error came in from I/O; a device, its link or its driver may be at fault",
        "look for PCIe (AER) messages and at the management controller's log; act on {place}",
    ),
    _Rule(
        "pcie",
        Verdict.HARDWARE,
        _LOW,
        "a PCI Express device or port reported an error without saying which",
        "look for the device's own messages; reseat {place}; update its firmware",
    ),
    _Rule(
        "serr",
        Verdict.HARDWARE,
        _MEDIUM,
        "a PCI device or the chipset signalled a system or parity error",
        "look at the management controller's event log for the slot; reseat or replace the card",
    ),
    _Rule(
        "iock",
        Verdict.HARDWARE,
        _LOW,
        "an I/O device raised the check line (IOCHK#)",
        "look at the management controller's event log; take cards out one by one",
    ),
    _Rule(
        "nmi-unknown",
        Verdict.UNCLEAR,
        _LOW,
        "nobody knows where the NMI came from: a button, the management controller, a hypervisor, a device or a "
        "profiler may have sent it",
        "look at the management controller's event log of that time",
    ),
    _Rule(
        "arm-ras",
        Verdict.HARDWARE,
        _MEDIUM,
        "the processor's RAS extension classified the error, so that hardware found it",
        "read the firmware's records (APEI, BERT) of the same time; replace what they name",
    ),
    _Rule(
        "arm-abort",
        Verdict.UNCLEAR,
        _LOW,
        "something outside of the processor refused an access: a device without clock or power, an address that "
        "nothing answers to (driver, device tree), or bad memory",
        "look at the driver that ran and at the address; with ECC memory look at the firmware's records too",
    ),
    _Rule(
        "external",
        Verdict.HARDWARE,
        _LOW,
        "the error was signalled from outside of the processor",
        "look at the records of the other processors, the chipset and the management controller",
    ),
    _Rule(
        "bus",
        Verdict.HARDWARE,
        _MEDIUM,
        "the interconnect found an error in what it carried",
        "update the BIOS; reseat {processor} and the modules next to it; then suspect the board",
        "watch the count; update the BIOS",
    ),
    _Rule(
        "internal",
        Verdict.HARDWARE,
        _MEDIUM,
        "the processor found an error inside itself",
        "update the microcode (BIOS), take back overclocking, check power and cooling; replace {processor} if it comes "
        "back",
        "watch the count; update the microcode (BIOS)",
    ),
    _Rule(
        "memory-page",
        Verdict.HARDWARE,
        _MEDIUM,
        "the kernel was told that the page is bad",
        "act on the report that named the page; test the memory",
    ),
)
_ELSE = Judgement(
    Verdict.HARDWARE,
    _LOW,
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
    rule = next((rule for rule in _RULES if rule.hint in finding.hints), None)
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
