"""What memory was used for, as far as the kernel's own counters tell."""

from __future__ import annotations

from typing import Any

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.triage import Scene
from postpanic.findings.page import Bar, Bars, Section
from postpanic.findings.table import Table
from postpanic.units import format_size

__all__ = ["describe_memory"]

_MOST_EATERS = 12
_USES = ("FREE", "BUFFERS", "CACHED", "SLAB", "TOTAL HUGE", "SWAP USED")


def describe_memory(scene: Scene) -> Section:
    """Show the sums of ``kmem -i``, the processes with the most memory, and the largest slab caches."""
    pictures = [bars for bars in (_uses(scene), _processes(scene), _caches(scene)) if bars is not None and bars.bars]
    return Section("memory", "Memory by owner", pictures=tuple(pictures), tables=_sums(scene))


def _records(scene: Scene, line: str) -> list[dict[str, Any]]:
    try:
        return [record for table in run_line(scene.dump, line).tables for record in table.records()]
    except UNREADABLE:
        return []


def _sums(scene: Scene) -> tuple[Table, ...]:
    try:
        return run_line(scene.dump, "kmem -i").tables
    except UNREADABLE:
        return ()


def _uses(scene: Scene) -> Bars:
    page_bytes = scene.dump.memory.page_size_bytes
    bars = [
        Bar(str(record["name"]).lower(), record["pages"] * page_bytes, format_size(record["pages"] * page_bytes))
        for record in _records(scene, "kmem -i")
        if record["name"] in _USES and isinstance(record["pages"], int)
    ]
    return Bars("What the machine's memory was used for", tuple(bars), "bytes")


def _processes(scene: Scene) -> Bars:
    sizes = [
        (record["rss_kib"] << 10, f"{record['comm']} ({record['pid']})")
        for record in _records(scene, "ps -G")
        if isinstance(record["rss_kib"], int) and record["rss_kib"]
    ]
    return Bars("Processes with the most memory (RSS)", _largest(sizes), "bytes")


def _caches(scene: Scene) -> Bars:
    sizes = [
        (record["slabs"] * record["slab_kib"] << 10, str(record["name"]))
        for record in _records(scene, "kmem -s")
        if isinstance(record["slabs"], int) and isinstance(record["slab_kib"], int) and record["slabs"]
    ]
    return Bars("Largest slab caches", _largest(sizes), "bytes")


def _largest(sizes: list[tuple[int, str]]) -> tuple[Bar, ...]:
    return tuple(Bar(label, size, format_size(size)) for size, label in sorted(sizes, reverse=True)[:_MOST_EATERS])
