"""
Machine checks in kernel messages: raw registers, AMD's decoded form, and what mcelog and rasdaemon print.

References
----------
arch/x86/kernel/cpu/mce/core.c ``__print_mce``; drivers/edac/mce_amd.c ``amd_decode_mce``; include/trace/events/mce.h;
mcelog(8) and rasdaemon's ``ras-mce-handler.c`` for the output of the two.
"""

from __future__ import annotations

import re

import msgspec

from postpanic.evidence.hardware.draft import LINES_LIMIT, Draft, Pile
from postpanic.evidence.hardware.machine_check import VENDORS, interpret
from postpanic.evidence.hardware.model import MachineCheck, Source
from postpanic.evidence.lines import Line

__all__ = ["MachineCheckReader"]

_HEADER = re.compile(
    r"CPU (\d{1,6}): Machine Check(?: Exception| Event)?: {0,24}(?:0x)?([0-9a-f]{1,16}) Bank (\d{1,3}): "
    r"(?:0x)?([0-9a-f]{1,16})"
)
_OLD_HEADER = re.compile(r"CPU (\d{1,6}): Machine Check Exception: {0,24}([0-9a-f]{1,16})\s{0,32}$")
_OLD_BANK = re.compile(r"\s{0,8}Bank (\d{1,3}): ([0-9a-f]{16})(?:\[([0-9a-f]{16})\])?(?: at ([0-9a-f]{16}))?")
_RIP = re.compile(r"RIP(?: !INEXACT!)? {0,4}([0-9a-f]{2}):<([0-9a-f]{1,16})>(?: \{([^}]{1,200})\})?")
_REGISTERS = re.compile(r"\b(TSC|ADDR|MISC|SYND|IPID|PPIN) (?:0x)?([0-9a-f]{1,16})\b")
_PROCESSOR = re.compile(
    r"PROCESSOR (\d{1,3}):(?:0x)?([0-9a-f]{1,8}) TIME (\d{1,20}) SOCKET (\d{1,6}) APIC (?:0x)?([0-9a-f]{1,8})"
    r"(?: microcode ([0-9a-f]{1,8}))?"
)
_SAYS = re.compile(r"Machine check: (.{1,200})$")
_AMD = re.compile(
    r"CPU:(\d{1,6})\s{1,4}(?:\(([0-9a-f]{1,3}):([0-9a-f]{1,3}):([0-9a-f]{1,3})\) )?MC(\d{1,3})_STATUS\[[^\]]{0,120}\]: "
    r"0x([0-9a-f]{1,16})"
)
_AMD_FIELDS = re.compile(r"\b(MC\d{1,3}_ADDR|Error Addr|IPID|Syndrome|PPIN): 0x([0-9a-f]{1,16})")
_AMD_WORDS = re.compile(
    r"(?:.{1,80} (?:Ext\. Error Code|Error|Extended Error Code)\b|cache level: |internal: |Bank \d)"
)
_AMD_GRADES = re.compile(
    r"(?:Corrected error, no action|Deferred error|Uncorrected|System Fatal|Machine Check Error|Unclassified)"
)
_MCELOG = re.compile(r"CPU (\d{1,6})(?: (?:\S{1,40}))? BANK (\d{1,3})(?: (?:TSC ([0-9a-f]{1,16})))?")
_MCELOG_STATUS = re.compile(r"STATUS (?:0x)?([0-9a-f]{1,16})(?: MCGSTATUS (?:0x)?([0-9a-f]{1,16}))?")
_MCELOG_MORE = re.compile(r"\b(MCGCAP|APICID|SOCKETID|TIME) (?:0x)?([0-9a-f]{1,20})\b")
_MCELOG_CPUID = re.compile(r"CPUID Vendor (\S{1,16}) Family (\d{1,4}) Model (\d{1,4})(?: Step (\d{1,3}))?")
_RECORD = re.compile(r"\bmce_record\b")
_RECORD_FIELDS = re.compile(
    r"\b(bank|status|cpu|socketid|misc|addr|mcgstatus|mcgcap|apicid|ipid|synd|ppin|microcode) ?= {0,4}(?:0x)?"
    r"([0-9a-f]{1,16})\b"
)
_TRACEPOINT = re.compile(
    r"CPU: (\d{1,6}), MCGc/s: ([0-9a-f]{1,16})/([0-9a-f]{1,16}), MC(\d{1,3}): ([0-9a-f]{1,16}), (.{0,400})"
)
_TRACE_FIELDS = re.compile(
    r"(?:IPID: (?P<ipid>[0-9a-f]{1,16})|ADDR/MISC/SYND: (?P<addr>[0-9a-f]{1,16})/(?P<misc>[0-9a-f]{1,16})/"
    r"(?P<synd>[0-9a-f]{1,16})|ADDR/MISC: (?P<addr2>[0-9a-f]{1,16})/(?P<misc2>[0-9a-f]{1,16})|"
    r"PROCESSOR: (?P<vendor>\d{1,3}):(?P<cpuid>[0-9a-f]{1,8})|SOCKET: (?P<socket>\d{1,6}))"
)

