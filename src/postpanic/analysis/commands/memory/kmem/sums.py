"""``kmem -i``, ``-h``, ``-o``: sums of memory, huge pages, per-CPU offsets."""

from __future__ import annotations

from collections.abc import Callable

from drgn import Object
from drgn.helpers.linux.hugetlb import for_each_hstate, huge_page_size
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.cells import absent, cell, decode, guarded
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory import totals
from postpanic.analysis.memory.fields import integer_cell
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.tasks.lists import possible_cpus
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["HSTATES", "OFFSETS", "SUMS", "show_huge_pages", "show_offsets", "show_sums"]

SUMS = Shape(
    "sums",
    (
        Column("name", help="What is counted."),
        Column("pages", Kind.NUMBER, title="PAGES", help="Pages of the base size."),
        Column("size", title="TOTAL", help="The same in bytes, rounded."),
        Column("percent", Kind.NUMBER, help="Share of the total, rounded down."),
        Column("of", help="Of which total it is a share."),
        Column("share", title="PERCENTAGE", help="The same in words."),
    ),
    Layout.LINES,
    "{name:>13}  {pages:>7}  {size:>11}  {share}",
)
_SUMS_TITLE = "                 PAGES        TOTAL      PERCENTAGE"
HSTATES = Shape(
    "hstates",
    (
        Column("hstate", Kind.ADDRESS, title="HSTATE", help="``struct hstate *``.", align="^"),
        Column("size", title="SIZE", help="Size of its pages.", align=">"),
        Column("free", Kind.NUMBER, title="FREE", help="Huge pages that are free.", width=6),
        Column("total", Kind.NUMBER, title="TOTAL", help="Huge pages in the pool.", width=6),
        Column("name", title="NAME", help="Its name."),
    ),
)
OFFSETS = Shape(
    "offsets",
    (
        Column("cpu", Kind.NUMBER, help="Number of the CPU."),
        Column("offset", Kind.ADDRESS, help="What is added to the address of a per-CPU symbol."),
    ),
    Layout.LINES,
    "  CPU {cpu}: {offset}",
    title="PER-CPU OFFSET VALUES:",
)
_UNITS = (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10))


def spell_size(size_bytes: int) -> str:
    """Spell a size as crash does: one decimal, none where it is zero."""
    for unit, factor in _UNITS:
        if size_bytes >= factor or unit == "KB":
            text = f"{size_bytes / factor:.1f}".removesuffix(".0")
            return f"{text} {unit}"
    return f"{size_bytes} bytes"


class _Sums:
    """Collects the rows of ``kmem -i``; what cannot be had is an empty cell with its reason."""

    def __init__(self, workspace: Workspace) -> None:
        self._page_size = workspace.memory.page_size_bytes
        self.rows: list[tuple[Cell, ...]] = []

    def add(self, name: str, compute: Callable[[], int], whole: int | None = None, of: str = "") -> int | None:
        """Add a row; *whole*: of what it is a share, called *of*."""
        try:
            pages = compute()
        except UNREADABLE as exc:
            self.rows.append((name, absent(exc), None, None, None, None))
            return None
        percent = pages * 100 // whole if whole else None
        size = spell_size(pages * self._page_size)
        share = f"{percent:3d}% of {of}" if percent is not None else "       ----"
        self.rows.append((name, pages, size, percent, of if percent is not None else None, share))
        return pages


def show_sums(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -i``."""
    chosen = arguments.get("info")
    if chosen not in {"", "shared"}:
        raise UsageError(f"kmem -i={chosen}: only -i=shared")
    prog = workspace.prog
    problems: list[Problem] = []
    main, of_memory = _Sums(workspace), "TOTAL MEM"
    total = main.add("TOTAL MEM", lambda: totals.total_pages(prog))
    free = main.add("FREE", lambda: totals.free_pages(prog), total, of_memory)
    if total is not None and free is not None:
        main.add("USED", lambda: total - free, total, of_memory)
    if chosen == "shared":
        main.add("SHARED", lambda: totals.shared_pages(page_structs(workspace)), total, of_memory)
    buffers = main.add("BUFFERS", lambda: totals.buffer_pages(prog, problems), total, of_memory)
    main.add("CACHED", lambda: totals.cached_pages(prog, buffers or 0), total, of_memory)
    main.add("SLAB", lambda: totals.slab_pages(prog), total, of_memory)
    huge = _Sums(workspace)
    huge_total = huge.add("TOTAL HUGE", lambda: totals.huge_pages(prog).total)
    huge.add("HUGE FREE", lambda: totals.huge_pages(prog).free, huge_total or 1, "TOTAL HUGE")
    swap = _Sums(workspace)
    swap_total = swap.add("TOTAL SWAP", lambda: totals.swap_pages(prog).total)
    if swap_total is not None:
        used = swap_total - totals.swap_pages(prog).free
        swap.add("SWAP USED", lambda: used, swap_total or 1, "TOTAL SWAP")
        swap.add("SWAP FREE", lambda: swap_total - used, swap_total or 1, "TOTAL SWAP")
    commit = _Sums(workspace)
    limit = commit.add("COMMIT LIMIT", lambda: totals.commit_pages(prog)[0])
    commit.add("COMMITTED", lambda: totals.commit_pages(prog)[1], limit or 1, "TOTAL LIMIT")
    first = SUMS.table(main.rows, title=_SUMS_TITLE)
    return Answer("kmem", (first, *(SUMS.table(part.rows) for part in (huge, swap, commit))), tuple(problems))


def show_huge_pages(workspace: Workspace) -> Answer:
    """Answer ``kmem -h``."""
    problems: list[Problem] = []
    hstates = guarded(for_each_hstate(workspace.prog), "hstates", problems)
    rows = [_hstate_row(hstate) for hstate in hstates]
    return Answer("kmem", (HSTATES.table(rows),), tuple(problems))


def _hstate_row(hstate: Object) -> tuple[Cell, ...]:
    return (
        int(hstate.value_()),
        cell(lambda: spell_size(int(huge_page_size(hstate).value_())).replace(" ", "")),
        integer_cell(hstate, "free_huge_pages"),
        integer_cell(hstate, "nr_huge_pages"),
        cell(lambda: decode(hstate.name.string_())),
    )


def show_offsets(workspace: Workspace) -> Answer:
    """Answer ``kmem -o``."""
    zero = Object(workspace.prog, "void *", 0)
    rows: list[tuple[int, int | Absent]] = []
    for cpu in possible_cpus(workspace):
        try:
            rows.append((cpu, int(per_cpu_ptr(zero, cpu).value_())))
        except UNREADABLE as exc:
            rows.append((cpu, absent(exc)))
    return Answer("kmem", (OFFSETS.table(rows),))
