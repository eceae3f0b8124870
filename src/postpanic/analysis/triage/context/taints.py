"""Marks of the kernel (taint): in words, with what they say of reports that the log has lost, and foreign modules."""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.decode.taint import spell_taint
from postpanic.analysis.module_list import each_module
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_foreign_modules", "find_taints"]

_OOPS = re.compile(r" \[#(\d{1,6})\]")
_SILENT = frozenset("GTX")
"""Marks that say nothing of what happened: of licences, of how the kernel was built."""
_DYING = frozenset({Family.MEMORY_ACCESS, Family.EXCEPTION, Family.ASSERTION})
"""Reports that may be printed again, with the mark that they have set themselves."""
_FOREIGN = {"O": "from outside the kernel's tree", "P": "proprietary", "E": "unsigned", "F": "loaded by force",
            "C": "of staging"}  # fmt: skip
_FOREIGN_BITS = {0: "P", 1: "F", 10: "C", 12: "O", 13: "E"}


@detector("taint", needs=(Need.REPORT,), about="what the kernel's marks say of what happened before", depth=11)
def find_taints(scene: Scene) -> Iterator[Finding]:
    """Spell the marks; D, W, L, M and B speak of reports before this one, which the log may have lost."""
    first = scene.first
    if first is None:
        return
    letters = [one for one in spell_taint(first.taint) if one[0] not in _SILENT and one[1]]
    if not letters:
        return
    lost = _lost(scene, first)
    shows = "".join(one[0] for one in letters) if scene.workspace is None else letters[0][0]
    yield Finding(
        detector="taint",
        role=Role.BACKGROUND,
        cause=Cause.UNKNOWN,
        sentence=f"The kernel was marked ({''.join(one[0] for one in letters)}): "
        + "; ".join(one[2] for one in letters)
        + (f". The report of that is not in the log: {lost}, so this may be its consequence." if lost else "."),
        confidence=Confidence.LIKELY,
        evidence=(Evidence("the marks", "sys -t" if scene.workspace is not None else "log", shows),),
        next_steps=("sys -t",) if scene.workspace is not None else (),
    )
    if lost:
        scene.miss("the first report", f"the kernel is marked with an earlier one ({lost}) that is not in the log",
                   "log_buf_len=4M keeps more of the log; pstore and netconsole keep it elsewhere")  # fmt: skip


def _lost(scene: Scene, first: Report) -> str:
    """Say which report a mark speaks of that the log does not have."""
    earlier = [report for report in scene.reports if report.offset < first.offset]
    died = any(report.family in {Family.MEMORY_ACCESS, Family.EXCEPTION, Family.ASSERTION} for report in earlier)
    if "D" in first.taint and not died and (first.family not in _DYING or _number(first) > 1):
        return "an oops"
    if (
        "L" in first.taint
        and first.kind is not Kind.SOFT_LOCKUP
        and not any(report.kind is Kind.SOFT_LOCKUP for report in earlier)
    ):
        return "a soft lockup"
    if "W" in first.taint and not earlier and first.family not in {Family.ASSERTION, Family.LOCKING, Family.SANITIZER}:
        return "a warning"
    return ""


def _number(report: Report) -> int:
    """Give the number of an oops since boot: ``Oops: 0002 [#2]``."""
    found = _OOPS.search(" ".join(report.lines[:64]))
    return int(found[1]) if found else 1


@detector("foreign-modules", needs=(Need.REPORT,), about="modules in the trace that are not the kernel's own", depth=13)
def find_foreign_modules(scene: Scene) -> Iterator[Finding]:
    """Name the modules in the path of the trace that are out of tree, unsigned, proprietary or forced."""
    first = scene.first
    if first is None:
        return
    marks = _marks(scene, first)
    path: dict[str, str] = {}
    for trace in first.traces:
        if trace.section is not Section.MAIN:
            continue
        for frame in trace.frames:
            if frame.is_reliable and frame.module in marks:
                path.setdefault(frame.module, frame.function)
    for module, function in list(path.items())[:4]:
        words = ", ".join(_FOREIGN[letter] for letter in marks[module] if letter in _FOREIGN)
        yield Finding(
            detector="foreign-modules",
            role=Role.BACKGROUND,
            cause=Cause.UNKNOWN,
            sentence=f"Module {module}, which is {words}, is in the path of the trace ({function}).",
            confidence=Confidence.LIKELY,
            module=module,
            subject=Subject("object", "module", module, detail=words),
            evidence=(Evidence("its marks", "mod -t" if scene.workspace is not None else "log", module),),
        )


def _marks(scene: Scene, first: Report) -> dict[str, str]:
    """Read the marks of each module: of the dump, else of the line ``Modules linked in``."""
    marks: dict[str, str] = {}
    if scene.workspace is not None:
        try:
            for module in each_module(scene.prog):
                taints = int(module.taints.value_())
                letters = "".join(letter for bit, letter in _FOREIGN_BITS.items() if taints >> bit & 1)
                if letters:
                    marks[module.name.string_().decode("utf-8", "replace")] = letters
        except UNREADABLE as exc:
            scene.problems.append(problem("marks of modules", exc))
        return marks
    for line in first.lines:
        if "Modules linked in" in line:
            for word in line.split()[:2000]:
                name, mark, letters = word.partition("(")
                found = "".join(letter for letter in letters.rstrip(")") if letter in _FOREIGN)
                if mark and found:
                    marks[name] = found
    return marks
