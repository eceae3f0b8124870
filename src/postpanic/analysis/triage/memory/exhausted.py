"""Memory that ran out, and memory that the kernel lost: who has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.triage.faults.uses import module_in
from postpanic.analysis.triage.memory.eaters import WHO, Eater, Sort, eaters_of_dump, eaters_of_report
from postpanic.analysis.triage.memory.owners import find_owner_of_cache, find_owner_of_pages
from postpanic.analysis.triage.memory.sheet import Sheet, sheet_of_dump, sheet_of_report, spell_pages
from postpanic.analysis.triage.memory.takers import Owner, find_taker_in_log
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.memory_report import MemoryReport, find_memory_reports
from postpanic.evidence.oops.functions import part_of
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject, Victim

__all__ = ["find_eater", "find_growth", "find_reported_leak", "memory_reports"]

_KERNEL_WEIGHT = 1.5
"""A third of memory in one place of the kernel is odder than half of it in a process."""
_ODD_SHARE = 0.2
_LARGE = 0.25
_BEFORE_S = 300.0
_RECENT_KILLS = 8


def memory_reports(scene: Scene) -> list[MemoryReport]:
    """Give the kernel's reports on its memory, those on processes that it killed included; kept with the scene."""
    key = "_memory_reports"
    known: list[MemoryReport] | None = scene.__dict__.get(key)
    if known is None:
        known = scene.__dict__[key] = find_memory_reports(scene.text)
    return known


@dataclass(frozen=True)
class _View:
    """What is known of memory: of a dump, or of the last whole report of the log."""

    sheet: Sheet | None
    eaters: list[Eater]
    is_dump: bool
    report: MemoryReport | None
    is_sound: bool = False
    """Whether all of memory was counted, and the sums agree."""


def _view(scene: Scene) -> _View | None:
    reports = [report for report in memory_reports(scene) if not report.is_failure]
    whole = [report for report in reports if report.counts or report.tasks]
    last = whole[-1] if whole else None
    if scene.workspace is not None and scene.workspace.opened.has_types:
        try:
            sheet = sheet_of_dump(scene.workspace)
            eaters = [eater for eater in eaters_of_dump(scene, sheet) if eater.pages <= sheet.total]
            is_sound = sheet.is_sound and not any(WHO in missing.what for missing in scene.missing)
            return _View(sheet, eaters, is_dump=True, report=last, is_sound=is_sound)
        except UNREADABLE as exc:
            scene.miss("what memory is used for", describe_error(exc))
    if last is None:
        return None
    sheet_of_log = sheet_of_report(last)
    listed = eaters_of_report(last, sheet_of_log)
    # A log may be put together of several machines' lines, or have lost some.
    possible = [eater for eater in listed if sheet_of_log is None or eater.pages <= sheet_of_log.total]
    return _View(sheet_of_log, possible, is_dump=False, report=last)


def _rank(view: _View) -> list[Eater]:
    """Put the eaters in the order of suspicion; one process of a group gives way to the group."""

    def weight(eater: Eater) -> float:
        share = view.sheet.share(eater.pages) if view.sheet is not None else 0.0
        odd = eater.is_kernel and not eater.is_reclaimable and share >= _ODD_SHARE
        return (eater.pages + eater.swap_pages) * (_KERNEL_WEIGHT if odd else 1.0)

    return sorted(view.eaters, key=lambda eater: (-weight(eater), eater.name))


@detector(
    "memory-exhausted",
    needs=(Need.REPORT,),
    about="who holds the memory when there is none left: a process, a file of tmpfs, a slab cache, vmalloc, pages",
    depth=75,
    kinds=(Kind.OUT_OF_MEMORY,),
)
def find_eater(scene: Scene) -> Iterator[Finding]:
    """Find who ate the memory; the task that asked last is no more at fault than any other."""
    first = scene.first
    if first is None or first.kind is not Kind.OUT_OF_MEMORY:
        return
    view = _view(scene)
    if view is None:
        scene.miss("what memory is used for", "the log does not hold the kernel's table")
        return
    report = view.report
    if report is not None and report.is_of_group:
        yield _group_finding(report)
        return
    ranked = _rank(view)
    if ranked:
        yield _finding(scene, view, ranked)


