"""What memory is used for, in pages: which share of it a dump level would leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from postpanic.dumps.memory import Dump, PageState
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.classify import select_pages
from postpanic.pages.selection import Selection
from postpanic.pages.verdict import FIRST_DROPPED, DumpLevel, Verdict

__all__ = ["MemoryUsage", "UsageRow", "count_usage", "format_usage"]

_BATCH_FRAMES = 1024

_ROWS: tuple[tuple[str, tuple[Verdict, ...], str], ...] = (
    ("NON_PRI_CACHE", (Verdict.CACHE,), "Cache pages without private flag"),
    ("PRI_CACHE", (Verdict.CACHE_PRIVATE,), "Cache pages with private flag"),
    ("USER", (Verdict.USER,), "User process pages"),
    ("FREE", (Verdict.FREE,), "Free pages"),
    ("UNACCEPTED", (Verdict.UNACCEPTED,), "Pages that the guest has not accepted"),
    ("HWPOISON", (Verdict.HWPOISON,), "Pages with memory errors"),
    ("OFFLINE", (Verdict.OFFLINE,), "Pages that are logically offline"),
    ("NOT_IN_SOURCE", (Verdict.NOT_IN_SOURCE,), "Pages left out by an earlier filter"),
)
"""The first four in the order and words of ``makedumpfile --mem-usage``."""
_ALWAYS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One kind of page."""

    type: str
    pages: int
    excludable: bool
    """Whether a dump level leaves such pages out, or they are never saved."""
    description: str


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """
    Pages of a machine by what they are used for.

    The rows add up to ``total_pages``.
    """

    rows: tuple[UsageRow, ...]
    page_size_bytes: int
    total_pages: int
    notes: tuple[str, ...] = ()
    """What could not be told, one phrase each."""

    @property
    def total_bytes(self) -> int:
        """RAM, in bytes."""
        return self.total_pages * self.page_size_bytes


def count_usage(
    dump: Dump,
    kernel: KernelMemory,
    *,
    zero: bool = True,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryUsage:
    """
    Count the pages of a machine, live or in a dump, by what they are used for.

    Parameters
    ----------
    zero : bool
        Whether to look for pages of zeroes among those that no other bit of the level
        leaves out; takes reading all of these.
    progress : callable, optional
        Called now and then with the frames that are done and all of them.

    Raises
    ------
    PostpanicError
        As :func:`~postpanic.pages.classify.select_pages` does.
    """
    level = int(DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE | DumpLevel.USER | DumpLevel.FREE)
    selection = select_pages(dump, kernel, level, threads=threads, progress=None if zero else progress)
    zeroes, lost = _count_zero_pages(dump, selection, progress) if zero else (0, 0)
    rows = [UsageRow("ZERO", zeroes, excludable=True, description="Pages filled with zero")] if zero else []
    for number, (name, verdicts, description) in enumerate(_ROWS):
        pages = sum(selection.counts.get(verdict, 0) for verdict in verdicts)
        if pages or number < _ALWAYS_SHOWN:
            rows.append(UsageRow(name, pages, excludable=True, description=description))
    kept = sum(count for verdict, count in selection.counts.items() if verdict < FIRST_DROPPED)
    rows.append(UsageRow("KERN_DATA", kept - zeroes, excludable=False, description="Dumpable kernel data"))
    notes = list(selection.notes)
    if lost:
        notes.append(f"{lost} pages could not be read, so whether they are zero is not known")
    return MemoryUsage(tuple(rows), dump.page_size_bytes, selection.ram.count, tuple(notes))


def _count_zero_pages(dump: Dump, selection: Selection, progress: Callable[[int, int], None] | None) -> tuple[int, int]:
    """Count the pages of zeroes among those that are kept, and those that cannot be read."""
    pages = np.empty((_BATCH_FRAMES, dump.page_size_bytes), dtype=np.uint8)
    zeroes = lost = done = 0
    for pfns in selection.batches(_BATCH_FRAMES, by_worth=False):
        part = pages[: len(pfns)]
        states = dump.read_pages_into(pfns, part)
        words = part.view("<u8")
        # The first word decides for nearly every page that is not zero.
        maybe = np.flatnonzero((words[:, 0] == 0) & (states == PageState.PRESENT))
        zeroes += int(np.count_nonzero(~words[maybe].any(axis=1)))
        lost += int(np.count_nonzero(states != PageState.PRESENT))
        done += len(pfns)
        if progress is not None:
            progress(done, selection.kept.count)
    return zeroes, lost


def format_usage(usage: MemoryUsage) -> str:
    """Lay the rows out as ``makedumpfile --mem-usage`` does."""
    lines = ["TYPE\t\tPAGES\t\t\tEXCLUDABLE\tDESCRIPTION", "-" * 70]
    for row in usage.rows:
        word = "yes" if row.excludable else "no"
        lines.append(f"{row.type:<15}\t{row.pages:<15}\t{word:<15}\t{row.description}")
    lines += [
        "",
        f"Page size:\t\t{usage.page_size_bytes}",
        f"Total pages on system:\t{usage.total_pages}",
        f"Total size on system:\t{usage.total_bytes} Byte",
    ]
    return "\n".join(lines) + "\n"
