"""Crashes of the boot and of the first process: init died, no root file system."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.paths import Paths
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["decode_exit", "find_init", "find_root"]

_EXIT = re.compile(r"exitcode=0x([0-9a-f]{1,16})")
_TRAP = re.compile(rb"^[^\s\[]{1,32}\[1\]:? (?:segfault|general protection|trap|unhandled)")
_MARK = b"[1]"
_ROOT = re.compile(rb"[Cc]ommand line: [^\n]{0,4000}?\broot=(\S{1,200})")
_INIT = re.compile(rb"[Cc]ommand line: [^\n]{0,4000}?\b(?:rd)?init=(\S{1,200})")
_CANNOT_OPEN = re.compile(
    rb'VFS: Cannot open root device "([^"\n]{0,200})" or unknown-block\((\d{1,8}),(\d{1,8})\): error (-\d{1,4})'
)
_UNABLE = re.compile(r'Unable to mount root fs on (?:"([^"]{0,200})" or )?(\S{1,200})')
_FAILED = re.compile(rb"(?:Requested init (\S{1,200}) failed|Failed to execute (\S{1,200})) \(error (-\d{1,4})\)")
_PARTITION = re.compile(rb"\n[^\n]{0,40}?(?:\] |^)?([0-9a-f]{4}) {1,16}(\d{1,14}) (\w{1,32})[^\n]{0,120}")
_MARKS_LIMIT = 4096


def decode_exit(code: int) -> str:
    """
    Say what an exit code means, as wait(2) has it.

    >>> decode_exit(0x100), decode_exit(0xB), decode_exit(0x7F00)
    ('it exited with status 1', 'signal 11 (SIGSEGV) killed it', 'it exited with status 127 (nothing to execute)')
    """
    number = code & 0x7F
    if number:
        try:
            return f"signal {number} ({signal.Signals(number).name}) killed it"
        except ValueError:
            return f"signal {number} killed it"
    status = code >> 8 & 0xFF
    meaning = {126: " (cannot be executed)", 127: " (nothing to execute)"}.get(status, "")
    return f"it exited with status {status}{meaning}"


@detector(
    "init-died",
    needs=(Need.REPORT,),
    about="how the first process ended, and which program it was",
    depth=60,
    kinds=(Kind.INIT_DIED,),
)
def find_init(scene: Scene) -> Iterator[Finding]:
    """Decode the exit code of init, and look for what killed it."""
    report = scene.first
    if report is None or report.kind is not Kind.INIT_DIED:
        return
    match = _EXIT.search(f"{report.panic_message} {report.message}")
    code = int(match[1], 16) if match else None
    how = decode_exit(code) if code is not None else "how it ended is not known"
    comm = report.comm if report.pid in {1, None} and report.comm else "init"
    program = _program(scene)
    evidence = [Evidence("the exit code", "log", report.panic_message or report.message)]
    why = ""
    if line := _crash_of_init(scene.text):
        evidence.append(Evidence("it had crashed", "log", line[:300]))
        why = "; it had crashed"
    elif code is not None and code & 0x7F == signal.SIGKILL:
        why = "; no process may kill it but the kernel, or itself"
    elif code is not None and code & 0x7F == 0:
        why = "; it ended by itself, which the first process never may"
    if program:
        evidence.append(Evidence("its program", "vm 1", program))
    yield Finding(
        detector="init-died",
        role=Role.CAUSE,
        cause=Cause.INIT_DIED,
        sentence=f"The first process, {comm} (PID 1){f', {program},' if program else ''} ended: {how}{why}.",
        confidence=Confidence.PROVEN if code is not None else Confidence.LIKELY,
        subject=Subject("task", "process", comm, detail="PID 1"),
        evidence=tuple(evidence),
        refuted_by="an earlier report of the kernel in the context of PID 1",
        next_steps=("ps 1", "vm 1", "sig 1", "log | tail -n 60"),
        explains=("reported", "called-panic"),
        time_s=report.time_s,
    )


def _crash_of_init(text: bytes) -> str:
    """Find the line that says that a program with PID 1 crashed: ``init[1]: segfault at …``, ``traps: init[1] …``."""
    place = text.find(_MARK)
    for _ in range(_MARKS_LIMIT):
        if place < 0:
            break
        start = max(text.rfind(b" ", max(0, place - 40), place), text.rfind(b"\n", max(0, place - 40), place)) + 1
        end = text.find(b"\n", place, place + 512)
        line = text[start : end if end >= 0 else place + 512]
        if _TRAP.match(line):
            return line.decode("utf-8", "replace").strip()
        place = text.find(_MARK, place + 1)
    return ""


def _program(scene: Scene) -> str:
    """Give the path of the program that PID 1 runs; empty: its memory is gone, or there is no dump."""
    task = scene.find_task(1)
    if task is None:
        return ""
    try:
        mm = task.task.mm.read_()
        if not mm or not mm.exe_file:
            return ""
        return Paths(scene.prog).of_file(mm.exe_file.read_())
    except UNREADABLE:
        return ""


@detector(
    "no-root",
    needs=(Need.REPORT,),
    about="which root file system or first program was asked for, and what was there",
    depth=60,
    kinds=(Kind.NO_ROOT,),
)
def find_root(scene: Scene) -> Iterator[Finding]:
    """Say which root or init the kernel looked for, why that failed, and which devices there were."""
    report = scene.first
    if report is None or report.kind is not Kind.NO_ROOT:
        return
    failed = _FAILED.search(scene.text)
    if "init" in (report.panic_message or report.message) and "mount root" not in (
        report.panic_message or report.message
    ):
        yield _no_init(scene, report, failed)
        return
    yield _no_root(scene, report)


def _no_init(scene: Scene, report: Report, failed: re.Match[bytes] | None) -> Finding:
    asked = _text(_INIT.search(scene.text))
    message = report.panic_message or report.message
    evidence = [Evidence("the kernel's own words", "log", message)]
    why = ""
    if failed is not None:
        name = (failed[1] or failed[2]).decode("utf-8", "replace")
        error = _spell_error(int(failed[3]))
        why = f": {name} cannot be executed ({error})"
        evidence.append(Evidence("why", "log", failed[0].decode("utf-8", "replace")))
    return Finding(
        detector="no-root",
        role=Role.CAUSE,
        cause=Cause.NO_ROOT,
        sentence=f"The kernel found no program to run as the first process{why}"
        + (f"; asked for was init={asked}." if asked else "."),
        confidence=Confidence.PROVEN if failed is not None else Confidence.LIKELY,
        subject=Subject("file system", "init", asked),
        evidence=tuple(evidence),
        refuted_by="",
        next_steps=("log | grep -i init", "mount"),
        explains=("reported", "called-panic"),
        time_s=report.time_s,
    )


def _no_root(scene: Scene, report: Report) -> Finding:
    message = report.panic_message or report.message
    opened = _CANNOT_OPEN.search(scene.text)
    unable = _UNABLE.search(message)
    asked = opened[1].decode("utf-8", "replace") if opened and opened[1] else ""
    asked = asked or (unable[1] if unable and unable[1] else "") or _text(_ROOT.search(scene.text))
    evidence = [Evidence("the kernel's own words", "log", message)]
    why = ""
    if opened is not None:
        error = int(opened[4])
        why = f" ({_spell_error(error)})"
        evidence.append(Evidence("why it could not be opened", "log", opened[0].decode("utf-8", "replace")))
    there = _devices(scene)
    if there:
        evidence.append(Evidence("the devices that there were", "log", ", ".join(there[:12])))
    what = f"{asked} could not be mounted as the root file system" if asked else "No root file system could be mounted"
    block = f", {unable[2]}" if unable else ""
    devices = f"the kernel saw the devices {', '.join(there[:8])}" if there else "the kernel saw no block device"
    if not there and b"List of all" not in scene.text and b"available partitions" not in scene.text:
        devices = "which devices there were is not in the log"
    return Finding(
        detector="no-root",
        role=Role.CAUSE,
        cause=Cause.NO_ROOT,
        sentence=f"{what}{why}{block}; {devices}.",
        confidence=Confidence.PROVEN if opened is not None or unable is not None else Confidence.LIKELY,
        subject=Subject("file system", "root", asked),
        evidence=tuple(evidence),
        refuted_by="",
        next_steps=("log | grep -i -e root -e VFS", "dev -d"),
        explains=("reported", "called-panic"),
        time_s=report.time_s,
    )


def _devices(scene: Scene) -> list[str]:
    """Read the table of partitions that the kernel prints when it finds no root: ``printk_all_partitions``."""
    place = scene.text.find(b"available partitions")
    if place < 0:
        return []
    part = scene.text[place : place + 8192]
    end = part.find(b"List of all")
    return [match[3].decode("ascii", "replace") for match in _PARTITION.finditer(part[: end if end > 0 else None])]


def _spell_error(number: int) -> str:
    name = errno.errorcode.get(-number, "")
    return f"{name or number}: {os.strerror(-number).lower()}" if name else f"error {number}"


def _text(match: re.Match[bytes] | None) -> str:
    return match[1].decode("utf-8", "replace") if match else ""
