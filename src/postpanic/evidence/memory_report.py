"""
What the kernel prints of its memory when it has none left, or cannot allocate: out of any log.

A report begins with the task that asked (``invoked oom-killer``, ``page allocation
failure``) or with ``Mem-Info:``, and holds sums in pages, the free blocks of each
zone, the slab caches that cannot be reclaimed, and all tasks with what they use.

References
----------
mm/show_mem.c ``__show_mem``, ``show_free_areas``; mm/oom_kill.c ``dump_header``, ``dump_tasks``,
``__oom_kill_process``; mm/slab_common.c ``dump_unreclaimable_slab``; mm/memcontrol.c ``mem_cgroup_print_oom_meminfo``;
lib/alloc_tag.c (the list ``Memory allocations``, 6.14 and later).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from postpanic.evidence.lines import LINE_LIMIT, Line, clean_text, split_line

__all__ = ["AllocationSite", "MemoryReport", "SlabLine", "TaskLine", "find_memory_reports"]

_REPORTS_LIMIT = 256
_LINES_LIMIT = 40_000
"""Of one report: a machine with tens of thousands of tasks prints them all."""
_TASKS_LIMIT = 32_768
_IDLE_LIMIT = 60
"""Lines that say nothing of memory, after which a report is over."""

_INVOKED = re.compile(
    r"^(?P<comm>.{1,64}?) invoked oom-killer: gfp_mask=(?P<gfp>[^\s,]{1,300}),"
    r"(?: nodemask=\S{1,80})? order=(?P<order>-?\d{1,3})"
)
_FAILED = re.compile(
    r"^(?P<comm>.{1,64}?): page allocation failure: order:(?P<order>\d{1,3}), mode:(?P<gfp>\S{1,300}?)(?:,|$)"
)
_COUNT = re.compile(r"\b([a-z_]{3,32}|isolated\([a-z]{4}\)):(\d{1,16})(?= |$)")
_PAGES = re.compile(r"^(\d{1,14}) pages (RAM|reserved|cma reserved|hwpoisoned|in swap cache|HighMem/MovableOnly)\b")
_CACHE = re.compile(r"^(\d{1,14}) total pagecache pages")
_SWAP = re.compile(r"^(Free|Total) swap  ?= (\d{1,16})kB")
_HUGE = re.compile(r"hugepages_total=(\d{1,12}) hugepages_free=(\d{1,12}) .{0,40}hugepages_size=(\d{1,12})kB")
_BLOCKS = re.compile(r"^Node (\d{1,4}) (\w{1,12}): ((?:\d{1,10}\*\d{1,10}kB (?:\([A-Z]{1,8}\) )?){1,20})= (\d{1,14})kB")
_BLOCK = re.compile(r"(\d{1,10})\*(\d{1,10})kB")
_ZONE = re.compile(
    r"^Node (\d{1,4}) (\w{1,12}) free:(\d{1,14})kB .{0,40}?min:(\d{1,14})kB low:(\d{1,14})kB high:(\d{1,14})kB"
)
_STACKS = re.compile(r" kernel_stack:(\d{1,14})kB ")
_SLAB = re.compile(r"^(\S{1,64}) {1,32}(\d{1,14})KB {1,16}(\d{1,14})KB")
_TASK = re.compile(r"^\[ {0,12}(\d{1,10})\] {1,12}((?:-?\d{1,20} {1,20}){5,10})(\S.{0,63})$")
_HEADER = re.compile(r"^\[ {0,4}pid {0,4}\] {1,8}uid {1,8}tgid ")
_KILLED = re.compile(r"Kill(?:ed)? process (\d{1,10}) \((.{1,60}?)\)")
_CONSTRAINT = re.compile(r"^oom-kill:constraint=(CONSTRAINT_\w{1,24})")
_LIMIT = re.compile(r"^memory: usage (\d{1,16})kB, limit (\d{1,16})kB")
_GROUP = re.compile(r"\boom_memcg=([^,]{1,255})")
_SITE = re.compile(
    r"^ {0,12}(?P<size>\d[\d.]{0,8} [KMGT]?i?B|\d{1,16}) {1,20}(?P<calls>\d{1,20}) (?P<place>\S{1,255}:\d{1,7}) "
    r"(?:\[(?P<module>[\w-]{1,64})\] )?func:(?P<function>[\w.]{1,255})"
)
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_WORDS = (
    "invoked oom-killer",
    "page allocation failure",
    "Mem-Info",
    "Killed process",
    "Kill process",
    "deadlocked on memory",
)
_BEGINS = re.compile("|".join(re.escape(word) for word in _WORDS).encode())
_BACK_BYTES = 512


@dataclass(frozen=True, slots=True)
class SlabLine:
    """One slab cache of the table, in KiB: what objects use, and what its slabs take."""

    name: str
    used_kib: int
    total_kib: int


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One process of the table; sizes in pages."""

    pid: int
    tgid: int
    comm: str
    total_vm: int
    rss: int
    swap: int
    shmem: int = 0


