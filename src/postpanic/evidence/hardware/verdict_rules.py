"""
What a hint of a finding means: hardware or software, why, and what to do.

The rules are tried in order; the first whose hint a finding carries decides.
"""

from __future__ import annotations

import msgspec

from postpanic.evidence.hardware.model import Confidence, Verdict

__all__ = ["RULES", "Rule"]

_HIGH, _MEDIUM, _LOW = Confidence.HIGH, Confidence.MEDIUM, Confidence.LOW


class Rule(msgspec.Struct, frozen=True):
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


RULES = (
    Rule(
        "injected",
        Verdict.INJECTED,
        _HIGH,
        "the record is marked as made on purpose, or an injection interface was at work",
        "nothing is broken; find out who tests this machine",
    ),
    Rule(
        "not-valid",
        Verdict.UNCLEAR,
        _LOW,
        "the bank's valid bit is not set: its other bits mean nothing",
        "look for other records of the same time",
    ),
    Rule(
        "no-error",
        Verdict.UNCLEAR,
        _LOW,
        "the bank says that there was no error",
        "look for other records of the same time",
    ),
    Rule(
        "page-size-change",
        Verdict.SOFTWARE,
        _MEDIUM,
        "this code is what processors with the page-size erratum (iTLB multihit, CVE-2018-12207) report when a page "
        "changes its size without an invalidation, which a guest can do on purpose",
        "update the kernel and keep kvm.nx_huge_pages on; update the microcode; if it comes back without guests, "
        "suspect the processor",
    ),
    Rule(
        "erratum-btb",
        Verdict.UNCLEAR,
        _MEDIUM,
        "some models report this error by a known erratum, without any effect; the kernel hides it there",
        "update the microcode (BIOS); a newer kernel filters it",
    ),
    Rule(
        "gart",
        Verdict.SOFTWARE,
        _MEDIUM,
        "the graphics address table has no entry for an address that was used: a matter of the driver that fills it",
        "update the graphics driver and the BIOS; the error does no harm by itself",
    ),
    Rule(
        "smm",
        Verdict.FIRMWARE,
        _HIGH,
        "only the BIOS's own management code can cause it",
        "update the BIOS, and report it to the vendor",
    ),
    Rule(
        "firmware",
        Verdict.FIRMWARE,
        _MEDIUM,
        "the firmware refers to an error record of its own",
        "read the record with the vendor's tool; update the BIOS and the management controller",
    ),
    Rule(
        "unmapped",
        Verdict.SOFTWARE,
        _LOW,
        "an address was used that nothing answers to; a driver or the BIOS may have set it up wrongly",
        "look at the driver that ran, and at what the BIOS assigned; update both",
    ),
    Rule(
        "software-access",
        Verdict.SOFTWARE,
        _LOW,
        "an access was refused, which is a matter of how software or firmware set the protection up",
        "look at what ran (virtualisation, DMA, firmware); update the BIOS",
    ),
    Rule(
        "command-address",
        Verdict.HARDWARE,
        _HIGH,
        "the lines between memory controller and module carried a wrong signal (parity or CRC)",
        "reseat {place}; if it comes back, replace the module, then suspect slot, board and processor socket",
        "watch {place}; reseat it when it comes back",
    ),
    Rule(
        "poison",
        Verdict.HARDWARE,
        _MEDIUM,
        "the data was marked as bad earlier: this is where it was used, not where it went bad",
        "find the first report (memory controller, cache) of this address and act on that; else test the memory",
    ),
    Rule(
        "memory",
        Verdict.HARDWARE,
        _HIGH,
        "the memory's error correction found bits that had changed; software cannot cause that",
        "replace {place}; until then take the page off-line, and test the memory",
        "watch the count: a few single errors are normal, many in one place mean: replace {place}",
    ),
    Rule(
        "cache",
        Verdict.HARDWARE,
        _HIGH,
        "parity or error correction of the processor's own arrays failed; software cannot cause that",
        "replace {processor} if it comes back; before that update the microcode (BIOS), take back overclocking, "
        "and check power and cooling",
        "watch the count; replace {processor} when it grows",
    ),
    Rule(
        "tlb",
        Verdict.HARDWARE,
        _HIGH,
        "an address cache of the processor failed its parity check or answered twice",
        "replace {processor} if it comes back; before that update the microcode (BIOS)",
        "watch the count; replace {processor} when it grows",
    ),
    Rule(
        "pcie-signal",
        Verdict.HARDWARE,
        _HIGH,
        "the link's own checksums or the receiver found wrong signals; software cannot cause that",
        "reseat or replace {place}, its cable or riser; try another slot or a lower link speed",
        "reseat {place} when it goes on; power saving of the link (pcie_aspm=off) is worth a try",
    ),
    Rule(
        "pcie-internal",
        Verdict.HARDWARE,
        _MEDIUM,
        "the device reports an error inside itself",
        "update the firmware of {place}; replace it if it comes back",
    ),
    Rule(
        "pcie-poison",
        Verdict.HARDWARE,
        _MEDIUM,
        "data arrived that its sender had marked as bad: the fault is where it came from",
        "look for memory or cache errors of the same time; else suspect {place}",
    ),
    Rule(
        "pcie-malformed",
        Verdict.HARDWARE,
        _MEDIUM,
        "a packet broke the rules of the bus: hardware or firmware of the sender makes such packets",
        "update the firmware of {place} and the BIOS; check the payload size; replace it if it goes on",
    ),
    Rule(
        "pcie-timeout",
        Verdict.UNCLEAR,
        _LOW,
        "a device did not answer: it may be dead, hung by its firmware, switched off by its driver, or gone",
        "look at what the driver of {place} did before; update driver and firmware, then try another slot or device",
    ),
    Rule(
        "pcie-down",
        Verdict.UNCLEAR,
        _LOW,
        "the link went down unexpectedly: the device was pulled, lost its power, or reset itself",
        "check power and seating of {place}, and whether somebody pulled it",
    ),
    Rule(
        "pcie-unsupported",
        Verdict.SOFTWARE,
        _LOW,
        "a device refused a request that it does not know, as when a driver or the BIOS uses an address or register "
        "that is not there",
        "update the driver of {place} and the BIOS; harmless when it only comes while devices are looked for",
    ),
    Rule(
        "pcie-acs",
        Verdict.SOFTWARE,
        _MEDIUM,
        "a transfer broke the access rules that were configured for the device",
        "look at the pass-through and IOMMU set-up of {place}",
    ),
    Rule(
        "pcie-advisory",
        Verdict.UNCLEAR,
        _LOW,
        "the device only advises of an error that somebody else handles",
        "look for the uncorrectable bits of the same device",
    ),
    Rule(
        "thermal",
        Verdict.HARDWARE,
        _MEDIUM,
        "the temperature went over the limit",
        "check fans, dust, heat sink and the room",
    ),
    Rule(
        "timer",
        Verdict.UNCLEAR,
        _LOW,
        "the processor waited in vain for an instruction to end: mostly for a device or memory that did not answer, "
        "which hardware, firmware and drivers can cause",
        "look for PCIe and bus errors of the same time; update BIOS, microcode and the driver that ran; then suspect "
        "{processor} and the board",
    ),
    Rule(
        "watchdog",
        Verdict.UNCLEAR,
        _LOW,
        "a watchdog found the machine hung, which says nothing of the cause",
        "look at the backtraces, and at the management controller's event log",
    ),
    Rule(
        "timeout",
        Verdict.HARDWARE,
        _LOW,
        "a request on the bus was not answered in time",
        "look for the device or memory that was addressed; update the BIOS; then suspect board and {processor}",
    ),
    Rule(
        "io",
        Verdict.HARDWARE,
        _LOW,
        "an error came in from I/O; a device, its link or its driver may be at fault",
        "look for PCIe (AER) messages and at the management controller's log; act on {place}",
    ),
    Rule(
        "pcie",
        Verdict.HARDWARE,
        _LOW,
        "a PCI Express device or port reported an error without saying which",
        "look for the device's own messages; reseat {place}; update its firmware",
    ),
    Rule(
        "serr",
        Verdict.HARDWARE,
        _MEDIUM,
        "a PCI device or the chipset signalled a system or parity error",
        "look at the management controller's event log for the slot; reseat or replace the card",
    ),
    Rule(
        "iock",
        Verdict.HARDWARE,
        _LOW,
        "an I/O device raised the check line (IOCHK#)",
        "look at the management controller's event log; take cards out one by one",
    ),
    Rule(
        "nmi-unknown",
        Verdict.UNCLEAR,
        _LOW,
        "nobody knows where the NMI came from: a button, the management controller, a hypervisor, a device or a "
        "profiler may have sent it",
        "look at the management controller's event log of that time",
    ),
    Rule(
        "arm-ras",
        Verdict.HARDWARE,
        _MEDIUM,
        "the processor's RAS extension classified the error, so that hardware found it",
        "read the firmware's records (APEI, BERT) of the same time; replace what they name",
    ),
    Rule(
        "arm-abort",
        Verdict.UNCLEAR,
        _LOW,
        "something outside of the processor refused an access: a device without clock or power, an address that "
        "nothing answers to (driver, device tree), or bad memory",
        "look at the driver that ran and at the address; with ECC memory look at the firmware's records too",
    ),
    Rule(
        "external",
        Verdict.HARDWARE,
        _LOW,
        "the error was signalled from outside of the processor",
        "look at the records of the other processors, the chipset and the management controller",
    ),
    Rule(
        "bus",
        Verdict.HARDWARE,
        _MEDIUM,
        "the interconnect found an error in what it carried",
        "update the BIOS; reseat {processor} and the modules next to it; then suspect the board",
        "watch the count; update the BIOS",
    ),
    Rule(
        "internal",
        Verdict.HARDWARE,
        _MEDIUM,
        "the processor found an error inside itself",
        "update the microcode (BIOS), take back overclocking, check power and cooling; replace {processor} if it comes "
        "back",
        "watch the count; update the microcode (BIOS)",
    ),
    Rule(
        "broadcast",
        Verdict.UNCLEAR,
        _LOW,
        "not every processor came when one of them had a machine check: one hangs, or firmware holds it (SMM)",
        "look at the management controller's event log, at pstore, and at what the next boot finds in the banks "
        "(Machine Check: 0 Bank …); update BIOS and microcode",
    ),
    Rule(
        "no-registers",
        Verdict.HARDWARE,
        _LOW,
        "the processor had a machine check, but the registers that say which part failed were not printed",
        "look at the management controller's event log, at pstore, and at what the next boot finds in the banks "
        "(Machine Check: 0 Bank …)",
    ),
    Rule(
        "memory-page",
        Verdict.HARDWARE,
        _MEDIUM,
        "the kernel was told that the page is bad",
        "act on the report that named the page; test the memory",
    ),
)