def _finding(scene: Scene, view: _View, ranked: list[Eater]) -> Finding:
    eater, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    owner = _owner(scene, eater, view)
    sheet = view.sheet
    amount = sheet.spell(eater.pages) if sheet is not None else spell_pages(eater.pages)
    if eater.swap_pages > eater.pages // 8:
        amount += f", and {spell_pages(eater.swap_pages)} of swap"
    evidence = [*eater.evidence, *owner.evidence, *(sheet.evidence() if sheet is not None else ())]
    if second is not None:
        rest = f"the next is {second.text} with {spell_pages(second.pages)}"
        evidence.append(Evidence(rest, second.evidence[0].command if second.evidence else ""))
    return Finding(
        detector="memory-exhausted",
        role=Role.CAUSE,
        cause=Cause.MEMORY_LEAK if eater.is_kernel else Cause.MEMORY_EXHAUSTED,
        sentence=_sentence(eater, owner, amount),
        confidence=_confidence(view, eater, second),
        function=owner.function,
        module=owner.module,
        subject=eater.subject,
        evidence=tuple(dict.fromkeys(evidence)),
        victims=_victims(scene, eater, owner),
        not_to_blame=_asker(scene, eater, owner),
        refuted_by="that what holds most of it always does, and that it grew elsewhere",
        next_steps=_steps(eater),
        explains=("reported",),
    )


def _sentence(eater: Eater, owner: Owner, amount: str) -> str:
    is_one = eater.name and eater.sort in {Sort.PROCESS, Sort.FILE, Sort.SLAB, Sort.PER_CPU}
    verb = "holds" if is_one else "hold"
    taken = ""
    if owner.function:
        taken = f", taken by {owner.function}()" + (f" of module {owner.module}" if owner.module != "vmlinux" else "")
    elif owner.module:
        taken = f", taken by module {owner.module}"
    if eater.is_kernel:
        return f"Memory ran out: {eater.text} {verb} {amount} of the kernel's own{taken} and not given back."
    return f"Memory ran out: {eater.text} {verb} {amount}."


def _owner(scene: Scene, eater: Eater, view: _View) -> Owner:
    if eater.sort is Sort.AREAS:
        return _owner_of_areas(eater)
    report = view.report
    if report is not None and report.sites and eater.is_kernel:
        # The kernel's own account of who allocated what (memory allocation profiling).
        site = max(report.sites, key=lambda one: one.size_bytes)
        if site.size_bytes // 4096 * 2 > eater.pages:
            shows = report.lines.get(f"site {site.function}", site.function)
            what = f"{site.function} at {site.place} has allocated {spell_pages(site.size_bytes // 4096)}"
            return Owner(site.function, site.module or "vmlinux", (Evidence(what, "log", shows),))
    if not view.is_dump:
        found = (find_taker_in_log(one) for one in scene.reports) if eater.is_kernel else ()
        return next((owner for owner in found if owner is not None), Owner())
    try:
        if eater.sort is Sort.SLAB and eater.cache is not None:
            return find_owner_of_cache(scene, eater.cache)
        if eater.sort in {Sort.PAGES, Sort.LARGE}:
            return find_owner_of_pages(scene)
    except UNREADABLE as exc:
        scene.miss(f"who took {eater.text}", describe_error(exc), "slub_debug=U or page_owner=on record it")
    return Owner()


def _owner_of_areas(eater: Eater) -> Owner:
    """Name who asked for areas; a service that asks for everybody is not at fault."""
    if not eater.function or part_of(eater.function) is not None:
        return Owner()
    return Owner(eater.function, eater.module or "vmlinux")


def _confidence(view: _View, eater: Eater, second: Eater | None) -> Confidence:
    """
    Say how sure it is that this one is at fault.

    Never beyond doubt: a dump shows who has the memory, and not how much of it
    was meant to be.
    """
    if view.sheet is None or (view.is_dump and not view.is_sound):
        return Confidence.POSSIBLE
    is_ahead = second is None or eater.pages * 2 >= second.pages * 3
    return Confidence.LIKELY if is_ahead and view.sheet.share(eater.pages) >= _LARGE else Confidence.POSSIBLE