@dataclass(frozen=True, slots=True)
class AllocationSite:
    """A place in the kernel's source and what it has allocated (memory allocation profiling)."""

    size_bytes: int
    calls: int
    place: str
    function: str
    module: str = ""


@dataclass(slots=True)
class MemoryReport:
    """
    One report of the kernel on its memory.

    Attributes
    ----------
    comm : str
        Who asked for memory; it came when there was none, which says nothing against it.
    order : int, optional
        It asked for ``1 << order`` pages; -1: sysrq asked.
    gfp : str
    is_failure : bool
        An allocation that failed, and no search for a process to kill.
    counts : dict
        Pages by the names of the block ``Mem-Info``.
    ram_pages, reserved_pages : int, optional
        Of all memory; ``ram_pages`` less ``reserved_pages`` is what the kernel manages.
    swap_total_kib, swap_free_kib : int, optional
    huge_kib : int
        In pools of huge pages.
    slabs : list of SlabLine
    tasks : list of TaskLine
    sites : list of AllocationSite
    free_blocks : dict
        By node and zone: number of free blocks by their size in KiB.
    kernel_stack_kib : int
    zones : dict
        By node and zone: free, min, low and high in KiB.
    victim, victim_pid : str, int
        Whom the kernel killed.
    constraint, group : str
        ``CONSTRAINT_MEMCG`` and the control group whose limit was met.
    group_limit_kib : int, optional
    time_s : float, optional
    lines : dict
        The line of the log that each part began with.
    """

    comm: str = ""
    order: int | None = None
    gfp: str = ""
    is_failure: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    ram_pages: int | None = None
    reserved_pages: int | None = None
    cache_pages: int | None = None
    swap_total_kib: int | None = None
    swap_free_kib: int | None = None
    huge_kib: int = 0
    kernel_stack_kib: int = 0
    slabs: list[SlabLine] = field(default_factory=list)
    tasks: list[TaskLine] = field(default_factory=list)
    sites: list[AllocationSite] = field(default_factory=list)
    free_blocks: dict[str, dict[int, int]] = field(default_factory=dict)
    zones: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    victim: str = ""
    victim_pid: int | None = None
    constraint: str = ""
    group: str = ""
    group_limit_kib: int | None = None
    time_s: float | None = None
    lines: dict[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def managed_pages(self) -> int | None:
        """Pages that the kernel manages; None: the log does not say."""
        if self.ram_pages is None or self.reserved_pages is None or self.ram_pages <= self.reserved_pages:
            return None
        return self.ram_pages - self.reserved_pages

    @property
    def is_of_group(self) -> bool:
        """Whether only a control group ran out of what it may have."""
        return "MEMCG" in self.constraint or self.group_limit_kib is not None


def find_memory_reports(text: bytes) -> list[MemoryReport]:
    """
    Find the kernel's reports on its memory in a plain log, in order; at most 256.

    >>> found = find_memory_reports(b"a.out invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0")
    >>> found[0].comm, found[0].order
    ('a.out', 0)
    """
    return list(islice(_find(text), _REPORTS_LIMIT))


def _find(text: bytes) -> Iterator[MemoryReport]:
    position = 0
    while (found := _BEGINS.search(text, position)) is not None:
        start = text.rfind(b"\n", max(0, found.start() - _BACK_BYTES), found.start()) + 1
        start = max(position, start or max(0, found.start() - _BACK_BYTES))
        reader = _Reader()
        position = max(reader.run(text, start), found.end())
        yield from reader.reports


class _Reader:
    """Reads on from the beginning of a report, until nothing of memory is said any more."""

    def __init__(self) -> None:
        self.reports: list[MemoryReport] = []
        self._now: MemoryReport | None = None

    def run(self, text: bytes, position: int) -> int:
        idle = 0
        for _ in range(_LINES_LIMIT):
            if position >= len(text) or idle > _IDLE_LIMIT:
                break
            end = text.find(b"\n", position, position + LINE_LIMIT)
            end = end if end >= 0 else min(len(text), position + LINE_LIMIT)
            for line in split_line(clean_text(text[position:end])[:4096], position):
                idle = 0 if self._take(line) else idle + 1
            position = end + 1
        return position

    def _begin(self, line: Line) -> MemoryReport:
        self._now = MemoryReport(time_s=line.time_s)
        self.reports.append(self._now)
        return self._now

    def _take(self, line: Line) -> bool:
        text = line.text.strip() if not line.text.startswith("[") else line.text.rstrip()
        match = _INVOKED.match(text) or _FAILED.match(text)
        if match is not None:
            report = self._begin(line)
            report.comm, report.gfp, report.order = match["comm"], match["gfp"], int(match["order"])
            report.is_failure = match.re is _FAILED
            report.lines["began"] = text
            return True
        if text.startswith("Mem-Info:") and (self._now is None or self._now.counts):
            self._begin(line)
            return True
        if (match := _KILLED.search(text)) is not None:
            report = self._now if self._now is not None and not self._now.victim else self._begin(line)
            report.victim_pid, report.victim = int(match[1]), match[2]
            report.lines["killed"] = text
            return True
        return self._now is not None and any(read(self._now, text) for read in _READERS)


def _read_counts(report: MemoryReport, text: str) -> bool:
    if text.startswith("Node "):
        return False
    pairs = _COUNT.findall(text)
    if not pairs or _COUNT.sub("", text).strip():
        return False
    for name, value in pairs:
        report.counts.setdefault(name, int(value))
    return True


def _read_pages(report: MemoryReport, text: str) -> bool:
    if (match := _PAGES.match(text)) is not None:
        if match[2] == "RAM":
            report.ram_pages = int(match[1])
            report.lines["ram"] = text
        elif match[2] == "reserved":
            report.reserved_pages = int(match[1])
        return True
    if (match := _CACHE.match(text)) is not None:
        report.cache_pages = int(match[1])
        return True
    if (match := _SWAP.match(text)) is not None:
        if match[1] == "Free":
            report.swap_free_kib = int(match[2])
        else:
            report.swap_total_kib = int(match[2])
        return True
    return False


def _read_zones(report: MemoryReport, text: str) -> bool:
    if not text.startswith("Node "):
        return False
    if (match := _STACKS.search(text)) is not None:
        report.kernel_stack_kib += int(match[1])
    if (match := _HUGE.search(text)) is not None:
        report.huge_kib += int(match[1]) * int(match[3])
        report.lines.setdefault("huge", text)
    elif (match := _BLOCKS.match(text)) is not None:
        name = f"node {match[1]}, zone {match[2]}"
        report.free_blocks[name] = {int(size): int(count) for count, size in _BLOCK.findall(match[3])}
        report.lines[f"blocks of {name}"] = text
    elif (match := _ZONE.match(text)) is not None:
        free, low, middle, high = (int(match[number]) for number in (3, 4, 5, 6))
        report.zones[f"node {match[1]}, zone {match[2]}"] = (free, low, middle, high)
    return True


def _read_slab(report: MemoryReport, text: str) -> bool:
    match = _SLAB.match(text)
    if match is None:
        return text.startswith("Unreclaimable slab info")
    report.slabs.append(SlabLine(match[1], int(match[2]), int(match[3])))
    report.lines.setdefault(f"slab {match[1]}", text)
    return True


def _read_task(report: MemoryReport, text: str) -> bool:
    if _HEADER.match(text):
        report.columns = tuple(text.partition("]")[2].split())[:-1]
        return True
    match = _TASK.match(text)
    if match is None or not report.columns or len(report.tasks) >= _TASKS_LIMIT:
        return False
    values = [int(word) for word in match[2].split()]
    if len(values) != len(report.columns):
        # A name that begins with digits: its words were taken for numbers, or the table is another one's.
        return False
    row = dict(zip(report.columns, values, strict=True))
    task = TaskLine(
        int(match[1]),
        row.get("tgid", int(match[1])),
        match[3].strip(),
        row.get("total_vm", 0),
        row.get("rss", 0),
        row.get("swapents", 0),
        row.get("rss_shmem", 0),
    )
    report.tasks.append(task)
    if task.rss >= max(one.rss for one in report.tasks):
        report.lines["biggest"] = text
    return True


def _read_constraint(report: MemoryReport, text: str) -> bool:
    if (match := _CONSTRAINT.match(text)) is not None:
        report.constraint = match[1]
        if (group := _GROUP.search(text)) is not None:
            report.group = group[1]
        report.lines["constraint"] = text
        return True
    if (match := _LIMIT.match(text)) is not None:
        report.group_limit_kib = int(match[2])
        report.lines["limit"] = text
        return True
    return text.startswith(("Tasks state", "lowmem_reserve", "oom_reaper", "Memory cgroup", "Memory allocations:"))


def _read_site(report: MemoryReport, text: str) -> bool:
    match = _SITE.match(text)
    if match is None:
        return False
    number, _, unit = match["size"].partition(" ")
    size = int(float(number) * _UNITS.get(unit.replace("kB", "KiB"), 1))
    site = AllocationSite(size, int(match["calls"]), match["place"], match["function"], match["module"] or "")
    report.sites.append(site)
    report.lines.setdefault(f"site {site.function}", text)
    return True


_READERS = (_read_task, _read_counts, _read_zones, _read_pages, _read_slab, _read_constraint, _read_site)
