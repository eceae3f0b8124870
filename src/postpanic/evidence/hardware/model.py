"""What hardware said of itself, as values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = [
    "Confidence",
    "Finding",
    "HardwareError",
    "MachineCheck",
    "Part",
    "Severity",
    "Source",
    "Verdict",
]


class Part(StrEnum):
    """Which part of the machine failed."""

    MEMORY = "memory"
    """A memory module, or the way to it."""
    MEMORY_CONTROLLER = "memory-controller"
    CACHE = "cache"
    TLB = "tlb"
    BUS = "bus"
    """An interconnect between processors, memory and I/O."""
    PROCESSOR = "processor"
    """Inside a core, and not said more exactly."""
    POWER = "power"
    """Power or temperature control."""
    PCIE = "pcie"
    PCI = "pci"
    IO = "io"
    FIRMWARE = "firmware"
    PLATFORM = "platform"
    """Something outside the processor, not said what."""
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """What became of the data; the least first."""

    INFORMATIONAL = "informational"
    CORRECTED = "corrected"
    DEFERRED = "deferred"
    """Uncorrected, found before anybody used the data: it is marked as bad (poisoned)."""
    RECOVERABLE = "recoverable"
    """Uncorrected; the machine can go on without the process or page that was hit."""
    UNCORRECTED = "uncorrected"
    """Uncorrected, and it is not said whether the machine could go on."""
    FATAL = "fatal"

    @property
    def rank(self) -> int:
        """Order of gravity, 0 the least."""
        return list(Severity).index(self)


class Verdict(StrEnum):
    """Where the fault lies."""

    HARDWARE = "hardware"
    FIRMWARE = "firmware"
    SOFTWARE = "software"
    INJECTED = "injected"
    """Somebody made the error on purpose."""
    UNCLEAR = "unclear"


class Confidence(StrEnum):
    """How far the verdict can be trusted."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Source(StrEnum):
    """Who reported it."""

    MACHINE_CHECK = "machine-check"
    APEI = "apei"
    """Firmware, through ACPI: GHES, BERT, or a record of its store (ERST)."""
    EDAC = "edac"
    AER = "aer"
    """A PCI Express port or device."""
    NMI = "nmi"
    ARM = "arm"
    """An arm64 exception: SError or external abort."""
    MEMORY_FAILURE = "memory-failure"
    """The kernel's handling of a bad page."""
    THERMAL = "thermal"


class MachineCheck(msgspec.Struct, frozen=True, kw_only=True):
    """
    One x86 machine check: ``struct mce`` (arch/x86/include/uapi/asm/mce.h), whole or as far as a text shows it.

    Parameters
    ----------
    status, misc, addr, mcgstatus, ip, tsc : int
        ``u64``; the registers. A register that is not valid is 0.
    time_s : int
        Seconds since 1970; 0: not known.
    vendor : int, optional
        The kernel's ``X86_VENDOR_*``: 0 Intel, 2 AMD, 9 Hygon, 10 Zhaoxin.
    cpuid : int
        ``CPUID`` leaf 1, EAX: family, model and stepping; 0: not known.
    bank, cpu : int
        A bank of -1 is not known; bank 255 is the kernel's own, made of firmware's record.
    socket, apic : int, optional
    mcgcap, synd, ipid, ppin, microcode : int
        0: not known or not there.
    cs : int
    severity : int
        The kernel's own grade; 0: not known.
    inject_flags : int
        Not 0: made by mce-inject.
    """

    status: int
    misc: int = 0
    addr: int = 0
    mcgstatus: int = 0
    ip: int = 0
    tsc: int = 0
    time_s: int = 0
    vendor: int | None = None
    cpuid: int = 0
    bank: int = 0
    cpu: int = 0
    socket: int | None = None
    apic: int | None = None
    mcgcap: int = 0
    synd: int = 0
    ipid: int = 0
    ppin: int = 0
    microcode: int = 0
    cs: int = 0
    severity: int = 0
    inject_flags: int = 0

    @property
    def family(self) -> int:
        """The processor's family, with the extended family; 0: not known."""
        family = self.cpuid >> 8 & 0xF
        return family + (self.cpuid >> 20 & 0xFF) if family == 0xF else family

    @property
    def model(self) -> int:
        """The processor's model, with the extended model."""
        return (self.cpuid >> 4 & 0xF) | (self.cpuid >> 12 & 0xF0)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a record says, before anybody judges it.

    Parameters
    ----------
    part : Part
    severity : Severity
    what : str
        One line: the error in words.
    unit : str
        The unit that found it, more exactly than the part: a bank's name, a device.
    location : dict
        Where the failed part is, by the names of the source: ``socket``, ``channel``, ``dimm``, ``rank``, ``bank``,
        ``row``, ``column``, ``device`` …
    paddr : int, optional
        Physical address that was hit.
    details : dict
        Further facts by name.
    hints : frozenset of str
        What the verdict rests on: words that :mod:`postpanic.evidence.hardware.verdict` knows.
    """

    part: Part
    severity: Severity
    what: str
    unit: str = ""
    location: dict[str, str] = {}
    paddr: int | None = None
    details: dict[str, str] = {}
    hints: frozenset[str] = frozenset()


class HardwareError(msgspec.Struct, frozen=True, kw_only=True):
    """
    One error that hardware or firmware reported.

    Parameters
    ----------
    source : Source
    part : Part
    severity : Severity
    what : str
        One line: the error in words.
    unit : str
    location : dict
        See :class:`Finding`.
    paddr : int, optional
        Physical address that was hit.
    cpu : int, optional
        The CPU that reported it, which need not be the part that failed.
    details : dict
    verdict : Verdict
    confidence : Confidence
    reason : str
        What the verdict rests on.
    advice : str
        What to do.
    count : int
        How many errors this report stands for.
    is_panic : bool
        Whether the kernel panicked over it.
    machine_check : MachineCheck, optional
        The registers.
    time_s : float, optional
        Of the message, seconds since the kernel started.
    offset, end : int
        Bytes of the text that it was made from.
    lines : tuple of str
        Its messages.
    """

    source: Source
    part: Part
    severity: Severity
    what: str
    unit: str = ""
    location: dict[str, str] = {}
    paddr: int | None = None
    cpu: int | None = None
    details: dict[str, str] = {}
    verdict: Verdict = Verdict.UNCLEAR
    confidence: Confidence = Confidence.LOW
    reason: str = ""
    advice: str = ""
    count: int = 1
    is_panic: bool = False
    machine_check: MachineCheck | None = None
    time_s: float | None = None
    offset: int = 0
    end: int = 0
    lines: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The failed part's place in one line, as ``socket 0, channel 2, dimm 1``."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.location.items())
