"""Triage of what was collected: a page and a verdict beside each new dump."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from postpanic.errors import ProcessError
from postpanic.process import run

if TYPE_CHECKING:
    from pathlib import Path

    from postpanic.capture.collection.index import SavedDump

__all__ = ["PAGE_NAME", "VERDICT_NAME", "triage_dumps"]

PAGE_NAME = "report.html"
VERDICT_NAME = "triage.json"
TIMEOUT_S = 900.0
_NEEDED = ("drgn", "capstone", "jinja2", "matplotlib", "networkx")


def triage_dumps(dumps: Iterable[SavedDump], say: Callable[[str], None]) -> Iterator[str]:
    """
    Write a page and a verdict beside each dump; give what did not succeed, a line each.

    Each is done by a program of its own: a dump that is damaged in a way nobody
    thought of, or too large for this machine's memory, must not end the
    collecting of the others.
    """
    chosen = [dump for dump in dumps if dump.dump is not None or dump.log is not None]
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if chosen and absent:
        say(f"no triage: {', '.join(absent)} not installed")
        return
    for dump in chosen:
        say(f"looking for the cause in {dump.directory}")
        if problem := _triage(dump):
            yield f"{dump.directory}: {problem}"


def _triage(dump: SavedDump) -> str:
    """Try the dump, and the log where the dump says nothing; return what is wrong with the last that was tried."""
    problem = ""
    page = dump.directory / PAGE_NAME
    page.unlink(missing_ok=True)
    for source in (dump.dump, dump.log):
        if source is None:
            continue
        words: list[str | Path] = ["report", "--force", "-o", page, "--verdict", dump.directory / VERDICT_NAME]
        # Where we are found may be known to this process alone.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            finished = run(
                [sys.executable, "-m", "postpanic", *words, source], env=environment, timeout_s=TIMEOUT_S, check=False
            )
        except ProcessError as exc:
            problem = exc.message
            continue
        # 3 is said of a dump that cannot be opened, and of one that tells of no crash: that one has its page.
        if page.exists():
            return ""
        last = finished.stderr.decode(errors="replace").strip().splitlines()
        problem = last[0].removeprefix("error") if last else f"triage ended with {finished.returncode}"
    return problem
