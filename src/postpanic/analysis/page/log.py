"""The log as a timeline and as lines."""

from __future__ import annotations

import re
from collections import defaultdict

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage import Scene
from postpanic.findings.page import Line, Listing, Mark, Section, Timeline
from postpanic.kernel.log_text import LEVELS, name_of
from postpanic.kernel.printk import read_log

__all__ = ["describe_log"]

_MOST_LINES = 20_000
_TIME = re.compile(r"\[ {0,8}(\d{1,10}\.\d{1,9})\]")
_NS_PER_S = 1_000_000_000
_GROUPS = {"emerg": "error", "alert": "error", "crit": "error", "err": "error", "warn": "warning"}
"""Levels that the picture tells apart; all others are one."""


def describe_log(scene: Scene) -> Section:
    """Draw when the kernel said how much, with the reports marked, and list all lines."""
    series: defaultdict[str, list[float]] = defaultdict(list)
    levels = _read_levels(scene, series)
    text = scene.text.decode(errors="backslashreplace").splitlines()
    starts = {scene.text.count(b"\n", 0, report.offset): report for report in scene.reports}
    lines = tuple(
        Line(line, number in starts, levels[number] if number < len(levels) else "")
        for number, line in enumerate(text[-_MOST_LINES:], max(0, len(text) - _MOST_LINES))
    )
    marks = tuple(Mark(report.time_s, report.title) for report in scene.reports if report.time_s is not None)
    pictures: tuple[Timeline, ...] = ()
    if sum(map(len, series.values())) > 1:
        named = {name: tuple(times) for name, times in sorted(series.items())}
        pictures = (Timeline("Messages of the kernel over time", named, marks),)
    note = f"{len(text)} lines; marked is where reports begin."
    return Section("log", "Kernel log", note, pictures, listings=(Listing("log", lines),), is_open=False)


def _read_levels(scene: Scene, series: defaultdict[str, list[float]]) -> list[str]:
    """Fill in the times by group of level; give the level of each line where the dump has them."""
    levels: list[str] = []
    if scene.workspace is not None:
        try:
            for record in read_log(scene.dump.memory):
                name = name_of(LEVELS, record.level)
                series[_GROUPS.get(name, "other")].append(record.timestamp_ns / _NS_PER_S)
                levels += [name] * (record.text.count(b"\n") + 1)
        except UNREADABLE:
            pass
        return levels
    for raw in scene.text.decode(errors="replace").splitlines():
        found = _TIME.search(raw[:80])
        if found is not None:
            series["messages"].append(float(found[1]))
    return levels
