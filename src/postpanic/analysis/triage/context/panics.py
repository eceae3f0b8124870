"""Crashes by panic() itself: who called it, and what the message says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.troubles import TroubleKind, find_troubles
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_caller", "find_damage"]

_SKIPPED = ("panic", "vpanic", "dump_stack", "__dump_stack", "show_stack", "nmi_panic", "printk", "_printk", "vprintk")
_DAMAGED = re.compile(
    r"^(?:EXT[234]|XFS|BTRFS|JFS|F2FS|FAT|GFS2|OCFS2|NILFS|HFS|UBIFS|NTFS|REISERFS|UDF|EROFS)\b.{0,200}", re.IGNORECASE
)
_DEVICE = re.compile(r"\((?:device )?([\w.:!-]{1,64})\)")
_ERROR_LINE = re.compile(
    r"^(?:EXT[234]-fs error|XFS|BTRFS|F2FS-fs|FAT-fs|GFS2|OCFS2) ?\(?(?:device )?[^)\n]{0,64}\)?:? ?"
    r"(?:[\w:]{1,40}:\d{1,6}: )?.{0,200}"
)
_ASKED_FOR = "trigger_test_error"
"""fs/ext4/sysfs.c: an error that was asked for."""
_FUNCTION = re.compile(r"\): (\w{3,64}):\d{1,6}: ")


_FOLLOWERS = (
    "panic_on_warn set",
    "Fatal exception",
    "Oops - ",
    "panic_on_",
    "KASAN: panic_on_warn",
    "kernel: panic_on_",
)
"""Panics that only carry out what an earlier report made necessary: kernel/panic.c, kernel/exit.c."""


_NOTICED = re.compile(
    r"watchdog|heart ?beat|time(?:d )?-?out|stuck|stall|\b(?:hung|hangs?)\b|not respond|no response|unresponsive"
    r"|dead ?lock"
    r"|did not (?:come|finish|answer)|deadline|overdue",
    re.IGNORECASE,
)
"""Of messages: whoever says so has waited for somebody else."""


@dataclass(frozen=True)
class _Meaning:
    words: str
    cause: Cause
    text: str


_MEANINGS = (
    _Meaning("watchdog pretimeout", Cause.OVERLOAD, "the program that feeds the hardware's watchdog had not come to "
             "do so: it hung, was starved, or is gone"),
    _Meaning("audit:", Cause.UNKNOWN, "auditing was told to panic when it loses records (auditctl -f 2)"),
    _Meaning("Fencing", Cause.DELIBERATE, "the cluster's own software took this node out"),
    _Meaning("fencing", Cause.DELIBERATE, "the cluster's own software took this node out"),
    _Meaning("o2net", Cause.DELIBERATE, "the cluster's own software took this node out"),
    _Meaning("LBUG", Cause.ASSERTION, "Lustre's own check failed"),
    _Meaning("VERIFY", Cause.ASSERTION, "a check of the module failed"),
    _Meaning("ASSERT", Cause.ASSERTION, "a check of the module failed"),
    _Meaning("DMAR", Cause.HARDWARE, "the IOMMU could not be used"),
    _Meaning("IO-APIC", Cause.HARDWARE, "the timer's interrupt does not come: firmware or hardware"),
    _Meaning("Timeout", Cause.UNKNOWN, "what was waited for did not come"),
)  # fmt: skip


@detector(
    "called-panic",
    needs=(Need.REPORT,),
    about="the function that called panic() itself, and what its message means",
    depth=55,
    kinds=(Kind.PANIC, Kind.BUG),
)
def find_caller(scene: Scene) -> Iterator[Finding]:
    """Name the function that called panic(): the kernel died because it was told to by that code."""
    report = scene.first
    if report is None or report.kind is not Kind.PANIC:
        return
    message = report.panic_message or report.message.partition("not syncing: ")[2] or report.message
    if _DAMAGED.match(message):
        return
    if message.startswith(_FOLLOWERS):
        yield _lost_report(scene, report, message)
        return
    function, module, is_seen = _caller(scene, report)
    meaning = next((one for one in _MEANINGS if one.words in message), None)
    cause = meaning.cause if meaning is not None else Cause.ASSERTION
    evidence = [Evidence("its message", "log", f"Kernel panic - not syncing: {message}")]
    if function:
        evidence.append(Evidence(f"panic() was called by {function}", "bt" if is_seen else "log", function))
    who = f"{function}() of module {module}" if module else f"{function}()" if function else "The kernel"
    # What the message means is taken on trust; who called is not.
    confidence = Confidence.LIKELY if function and (module or meaning is None) else Confidence.POSSIBLE
    noticed = _NOTICED.search(message) if meaning is None else None
    if noticed is not None:
        cause, confidence = Cause.UNKNOWN, Confidence.POSSIBLE
        who = f"{who}, which watches others,"
    yield Finding(
        detector="called-panic",
        role=Role.CAUSE,
        cause=cause,
        sentence=f'{who} called panic() itself, saying "{message}"' + (f": {meaning.text}." if meaning else "."),
        confidence=confidence,
        function=function,
        module=(module or "vmlinux") if function else "",
        subject=Subject("task", "", report.comm, detail=f"PID {report.pid}") if report.comm else None,
        evidence=tuple(evidence),
        not_to_blame=(f"{function}(): by its message it only noticed",) if noticed and function else (),
        refuted_by="what the code that called panic() checks before it does",
        next_steps=(f"dis {function}", "bt -l") if function else ("bt",),
        explains=("reported",),
        time_s=report.time_s,
    )


def _lost_report(scene: Scene, report: Report, message: str) -> Finding:
    """Say of a panic that only carries out what an earlier report made necessary that this report is lost."""
    function, _, _ = _caller(scene, report)
    scene.miss("the report that the kernel panicked because of", f'the log only has "{message}"',
               "log_buf_len=4M keeps more of the log; pstore and netconsole keep it elsewhere")  # fmt: skip
    who = f", which {function}() carried out" if function else ""
    return Finding(
        detector="called-panic",
        role=Role.CAUSE,
        cause=Cause.UNKNOWN,
        sentence=f'The kernel was told to panic on what it had reported before ("{message}"){who}; '
        "that report is not in the log.",
        confidence=Confidence.UNKNOWN,
        evidence=(Evidence("the message", "log", f"Kernel panic - not syncing: {message}"),),
        not_to_blame=(f"{function}(): it does what panic_on_* tells it to",) if function else (),
        next_steps=("bt", "log"),
        explains=("reported",),
        time_s=report.time_s,
    )


def _caller(scene: Scene, report: Report) -> tuple[str, str, bool]:
    """Find who called panic(): of the dump's stack, else of the trace in the log."""
    if scene.workspace is not None and scene.panic_task is not None:
        try:
            frames = scene.trace(scene.panic_task).frames
        except UNREADABLE:
            frames = []
        names = [(frame.place.function, frame.place.module) for frame in frames if frame.place and frame.reliable]
        place = next((at for at, (name, _) in enumerate(names) if plain_name(name) in {"panic", "vpanic"}), None)
        if place is not None:
            for name, module in names[place + 1 :]:
                if plain_name(name) not in _SKIPPED:
                    return plain_name(name), module, True
    for trace in report.traces:
        if trace.section not in {Section.MAIN, Section.PANIC}:
            continue
        for frame in trace.frames:
            if (
                frame.is_reliable
                and not frame.is_pc
                and plain_name(frame.function).removesuffix("_lvl") not in _SKIPPED
            ):
                return plain_name(frame.function), frame.module, False
    return "", "", False


