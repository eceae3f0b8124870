"""
Accesses at the same time, as KCSAN sees them.

Source: ``kernel/kcsan/report.c`` (``print_report()``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from postpanic.analysis.triage.faults.uses import find_culprit
from postpanic.analysis.triage.faults.wording import who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.rules.told import is_mixed, limit
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.frames import parse_frames
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_race"]

_SIDE = r"{}[\w.]{{1,120}})(?: \[[\w-]{{1,60}}\])?"
_RACE = re.compile(
    rf"BUG: KCSAN: (?:data-race|assert: race) in {_SIDE.format('(?P<one>')}(?: / {_SIDE.format('(?P<other>')})?"
)
_ACCESS = re.compile(
    r"(?P<how>read|write|read-write|assert no writes|assert no accesses)(?: \([\w, ]{1,40}\))? to "
    r"(?P<address>0x[0-9a-f]{1,16}) of (?P<size>\d{1,6}) bytes "
    r"by (?P<task>task \d{1,10}|interrupt) on cpu (?P<cpu>\d{1,5})"
)
_MOST_LINE = 400


@detector(
    "data-race",
    needs=(Need.REPORT,),
    about="two functions that access the same memory at once with nothing between them, as KCSAN saw",
    depth=85,
    kinds=(Kind.KCSAN,),
)
def find_race(scene: Scene) -> Iterator[Finding]:
    """Name both functions, and what they did."""
    report, culprit = scene.first, find_culprit(scene)
    if report is None or report.kind is not Kind.KCSAN:
        return
    race = next((found for line in report.lines if (found := _RACE.search(line[:_MOST_LINE]))), None)
    accesses = _list_accesses(report)
    if race is None or not accesses:
        return
    names = [plain_name(name) for name in race.groups() if name]
    first = accesses[0]
    sides, is_whole = _tell_sides(names, accesses, are_traces_whole=not is_mixed(report))
    yield Finding(
        detector="data-race",
        role=Role.CAUSE,
        cause=Cause.DATA_RACE,
        sentence=f"{sides} access the {first['size']} bytes at {first['address']} at once, and nothing orders them.",
        confidence=limit(report, Confidence.PROVEN if is_whole else Confidence.LIKELY),
        function=culprit.function if culprit is not None else names[0],
        module=culprit.module if culprit is not None else "",
        subject=Subject("memory", "", "", int(first["address"], 16), f"accessed by {who(culprit)}"),
        evidence=tuple(Evidence("an access", "log", access["line"]) for access in accesses[:2]),
        refuted_by="a race that is meant to be: data_race(), or a value of which any is good",
        next_steps=(f"whereis {int(first['address'], 16):x}",),
        explains=("reported",),
        time_s=report.time_s,
    )


def _list_accesses(report: Report) -> list[dict[str, str]]:
    """List the accesses, each with the innermost function of the trace that stands right below it."""
    accesses: list[dict[str, str]] = []
    is_below = False
    for line in report.lines:
        match = _ACCESS.search(line[:_MOST_LINE])
        if match is not None:
            accesses.append(match.groupdict() | {"line": match[0], "function": ""})
            is_below = True
        elif is_below:
            frame = next(iter(parse_frames(line[:_MOST_LINE])), None)
            is_below = frame is not None and frame.is_inline
            if frame is not None and not frame.is_inline:
                accesses[-1]["function"] = plain_name(frame.function)
    return accesses


def _tell_sides(
    names: Sequence[str], accesses: Sequence[dict[str, str]], *, are_traces_whole: bool
) -> tuple[str, bool]:
    """
    Say who did what, and whether both sides are known.

    The names stand in the order of the alphabet, the accesses in another: only the traces tell which is whose.
    """
    did = [f"{access['how']}, {access['task']}, CPU {access['cpu']}" for access in accesses[:2]]
    if len(names) == 1:
        # Of a second side that was not caught there is only that the value has changed.
        return f"{names[0]} ({did[0]}) and somebody else, who was not seen,", False
    functions = [access["function"] for access in accesses[:2] if are_traces_whole]
    if sorted(functions) != sorted(names):
        return f"{' and '.join(names)} ({'; '.join(did)})", False
    return " and ".join(f"{name} ({how})" for name, how in zip(functions, did, strict=True)), True
