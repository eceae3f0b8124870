"""Put the page together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.page.code import describe_code, describe_registers
from postpanic.analysis.page.evidence import collect_evidence, run_line
from postpanic.analysis.page.facts import read_facts
from postpanic.analysis.page.log import describe_log
from postpanic.analysis.page.memory import describe_memory
from postpanic.analysis.page.stacks import describe_cpus, describe_states, group_backtraces
from postpanic.analysis.page.waits import describe_waits
from postpanic.analysis.triage import Scene
from postpanic.findings.page import Page, Section
from postpanic.findings.verdict import Verdict
from postpanic.kernel.uts import read_utsname

__all__ = ["make_page"]

_PUBLIC_NAMES = frozenset({"init", "systemd", "sh", "bash", "swapper/0", "(none)"})
"""Of programs that every machine runs."""
_Describe: TypeAlias = Callable[[Scene], Section | None]


def make_page(
    scene: Scene, verdict: Verdict, *, made_of: str = "", progress: Callable[[str], None] = lambda _: None
) -> Page:
    """
    Make the page of one crash.

    Nothing is raised for what the dump holds: a section that cannot be made says why.

    Parameters
    ----------
    made_of : str
        Name of the dump or log.
    progress : callable
        Told what is being done, one phrase each.
    """
    sections: list[Section] = []
    for title, describe in _sections(scene, verdict):
        progress(title)
        try:
            section = describe(scene)
        except UNREADABLE as exc:
            section = Section(title.replace(" ", "-"), title.capitalize(), f"(unavailable: {describe_error(exc)})")
        if section is not None:
            sections.append(section)
    progress("collecting the evidence")
    evidence = collect_evidence(scene, verdict)
    title = verdict.sentence or verdict.panic_message or "No crash is known of"
    return Page(title, verdict, read_facts(scene), tuple(sections), evidence, made_of, _private_names(scene))


def _private_names(scene: Scene) -> tuple[str, ...]:
    names = {report.comm for report in scene.reports if report.comm}
    if scene.workspace is not None:
        try:
            names.add(read_utsname(scene.workspace.memory).nodename)
        except UNREADABLE:
            scene.miss("the name of the host")
    for task in scene.tasks:
        try:
            if not task.is_kernel_thread:
                names.add(task.comm)
        except UNREADABLE:
            continue
    return tuple(sorted(name for name in names if name and name not in _PUBLIC_NAMES))


def _sections(scene: Scene, verdict: Verdict) -> list[tuple[str, _Describe]]:
    if scene.workspace is None:
        return [("registers", describe_registers), ("log", describe_log)]
    return [
        ("code", describe_code),
        ("registers", describe_registers),
        ("CPUs", describe_cpus),
        ("who waits for whom", lambda scene: describe_waits(scene, verdict)),
        ("task states", describe_states),
        ("backtraces", group_backtraces),
        ("memory by owner", describe_memory),
        ("modules", _describe_modules),
        ("log", describe_log),
    ]


def _describe_modules(scene: Scene) -> Section:
    tables = [*run_line(scene.dump, "mod -t").tables, *run_line(scene.dump, "mod").tables]
    return Section("modules", "Modules", tables=tuple(table for table in tables if table.rows), is_open=False)