@detector(
    "file-system-damage",
    needs=(Need.REPORT,),
    about="file systems that panic on errors, and whether their device had failed before",
    depth=62,
    kinds=(Kind.PANIC, Kind.FILE_SYSTEM),
)
def find_damage(scene: Scene) -> Iterator[Finding]:
    """Find the file system that made the kernel panic (errors=panic), what it had found, and its device's errors."""
    report = scene.first
    if report is None:
        return
    message = report.panic_message or report.message
    if report.kind is not Kind.PANIC or not _DAMAGED.match(message):
        return
    match = _DEVICE.search(message)
    device = match[1] if match else ""
    lines = [line.decode("utf-8", "replace") for line in _lines_of(scene.text, device)]
    errors = [line for line in lines if _ERROR_LINE.match(line) and "panic" not in line]
    first = errors[0] if errors else ""
    broken = [
        trouble
        for trouble in find_troubles(scene.text)
        if trouble.kind in {TroubleKind.IO, TroubleKind.MEDIUM, TroubleKind.TIMEOUT, TroubleKind.OFFLINE}
        and (not device or trouble.device.startswith(device[:3]) or device.startswith("dm-"))
    ]
    found = _FUNCTION.search(first)
    evidence = [Evidence("the file system's own panic", "log", message)]
    evidence += [Evidence("what it had found first", "log", first)] if first else []
    evidence += [
        Evidence(f"{one.kind.value} of {one.device} before ({one.count})", "log", one.line) for one in broken[:2]
    ]
    why = (
        f"its device reported {broken[0].kind.value}"
        if broken
        else "what is on the disk, or was read of it, is damaged"
    )
    cause = Cause.LOST_IO if broken and broken[0].kind is TroubleKind.TIMEOUT else Cause.FILE_SYSTEM_DAMAGE
    if found is not None and found[1] == _ASKED_FOR:
        cause, why = Cause.DELIBERATE, "somebody wrote to trigger_fs_error, which makes one on purpose"
    said = f": {first.partition('): ')[2] or first}" if first else ""
    yield Finding(
        detector="file-system-damage",
        role=Role.CAUSE,
        cause=cause,
        sentence=f"The file system on {device or 'a disk'} is told to panic on errors, and had one{said}; {why}.",
        confidence=Confidence.LIKELY if first else Confidence.POSSIBLE,
        subject=Subject("file system", message.split()[0].rstrip(":").removesuffix("-fs").lower(), device),
        evidence=tuple(evidence),
        not_to_blame=(f"{found[1]}(): it only read what is damaged",) if found else (),
        refuted_by="a check of the file system that finds nothing, and a disk without errors",
        next_steps=("mount", "log | grep -e EXT4 -e XFS -e 'I/O error'"),
        explains=("reported", "called-panic"),
        time_s=report.time_s,
    )


def _lines_of(text: bytes, device: str) -> Iterator[bytes]:
    needle = device.encode() if device else b"-fs error"
    position, count = 0, 0
    while (place := text.find(needle, position)) >= 0 and count < 512:
        start = text.rfind(b"\n", 0, place) + 1
        end = text.find(b"\n", place)
        end = end if end >= 0 else len(text)
        line = text[start : min(end, start + 4096)]
        # The time stands before the message.
        yield re.sub(rb"^(?:<\d{1,3}>)?\[[^\]]{1,24}\](?:\[[^\]]{1,12}\])? ?", b"", line).strip()
        position, count = end + 1, count + 1
