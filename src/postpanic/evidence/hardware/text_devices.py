"""
What EDAC drivers and PCI Express ports say in kernel messages.

References
----------
drivers/edac/edac_mc.c ``edac_ce_error``, ``edac_ue_error``, edac_pci.c; include/ras/ras_event.h (``mc_event`` as
rasdaemon prints it); drivers/pci/pcie/aer.c ``aer_print_error``, ``pci_print_aer``; err.c.
"""

from __future__ import annotations

import re

from postpanic.evidence.hardware import pcie
from postpanic.evidence.hardware.draft import Draft, Pile
from postpanic.evidence.hardware.model import Finding, Part, Severity, Source
from postpanic.evidence.lines import Line

__all__ = ["AerReader", "EdacReader"]

_EDAC = re.compile(r"EDAC (?:\w{1,20} )?MC ?#?(\d{1,3}): (\d{1,9}) (CE|UE|DE|FE) ")
_EDAC_OLD = re.compile(r"EDAC (?:\w{1,20} )?MC ?#?(\d{1,3}): (CE|UE) (?=.{0,60}?page 0x|row )")
_EDAC_PCI = re.compile(r"EDAC PCI\d{0,3}: ")
_EDAC_PCI_ERROR = re.compile(
    r"(Parity Error|SERR|Master Data Parity|Signaled System Error)\b.{0,40}? on ([0-9a-f:.]{7,12})"
)
_MC_EVENT = re.compile(r"mc_event\b.{0,120}?\b(\d{1,9}) (Corrected|Uncorrected|Deferred|Fatal|Info) errors?:? ?")
_EDAC_WORDS = re.compile(r"\b([A-Za-z_]{2,24}): ?(0x[0-9a-f]{1,16}|[\w.:-]{1,40})")
_OLD_WORDS = re.compile(r"\b(page|offset|grain|syndrome|row|channel) (0x[0-9a-f]{1,16}|\d{1,10})")
_LABEL = re.compile(r"labels? \"([^\"]{1,120})\"")
_SEVERITIES = {
    "CE": Severity.CORRECTED,
    "UE": Severity.UNCORRECTED,
    "DE": Severity.DEFERRED,
    "FE": Severity.FATAL,
    "Corrected": Severity.CORRECTED,
    "Uncorrected": Severity.UNCORRECTED,
    "Deferred": Severity.DEFERRED,
    "Fatal": Severity.FATAL,
    "Info": Severity.INFORMATIONAL,
}
_MC = re.compile(r"\bmc: ?(\d{1,3})")
_OLD_NAMES = {"row": "csrow"}
_NEW_NAMES = {
    "ProcessorSocketId": "socket",
    "PhysicalRankId": "rank",
    "BankGroup": "bank_group",
    "Bank": "bank",
    "Row": "row",
    "Column": "column",
}
"""What newer drivers for Intel's controllers call the places."""
_PLACES = (
    "socket",
    "ha",
    "imc",
    "channel",
    "slot",
    "csrow",
    "rank",
    "bank_group",
    "bank_address",
    "bank",
    "row",
    "column",
    "col",
)
_DETAILS = ("grain", "syndrome", "area", "err_code", "retry_rd_err_log", "channel_mask")


