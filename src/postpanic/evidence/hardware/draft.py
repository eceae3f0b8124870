"""An error that is being read out of a text, and the pile of them."""

from __future__ import annotations

from postpanic.evidence.hardware.model import Finding, MachineCheck, Source
from postpanic.evidence.lines import Line

__all__ = ["LINES_LIMIT", "Draft", "Pile"]

LINES_LIMIT = 64
"""Messages that are kept of one error."""

_PAGE = 12


class Draft:
    """
    One error before the verdict on it.

    Parameters
    ----------
    source : Source
    line : Line
        Its first message.
    """

    __slots__ = (
        "check",
        "count",
        "cpu",
        "details",
        "end",
        "finding",
        "is_panic",
        "lines",
        "location",
        "offset",
        "paddr",
        "source",
        "time_s",
    )

    def __init__(self, source: Source, line: Line) -> None:
        self.source = source
        self.finding: Finding | None = None
        self.check: MachineCheck | None = None
        self.cpu: int | None = None
        self.count = 1
        self.details: dict[str, str] = {}
        self.location: dict[str, str] = {}
        self.is_panic = False
        self.paddr: int | None = None
        self.time_s = line.time_s
        self.offset = self.end = line.offset
        self.lines: list[str] = []
        self.keep(line)

    def keep(self, line: Line) -> None:
        """Count a message as one of this error's."""
        if len(self.lines) < LINES_LIMIT:
            self.lines.append(line.text[:1024].rstrip())
        self.end = max(self.end, line.offset)

    @property
    def page(self) -> int | None:
        """Frame number of the address that was hit, None if there is none."""
        paddr = self.finding.paddr if self.finding is not None else None
        if paddr is None and self.check is not None:
            # A memory controller's own address is no system address, but the kernel's messages agree on it.
            paddr = self.check.addr or None
        return None if paddr is None else paddr >> _PAGE


class Pile:
    """The errors of one boot, in the order in which they began."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.is_guest = False
        self.is_injected = False
        self.injected_pages: set[int] = set()

    def add(self, draft: Draft) -> None:
        """Take an error in."""
        self.drafts.append(draft)

    def with_page(self, page: int, *, last: int = 64) -> Draft | None:
        """Find the newest of the last errors that hit a page; None: no such error."""
        return next((draft for draft in reversed(self.drafts[-last:]) if draft.page == page), None)
