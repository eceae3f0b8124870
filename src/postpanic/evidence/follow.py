"""
Find the reports of a text that grows: a serial line, a log file, the messages of a host.

What :func:`postpanic.evidence.oops.find_reports` does to a whole text is done
here to one that comes in pieces: lines go by at the speed of ``bytes.find``
until one of them may begin a report, and from there on each is read and
forgotten. Memory is bounded whatever comes: a line, the lines before a report,
and the reports that are open have a limit each.

What only the rest of the text could say is not known yet: whether the kernel
panicked some minutes after a warning is not in the warning's report.
"""

from __future__ import annotations

from collections import deque

from postpanic.evidence.lines import LINE_LIMIT
from postpanic.evidence.oops.builder import ReportBuilder
from postpanic.evidence.oops.model import Report
from postpanic.evidence.oops.parse import Kernel, finish_boot
from postpanic.evidence.oops.rules import NEEDLES
from postpanic.evidence.oops.segment import (
    PREAMBLE_BYTES,
    PREAMBLE_LINES,
    Boot,
    Callers,
    Event,
    KernelOffset,
    lines_of,
    starts,
)

__all__ = ["OPEN_LIMIT_BYTES", "ReportFollower", "may_begin_report"]

OPEN_LIMIT_BYTES = 1 << 20
"""Text of reports that are open at one time; then they are taken as they are."""

_SILENCE_S = 2.0
_LONG_SILENCE_S = 5.0
"""A report that has not come to its end may be slow: consoles that wait for each other, a line of 9,600 baud."""

_TOGETHER = 16
"""Reports that are kept back because another one that began before is still open."""


def may_begin_report(text: bytes) -> bool:
    r"""
    Tell whether a text, of any number of lines, has anything in it that could begin a report.

    >>> may_begin_report(b"usb 1-1: new device"), may_begin_report(b"x\nBUG: unable to handle page fault")
    (False, True)
    """
    for needle in NEEDLES:  # noqa: SIM110 - any() with a generator takes twice the time, and this is asked of every line
        if needle in text:
            return True
    return False