class EdacReader:
    """Reads what EDAC drivers and rasdaemon say of memory; each is one line."""

    def __init__(self, pile: Pile) -> None:
        self._pile = pile

    def take(self, line: Line, text: str, inside: Draft | None = None) -> bool:
        """
        Read a message.

        Parameters
        ----------
        line : Line
        text : str
        inside : Draft, optional
            The machine check in the middle of which the message stands; its place is told here.

        Returns
        -------
        bool
            Whether it is an error of memory or of PCI parity.
        """
        if (match := _EDAC.search(text)) is not None:
            return self._add(line, match[3], int(match[2]), match[1], _parts(text[match.end() :]), inside)
        if (match := _MC_EVENT.search(text)) is not None:
            parts = _parts(text[match.end() :])
            number = _MC.search(parts[2])
            return self._add(line, match[2], int(match[1]), number[1] if number else "", parts, None)
        if (match := _EDAC_OLD.search(text)) is not None:
            label = _LABEL.search(text, match.end())
            words = " ".join(f"{_OLD_NAMES.get(name, name)}:{value}" for name, value in _OLD_WORDS.findall(text))
            return self._add(line, match[2], 1, match[1], ("", label[1] if label else "", words), None)
        if _EDAC_PCI.search(text) is not None and (match := _EDAC_PCI_ERROR.search(text)) is not None:
            draft = Draft(Source.EDAC, line)
            draft.finding = Finding(
                part=Part.PCI,
                severity=Severity.UNCORRECTED,
                what=f"PCI: {match[1].lower()}, {match[2]}",
                unit=match[2],
                location={"device": match[2]},
                hints=frozenset({"serr"}),
            )
            self._pile.add(draft)
            return True
        return False

    def _add(
        self, line: Line, grade: str, count: int, controller: str, parts: tuple[str, str, str], inside: Draft | None
    ) -> bool:
        what, label, places = parts
        words = {_NEW_NAMES.get(name, name): value for name, value in _EDAC_WORDS.findall(places)}
        location = {"dimm": label} if _is_label(label) else {}
        if controller:
            location["controller"] = controller
        location |= {name: words[name] for name in _PLACES if name in words}
        paddr = _paddr(words)
        # The same error in the processor's own words came just before: its place is told here.
        earlier = inside or (self._pile.with_page(paddr >> 12) if paddr else None)
        if earlier is not None and earlier.source is not Source.EDAC and "controller" not in earlier.location:
            earlier.location |= location
            earlier.paddr = paddr if inside is not None else None
            earlier.keep(line)
            return True
        severity = _SEVERITIES[grade]
        scrub = {"scrub"} if "scrub" in what else set()
        draft = Draft(Source.EDAC, line)
        draft.count = max(count, 1)
        draft.finding = Finding(
            part=Part.MEMORY,
            severity=severity,
            what=f"memory: {what or 'error'}" + (f" at {label}" if _is_label(label) else ""),
            unit=f"memory controller {controller}" if controller else "",
            location=location,
            paddr=paddr,
            details={name: words[name] for name in _DETAILS if name in words},
            hints=frozenset({"command-address" if "address/command" in what.lower() else "memory", *scrub}),
        )
        self._pile.add(draft)
        return True


def _parts(text: str) -> tuple[str, str, str]:
    """Split ``memory read error on LABEL (place)`` into its three parts."""
    what, _, rest = text.removeprefix("on ").partition(" on ") if not text.startswith("on ") else ("", "", text[3:])
    label, _, places = rest.partition(" (")
    return what.strip()[:200], label.strip()[:200], places[:600]


def _is_label(label: str) -> bool:
    return bool(label.strip(' :"')) and "unknown" not in label and label != "any memory"


def _paddr(words: dict[str, str]) -> int | None:
    page, offset = _number(words.get("page", "")), _number(words.get("offset", ""))
    if page:
        return (page << 12 | (offset or 0)) & (1 << 64) - 1
    address = _number(words.get("address", ""))
    return address or None


def _number(text: str) -> int | None:
    try:
        return int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        return None


_BDF = r"([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
_BUS_ERROR = re.compile(
    r"(?:([\w.-]{1,32}) )?"
    + _BDF
    + r": (?:AER: )?(?:PCIe Bus Error: )?severity[=:] ?([\w ()-]{1,40}?), type[=:] ?([\w ]{1,40}), ?(?:id=\w{1,8})?"
    r"(?:\(([\w ]{1,40})\))?"
)
_STATUS = re.compile(
    _BDF + r": (?:AER: )? {0,4}device \[([0-9a-f]{4}):([0-9a-f]{4})\] error status/mask=([0-9a-f]{8})/([0-9a-f]{8})"
)
_APEI_STATUS = re.compile(_BDF + r": (?:AER: )?aer_status: 0x([0-9a-f]{8}), aer_mask: 0x([0-9a-f]{8})")
_LAYER = re.compile(_BDF + r": (?:AER: )?aer_layer=([\w ]{1,40}), aer_agent=([\w ]{1,40})")
_UNCOR = re.compile(_BDF + r": (?:AER: )?aer_uncor_severity: 0x([0-9a-f]{8})")
_BIT = re.compile(_BDF + r": (?:AER: )? {0,4}\[ {0,2}(\d{1,2})\] \w{1,20} {0,24}(\(First\))?")
_TLP = re.compile(_BDF + r": (?:AER: )? {0,4}TLP Header:? ((?:(?:0x)?[0-9a-f]{8} ?){4})")
_RECEIVED = re.compile(
    _BDF + r": AER: (Multiple )?(Corrected|Correctable|Uncorrected|Uncorrectable)(?: \((Non-Fatal|Fatal)\))? error "
    r"(?:message )?received"
)
_RECOVERY = re.compile(_BDF + r": AER: (?:device|subordinate device|Downstream devices?).{0,40}(successful|failed)")
_AER_EVENT = re.compile(r"aer_event\b.{0,120}?" + _BDF + r" (.{0,60})")


