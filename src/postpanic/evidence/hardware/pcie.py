"""
PCI Express Advanced Error Reporting: the bits, and what each means.

References
----------
PCI Express Base Specification, "Advanced Error Reporting Extended Capability";
include/uapi/linux/pci_regs.h; drivers/pci/pcie/aer.c ``aer_correctable_error_string``.
"""

from __future__ import annotations

from postpanic.evidence.hardware.model import Finding, Part, Severity

__all__ = ["CORRECTABLE", "UNCORRECTABLE", "bits_of", "make_finding"]

UNCORRECTABLE: dict[int, tuple[str, str, str]] = {
    4: ("DLP", "data link protocol error", "pcie-signal"),
    5: ("SDES", "surprise link down", "pcie-down"),
    12: ("TLP", "poisoned packet", "pcie-poison"),
    13: ("FCP", "flow control protocol error", "pcie-signal"),
    14: ("CmpltTO", "completion timeout", "pcie-timeout"),
    15: ("CmpltAbrt", "completer abort", "pcie-unsupported"),
    16: ("UnxCmplt", "unexpected completion", "pcie-malformed"),
    17: ("RxOF", "receiver overflow", "pcie-malformed"),
    18: ("MalfTLP", "malformed packet", "pcie-malformed"),
    19: ("ECRC", "end-to-end checksum error", "pcie-signal"),
    20: ("UnsupReq", "unsupported request", "pcie-unsupported"),
    21: ("ACSViol", "access control violation", "pcie-acs"),
    22: ("UncorrIntErr", "uncorrectable internal error", "pcie-internal"),
    23: ("BlockedTLP", "multicast packet blocked", "pcie-acs"),
    24: ("AtomicOpBlocked", "atomic operation blocked", "pcie-unsupported"),
    25: ("TLPBlockedErr", "packet prefix blocked", "pcie-malformed"),
    26: ("PoisonTLPBlocked", "poisoned packet blocked", "pcie-poison"),
}
"""Bits of the uncorrectable status: the kernel's short name, words, the verdict's hint."""

CORRECTABLE: dict[int, tuple[str, str, str]] = {
    0: ("RxErr", "receiver error", "pcie-signal"),
    6: ("BadTLP", "packet with a wrong checksum", "pcie-signal"),
    7: ("BadDLLP", "link packet with a wrong checksum", "pcie-signal"),
    8: ("Rollover", "the same packet was sent again too often", "pcie-signal"),
    12: ("Timeout", "replay timer timeout", "pcie-signal"),
    13: ("NonFatalErr", "advisory non-fatal error", "pcie-advisory"),
    14: ("CorrIntErr", "corrected internal error", "pcie-internal"),
    15: ("HeaderOF", "header log overflow", "pcie-advisory"),
}
"""Bits of the correctable status."""

# The hint of the gravest cause decides where several bits are set.
_ORDER = (
    "pcie-down",
    "pcie-internal",
    "pcie-signal",
    "pcie-malformed",
    "pcie-poison",
    "pcie-timeout",
    "pcie-acs",
    "pcie-unsupported",
    "pcie-advisory",
)


def bits_of(status: int, *, is_correctable: bool) -> list[tuple[str, str, str]]:
    """
    List the errors that a status register names: short name, words, hint.

    >>> [name for name, _, _ in bits_of(0x00100000, is_correctable=False)]
    ['UnsupReq']
    """
    table = CORRECTABLE if is_correctable else UNCORRECTABLE
    return [entry for bit, entry in table.items() if status >> bit & 1]


def make_finding(
    severity: Severity,
    device: str,
    status: int | None,
    *,
    mask: int = 0,
    is_correctable: bool | None = None,
    location: dict[str, str] | None = None,
    details: dict[str, str] | None = None,
) -> Finding:
    """
    Say what an AER status means.

    Parameters
    ----------
    severity : Severity
    device : str
        ``segment:bus:device.function`` of who reported it.
    status : int, optional
        Correctable or uncorrectable status register; None: not known.
    mask : int
        Errors that are not to be reported; they are counted only if nothing else is set.
    is_correctable : bool, optional
        Which of the registers it is; None: by the severity.
    """
    correctable = severity is Severity.CORRECTED if is_correctable is None else is_correctable
    errors = bits_of((status or 0) & ~mask, is_correctable=correctable) or bits_of(
        status or 0, is_correctable=correctable
    )
    hints = {hint for _, _, hint in errors}
    decisive = next((hint for hint in _ORDER if hint in hints), "pcie")
    words = ", ".join(words for _, words, _ in errors) or "error that is not named"
    found = dict(details or {})
    if status is not None:
        found["aer_status"] = f"{status:#010x}"
        found["aer_mask"] = f"{mask:#010x}"
    if errors:
        found["aer_errors"] = " ".join(name for name, _, _ in errors)
    return Finding(
        part=Part.PCIE,
        severity=severity,
        what=f"PCI Express: {words}" + (f", reported by {device}" if device else ""),
        unit=device,
        location={**({"device": device} if device else {}), **(location or {})},
        details=found,
        hints=frozenset({decisive}),
    )
