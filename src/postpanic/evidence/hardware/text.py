"""
Find what hardware said of itself in any text.

The first pass looks for byte strings at the speed of ``bytes.find``; only around
what it finds are lines decoded. The work is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import msgspec

from postpanic.evidence.hardware.draft import Draft, Pile
from postpanic.evidence.hardware.model import Finding, HardwareError, Part, Severity, Source
from postpanic.evidence.hardware.text_cper import CperReader
from postpanic.evidence.hardware.text_devices import AerReader, EdacReader
from postpanic.evidence.hardware.text_events import EventReader
from postpanic.evidence.hardware.text_mce import MachineCheckReader
from postpanic.evidence.hardware.verdict import make_error
from postpanic.evidence.lines import LINE_LIMIT, Line, clean_text, split_line
from postpanic.evidence.sources import Text

__all__ = ["ERRORS_LIMIT", "find_hardware_errors", "iterate_hardware_errors"]

ERRORS_LIMIT = 65536
"""Errors that are kept of one text; who needs more reads them one by one."""

_BOOT_LIMIT = 4096
_WINDOW = 1 << 20
_AFTER = 24
"""Lines that are read behind one that was found: old kernels and mcelog do not mark the lines that follow."""

_NEEDLES = (
    b"[Hardware Error]",
    b"Machine Check",
    b"EDAC ",
    b"AER: ",
    b"PCIe Bus Error",
    b"error status/mask=",
    b" BANK ",
    b"mce_record",
    b"mc_event",
    b"aer_event",
    b"NMI: ",
    b"NMI received",
    b"NMI occurred",
    b"SError Interrupt",
    b"synchronous external abort",
    b"synchronous parity",
    b"hardware memory",
    b"Memory failure: ",
    b"recovery action for",
    b"oft offlin",
    b"oft-offlin",
    b" above threshold",
    b"Triggering MCE",
    b"Starting machine check poll",
    b"EINJ: ",
    b"not syncing: ",
    b"Hypervisor detected",
    b"Hardware name: ",
    b"DMI: ",
    b"BERT: ",
    b"Injecting memory failure",
    b"Booting paravirtualized",
    b"Linux version ",
)
_FOLLOWED = (b"Machine Check", b" BANK ")
"""Needles whose lines are followed by lines without any."""
_MARK = "[Hardware Error]"
_MARK_WITHIN = 160
"""Characters of a line within which the mark must stand."""
_MESSAGE_LIMIT = 1024
"""Characters of a message that are read: the kernel's own limit."""
_MCELOG_TAG = re.compile(r"(?:[\w.:-]{1,255} )?mcelog(?:\[\d{1,10}\])?: ")
_NUMBER = re.compile(r"\{(\d{1,10})\}$")
_ABOUT_MEMORY = ("EDAC MC", "Memory failure: ", "memory corruption", "recovery action for", " Bank 255: ")
_EDAC_PREFIX = re.compile(r"EDAC [\w]{1,24} MC\d{1,3}: ")
_GUESTS = re.compile(
    r"Hypervisor detected: |Booting paravirtualized kernel on (?!bare)"
    r"|(?:Hardware name|DMI): (?:QEMU|VMware|Bochs|Red Hat KVM|OpenStack|Google Google Compute|Xen|innotek)"
    r"|(?:Hardware name|DMI): Microsoft Corporation Virtual"
)
_MACHINE_CHECK_PANIC = re.compile(r"[Mm]achine check|Not all CPUs entered")
_PANIC_OVER = re.compile(
    r"not syncing: .{0,80}?(?:[Mm]achine check|Not all CPUs entered|synchronizing machine check|hardware error|SError"
    r"|NMI: |NMI IOCK|Uncorrected|Memory error|UE \w|An NMI occurred)"
)


