"""
Firmware error records in kernel messages: GHES, BERT and extended logs.

Every line carries ``[Hardware Error]:``; GHES puts a number in braces before
it, by which records that are printed at once are told apart.

References
----------
drivers/acpi/apei/ghes.c, bert.c; drivers/firmware/efi/cper.c ``cper_estatus_print``, cper-arm.c, cper-x86.c.
"""

from __future__ import annotations

import re

from postpanic.evidence.hardware import cper_findings as findings
from postpanic.evidence.hardware.cper_processors import MICRO_ERRORS
from postpanic.evidence.hardware.draft import Draft, Pile
from postpanic.evidence.hardware.model import Finding, Severity, Source
from postpanic.evidence.lines import Line

__all__ = ["CperReader"]

_SEVERITIES = {
    "recoverable": Severity.RECOVERABLE,
    "fatal": Severity.FATAL,
    "corrected": Severity.CORRECTED,
    "info": Severity.INFORMATIONAL,
}
_SOURCE = re.compile(
    r"(?:Hardware error (?:from APEI|detected on CPU)|APEI generic hardware error|Generic Hardware Error)"
)
_EVENT = re.compile(r"(?:event )?severity: (?:\d, )?(\w{1,20})")
_SECTION = re.compile(r" ?(?:Error \d{1,4}, type|section: \d{1,4}, severity): (?:\d, )?(\w{1,20})")
_FRU = re.compile(r" {0,3}fru_text: (.{1,20})")
_FRU_ID = re.compile(r" {0,3}fru_id: ([0-9a-f-]{36})")
_TIME = re.compile(r" {0,3}(?:im)?precise tstamp: (.{1,40})")
_TYPE = re.compile(r" {0,4}section[_ ]type: (.{1,80})")
_PAIR = re.compile(r"\b([A-Za-z][\w ()/-]{0,60}?): {0,2}(0x[0-9a-f]{1,16}|\d{1,20})\b(?:, (.{0,80}))?")
_PLACES = re.compile(
    r"\b(node|card|module|rank|bank|bank_group|bank_address|device|row|column|bit_position|chip_id|requestor_id"
    r"|responder_id|target_id): ?(0x[0-9a-f]{1,16}|\d{1,10})\b"
)
_STATUS = re.compile(r"error_status: .{0,120}?\(?(0x[0-9a-f]{1,16})\)?")
_DIMM = re.compile(r"DIMM location: (?:not present\. DMI handle: (0x[0-9a-f]{1,8})|(.{1,120}))")
_BDF = re.compile(r"device_id: ([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_IDS = re.compile(r"vendor_id: 0x([0-9a-f]{4}), device_id: 0x([0-9a-f]{4})")
_AER = re.compile(r"\b(aer_(?:uncor|cor)_(?:status|mask|severity)): (0x[0-9a-f]{1,8})")
_AER_STATUS = re.compile(r"aer_status: (0x[0-9a-f]{1,8}), aer_mask: (0x[0-9a-f]{1,8})")

_KINDS: tuple[tuple[str, str], ...] = (
    ("memory error", "memory"),
    ("PCIe error", "pcie"),
    ("general processor error", "processor-generic"),
    ("IA32/X64 processor error", "processor-x86"),
    ("ARM processor error", "processor-arm"),
    ("Firmware Error Record", "firmware"),
    ("CXL", "cxl"),
    ("DMAr", "dmar"),
)
_LINES_LIMIT = 512


class _Open:
    """A record whose lines are being read."""

    __slots__ = ("details", "draft", "event", "fru", "is_previous", "kind", "lines", "severity", "source")

    def __init__(self) -> None:
        self.draft: Draft | None = None
        self.event: Severity | None = None
        self.severity: Severity | None = None
        self.kind = ""
        self.fru = ""
        self.is_previous = False
        self.source = ""
        self.details: dict[str, str] = {}
        self.lines: list[str] = []


class CperReader:
    """
    Reads firmware error records line by line.

    Parameters
    ----------
    pile : Pile
        Takes the errors.
    """

    def __init__(self, pile: Pile) -> None:
        self._pile = pile
        self._open: dict[str, _Open] = {}
        self._is_previous = False

    def previous_boot(self, *, begins: bool) -> None:
        """Note that records of the previous boot follow, or that they are over."""
        self.finish()
        self._is_previous = begins

    @staticmethod
    def begins(text: str) -> bool:
        """Tell whether a message begins a record or a section, so that it is no part of anything else."""
        return bool(_SOURCE.match(text) or _EVENT.match(text) or _SECTION.match(text))

    def take(self, line: Line, text: str, number: str) -> bool:
        """
        Read a message.

        Parameters
        ----------
        line : Line
        text : str
            The message behind ``[Hardware Error]:``, its leading blanks kept but for one.
        number : str
            The record's number in braces; empty: it has none.

        Returns
        -------
        bool
            Whether it belongs to a firmware record.
        """
        key = number or f"caller {line.caller}"
        opened = self._open.get(key)
        if _SOURCE.match(text):
            self._close(key)
            opened = self._begin(key)
            opened.source = text.strip()
            opened.draft = Draft(Source.APEI, line)
            return True
        if (match := _EVENT.match(text)) is not None and match[1] in _SEVERITIES:
            if opened is None or opened.event is not None:
                self._close(key)
                opened = self._begin(key)
            opened.event = _SEVERITIES[match[1]]
            opened.draft = opened.draft or Draft(Source.APEI, line)
            return True
        if (match := _SECTION.match(text)) is not None and match[1] in _SEVERITIES:
            return self._section(key, line, _SEVERITIES[match[1]])
        if opened is None:
            return False
        return self._goes_on(opened, line, text)

    def finish(self) -> None:
        """End all records that are being read."""
        for key in list(self._open):
            self._close(key)

    def _begin(self, key: str) -> _Open:
        if len(self._open) >= 256:
            self._close(next(iter(self._open)))
        opened = self._open[key] = _Open()
        opened.is_previous = self._is_previous and key.startswith("caller")
        return opened

    def _section(self, key: str, line: Line, severity: Severity) -> bool:
        opened = self._open.get(key) or self._begin(key)
        if opened.severity is not None:
            self._flush(opened)
        opened.severity = severity
        opened.draft = opened.draft or Draft(Source.APEI, line)
        opened.draft.keep(line)
        return True

    def _goes_on(self, opened: _Open, line: Line, text: str) -> bool:
        if opened.draft is not None:
            opened.draft.keep(line)
        if (match := _TYPE.match(text)) is not None:
            opened.kind = next((kind for words, kind in _KINDS if words in match[1]), match[1].strip())
        elif (match := _FRU.match(text)) is not None:
            opened.fru = match[1].strip()
        elif (match := _FRU_ID.match(text)) is not None:
            opened.details["fru_id"] = match[1]
        elif (match := _TIME.match(text)) is not None:
            opened.details["timestamp"] = match[1].strip()
        elif len(opened.lines) < _LINES_LIMIT:
            opened.lines.append(text[:400])
        return True

    def _close(self, key: str) -> None:
        opened = self._open.pop(key, None)
        if opened is not None:
            self._flush(opened)

    def _flush(self, opened: _Open) -> None:
        """Make errors of the section that was read last."""
        draft, opened.draft = opened.draft, None
        severity = opened.severity or opened.event
        if draft is None or severity is None:
            return
        found = _findings(opened.kind, opened.lines, severity, opened.fru)
        details = dict(opened.details)
        if opened.source:
            details["reported_by"] = opened.source
        if opened.fru:
            details["fru"] = opened.fru
        if opened.is_previous:
            details["previous_boot"] = "yes"
        for number, finding in enumerate(found):
            one = draft if not number else _copy(draft)
            one.finding = finding
            one.details = dict(details)
            self._pile.add(one)
        opened.kind, opened.fru, opened.lines, opened.severity = "", "", [], None
        opened.details = {}


def _copy(draft: Draft) -> Draft:
    other = Draft(draft.source, Line("", draft.time_s, offset=draft.offset))
    other.lines, other.end = list(draft.lines), draft.end
    return other


def _findings(kind: str, lines: list[str], severity: Severity, fru: str) -> list[Finding]:
    if kind == "memory":
        return [findings.memory_finding(_memory(lines), severity, fru)]
    if kind == "pcie":
        return [findings.pcie_finding(_pcie(lines, severity), severity)]
    if kind == "processor-generic":
        return [findings.processor_finding(_generic(lines), severity)]
    if kind in {"processor-x86", "processor-arm"}:
        return [findings.processor_finding(fields, severity) for fields in _structures(lines)]
    if kind == "firmware":
        return [findings.firmware_finding(_firmware(lines), severity)]
    return [findings.other_finding(kind or "not named", severity, {})]


def _value(text: str) -> int:
    return int(text, 16) if text.startswith("0x") else int(text)


def _memory(lines: list[str]) -> dict[str, int | str]:
    fields: dict[str, int | str] = {}
    for text in lines:
        if (match := _DIMM.search(text)) is not None:
            if match[1]:
                fields["module_handle"] = int(match[1], 16)
            else:
                fields["dimm_location"] = match[2].strip()
        elif (match := _STATUS.search(text)) is not None:
            fields["error_status"] = int(match[1], 16)
        elif text.lstrip().startswith(("physical_address", "error_type")):
            for name, value, _ in _PAIR.findall(text):
                fields.setdefault(name, _value(value))
        else:
            fields |= {name: _value(value) for name, value in _PLACES.findall(text)}
    return fields


def _pcie(lines: list[str], severity: Severity) -> dict[str, int | str]:
    fields: dict[str, int | str] = {}
    for text in lines:
        stripped = text.strip()
        if (match := _BDF.match(stripped)) is not None:
            fields["device"] = match[1]
        elif (match := _IDS.match(stripped)) is not None:
            fields["ids"] = f"{match[1]}:{match[2]}"
        elif stripped.startswith("port_type: "):
            fields["port_type"] = stripped.partition(", ")[2]
        elif stripped.startswith("command: "):
            fields |= {name: _value(value) for name, value, _ in _PAIR.findall(stripped.replace(", ", "\n")) if value}
        elif stripped.startswith("bridge: secondary_status: 0x"):
            fields["bridge_secondary_status"] = int(stripped[28:32], 16)
        elif stripped.startswith("class_code: "):
            fields["class_code"] = stripped.partition(": ")[2][:16]
        elif stripped.startswith("TLP Header: "):
            fields["tlp_header"] = stripped.partition(": ")[2][:48]
        elif stripped.startswith("slot: ") and stripped[6:].isdigit():
            fields["slot"] = int(stripped[6:12])
        elif stripped.startswith("secondary_bus: "):
            fields["secondary_bus"] = stripped.partition(": ")[2][:8]
        elif (match := _AER_STATUS.match(stripped)) is not None:
            which = "cor" if severity is Severity.CORRECTED else "uncor"
            fields[f"aer_{which}_status"], fields[f"aer_{which}_mask"] = int(match[1], 16), int(match[2], 16)
        else:
            fields |= {name: int(value, 16) for name, value in _AER.findall(stripped)}
    return fields


def _generic(lines: list[str]) -> dict[str, int | str]:
    fields: dict[str, int | str] = {}
    kinds = {
        "cache error": "cache",
        "TLB error": "tlb",
        "bus error": "bus",
        "micro-architectural error": "micro-architectural",
    }
    for text in lines:
        stripped = text.strip()
        name, _, rest = stripped.partition(": ")
        if name == "operation":
            fields["operation"] = rest.partition(", ")[2]
        elif name in {"level", "target_address", "requestor_id", "responder_id", "IP"} and _is_number(rest):
            fields[name.lower()] = _value(rest)
        elif name == "processor_id":
            fields["processor_id"] = _spelled(rest)
        elif any(words in kinds for words in stripped.split(", ")):
            fields["kinds"] = " ".join(kinds[words] for words in stripped.split(", ") if words in kinds)
        elif stripped and all(
            words in {"restartable", "precise IP", "overflow", "corrected"} for words in stripped.split(", ")
        ):
            fields["flags"] = stripped
    return fields


def _is_number(text: str) -> bool:
    return re.fullmatch(r"0x[0-9a-f]{1,16}|\d{1,19}", text) is not None


def _spelled(text: str) -> str:
    """Spell an identifier as binary records are spelled: without leading zeros."""
    return f"{_value(text):#x}" if _is_number(text) else text[:20]


_STRUCTURE_KEYS = {
    "check information": "check_info",
    "error_info": "error_info",
    "target identifier": "target_address",
    "requestor identifier": "requestor_id",
    "responder identifier": "responder_id",
    "instruction pointer": "ip",
    "virtual fault address": "virtual_address",
    "physical fault address": "physical_address",
    "level": "level",
    "cache level": "level",
    "tlb level": "level",
}


_X86_FLAGS = {
    "processor context corrupt": "context corrupt",
    "uncorrected": "uncorrected",
    "precise ip": "precise IP",
    "restartable ip": "restartable",
    "overflow": "overflow",
}
_FIRMWARE_KINDS = (("IPF SAL", 0), ("Record Type1", 1), ("Record Type2", 2))


def _structures(lines: list[str]) -> list[dict[str, int | str]]:
    """Read the list of errors of an x86 or ARM processor section."""
    head: dict[str, int | str] = {}
    found: list[dict[str, int | str]] = []
    fields = head
    for text in lines:
        low = text.strip().lower()
        if low.startswith(("error information structure", "error info structure")):
            fields = dict(head)
            found.append(fields)
        elif low.startswith(("context information structure", "context info structure")):
            break
        else:
            _structure_line(low, fields)
    return found or [head]


def _structure_line(low: str, fields: dict[str, int | str]) -> None:
    name, _, rest = low.partition(": ")
    if name == "local apic_id":
        fields["apic_id"] = _spelled(rest)
    elif low.startswith("multiprocessor affinity register"):
        fields["mpidr"] = _spelled(rest)
    elif name == "midr" and _is_number(rest):
        fields["midr"] = _value(rest)
    elif name in {"error structure type", "error_type"}:
        fields["kinds"] = _kinds(rest)
    elif name == "transaction type":
        fields["transaction"] = rest.partition(", ")[2] or rest
    elif name in {"operation", "operation type"}:
        fields["operation"] = rest.partition(", ")[2] or rest
    elif name in _STRUCTURE_KEYS and _is_number(rest):
        fields[_STRUCTURE_KEYS[name]] = _value(rest)
    elif name == "error type" and ", " in rest:
        number = rest.partition(",")[0]
        if number.isdigit() and int(number[:4]) < len(MICRO_ERRORS):
            fields["micro_architectural_type"] = MICRO_ERRORS[int(number[:4])]
    elif name in _X86_FLAGS and rest == "true":
        flags = fields.get("flags")
        fields["flags"] = f"{flags}, {_X86_FLAGS[name]}" if flags else _X86_FLAGS[name]
    elif low in {"request timed out", "request timed out: true", "time out: true"}:
        fields["timed_out"] = 1


def _kinds(text: str) -> str:
    names = ("cache", "tlb", "bus", "micro-architectural", "vendor")
    return " ".join(name for name in names if name in text) or ("micro-architectural" if "ms " in text else "")


def _firmware(lines: list[str]) -> dict[str, int | str]:
    fields: dict[str, int | str] = {}
    for text in lines:
        name, _, rest = text.strip().partition(": ")
        if name == "Firmware Error Record Type":
            kind = next((number for words, number in _FIRMWARE_KINDS if words in rest), None)
            fields |= {"record_type_name": rest[:80]} if kind is None else {"record_type": kind}
        elif name == "Revision" and rest.isdigit():
            fields["revision"] = int(rest[:6])
        elif name == "Record Identifier":
            fields["record_id"] = f"{int(rest, 16):#x}" if re.fullmatch(r"[0-9a-f]{1,16}", rest) else rest[:40]
    return fields