def _victims(scene: Scene, eater: Eater, owner: Owner) -> tuple[Victim, ...]:
    victims: list[Victim] = []
    first = scene.first
    asked = {(report.comm, None) for report in memory_reports(scene)[-_RECENT_KILLS:] if report.comm}
    if first is not None and first.comm:
        asked = {one for one in asked if one[0] != first.comm}
        is_taker = any(f"{first.comm} (PID {first.pid})" in one.what for one in owner.evidence)
        if not _is_same(eater, first.comm, first.pid) and not is_taker:
            victims.append(Victim(first.comm, first.pid, "asked for memory when there was none left"))
    victims += [
        Victim(comm, pid, "asked for memory when there was none left")
        for comm, pid in sorted(asked, key=lambda one: one[0])
        if not _is_same(eater, comm, pid)
    ]
    victims += [
        Victim(report.victim, report.victim_pid, "killed to make room")
        for report in memory_reports(scene)[-_RECENT_KILLS:]
        if report.victim and not _is_same(eater, report.victim, report.victim_pid)
    ]
    return tuple(dict.fromkeys(victims))


def _asker(scene: Scene, eater: Eater, owner: Owner) -> tuple[str, ...]:
    """Acquit the task whose request was the last straw, unless it is the one that has the memory."""
    first = scene.first
    if first is not None and first.comm:
        is_taker = any(f"{first.comm} (PID {first.pid})" in one.what for one in owner.evidence)
        if is_taker or _is_same(eater, first.comm, first.pid):
            return ()
    return ("the task that asked for memory last: it came when there was none",)


def _is_same(eater: Eater, comm: str, pid: int | None) -> bool:
    if eater.sort is Sort.PROCESS:
        return eater.name == comm and pid in {None, eater.pid}
    return eater.sort is Sort.PROCESSES and eater.name == comm


def _steps(eater: Eater) -> tuple[str, ...]:
    if eater.sort is Sort.PROCESS:
        return (f"vm {eater.pid}", f"bt {eater.pid}", f"files {eater.pid}", "kmem -i")
    if eater.sort is Sort.SLAB:
        return (f"kmem -S {eater.name}", "kmem -s", "kmem -i")
    if eater.sort is Sort.AREAS:
        return ("kmem -v", "kmem -i")
    return ("kmem -i", "kmem -V", "kmem -s")