def find_hardware_errors(text: Text) -> list[HardwareError]:
    """
    Find errors that hardware or firmware reported.

    Parameters
    ----------
    text : bytes or mmap
        Any text, of any encoding, with one message in a line. See
        :func:`postpanic.evidence.sources.plain_text` for journals and JSON.

    Returns
    -------
    list of HardwareError
        In the order of the text; no more than :data:`ERRORS_LIMIT`.

    Examples
    --------
    >>> log = b"EDAC MC0: 3 CE memory read error on DIMM_A1 (channel:0 slot:1 page:0x12 offset:0x40 grain:8)"
    >>> [(error.part.value, error.severity.value, error.place, error.count) for error in find_hardware_errors(log)]
    [('memory', 'corrected', 'dimm DIMM_A1, controller 0, channel 0, slot 1', 3)]
    """
    return list(islice(iterate_hardware_errors(text), ERRORS_LIMIT))


def iterate_hardware_errors(text: Text) -> Iterator[HardwareError]:
    """Yield the errors of a text, one boot after the other."""
    reader = _Reader()
    for line in _candidate_lines(text):
        if line.text.startswith("Linux version ") or len(reader.pile.drafts) >= _BOOT_LIMIT:
            yield from reader.finish(is_boot=line.text.startswith("Linux version "))
        reader.take(line)
    yield from reader.finish(is_boot=True)


class _Reader:
    """All readers together, for one boot."""

    def __init__(self) -> None:
        self.pile = Pile()
        self._checks = MachineCheckReader(self.pile)
        self._records = CperReader(self.pile)
        self._aer = AerReader(self.pile)
        self._edac = EdacReader(self.pile)
        self._events = EventReader(self.pile)

    def take(self, line: Line) -> None:
        """Read one message."""
        text = line.text[:_MESSAGE_LIMIT]
        if "mcelog" in text and (tag := _MCELOG_TAG.match(text)) is not None:
            text = text[tag.end() :]
        place = text.find(_MARK, 0, _MARK_WITHIN)
        number = ""
        if place >= 0:
            match = _NUMBER.search(text[max(place - 12, 0) : place])
            number = match[1] if match is not None else ""
            text = text[place + len(_MARK) :].removeprefix(":").removeprefix(" ")
        if any(words in text for words in _ABOUT_MEMORY):
            # What they say belongs to a record that was printed before.
            self._records.finish()
        if "EDAC " in text or "mc_event" in text:
            if self._edac.take(line, text, self._checks.open_memory(line)):
                return
            text = _EDAC_PREFIX.sub("", text, count=1)
        if place >= 0 and (number or self._records.begins(text)) and self._records.take(line, text, number):
            return
        if self._checks.take(line, text, is_marked=place >= 0):
            return
        if place >= 0 and self._records.take(line, text, number):
            return
        if ("0000" in text or ":" in text) and self._aer.take(line, text):
            return
        if self._events.take(line, text):
            return
        self._context(line, text)

    def _context(self, line: Line, text: str) -> None:
        if text.startswith("BERT: "):
            self._records.previous_boot(begins="previous boot" in text)
        elif _PANIC_OVER.search(text) is not None:
            self._end_open()
            self._mark_panic(line)
        elif _GUESTS.search(text) is not None:
            self.pile.is_guest = True

    def _mark_panic(self, line: Line) -> None:
        """Find the error that the kernel panicked over: the gravest of the last ones, the newest of these."""
        last = [draft for draft in self.pile.drafts[-64:] if draft.finding is not None]
        message = line.text.partition("not syncing: ")[2][:200].strip()
        if not last and _MACHINE_CHECK_PANIC.search(message):
            last = [self._unexplained(line, message)]
        if last:
            worst = max(last, key=lambda draft: (_rank(draft.finding), draft.offset))
            worst.is_panic = True
            worst.details["panic"] = message
            worst.keep(line)

    def _unexplained(self, line: Line, message: str) -> Draft:
        """Note a machine check of which nothing is known but that the kernel panicked over it."""
        draft = Draft(Source.MACHINE_CHECK, line)
        hint = "broadcast" if "Not all CPUs" in message or "synchronizing" in message else "no-registers"
        draft.finding = Finding(
            part=Part.UNKNOWN, severity=Severity.FATAL, what=f"machine check: {message}", hints=frozenset({hint})
        )
        draft.lines.clear()
        self.pile.add(draft)
        return draft

    def _end_open(self) -> None:
        self._records.finish()
        self._checks.finish()
        self._aer.finish()

    def finish(self, *, is_boot: bool) -> Iterator[HardwareError]:
        """Give the errors that were read; at the end of a boot forget what is known of the machine."""
        self._end_open()
        pile = self.pile
        pile.drafts.sort(key=lambda draft: draft.offset)
        for draft in pile.drafts:
            if draft.finding is not None:
                yield _finish(draft, draft.finding, pile)
        pile.drafts.clear()
        if is_boot:
            pile.is_guest = pile.is_injected = False
            pile.injected_pages.clear()


