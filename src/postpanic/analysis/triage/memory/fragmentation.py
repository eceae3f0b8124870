"""A piece of memory that cannot be had although there is enough: fragmentation."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.zones import read_free_areas, read_nodes, read_zones
from postpanic.analysis.triage.memory.exhausted import memory_reports
from postpanic.analysis.triage.memory.sheet import spell_pages
from postpanic.analysis.triage.registry import detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.memory_report import MemoryReport
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_fragmentation"]

_PAGE_KIB = 4


@detector(
    "fragmentation",
    needs=(),
    about="allocations of several pages that failed while single pages were free",
    depth=45,
)
def find_fragmentation(scene: Scene) -> Iterator[Finding]:
    """Find requests for 2 pages and more that could not be met, with the free pages in pieces too small for them."""
    failures = [report for report in memory_reports(scene) if (report.order or 0) > 0]
    if not failures:
        return
    last = failures[-1]
    order = last.order or 0
    wanted_kib = _PAGE_KIB << order
    large, small, shows = _free_in_log(last, wanted_kib)
    if small == 0 and scene.workspace is not None:
        large, small, shows = _free_in_dump(scene, order)
    if small < 4 * wanted_kib or large * 4 > small:
        # Too little is free altogether, or pieces as large as that were there: it is not for fragmentation.
        return
    first = scene.first
    is_cause = first is not None and first.kind is Kind.OUT_OF_MEMORY and first.is_panic and not last.is_failure
    is_cause = is_cause or (first is not None and first.kind is Kind.ALLOCATION_FAILURE)
    free = spell_pages((large + small) // _PAGE_KIB)
    yield Finding(
        detector="fragmentation",
        role=Role.CAUSE if is_cause else Role.BACKGROUND,
        cause=Cause.FRAGMENTATION,
        sentence=f"{last.comm} asked for {wanted_kib} KiB in one piece (order {order}); {free} were free, "
        + (f"but {spell_pages(small // _PAGE_KIB)} of it in smaller pieces." if large else "all in smaller pieces."),
        confidence=Confidence.LIKELY if not large else Confidence.POSSIBLE,
        subject=Subject("memory", "free pages", f"order {order}"),
        evidence=(
            Evidence("the request that failed", "log", last.lines.get("began", "")),
            Evidence("the free pieces by their size", "kmem -f" if scene.workspace is not None else "log", shows),
        ),
        next_steps=("kmem -f", "kmem -i"),
        explains=("reported", "memory-exhausted") if is_cause else (),
        time_s=last.time_s,
    )


def _free_in_log(report: MemoryReport, wanted_kib: int) -> tuple[int, int, str]:
    """Sum up KiB in pieces that are large enough, and in smaller ones; and give the line of the largest zone."""
    large = small = 0
    for blocks in report.free_blocks.values():
        large += sum(size * count for size, count in blocks.items() if size >= wanted_kib)
        small += sum(size * count for size, count in blocks.items() if size < wanted_kib)
    lines = [line for name, line in report.lines.items() if name.startswith("blocks of ")]
    return large, small, max(lines, key=len, default="")


def _free_in_dump(scene: Scene, order: int) -> tuple[int, int, str]:
    large = small = 0
    try:
        for node in read_nodes(scene.prog, scene.problems):
            for zone in read_zones(node, scene.problems):
                for area in read_free_areas(scene.dump, zone, scene.problems) if zone.is_populated else ():
                    kib = len(area.pages) * (_PAGE_KIB << area.order)
                    large, small = (large + kib, small) if area.order >= order else (large, small + kib)
    except UNREADABLE:
        return 0, 0, ""
    return large, small, ""
