"""
Other messages about hardware: NMIs, arm64 aborts, bad pages, temperature.

References
----------
arch/x86/kernel/nmi.c; arch/arm64/kernel/traps.c, arch/arm64/mm/fault.c; mm/memory-failure.c;
drivers/thermal/intel/therm_throt.c; Arm Architecture Reference Manual, "ESR_EL1, ISS encoding for an SError
exception".
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from postpanic.evidence.hardware.draft import Draft, Pile
from postpanic.evidence.hardware.model import Finding, Part, Severity, Source
from postpanic.evidence.lines import Line

__all__ = ["EventReader", "decode_serror"]

_NMI = re.compile(r"NMI: (PCI system error \(SERR\)|IOCK error|memory parity error)")
_NMI_REASON = re.compile(r"for reason ([0-9a-f]{2}) on CPU (\d{1,6})")
_NMI_UNKNOWN = re.compile(r"Uhhuh\. NMI received for unknown reason ([0-9a-f]{2}) on CPU (\d{1,6})")
_NMI_WATCHDOG = re.compile(r"An NMI occurred")
_SERROR = re.compile(r"SError Interrupt on CPU(\d{1,6}), code 0x([0-9a-f]{8,16})")
_ABORT = re.compile(r"(synchronous (?:external abort|parity or ECC error)[^:\[]{0,60}): ([0-9a-f]{8,16})")
_PAGE = re.compile(r"(?:Memory failure|MCE): (?:0x)?([0-9a-f]{1,13}): recovery action for (.{1,80}): (\w{1,20})")
_KILLED = re.compile(
    r"(?:Memory failure: (?:0x)?([0-9a-f]{1,13}): )?(?:Killing|Sending SIGBUS to) (.{1,64}):(\d{1,10}) "
    r"due to hardware memory corruption"
)
_USER_ACCESS = re.compile(r"Uncorrected hardware memory error in user-access at ([0-9a-f]{1,16})")
_OFFLINED = re.compile(r"[Ss]oft[- ]offlin\w{1,4}:? (?:pfn:? )?(?:0x)?([0-9a-f]{3,13})\b")
_HOT = re.compile(r"CPU(\d{1,6}): (Core|Package) (temperature|power limit).{0,40}above threshold")
_INJECTED_PAGE = re.compile(
    r"(?:Injecting memory failure (?:for|at)|Soft offlining) (?:pfn|page)?:? ?(?:0x)?([0-9a-f]{1,13})"
    r"(?: at (?:process )?virtual address|$)"
)
_INJECTING = re.compile(r"(?:Triggering MCE exception on CPU|Starting machine check poll CPU|EINJ: .{0,60}inject)")

_PAGES_LIMIT = 65536
_SERROR_TYPES = {
    0: ("uncontainable", Severity.FATAL),
    1: ("unrecoverable", Severity.FATAL),
    2: ("restartable", Severity.RECOVERABLE),
    3: ("recoverable", Severity.RECOVERABLE),
    6: ("corrected", Severity.CORRECTED),
}
_RECOVERED = {"Recovered": Severity.RECOVERABLE, "Delayed": Severity.RECOVERABLE, "Ignored": Severity.UNCORRECTED}


def decode_serror(esr: int) -> tuple[str, Severity, bool]:
    """
    Decode the syndrome of an arm64 SError.

    Parameters
    ----------
    esr : int
        ``u64``, ESR_EL1.

    Returns
    -------
    words : str
    severity : Severity
    is_classified : bool
        Whether the processor's RAS extension says what kind of error it is.

    Examples
    --------
    >>> decode_serror(0xBE000011)[0]
    'asynchronous error, uncontainable'
    """
    if esr >> 24 & 1:
        return f"asynchronous error, syndrome {esr & 0xFFFFFF:#x} of the implementation's own", Severity.FATAL, False
    if esr & 0x3F == 0x11:
        words, severity = _SERROR_TYPES.get(esr >> 10 & 7, ("of a kind that is reserved", Severity.FATAL))
        return f"asynchronous error, {words}", severity, True
    return "asynchronous error, not classified", Severity.FATAL, False


class EventReader:
    """Reads messages of one line."""

    def __init__(self, pile: Pile) -> None:
        self._pile = pile
        self._handlers: tuple[tuple[str, Callable[[Line, str], bool]], ...] = (
            ("NMI", self._nmi),
            ("SError", self._serror),
            ("synchronous ", self._abort),
            ("recovery action", self._page),
            ("memory corruption", self._killed),
            ("hardware memory error", self._user_access),
            ("oft", self._offlined),
            ("above threshold", self._hot),
        )

    def take(self, line: Line, text: str) -> bool:
        """Read a message; tell whether it is about hardware."""
        if _INJECTING.search(text):
            self._pile.is_injected = True
            return True
        if (match := _INJECTED_PAGE.search(text)) is not None and len(self._pile.injected_pages) < _PAGES_LIMIT:
            # madvise(2) and the hwpoison injector say so themselves.
            self._pile.injected_pages.add(int(match[1], 16))
        return any(words in text and handler(line, text) for words, handler in self._handlers)

    def _add(self, source: Source, line: Line, finding: Finding, cpu: int | None = None) -> bool:
        draft = Draft(source, line)
        draft.finding, draft.cpu = finding, cpu
        self._pile.add(draft)
        return True

    def _nmi(self, line: Line, text: str) -> bool:
        if (match := _NMI.search(text)) is not None:
            hint = "iock" if match[1].startswith("IOCK") else "serr"
            what = f"NMI: {match[1]}"
            why = _NMI_REASON.search(text, match.end())
            details, cpu = ({"reason": f"0x{why[1]}"}, why[2]) if why is not None else ({}, None)
        elif (match := _NMI_UNKNOWN.search(text)) is not None:
            hint, what, cpu = "nmi-unknown", "NMI for an unknown reason", match[2]
            details = {"reason": f"0x{match[1]}"}
        elif _NMI_WATCHDOG.search(text) is not None:
            hint, what, cpu, details = "watchdog", "NMI of a hardware watchdog", None, {}
        else:
            return False
        finding = Finding(
            part=Part.PCI if hint == "serr" else Part.PLATFORM,
            severity=Severity.UNCORRECTED,
            what=what,
            details=details,
            hints=frozenset({hint}),
        )
        return self._add(Source.NMI, line, finding, int(cpu) if cpu else None)

    def _serror(self, line: Line, text: str) -> bool:
        match = _SERROR.search(text)
        if match is None:
            return False
        words, severity, is_classified = decode_serror(int(match[2], 16))
        finding = Finding(
            part=Part.UNKNOWN,
            severity=severity,
            what=f"SError: {words}",
            details={"esr": f"0x{match[2]}"},
            hints=frozenset({"arm-ras" if is_classified and severity is not Severity.FATAL else "arm-abort"}),
        )
        return self._add(Source.ARM, line, finding, int(match[1]))

    def _abort(self, line: Line, text: str) -> bool:
        match = _ABORT.search(text)
        if match is None:
            return False
        is_parity = "parity" in match[1]
        finding = Finding(
            part=Part.MEMORY if is_parity else Part.UNKNOWN,
            severity=Severity.UNCORRECTED,
            what=match[1].strip(),
            details={"esr": f"0x{match[2]}"},
            hints=frozenset({"memory" if is_parity else "arm-abort"}),
        )
        return self._add(Source.ARM, line, finding)

    def _page(self, line: Line, text: str) -> bool:
        match = _PAGE.search(text)
        if match is None:
            return False
        return self._bad_page(
            line, int(match[1], 16), f"{match[2]}: {match[3]}", _RECOVERED.get(match[3], Severity.UNCORRECTED)
        )

    def _killed(self, line: Line, text: str) -> bool:
        match = _KILLED.search(text)
        if match is None:
            return False
        page = int(match[1], 16) if match[1] else None
        return self._bad_page(line, page, f"{match[2]} (pid {match[3]}) was killed", Severity.RECOVERABLE)

    def _user_access(self, line: Line, text: str) -> bool:
        match = _USER_ACCESS.search(text)
        return match is not None and self._bad_page(
            line, int(match[1], 16) >> 12, "a process used bad data", Severity.RECOVERABLE
        )

    def _offlined(self, line: Line, text: str) -> bool:
        match = _OFFLINED.search(text)
        return match is not None and self._bad_page(
            line, int(match[1], 16), "the page is taken off-line before it fails", Severity.CORRECTED
        )

    def _bad_page(self, line: Line, page: int | None, what: str, severity: Severity) -> bool:
        """Note what the kernel did about a page: with the error that named the page, if there is one."""
        earlier = self._pile.with_page(page) if page is not None else self._newest_memory()
        if earlier is not None:
            said = earlier.details.get("kernel_action")
            earlier.details["kernel_action"] = f"{said}; {what}"[:400] if said else what
            earlier.keep(line)
            if earlier.source is Source.MEMORY_FAILURE and earlier.finding is not None:
                worst = max(earlier.finding.severity, severity, key=lambda grade: grade.rank)
                earlier.finding = msgspec.structs.replace(earlier.finding, severity=worst)
            return True
        finding = Finding(
            part=Part.MEMORY,
            severity=severity,
            what="a page of memory is bad",
            paddr=None if page is None else page << 12,
            details={"kernel_action": what},
            hints=frozenset({"memory-page"}),
        )
        return self._add(Source.MEMORY_FAILURE, line, finding)

    def _newest_memory(self) -> Draft | None:
        return next((draft for draft in reversed(self._pile.drafts[-8:]) if draft.page is not None), None)

    def _hot(self, line: Line, text: str) -> bool:
        match = _HOT.search(text)
        if match is None:
            return False
        finding = Finding(
            part=Part.POWER,
            severity=Severity.INFORMATIONAL,
            what=f"{match[2].lower()} {match[3]} above the threshold: the processor is slowed down",
            hints=frozenset({"thermal"}),
        )
        return self._add(Source.THERMAL, line, finding, int(match[1]))
