"""
What memory is used for, as a balance sheet: every page that the kernel manages is in one line of it.

What is left over when all lines are summed up is used by somebody who does not
count it: a driver that takes pages, and gives them back or does not.

Sources: ``fs/proc/meminfo.c``, ``mm/show_mem.c``, ``include/linux/mmzone.h``; per-CPU memory ``mm/percpu.c``
(``pcpu_nr_pages``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from drgn.helpers.linux.vmstat import global_node_page_state, global_zone_page_state

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory import totals
from postpanic.analysis.triage.memory.areas import AreaUse, read_area_use
from postpanic.analysis.workspace import Workspace
from postpanic.evidence.memory_report import MemoryReport
from postpanic.findings.table import Problem
from postpanic.findings.verdict import Evidence

__all__ = ["UNACCOUNTED", "Line", "Sheet", "sheet_of_dump", "sheet_of_report", "spell_pages"]

UNACCOUNTED = "pages that nobody accounts for"

FREE = "free"
_PAGE_KIB = 4
_TOLERANCE = 1.02
"""Counters lag behind, each by some pages of each CPU."""


def spell_pages(pages: int, page_bytes: int = 4096) -> str:
    """
    Spell a number of pages as people do.

    >>> spell_pages(174200), spell_pages(12)
    ('680 MiB', '48 KiB')
    """
    kib = pages * page_bytes // 1024
    for factor, unit in ((1 << 20, "GiB"), (1 << 10, "MiB")):
        if kib >= 10 * factor or (kib >= factor and unit == "GiB"):
            return f"{kib / factor:.1f} {unit}" if kib < 100 * factor and unit == "GiB" else f"{kib // factor} {unit}"
    return f"{kib} KiB"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what for, how many pages, and the command that shows it."""

    name: str
    pages: int
    command: str = ""
    shows: str = ""


@dataclass
class Sheet:
    """
    All of memory.

    Attributes
    ----------
    total : int
        Pages that the kernel manages.
    lines : list of Line
        Their sum and :attr:`unaccounted` make up the total.
    areas : AreaUse, optional
        vmalloc by caller, of a dump.
    """

    total: int
    page_bytes: int
    lines: list[Line] = field(default_factory=list)
    areas: AreaUse | None = None
    problems: list[Problem] = field(default_factory=list)

    def pages(self, name: str) -> int:
        """Pages of a line; 0: there is none."""
        return next((line.pages for line in self.lines if line.name == name), 0)

    @property
    def unaccounted(self) -> int:
        """What is left over; never below 0, as counters lag behind."""
        return max(0, self.total - sum(line.pages for line in self.lines))

    @property
    def free(self) -> int:
        """Free pages."""
        return self.pages(FREE)

    @property
    def is_sound(self) -> bool:
        """Whether all lines could be read, and are no more together than there is."""
        return not self.problems and sum(line.pages for line in self.lines) <= self.total * _TOLERANCE

    def share(self, pages: int) -> float:
        """Part of all memory, 0 to 1."""
        return pages / self.total if self.total else 0.0

    def spell(self, pages: int) -> str:
        """Spell pages, and their part of memory."""
        return f"{spell_pages(pages, self.page_bytes)}, {self.share(pages):.0%} of memory"

    def evidence(self) -> tuple[Evidence, ...]:
        """Spell the sheet, the largest line first; lines below a hundredth are summed up."""
        lines = [*self.lines, Line(UNACCOUNTED, self.unaccounted)]
        lines.sort(key=lambda line: -line.pages)
        large = [line for line in lines if self.share(line.pages) >= 0.01]
        text = "; ".join(f"{line.name} {spell_pages(line.pages, self.page_bytes)}" for line in large)
        rest = sum(line.pages for line in lines) - sum(line.pages for line in large)
        text += f"; all else {spell_pages(rest, self.page_bytes)}" if rest else ""
        command = next((line.command for line in large if line.command), "")
        what = f"of {spell_pages(self.total, self.page_bytes)} that the kernel manages: {text}"
        shows = next((line.shows for line in large if line.command == command), "")
        return (Evidence(what, command, shows),)


def sheet_of_dump(workspace: Workspace) -> Sheet:
    """
    Make the sheet of a dump; kept for the session.

    Raises
    ------
    LookupError, PostpanicError
        If not even the total can be read.
    """
    return workspace.once("balance sheet of memory", lambda: _sheet(workspace))


