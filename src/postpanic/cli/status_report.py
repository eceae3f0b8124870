"""What ``postpanic status`` prints."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postpanic.capture.status.model import Check, State, StatusReport

__all__ = ["encode_report", "print_report"]

SCHEMA_VERSION = 1
_MARKS: dict[State, str] = {
    "ok": "ok",
    "warning": "warning",
    "failing": "FAILING",
    "unknown": "unknown",
    "not applicable": "-",
}
_COLORS: dict[State, str] = {"warning": "\x1b[33m", "failing": "\x1b[1;31m", "unknown": "\x1b[36m", "ok": "\x1b[32m"}
_PLAIN = "\x1b[0m"
_MARK_WIDTH = 9
_NARROWEST_NAME = 12
_NARROWEST = 60


def encode_report(report: StatusReport) -> dict[str, Any]:
    """Turn a report into what JSON can hold."""
    return {
        "version": SCHEMA_VERSION,
        "node": report.node,
        "release": report.release,
        "armed_by": report.armed_by,
        "ready": report.is_ready,
        "verdict": report.verdict,
        "checks": [
            {
                "group": check.group,
                "name": check.name,
                "state": check.state,
                "found": check.found,
                "evidence": [{"source": fact.source, "says": fact.says} for fact in check.evidence],
                "mend": check.mend,
                "needs_root": check.needs_root,
            }
            for check in report.checks
        ],
    }


def print_report(report: StatusReport, *, verbose: bool, quiet: bool, color: bool) -> None:
    """Print the conditions by group, and the verdict."""
    width = max(_NARROWEST, shutil.get_terminal_size((120, 24)).columns) if color else 0
    group = ""
    names: dict[str, int] = {}
    for check in report.checks:
        names[check.group] = max(names.get(check.group, _NARROWEST_NAME), len(check.name))
    for check in report.checks:
        if quiet and check.state not in {"warning", "failing"}:
            continue
        if check.group != group:
            if group:
                print()
            print(check.group)
            group = check.group
        for line in _spell(
            check, width, names[check.group], verbose=verbose or check.state in {"warning", "failing"}, color=color
        ):
            print(line)
    if group:
        print()
    print(report.verdict)


def _spell(check: Check, width: int, name_width: int, *, verbose: bool, color: bool) -> Iterator[str]:
    mark = f"{_MARKS[check.state]:{_MARK_WIDTH}}"
    if color and check.state in _COLORS:
        mark = f"{_COLORS[check.state]}{mark}{_PLAIN}"
    indent = " " * (2 + _MARK_WIDTH + name_width + 2)
    lines = list(_wrap(_printable(check.found), indent, width))
    yield f"  {mark}{_printable(check.name):{name_width}}  {lines[0].lstrip()}"
    yield from lines[1:]
    if verbose:
        for fact in check.evidence:
            says = fact.says if fact.says != check.found else ""
            yield from _wrap(_printable(": ".join(filter(None, (fact.source, says)))), indent, width)
    if check.mend:
        yield from _wrap(_printable(f"mend: {check.mend}"), indent, width)


def _wrap(text: str, indent: str, width: int) -> Iterator[str]:
    """Break a text into lines for a terminal; for a pipe it stays in one."""
    if not width:
        yield f"{indent}{text}"
        return
    room = max(width - len(indent), 20)
    for line in textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]:
        yield f"{indent}{line}"


def _printable(text: str) -> str:
    """Keep what a file of the machine may hold from steering the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
