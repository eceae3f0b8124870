"""Whether what a rehearsal saved is a dump: whole, as written, and of the crash that was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from postpanic.analysis.open_dump import OpenDump, open_dump
from postpanic.errors import PostpanicError
from postpanic.pages.manifest import read_manifest
from postpanic.pages.verification import check_file, match_files
from postpanic.rehearse.job import NMI, OUT_OF_MEMORY
from postpanic.rehearse.links import Link
from postpanic.saver.plan import TargetPlan
from postpanic.units import format_size

__all__ = ["judge_dumps"]

_DUMP_NAMES = ("vmcore", "vmcore.flat")
_SAID = {
    "sysrq": "sysrq: Trigger a crash",
    "bug": "kernel BUG at",
    "null": "NULL pointer dereference",
    "panic": "Kernel panic",
    "softlockup": "soft lockup",
    "hardlockup": "LOCKUP",
    "hung-task": "blocked for more than",
    "stack": "stack",
    NMI: "NMI",
    OUT_OF_MEMORY: "Out of memory",
}
_BY_PID_1 = frozenset({"sysrq", "bug", "null", "panic", "stack"})


def judge_dumps(
    saved: Path, targets: Sequence[TargetPlan], rehearsed: frozenset[int], crash: str
) -> tuple[list[Link], int, int]:
    """
    Look at what every target holds.

    Parameters
    ----------
    saved : Path
        What was brought out: a directory for each target, by its number.
    crash : str
        How the machine was crashed.

    Returns
    -------
    links : list of Link
        One ``dump NAME`` for each target.
    dump_bytes : int
        Size of the largest dump.
    kept_bytes : int
        Of memory that is in it, by its manifest; 0: not known.
    """
    links: list[Link] = []
    largest = kept = 0
    for number in sorted(rehearsed):
        name = f"dump {targets[number].name}"
        dumps = [path for path in (saved / str(number)).rglob("*") if path.name in _DUMP_NAMES]
        if not dumps:
            links.append(Link(name, "broken", "there is none on the target"))
            continue
        path = max(dumps, key=lambda one: one.stat().st_mtime_ns)
        if path.stat().st_size > largest:
            largest, kept = path.stat().st_size, _measure_kept(path)
        faults = list(_find_faults(path, crash))
        if faults:
            links.append(Link(name, "broken", "; ".join(faults)))
        else:
            size = format_size(path.stat().st_size)
            links.append(
                Link(name, "held", f"{size}, as written, opens without debug information, the right task and log")
            )
    return links, largest, kept


def _measure_kept(path: Path) -> int:
    try:
        pages = read_manifest(path.with_name(f"{path.name}.manifest.json")).pages
    except PostpanicError:
        return 0
    return pages.written * pages.page_size_bytes


def _find_faults(path: Path, crash: str) -> Iterator[str]:
    try:
        manifest = read_manifest(path.with_name(f"{path.name}.manifest.json"))
        if not manifest.complete:
            yield "its manifest says that it is not complete"
        files, faults = match_files((path,), manifest)
        yield from faults
        for file in files:
            yield from check_file(file).faults
    except PostpanicError as exc:
        yield f"manifest: {exc.message}"
    log = path.with_name("vmcore-dmesg.txt")
    text = log.read_text(errors="replace") if log.exists() else ""
    if _SAID[crash] not in text:
        yield f"its log does not have {_SAID[crash]!r}"
    try:
        with open_dump(path, debuginfo="synth", cache_directory=None) as dump:
            yield from _find_faults_inside(dump, crash)
    except PostpanicError as exc:
        yield f"it does not open: {exc.message}"


def _find_faults_inside(dump: OpenDump, crash: str) -> Iterator[str]:
    task = dump.run("bt").table
    if not task.rows or not task.column("frames")[0]:
        yield "the panic task has no backtrace"
    elif crash in _BY_PID_1 and task.column("pid")[0] != 1:
        yield f"the panic task is PID {task.column('pid')[0]}, not the one that crashed it"
    log = dump.run("log").table.column("text")
    if not any(str(line).startswith("Linux version") for line in log[:50]):
        yield "its log does not begin with the boot"