class ReportFollower:
    r"""
    Find the reports of one text, piece by piece.

    Parameters
    ----------
    with_notices : bool
        Also give what the kernel survives by design, as in :func:`postpanic.evidence.oops.find_reports`.
    limit_bytes : int
        Of the text of reports that are open.

    Examples
    --------
    >>> follower = ReportFollower()
    >>> follower.feed(b"[    1.000000] BUG: KASAN: slab-use-after-free in f")
    []
    >>> follower.feed(b"oo+0x1/0x2\n"), follower.is_open
    ([], True)
    >>> [report.title for report in follower.finish()]
    ['KASAN: slab-use-after-free in foo']
    """

    __slots__ = (
        "_builders",
        "_callers",
        "_has_reports",
        "_held_bytes",
        "_kernel",
        "_limit_bytes",
        "_offset",
        "_partial",
        "_place",
        "_place_of_first",
        "_recent",
        "_reports",
        "_with_notices",
    )

    def __init__(self, *, with_notices: bool = False, limit_bytes: int = OPEN_LIMIT_BYTES) -> None:
        self._with_notices = with_notices
        self._limit_bytes = limit_bytes
        self._offset = 0
        self._partial = b""
        self._recent: deque[bytes] = deque(maxlen=PREAMBLE_LINES)
        self._callers: Callers | None = None
        self._held_bytes = 0
        self._builders: list[ReportBuilder] = []
        self._reports: list[Report] = []
        self._kernel = Kernel()
        self._place = 0
        self._place_of_first = 0
        self._has_reports = False

    @property
    def is_open(self) -> bool:
        """Whether a report is being read that may go on."""
        return self._callers is not None

    @property
    def silence_s(self) -> float:
        """How long nothing has to come until :meth:`finish` is in place, as far as the text says: seconds."""
        return _SILENCE_S if self._callers is None or self._callers.has_ended else _LONG_SILENCE_S

    @property
    def held_bytes(self) -> int:
        """Text of the reports that are open."""
        return self._held_bytes

    def feed(self, data: bytes) -> list[Report]:
        """
        Take the next piece of the text; a line may be in several of them.

        Returns
        -------
        list of Report
            Those that ended in it. ``offset`` and ``end`` count from the beginning of the text.
        """
        text = self._partial + data if self._partial else data
        end = text.rfind(b"\n") + 1
        if len(text) - end > LINE_LIMIT:
            end = len(text) - (len(text) - end) % LINE_LIMIT
        self._partial = text[end:]
        if end:
            self._take(text[:end])
        return self._give()

    def finish(self) -> list[Report]:
        """
        Take the reports that are open as they are: nothing more is expected.

        What is fed later is read as before.
        """
        rest, self._partial = self._partial, b""
        if rest:
            self._take(rest)
        self._close()
        return self._give()

    def skip(self, lines: list[bytes]) -> None:
        """Take whole lines, with their ends, of which :func:`may_begin_report` says no; no report may be open."""
        self._keep(lines[-PREAMBLE_LINES:])
        self._offset += sum(map(len, lines))

    def _give(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    def _take(self, text: bytes) -> None:
        has_needle = may_begin_report(text)
        if not has_needle and self._callers is None:
            self._offset += len(text)
            self._keep(text[-2 * PREAMBLE_BYTES :].split(b"\n")[:-1][-PREAMBLE_LINES:])
            return
        for line in text.split(b"\n")[: None if not text.endswith(b"\n") else -1]:
            for start in range(0, max(len(line), 1), LINE_LIMIT):
                part = line[start : start + LINE_LIMIT]
                self._line(part, is_candidate=has_needle and may_begin_report(part))
                self._offset += len(part)
            self._offset += 1

    def _line(self, line: bytes, *, is_candidate: bool) -> None:
        callers = self._callers
        if callers is None:
            if not is_candidate:
                self._keep([line])
                return
            if not any(starts(part.text) for part in lines_of(line, self._offset)):
                self._recent.clear()
                return
            callers = self._callers = self._open()
        for part in lines_of(line, self._offset):
            for event in callers.take(part, is_candidate=is_candidate):
                self._collect(event)
        self._held_bytes += len(line)
        if not callers.is_open or self._held_bytes > self._limit_bytes:
            self._close()
        elif len(self._builders) >= _TOGETHER:
            self._make()

    def _keep(self, lines: list[bytes]) -> None:
        """Remember the last lines, for a report that may follow."""
        recent = self._recent
        recent.extend(lines)
        room = sum(map(len, recent)) + len(recent) - PREAMBLE_BYTES
        while room > 0:
            room -= len(recent.popleft()) + 1

    def _open(self) -> Callers:
        """Begin with the lines before the report; they cannot begin one."""
        callers = Callers()
        for line in self._recent:
            for part in lines_of(line.rstrip(b"\n"), self._offset):
                for event in callers.take(part, is_candidate=False):
                    self._collect(event)
        self._recent.clear()
        return callers

    def _collect(self, event: Event) -> None:
        if isinstance(event, ReportBuilder):
            self._builders.append(event)
        elif isinstance(event, KernelOffset):
            self._kernel.offset = event
        else:
            self._make()
            self._boot(event)

    def _boot(self, boot: Boot) -> None:
        self._kernel = Kernel(boot.release)
        self._has_reports = False

    def _close(self) -> None:
        if self._callers is not None:
            for builder in self._callers.finish():
                self._builders.append(builder)
        self._callers = None
        self._held_bytes = 0
        self._make()

    def _make(self) -> None:
        """Make the reports of what has ended."""
        if not self._builders:
            return
        builders, self._builders = self._builders, []
        is_first = not self._has_reports
        if is_first:
            self._place_of_first = self._place
        made = list(
            finish_boot(
                builders, self._place_of_first, self._kernel, with_notices=self._with_notices, is_first=is_first
            )
        )
        self._has_reports = self._has_reports or bool(made)
        self._place += len(made)
        self._kernel.release = self._kernel.release or next((each.release for each in made if each.release), "")
        self._reports.extend(made)