class _Port:
    """What a device said last."""

    __slots__ = ("draft", "driver", "layer", "role", "severity", "status")

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.driver = ""
        self.severity = Severity.UNCORRECTED
        self.layer = ""
        self.role = ""
        self.status: tuple[int, int] | None = None


class AerReader:
    """Reads what PCI Express ports and devices say; the lines of an error are joined by the device's address."""

    def __init__(self, pile: Pile) -> None:
        self._pile = pile
        self._open: dict[str, _Port] = {}

    def take(self, line: Line, text: str) -> bool:
        """Read a message; tell whether it is of a PCI Express error."""
        if (match := _BUS_ERROR.search(text)) is not None:
            port = self._start(match[2], line)
            port.driver, port.severity = match[1] or "", _severity(match[3])
            port.layer, port.role = match[4].strip(), match[5] or ""
            return True
        if (match := _APEI_STATUS.search(text)) is not None:
            port = self._start(match[1], line)
            port.status = int(match[2], 16), int(match[3], 16)
            port.severity = Severity.CORRECTED
            return True
        if (match := _STATUS.search(text)) is not None:
            port = self._port(match[1], line)
            port.status = int(match[4], 16), int(match[5], 16)
            port.draft.details["ids"] = f"{match[2]}:{match[3]}"
            return True
        return self._further(line, text)

    def _further(self, line: Line, text: str) -> bool:
        if (match := _UNCOR.search(text)) is not None:
            port = self._port(match[1], line)
            grave = port.status is not None and port.status[0] & int(match[2], 16)
            port.severity = Severity.FATAL if grave else Severity.RECOVERABLE
            return True
        if (match := _LAYER.search(text)) is not None:
            port = self._port(match[1], line)
            port.layer, port.role = match[2], match[3]
            return True
        if (match := _TLP.search(text)) is not None:
            self._port(match[1], line).draft.details["tlp_header"] = match[2].replace("0x", "").strip()
            return True
        if (match := _BIT.search(text)) is not None:
            return match[1] in self._open and bool(self._port(match[1], line))
        if (match := _RECOVERY.search(text)) is not None:
            self._note_recovery(match[1], match[2], line)
            return True
        if _RECEIVED.search(text) is not None:
            self.finish()
            return True
        return self._event(line, text)

    def _event(self, line: Line, text: str) -> bool:
        """Read what rasdaemon prints of the kernel's trace event."""
        match = _AER_EVENT.search(text)
        if match is None:
            return False
        draft = Draft(Source.AER, line)
        names = {name: bit for table in (pcie.CORRECTABLE, pcie.UNCORRECTABLE) for bit, (_, name, _) in table.items()}
        draft.finding = pcie.make_finding(
            Severity.CORRECTED if "orrected" in match[2] and "ncorrected" not in match[2] else Severity.RECOVERABLE,
            match[1],
            None,
            details={"said": match[2].strip(), "known": " ".join(name for name in names if name in match[2].lower())},
        )
        self._pile.add(draft)
        return True

    def finish(self) -> None:
        """End all errors that are being read."""
        for device in list(self._open):
            self._close(device)

    def _start(self, device: str, line: Line) -> _Port:
        self._close(device)
        if len(self._open) >= 256:
            self._close(next(iter(self._open)))
        port = self._open[device] = _Port(Draft(Source.AER, line))
        return port

    def _port(self, device: str, line: Line) -> _Port:
        port = self._open.get(device)
        if port is None:
            return self._start(device, line)
        port.draft.keep(line)
        return port

    def _note_recovery(self, device: str, outcome: str, line: Line) -> None:
        self.finish()
        for draft in reversed(self._pile.drafts[-16:]):
            if draft.source is Source.AER:
                draft.details["recovery"] = f"{outcome} ({device})"
                draft.keep(line)
                return

    def _close(self, device: str) -> None:
        port = self._open.pop(device, None)
        if port is None or (port.status is None and not port.layer):
            return
        status, mask = port.status or (None, 0)
        details = {"driver": port.driver, "layer": port.layer, "role": port.role}
        port.draft.finding = pcie.make_finding(
            port.severity,
            device,
            status,
            mask=mask,
            is_correctable=port.severity is Severity.CORRECTED,
            details={name: value for name, value in details.items() if value},
        )
        self._pile.add(port.draft)


def _severity(text: str) -> Severity:
    if text.startswith("Correct"):
        return Severity.CORRECTED
    if "Non-Fatal" in text:
        return Severity.RECOVERABLE
    return Severity.FATAL if "Fatal" in text else Severity.UNCORRECTED