def _group_finding(report: MemoryReport) -> Finding:
    tasks = sorted(report.tasks, key=lambda task: -task.rss)
    limit = spell_pages((report.group_limit_kib or 0) // 4) if report.group_limit_kib else "its limit"
    group = report.group or "a control group"
    biggest = tasks[0] if tasks else None
    who = (
        f"; of its processes {biggest.comm} (PID {biggest.pid}) holds most, {spell_pages(biggest.rss)}"
        if biggest is not None
        else ""
    )
    lines = [report.lines[name] for name in ("constraint", "limit") if name in report.lines]
    evidence = [Evidence("only the control group had no memory left", "log", line) for line in lines]
    if biggest is not None:
        evidence.append(Evidence(f"{biggest.comm} has {biggest.rss} pages", "log", report.lines.get("biggest", "")))
    return Finding(
        detector="memory-exhausted",
        role=Role.CAUSE,
        cause=Cause.MEMORY_EXHAUSTED,
        sentence=f"Control group {group} used up {limit}{who}.",
        confidence=Confidence.LIKELY if biggest is not None else Confidence.POSSIBLE,
        subject=Subject("task", "process", biggest.comm, detail=f"PID {biggest.pid}") if biggest else None,
        evidence=tuple(evidence),
        refuted_by="a limit that is too low for what the group is there for",
        next_steps=("log | grep -i memcg",),
        explains=("reported",),
        time_s=report.time_s,
    )


@detector(
    "memory-growth",
    needs=(),
    about="memory that the kernel lost, or that ran short, in a crash that is of another kind",
    depth=30,
)
def find_growth(scene: Scene) -> Iterator[Finding]:
    """Tell of memory that the kernel holds far too much of, and of processes killed before the crash."""
    first = scene.first
    if first is not None and first.kind is Kind.OUT_OF_MEMORY:
        return
    kills = [report for report in memory_reports(scene) if report.victim or (report.comm and not report.is_failure)]
    is_dump = scene.workspace is not None and scene.workspace.opened.has_types
    if not kills and not is_dump:
        return
    view = _view(scene)
    if kills:
        yield _kills_finding(scene, kills, view)
    if view is None or view.sheet is None or not is_dump:
        return
    for eater in view.eaters[:3]:
        if eater.is_kernel and not eater.is_reclaimable and view.sheet.share(eater.pages) >= _LARGE:
            owner = _owner(scene, eater, view)
            by = f", taken by module {owner.module}" if owner.module else ""
            yield Finding(
                detector="memory-growth",
                role=Role.BACKGROUND,
                cause=Cause.MEMORY_LEAK,
                sentence=f"The kernel holds far more memory in one place than it should: {eater.text} hold "
                f"{view.sheet.spell(eater.pages)}{by}.",
                confidence=Confidence.POSSIBLE,
                function=owner.function,
                module=owner.module,
                subject=eater.subject,
                evidence=(*eater.evidence, *owner.evidence),
                next_steps=_steps(eater),
            )


def _kills_finding(scene: Scene, kills: list[MemoryReport], view: _View | None) -> Finding:
    last = kills[-1]
    names = list(dict.fromkeys(report.victim for report in kills if report.victim))
    ranked = _rank(view) if view is not None else []
    whose = ""
    if ranked and view is not None and view.sheet is not None and view.sheet.share(ranked[0].pages) >= _LARGE:
        whose = f"; {ranked[0].text} hold {view.sheet.spell(ranked[0].pages)}"
    killed = f": {', '.join(names[:4])} killed to make room" if names else ""
    is_near = _is_near(scene, last)
    return Finding(
        detector="memory-growth",
        role=Role.BACKGROUND,
        cause=Cause.MEMORY_EXHAUSTED,
        sentence=f"Memory had run out {'shortly ' if is_near else ''}before the crash{killed}{whose}.",
        confidence=Confidence.LIKELY if whose else Confidence.POSSIBLE,
        subject=ranked[0].subject if whose else None,
        evidence=(
            Evidence("the kernel looked for memory", "log", last.lines.get("killed", last.lines.get("began", ""))),
            *(ranked[0].evidence if whose else ()),
        ),
        victims=tuple(
            Victim(report.victim, report.victim_pid, "killed to make room")
            for report in kills[-_RECENT_KILLS:]
            if report.victim
        ),
        time_s=last.time_s,
    )


def _is_near(scene: Scene, report: MemoryReport) -> bool:
    first = scene.first
    if first is None or first.time_s is None or report.time_s is None:
        return False
    return 0 <= first.time_s - report.time_s <= _BEFORE_S


@detector(
    "reported-leak",
    needs=(Need.REPORT,),
    about="memory that kmemleak found nobody to refer to, and who had allocated it",
    depth=45,
    kinds=(Kind.MEMORY_LEAK,),
)
def find_reported_leak(scene: Scene) -> Iterator[Finding]:
    """Name the function that allocated what kmemleak found; that is where to look for the missing free."""
    report = scene.first
    if report is None or report.kind is not Kind.MEMORY_LEAK or not report.function:
        return
    blamed = report.blame[0]
    objects = [line.strip() for line in report.lines if line.strip().startswith("unreferenced object")]
    size = objects[0].partition("(size ")[2].partition(")")[0] if objects else ""
    yield Finding(
        detector="reported-leak",
        role=Role.CAUSE,
        cause=Cause.MEMORY_LEAK,
        sentence=f"Memory{f' of {size} bytes' if size else ''} that {report.function}() had allocated"
        f"{f' for {report.comm}' if report.comm else ''} is not referred to any more, and was not freed.",
        confidence=Confidence.LIKELY,
        function=report.function,
        module=module_in(report, blamed),
        subject=Subject("memory", "object", detail=f"{size} bytes" if size else ""),
        evidence=(Evidence("kmemleak found it", "log", objects[0] if objects else report.message),),
        refuted_by="a pointer that is kept in a form that kmemleak does not know: as a page, or with bits in it",
        explains=("reported",),
        time_s=report.time_s,
    )
