"""Who holds memory: processes, files of tmpfs, slab caches, callers of vmalloc, and what nobody accounts for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.memory.slabs.pages import find_all_slabs
from postpanic.analysis.memory.slabs.values import Cache
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.tasks.memory_use import MemoryUse, read_memory_use
from postpanic.analysis.triage.memory.areas import Caller
from postpanic.analysis.triage.memory.files import read_files
from postpanic.analysis.triage.memory.sheet import UNACCOUNTED, Sheet, spell_pages
from postpanic.analysis.triage.memory.takers import find_asker
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.memory_report import MemoryReport
from postpanic.findings.verdict import Evidence, Subject

__all__ = ["WHO", "Eater", "Sort", "eaters_of_dump", "eaters_of_report"]


class Sort(StrEnum):
    """What kind of eater."""

    PROCESS = "process"
    PROCESSES = "processes"
    """Many of one name."""
    FILE = "file"
    """Of tmpfs, or shared memory."""
    SLAB = "slab"
    LARGE = "large kmalloc"
    AREAS = "vmalloc"
    HUGE = "huge pages"
    STACKS = "kernel stacks"
    TABLES = "page tables"
    PER_CPU = "per-CPU"
    PAGES = "pages"
    """That nobody accounts for."""


WHO = "who holds memory"
"""Begins what is missed where that cannot be read."""
KERNEL = frozenset({Sort.SLAB, Sort.LARGE, Sort.AREAS, Sort.PER_CPU, Sort.PAGES})
"""Memory that the kernel itself took, and should have given back."""

_FEW = 3
_NOT_LISTED = 0.1
"""So much of memory may be in small things that are not listed."""
_RECLAIMABLE = 0x0002_0000
"""``SLAB_RECLAIM_ACCOUNT`` of include/linux/slab.h before 6.9, which made an enumeration of it (cc61eb851461)."""


@dataclass(frozen=True, slots=True)
class Eater:
    """
    Somebody who holds memory.

    Attributes
    ----------
    name : str
        comm, path, slab cache, function.
    text : str
        ``process eat (PID 453)``, for sentences.
    swap_pages : int
        What it has beside that in swap.
    count : int
        How many objects, areas, processes.
    pid : int, optional
    function, module : str
        Where the kernel itself knows who asked for it.
    subject : Subject
    evidence : tuple of Evidence
    """

    sort: Sort
    name: str
    text: str
    pages: int
    swap_pages: int = 0
    count: int = 1
    pid: int | None = None
    function: str = ""
    module: str = ""
    subject: Subject | None = None
    evidence: tuple[Evidence, ...] = ()
    is_reclaimable: bool = False
    cache: Cache | None = None
    caller: Caller | None = None

    @property
    def is_kernel(self) -> bool:
        """Whether it is memory of the kernel itself."""
        return self.sort in KERNEL


def eaters_of_dump(scene: Scene, sheet: Sheet) -> list[Eater]:
    """Find who holds memory in a dump, the biggest first; kept for the session."""
    return scene.dump.once("eaters of memory", lambda: _find(scene, sheet))


def _find(scene: Scene, sheet: Sheet) -> list[Eater]:
    found: list[Eater] = []
    parts: tuple[tuple[str, Callable[[Scene, Sheet], Iterable[Eater]]], ...] = (
        ("processes", _processes),
        ("files of tmpfs", _files),
        ("slab caches", _caches),
        ("areas of vmalloc", _areas),
        ("other pages", _others),
    )
    for what, part in parts:
        try:
            found += part(scene, sheet)
        except UNREADABLE as exc:
            one = problem(f"{WHO}: {what}", exc)
            scene.problems.append(one)
            scene.miss(one.what)
    found += _not_listed(scene, sheet, found)
    return sorted(found, key=lambda eater: -eater.pages)


def _not_listed(scene: Scene, sheet: Sheet, found: list[Eater]) -> Iterator[Eater]:
    """Sum up what is known to be there although those who hold it cannot be listed: the dump is not whole."""
    lines = (
        ("slab", {Sort.SLAB, Sort.LARGE}, Sort.SLAB, "slab caches that the dump does not tell apart", "kmem -i"),
        ("shared memory and tmpfs", {Sort.FILE}, Sort.FILE, "shared memory and files of tmpfs together", "kmem -V"),
        ("of processes", {Sort.PROCESS}, Sort.PROCESSES, "processes that the dump does not tell apart", "kmem -V"),
    )
    for name, sorts, sort, text, command in lines:
        rest = sheet.pages(name) - sum(eater.pages for eater in found if eater.sort in sorts)
        if sheet.share(rest) >= _NOT_LISTED:
            scene.miss(
                f"{WHO}: {spell_pages(rest, sheet.page_bytes)} of {name.removeprefix('of ')}",
                "who has it is not in the dump",
            )
            evidence = (Evidence(f"{name}: {sheet.pages(name)} pages", command, str(sheet.pages(name))),)
            yield Eater(sort, "", text, rest, subject=Subject("memory", name=name), evidence=evidence)


def _processes(scene: Scene, _: Sheet) -> Iterator[Eater]:
    uses = read_memory_use(scene.dump, scene.tasks)
    owners = _owners(scene.tasks, uses)
    if not owners and scene.tasks:
        scene.miss(f"{WHO}: processes", "no struct mm_struct can be read")
    by_comm: defaultdict[str, list[tuple[TaskFacts, int]]] = defaultdict(list)
    for mm, task in owners.items():
        pages = uses[mm].pages
        own = max(0, pages.get("MM_ANONPAGES", 0))
        by_comm[task.comm].append((task, own))
        yield _process(task.comm, task.pid, own, uses[mm].rss, max(0, pages.get("MM_SWAPENTS", 0)))
    for comm, group in by_comm.items():
        total = sum(pages for _, pages in group)
        if len(group) > _FEW and max(pages for _, pages in group) * 2 < total:
            yield _group(comm, len(group), total, f"ps -m {comm}", "")


def _owners(tasks: Iterable[TaskFacts], uses: dict[int, MemoryUse]) -> dict[int, TaskFacts]:
    """Find the process of each address space: the first of its threads that still has it."""
    owners: dict[int, TaskFacts] = {}
    for task in tasks:
        try:
            mm = task.mm
            if mm in uses and (mm not in owners or task.is_group_leader):
                owners[mm] = task
        except UNREADABLE:
            continue
    return owners


def _process(comm: str, pid: int, own: int, rss: int, swap: int) -> Eater:
    evidence = Evidence(f"{comm} has {rss} pages resident, {own} of them its own", f"ps {pid}", str(rss * 4))
    return Eater(
        Sort.PROCESS,
        comm,
        f"process {comm} (PID {pid})",
        own,
        swap_pages=swap,
        pid=pid,
        subject=Subject("task", "process", comm, detail=f"PID {pid}"),
        evidence=(evidence,),
    )


def _group(comm: str, count: int, pages: int, command: str, shows: str) -> Eater:
    return Eater(
        Sort.PROCESSES,
        comm,
        f"{count} processes called {comm} together",
        pages,
        count=count,
        subject=Subject("task", "processes", comm, detail=f"{count} of them"),
        evidence=(Evidence(f"{count} processes called {comm}", command, shows),),
    )


def _files(scene: Scene, sheet: Sheet) -> Iterator[Eater]:
    if sheet.share(sheet.pages("shared memory and tmpfs") + sheet.pages("page cache")) < 0.02:
        return
    for file in read_files(scene, max(1, sheet.total // 100)):
        shows = f"nrpages = {file.pages}"
        yield Eater(
            Sort.FILE,
            file.name,
            f"the file {file.name} in memory ({file.kind})",
            file.pages,
            subject=Subject("object", "struct inode", file.name, file.vaddr, f"file of {file.kind}"),
            evidence=(
                Evidence(
                    f"{file.name} has {file.pages} pages", f"struct inode.i_data {file.vaddr:x}", shows, file.vaddr
                ),
                Evidence("who has it open", f"fuser {file.name}"),
            ),
        )


def _caches(scene: Scene, sheet: Sheet) -> Iterator[Eater]:
    workspace = scene.dump
    allocator = slab_allocator(workspace)
    structs = page_structs(workspace)
    slabs = find_all_slabs(workspace, structs, allocator)
    counted = 0
    flag = _reclaim_flag(scene)
    for vaddr, found in slabs.items():
        cache = allocator.find_cache(vaddr)
        if cache is None:
            continue
        per_slab = cache.objects_per_slab or 1
        pages = int(found.objects.sum()) * (1 << cache.order) // per_slab
        counted += pages
        if sheet.share(pages) < 0.005:
            continue
        objects = int(found.inuse.sum())
        text = f"slab cache {cache.name} ({objects} objects of {cache.object_bytes} bytes)"
        shows = f"{vaddr:x}"
        what = f"{cache.name}: {objects} objects of {cache.object_bytes} bytes in {len(found.pfns)} slabs"
        yield Eater(
            Sort.SLAB,
            cache.name,
            text,
            pages,
            count=objects,
            subject=Subject("memory", "slab cache", cache.name, vaddr, f"{objects} objects"),
            evidence=(Evidence(what, f"kmem -s {cache.name}", shows, vaddr),),
            is_reclaimable=bool(_flags(workspace.memory.read_u32(vaddr + allocator.layout.cache.flags), flag)),
            cache=cache,
        )
    rest = sheet.pages("slab") - counted
    if slabs and sheet.share(rest) >= 0.02 and all(bool(block.present.all()) for block in structs.blocks()):
        yield Eater(
            Sort.LARGE,
            "kmalloc",
            "allocations of kmalloc() too large for a slab cache",
            rest,
            subject=Subject("memory", "large kmalloc", "kmalloc"),
            evidence=(Evidence(f"{rest} pages count as slab and are in no slab cache", "kmem -i", "SLAB"),),
        )


def _flags(flags: int, mask: int) -> int:
    return flags & mask


def _reclaim_flag(scene: Scene) -> int:
    try:
        return 1 << int(scene.prog.constant("_SLAB_RECLAIM_ACCOUNT").value_())
    except LookupError:
        return _RECLAIMABLE


def _areas(scene: Scene, sheet: Sheet) -> Iterator[Eater]:
    for caller in sheet.areas.callers if sheet.areas is not None else ():
        if caller.is_stacks or sheet.share(caller.pages) < 0.005:
            continue
        function, module = find_asker(scene, caller.vaddr)
        name = function or f"{caller.vaddr:x}"
        start = caller.examples[0][0]
        yield Eater(
            Sort.AREAS,
            name,
            f"{caller.areas} areas of vmalloc() for {name}" + (f" of module {module}" if module else ""),
            caller.pages,
            count=caller.areas,
            function=function,
            module=module or "vmlinux",
            subject=Subject("memory", "struct vm_struct", name, start, f"{caller.areas} areas"),
            evidence=(
                Evidence(f"{caller.areas} areas with {caller.pages} pages", "kmem -v", f"{start:x}", start),
                Evidence(f"each was asked for by {name}", f"dis -r {caller.vaddr:x}", name, caller.vaddr),
            ),
            caller=caller,
        )


def _others(scene: Scene, sheet: Sheet) -> Iterator[Eater]:
    sorts = (
        (Sort.HUGE, "huge pages set aside", "pools of huge pages", "kmem -i", "TOTAL HUGE"),
        (Sort.STACKS, "kernel stacks", _whose_stacks(scene.tasks), "ps -S", ""),
        (Sort.TABLES, "page tables", "page tables", "kmem -V", "NR_PAGETABLE"),
        (Sort.PER_CPU, "per-CPU memory", "per-CPU memory", "p pcpu_nr_populated", ""),
    )
    for sort, line, text, command, shows in sorts:
        pages = sheet.pages(line)
        if pages:
            evidence = (Evidence(f"{line}: {pages} pages", command, shows),)
            yield Eater(sort, line, text, pages, subject=Subject("memory", name=line), evidence=evidence)
    if sheet.unaccounted:
        yield _unaccounted(sheet)


def _whose_stacks(tasks: Iterable[TaskFacts]) -> str:
    names: Counter[str] = Counter()
    for task in tasks:
        try:
            names[task.comm] += 1
        except UNREADABLE:
            continue
    (name, count), total = (names.most_common(1) or [("", 0)])[0], sum(names.values())
    most = f", {count} of them called {name}" if count * 2 > total else ""
    return f"the kernel stacks of {total} tasks{most}"


def _unaccounted(sheet: Sheet) -> Eater:
    return Eater(
        Sort.PAGES,
        UNACCOUNTED,
        "pages that were taken from the page allocator and that nobody accounts for",
        sheet.unaccounted,
        subject=Subject("memory", name=UNACCOUNTED),
        evidence=sheet.evidence(),
    )


def eaters_of_report(report: MemoryReport, sheet: Sheet | None) -> list[Eater]:
    """Find who holds memory by a log: its table of processes, its table of slabs, and the sums."""
    found = [*_listed_processes(report), *_listed_caches(report)]
    if sheet is not None:
        found += _summed(report, sheet)
    return sorted(found, key=lambda eater: -eater.pages)


def _listed_processes(report: MemoryReport) -> Iterator[Eater]:
    by_comm: defaultdict[str, list[int]] = defaultdict(list)
    biggest = report.lines.get("biggest", "")
    for task in report.tasks:
        by_comm[task.comm].append(task.rss)
        shows = biggest if biggest.startswith(f"[{task.pid:>7}]") else task.comm
        evidence = Evidence(f"{task.comm} (PID {task.pid}) has {task.rss} pages resident", "log", shows)
        eater = _process(task.comm, task.pid, max(0, task.rss - task.shmem), task.rss, task.swap)
        yield replace(eater, evidence=(evidence,))
    for comm, sizes in by_comm.items():
        if len(sizes) > _FEW and max(sizes) * 2 < sum(sizes):
            yield _group(comm, len(sizes), sum(sizes), "log", comm)


def _listed_caches(report: MemoryReport) -> Iterator[Eater]:
    for slab in report.slabs:
        line = report.lines.get(f"slab {slab.name}", slab.name)
        what = f"{slab.name}: {slab.total_kib} KiB in slabs that cannot be reclaimed"
        yield Eater(
            Sort.SLAB,
            slab.name,
            f"slab cache {slab.name}",
            slab.total_kib // 4,
            subject=Subject("memory", "slab cache", slab.name, detail=f"{slab.used_kib} KiB in use"),
            evidence=(Evidence(what, "log", line),),
        )


def _summed(report: MemoryReport, sheet: Sheet) -> Iterator[Eater]:
    if not report.slabs and (pages := sheet.pages("slab")):
        subject = Subject("memory", "slab", "slab")
        yield Eater(Sort.SLAB, "", "slab caches", pages, subject=subject, evidence=sheet.evidence())
    if shared := report.counts.get("shmem", 0):
        yield _line_eater(Sort.FILE, "shared memory and tmpfs", "the shared memory", shared, f"shmem:{shared}")
    for sort, name in (
        (Sort.HUGE, "huge pages set aside"),
        (Sort.STACKS, "kernel stacks"),
        (Sort.TABLES, "page tables"),
    ):
        for line in sheet.lines:
            if line.name == name:
                yield _line_eater(sort, name, name, line.pages, line.shows)
    if sheet.unaccounted:
        yield _unaccounted(sheet)


def _line_eater(sort: Sort, name: str, text: str, pages: int, shows: str) -> Eater:
    evidence = (Evidence(f"{name}: {pages} pages", "log", shows),)
    return Eater(sort, name, text, pages, subject=Subject("memory", name=name), evidence=evidence)