def _sheet(workspace: Workspace) -> Sheet:
    prog = workspace.prog
    sheet = Sheet(totals.total_pages(prog), workspace.memory.page_size_bytes)
    count = _Counters(workspace)
    page_bytes = sheet.page_bytes

    def add(name: str, compute: Callable[[], int], command: str = "kmem -i", row: str = "") -> None:
        try:
            pages = compute()
        except UNREADABLE as exc:
            sheet.problems.append(problem(f"memory: {name}", exc))
            return
        if pages > 0:
            sheet.lines.append(
                Line(name, pages, command, f"{row} {pages}" if row.endswith(":") else str(pages) if row else "")
            )

    add(FREE, lambda: totals.free_pages(prog), row="FREE")
    add("of processes", lambda: count("NR_ANON_MAPPED"), "kmem -V", "NR_ANON_MAPPED:")
    add("shared memory and tmpfs", lambda: count("NR_SHMEM"), "kmem -V", "NR_SHMEM:")
    add("page cache", lambda: count("NR_FILE_PAGES") - count("NR_SHMEM"), "kmem -V")
    add("slab", lambda: totals.slab_pages(prog), row="SLAB")
    add("page tables", lambda: count("NR_PAGETABLE"), "kmem -V", "NR_PAGETABLE:")
    add("page tables of guests", lambda: count("NR_SECONDARY_PAGETABLE", is_optional=True), "kmem -V")
    add("huge pages set aside", lambda: totals.huge_pages(prog).total, row="TOTAL HUGE")
    add("per-CPU memory", lambda: _per_cpu_pages(workspace), "")
    add("zswap and zram", lambda: count("NR_ZSPAGES", is_optional=True), "kmem -V", "NR_ZSPAGES:")
    add("other reclaimable", lambda: count("NR_KERNEL_MISC_RECLAIMABLE", is_optional=True), "kmem -V")
    add("balloon", lambda: count("NR_BALLOON_PAGES", is_optional=True), "kmem -V")
    try:
        sheet.areas = read_area_use(workspace, sheet.problems)
    except UNREADABLE as exc:
        sheet.problems.append(problem("memory: vmalloc", exc))
    stacks = sheet.areas.stack_pages if sheet.areas is not None else 0
    add("kernel stacks", lambda: stacks or count("NR_KERNEL_STACK_KB", "NR_KERNEL_STACK") * 1024 // page_bytes,
        "kmem -V")  # fmt: skip
    if sheet.areas is not None and sheet.areas.pages > stacks:
        sheet.lines.append(Line("vmalloc", sheet.areas.pages - stacks, "kmem -v"))
    add("free, kept by CPUs", lambda: _kept_pages(workspace), "")
    return sheet


class _Counters:
    """``vm_stat``: of nodes, else of zones, by the names that this kernel has."""

    def __init__(self, workspace: Workspace) -> None:
        self._prog = workspace.prog
        self._node = self._names("enum node_stat_item")
        self._zone = self._names("enum zone_stat_item")

    def _names(self, name: str) -> dict[str, int]:
        try:
            return {item.name: int(item.value) for item in self._prog.type(name).enumerators or ()}
        except LookupError:
            return {}

    def __call__(self, *names: str, is_optional: bool = False) -> int:
        for name in names:
            if name in self._node:
                return max(0, int(global_node_page_state(self._prog, self._prog[name])))
            if name in self._zone:
                return max(0, int(global_zone_page_state(self._prog, self._prog[name])))
        if is_optional:
            return 0
        raise LookupError(f"no counter {names[0]}")


def _per_cpu_pages(workspace: Workspace) -> int:
    prog = workspace.prog
    return int(prog["pcpu_nr_populated"].value_()) * int(prog["pcpu_nr_units"].value_())


def _kept_pages(workspace: Workspace) -> int:
    """
    Count free pages on the lists of CPUs, which are no longer counted as free.

    ``zone.per_cpu_pageset`` since 5.14 (28f836b6777b), before that ``zone.pageset`` with ``pcp`` in it.
    """
    from drgn.helpers.linux.percpu import per_cpu_ptr

    from postpanic.analysis.memory.zones import read_nodes, read_zones
    from postpanic.analysis.tasks.lists import possible_cpus

    total = 0
    for node in read_nodes(workspace.prog, []):
        for zone in read_zones(node, []):
            if not zone.is_populated:
                continue
            for cpu in possible_cpus(workspace):
                try:
                    pages = per_cpu_ptr(zone.zone.per_cpu_pageset, cpu).count
                except AttributeError:
                    pages = per_cpu_ptr(zone.zone.pageset, cpu).pcp.count
                total += max(0, int(pages.value_()))
    return total


_COUNTED = (
    (FREE, ("free",)),
    ("of processes", ("active_anon", "inactive_anon", "isolated_anon")),
    ("page cache", ("active_file", "inactive_file", "isolated_file")),
    ("not evictable", ("unevictable",)),
    ("slab", ("slab_reclaimable", "slab_unreclaimable")),
    ("page tables", ("pagetables",)),
    ("page tables of guests", ("sec_pagetables",)),
    ("free, kept by CPUs", ("free_pcp",)),
    ("other reclaimable", ("kernel_misc_reclaimable",)),
    ("bounce buffers", ("bounce",)),
)


def sheet_of_report(report: MemoryReport) -> Sheet | None:
    """
    Make the sheet of the block ``Mem-Info`` of a log; None if it is not whole.

    The log counts pages by the lists they are on: shared memory is among those of processes.
    """
    total = report.managed_pages
    if total is None or "free" not in report.counts:
        return None
    sheet = Sheet(total, _PAGE_KIB * 1024)
    for name, parts in _COUNTED:
        pages = sum(report.counts.get(part, 0) for part in parts)
        if pages:
            shows = " ".join(f"{part}:{report.counts[part]}" for part in parts if report.counts.get(part))
            sheet.lines.append(Line(name, pages, "log", shows))
    if report.huge_kib:
        sheet.lines.append(
            Line("huge pages set aside", report.huge_kib // _PAGE_KIB, "log", report.lines.get("huge", ""))
        )
    if report.kernel_stack_kib:
        stacks = report.kernel_stack_kib // _PAGE_KIB
        sheet.lines.append(Line("kernel stacks", stacks, "log", f"kernel_stack:{report.kernel_stack_kib}kB"))
    return sheet