_MCELOG_LINES = 32
_FIRMWARE_BANK = 255
"""Of what the kernel makes out of firmware's memory errors (arch/x86/kernel/cpu/mce/apei.c)."""


class _Open:
    """A machine check whose lines are being read."""

    __slots__ = ("draft", "is_amd_text", "is_mcelog", "lines", "values")

    def __init__(self, draft: Draft, **values: int) -> None:
        self.draft = draft
        self.values = values
        self.is_mcelog = False
        self.is_amd_text = False
        self.lines = 0


class MachineCheckReader:
    """
    Reads machine checks line by line; those of several printk callers are told apart.

    Parameters
    ----------
    pile : Pile
        Takes the errors.
    """

    def __init__(self, pile: Pile) -> None:
        self._pile = pile
        self._open: dict[str, _Open] = {}

    def take(self, line: Line, text: str, *, is_marked: bool = False) -> bool:
        """
        Read a message.

        Parameters
        ----------
        line : Line
        text : str
            The message without ``[Hardware Error]:`` and the like.
        is_marked : bool
            Whether it had that mark.

        Returns
        -------
        bool
            Whether it belongs to a machine check.
        """
        return self._begins(line, text) or self._goes_on(line, text, is_marked=is_marked)

    def open_memory(self, line: Line) -> Draft | None:
        """Return the memory error that is just being read in AMD's form: EDAC's line comes in between."""
        opened = self._open.get(line.caller)
        if opened is None or not opened.is_amd_text:
            return None
        says = opened.draft.details.get("kernel_says", "")
        return opened.draft if "Memory Controller" in says or "DRAM" in says else None

    def finish(self) -> None:
        """End all machine checks that are being read."""
        for caller in list(self._open):
            self._close(caller)

    # ---- first lines

    def _begins(self, line: Line, text: str) -> bool:
        if "Machine Check" in text and (match := _HEADER.search(text)):
            self._start(
                line,
                cpu=int(match[1]),
                mcgstatus=int(match[2], 16),
                bank=int(match[3]),
                status=int(match[4], 16),
            )
            return True
        if "Machine Check" in text and (match := _OLD_HEADER.search(text)):
            self._start(line, cpu=int(match[1]), mcgstatus=int(match[2], 16))
            return True
        if "_STATUS[" in text and (match := _AMD.search(text)):
            self._start_amd(line, match)
            return True
        if " BANK " in text and (match := _MCELOG.match(text)):
            opened = self._start(line, cpu=int(match[1]), bank=int(match[2]), tsc=int(match[3] or "0", 16))
            opened.is_mcelog = True
            return True
        if "mce_record" in text and _RECORD.search(text):
            return self._record(line, text)
        return False

    def _start(self, line: Line, **values: int) -> _Open:
        self._close(line.caller)
        opened = self._open[line.caller] = _Open(Draft(Source.MACHINE_CHECK, line), **values)
        if len(self._open) > 512:
            self._close(next(iter(self._open)))
        return opened

    def _start_amd(self, line: Line, match: re.Match[str]) -> None:
        cpuid = 0
        if match[2]:
            family, model, stepping = int(match[2], 16), int(match[3], 16), int(match[4], 16)
            cpuid = _cpuid(family, model, stepping)
        opened = self._start(
            line, cpu=int(match[1]), bank=int(match[5]), status=int(match[6], 16), vendor=2, cpuid=cpuid
        )
        opened.is_amd_text = True

    def _record(self, line: Line, text: str) -> bool:
        """Read the kernel's trace event, as text or as rasdaemon prints it: everything is in one line."""
        match = _TRACEPOINT.search(text)
        if match is not None:
            values = {
                "cpu": int(match[1]),
                "mcgcap": int(match[2], 16),
                "mcgstatus": int(match[3], 16),
                "bank": int(match[4]),
                "status": int(match[5], 16),
            }
            for found in _TRACE_FIELDS.finditer(match[6]):
                for name, value in found.groupdict().items():
                    if value is not None:
                        base = 10 if name in {"vendor", "socket"} else 16
                        values[name.rstrip("2")] = int(value, base)
        else:
            values = {
                name: int(value, 10 if name in {"bank", "cpu", "socketid"} and value.isdigit() else 16)
                for name, value in _RECORD_FIELDS.findall(text)
            }
            if "status" not in values:
                return False
            values["socket"] = values.pop("socketid", 0)
            values["apic"] = values.pop("apicid", 0)
            if "AMD" in text or "ipid" in values:
                values["vendor"] = 2
        self._start(line, **values)
        self._close(line.caller)
        return True

    # ---- lines that follow

    def _goes_on(self, line: Line, text: str, *, is_marked: bool) -> bool:
        if (match := _SAYS.match(text)) is not None:
            self._close(line.caller)
            if self._pile.drafts:
                self._pile.drafts[-1].details["kernel_says"] = match[1]
                self._pile.drafts[-1].keep(line)
            return True
        opened = self._open.get(line.caller)
        if opened is None or (is_marked and _AMD_GRADES.match(text)):
            return is_marked and _AMD_GRADES.match(text) is not None
        opened.lines += 1
        if opened.is_mcelog:
            read = self._mcelog(opened, text)
        elif opened.is_amd_text:
            read = is_marked and self._amd(opened, text)
        else:
            read = self._raw(opened, line, text)
        if read and line.caller in self._open:
            opened.draft.keep(line)
        return read

    def _raw(self, opened: _Open, line: Line, text: str) -> bool:
        values = opened.values
        if (match := _PROCESSOR.search(text)) is not None:
            values["vendor"], values["cpuid"] = int(match[1]), int(match[2], 16)
            values["time_s"], values["socket"] = int(match[3]), int(match[4])
            values["apic"] = int(match[5], 16)
            values["microcode"] = int(match[6] or "0", 16)
            opened.draft.keep(line)
            self._close(line.caller)
            return True
        if (match := _RIP.match(text)) is not None:
            values["cs"], values["ip"] = int(match[1], 16), int(match[2], 16)
            if match[3]:
                opened.draft.details["at"] = match[3]
            return True
        if "status" not in values and (match := _OLD_BANK.match(text)):
            values["bank"], values["status"] = int(match[1]), int(match[2], 16)
            values["misc"], values["addr"] = int(match[3] or "0", 16), int(match[4] or "0", 16)
            return True
        if text.startswith(("TSC ", "ADDR ", "MISC ", "SYND ", "IPID ", "PPIN ")):
            for name, value in _REGISTERS.findall(text):
                values[name.lower()] = int(value, 16)
            return True
        return False

    @staticmethod
    def _amd(opened: _Open, text: str) -> bool:
        fields = _AMD_FIELDS.findall(text)
        for name, value in fields:
            key = {"IPID": "ipid", "Syndrome": "synd", "PPIN": "ppin"}.get(name, "addr")
            opened.values[key] = int(value, 16)
        if fields:
            return True
        if _AMD_WORDS.match(text):
            said = opened.draft.details.get("kernel_says")
            opened.draft.details["kernel_says"] = (f"{said}; {text.strip()}" if said else text.strip())[:400]
            return True
        return False

    def _mcelog(self, opened: _Open, text: str) -> bool:
        if opened.lines > _MCELOG_LINES or text.startswith(("MCE ", "Hardware event")):
            self._close(next(caller for caller, other in self._open.items() if other is opened))
            return False
        values = opened.values
        if (match := _MCELOG_STATUS.match(text)) is not None:
            values["status"], values["mcgstatus"] = int(match[1], 16), int(match[2] or "0", 16)
        elif (match := _MCELOG_CPUID.match(text)) is not None:
            vendors = {name: number for number, name in VENDORS.items()}
            values["vendor"] = vendors.get(match[1], 0)
            values["cpuid"] = _cpuid(int(match[2]), int(match[3]), int(match[4] or "0"))
        elif (match := _PROCESSOR.search(text)) is not None:
            values["vendor"], values["cpuid"], values["time_s"] = int(match[1]), int(match[2], 16), int(match[3])
        elif _REGISTERS.match(text):
            for name, value in _REGISTERS.findall(text):
                values[name.lower()] = int(value, 16)
        elif (more := _MCELOG_MORE.findall(text)) and text.startswith(("MCGCAP", "APICID", "SOCKETID", "TIME")):
            names = {
                "MCGCAP": ("mcgcap", 16),
                "APICID": ("apic", 16),
                "SOCKETID": ("socket", 16),
                "TIME": ("time_s", 10),
            }
            for name, value in more:
                key, base = names[name]
                if base == 16 or value.isdigit():
                    values[key] = int(value, base)
        else:
            return text.startswith(("MCG status", "MCi status", "MCA: ", "RIP ", "PPIN ", "MICROCODE "))
        return True

    # ---- the end

    def _close(self, caller: str) -> None:
        opened = self._open.pop(caller, None)
        if opened is None or "status" not in opened.values:
            return
        draft = opened.draft
        if opened.values.get("bank") == _FIRMWARE_BANK and self._is_told_already(opened):
            return
        check = MachineCheck(**{name: _fits(value) for name, value in opened.values.items()})
        draft.check, draft.cpu = check, check.cpu
        draft.finding = interpret(check)
        if draft.paddr is not None:
            draft.finding = msgspec.structs.replace(draft.finding, paddr=draft.paddr)
        count = draft.finding.details.get("corrected_count", "")
        draft.count = max(int(count), 1) if count.isdigit() else 1
        self._pile.add(draft)

    def _is_told_already(self, opened: _Open) -> bool:
        """Tell whether firmware's record of the same page was read; the kernel makes a machine check of it as well."""
        earlier = self._pile.with_page(opened.values.get("addr", 0) >> 12)
        if earlier is None or earlier.source is not Source.APEI:
            return False
        earlier.lines += opened.draft.lines[: LINES_LIMIT - len(earlier.lines)]
        earlier.end = max(earlier.end, opened.draft.end)
        return True


def _fits(value: int) -> int:
    return value & (1 << 64) - 1


def _cpuid(family: int, model: int, stepping: int) -> int:
    """Put family, model and stepping together as CPUID leaf 1 has them."""
    base, extended = (0xF, family - 0xF) if family > 0xF else (family, 0)
    return (extended & 0xFF) << 20 | (model >> 4 & 0xF) << 16 | base << 8 | (model & 0xF) << 4 | stepping & 0xF