def _rank(finding: Finding | None) -> int:
    return finding.severity.rank if finding is not None else -1


def _finish(draft: Draft, finding: Finding, pile: Pile) -> HardwareError:
    is_injected = pile.is_injected and draft.source is Source.MACHINE_CHECK
    is_injected |= draft.source is Source.MEMORY_FAILURE and draft.page in pile.injected_pages
    finding = msgspec.structs.replace(
        finding,
        location={**draft.location, **finding.location}
        if "dimm" in draft.location
        else {**finding.location, **draft.location},
        details={**finding.details, **draft.details},
        hints=finding.hints | ({"injected"} if is_injected else frozenset()),
        severity=Severity.FATAL if draft.is_panic and finding.severity is Severity.UNCORRECTED else finding.severity,
    )
    error = make_error(
        draft.source, finding, is_guest=pile.is_guest, machine_check=draft.check, cpu=draft.cpu, count=draft.count
    )
    return msgspec.structs.replace(
        error,
        is_panic=draft.is_panic,
        time_s=draft.time_s,
        offset=draft.offset,
        end=draft.end,
        lines=tuple(draft.lines),
    )


def _candidate_lines(data: Text) -> Iterator[Line]:
    """Yield the messages of lines that hold a needle, and some lines behind each."""
    size = len(data)
    position = 0
    for place in _places(data):
        if place < position:
            continue
        start = data.rfind(b"\n", max(position, place - LINE_LIMIT // 2), place) + 1 or max(
            position, place - LINE_LIMIT // 2
        )
        position = start
        wanted = 1
        while position < size and wanted > 0:
            end = _line_end(data, position)
            raw = data[position:end]
            wanted = _AFTER if any(needle in raw for needle in _FOLLOWED) else wanted - 1
            yield from _lines_of(raw, position)
            position = end + 1 if end < size and data[end] == 10 else end


def _places(data: Text) -> Iterator[int]:
    """Yield where needles are, in order, at most one of each in a line."""
    size = len(data)
    longest = max(map(len, _NEEDLES))
    for window in range(0, size, _WINDOW):
        end = min(window + _WINDOW, size)
        found: set[int] = set()
        for needle in _NEEDLES:
            limit = min(end + longest - 1, size)
            place = data.find(needle, window, limit)
            while 0 <= place < end:
                found.add(place)
                newline = data.find(b"\n", place, min(place + LINE_LIMIT, limit))
                place = data.find(needle, newline if newline >= 0 else min(place + LINE_LIMIT, limit), limit)
        yield from sorted(found)


def _line_end(data: Text, start: int) -> int:
    limit = start + LINE_LIMIT
    end = data.find(b"\n", start, limit)
    return end if end >= 0 else min(limit, len(data))


def _lines_of(raw: bytes, offset: int) -> list[Line]:
    text = clean_text(raw)
    if "\n" in text:
        return [line for part in text.split("\n")[:256] for line in split_line(part, offset)]
    return split_line(text, offset)
