"""Crashes by a non-maskable interrupt: who sent it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.deliberate import look_for_reasons
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_sender", "is_virtual"]

_REASON = re.compile(r"NMI received for unknown reason ([0-9a-f]{2}) on CPU (\d{1,6})")
_VIRTUAL = (
    b"Hypervisor detected: ",
    b"Booting paravirtualized kernel on KVM",
    b"QEMU Standard PC",
    b"VMware Virtual Platform",
    b"Hyper-V",
    b"VirtualBox",
    b"HVM domU",
    b"Amazon EC2",
    b"Google Compute Engine",
)
_VIRTUAL_HARDWARE = re.compile("QEMU|KVM|VMware|Virtual|Xen|HVM domU|Amazon EC2|Google Compute|OpenStack|RHEV|Bochs")
_SENDERS = "it was sent by the button, by the management controller, or by faulty hardware"
_SERR, _IOCK = 0x80, 0x40
"""Bits of port 0x61: arch/x86/include/asm/mach_traps.h."""


def is_virtual(scene: Scene) -> bool:
    """Tell whether the machine is a virtual one, by its log."""
    if any(mark in scene.text for mark in _VIRTUAL):
        return True
    return any(_VIRTUAL_HARDWARE.search(report.hardware) for report in scene.reports if report.hardware)


@detector(
    "nmi",
    needs=(Need.REPORT,),
    about="who sent the non-maskable interrupt that the kernel panicked over",
    depth=65,
    kinds=(Kind.NMI,),
)
def find_sender(scene: Scene) -> Iterator[Finding]:
    """Tell an NMI that somebody sent on purpose from one of the hardware, and from a watchdog's."""
    report = scene.first
    if report is None or report.kind is not Kind.NMI:
        return
    text = " ".join((report.message, report.panic_message, *report.lines[:8]))
    cause, confidence, sentence = _judge(scene, text)
    evidence = _evidence(scene, report)
    if cause is Cause.DELIBERATE:
        check = look_for_reasons(scene, report)
        sentence = f"{sentence} {check.sentence(is_dump=scene.workspace is not None)}"
        evidence = (*evidence, *check.wrong, *check.fine)
    yield Finding(
        detector="nmi",
        role=Role.CAUSE,
        cause=cause,
        sentence=sentence,
        confidence=confidence,
        subject=Subject("device", "NMI", "", detail=f"on CPU {report.cpu}" if report.cpu is not None else ""),
        evidence=evidence,
        not_to_blame=("the code that was interrupted: an NMI comes at any place",),
        refuted_by="the management controller's event log, which records who sent it",
        next_steps=("bt -a", "ps -S", "foreach UN bt"),
        explains=("reported",),
        time_s=report.time_s,
    )


def _judge(scene: Scene, text: str) -> tuple[Cause, Confidence, str]:
    if "hpwdt" in text:
        return (
            Cause.UNKNOWN,
            Confidence.POSSIBLE,
            "The hardware's watchdog (hpwdt) sent an NMI: the machine had not answered it, or its button was used.",
        )
    match = _REASON.search(text)
    reason = int(match[1], 16) if match else None
    if "PCI system error" in text or "SERR" in text or (reason is not None and reason & _SERR):
        return Cause.HARDWARE, Confidence.LIKELY, "The hardware sent an NMI: a PCI device or bridge raised SERR#."
    if "IOCK" in text or (reason is not None and reason & _IOCK):
        return Cause.HARDWARE, Confidence.LIKELY, "The hardware sent an NMI: an I/O check (IOCHK#)."
    if "memory parity" in text:
        return Cause.HARDWARE, Confidence.LIKELY, "The hardware sent an NMI: a parity error of memory."
    wanted = _is_wanted(scene)
    code = f" (reason {reason:#x}, neither SERR# nor IOCHK#)" if reason is not None else ""
    if is_virtual(scene):
        return (
            Cause.DELIBERATE,
            Confidence.LIKELY,
            f"An NMI was sent to this virtual machine from outside{code}: its host did so to make it crash"
            + (", as unknown_nmi_panic is set." if wanted else "."),
        )
    if wanted or "Not continuing" in text:
        return (
            Cause.DELIBERATE,
            Confidence.POSSIBLE,
            f"An NMI without a known sender came{code}, and the kernel was told to panic then: {_SENDERS}.",
        )
    return Cause.HARDWARE, Confidence.POSSIBLE, f"An NMI without a known sender came{code}."


def _is_wanted(scene: Scene) -> bool:
    """Tell whether the kernel was told to panic at an NMI of unknown reason: the variable, or the command line."""
    if scene.workspace is not None:
        try:
            return bool(scene.prog["unknown_nmi_panic"].value_())
        except UNREADABLE:
            pass
    return b"unknown_nmi_panic" in scene.text


def _evidence(scene: Scene, report: Report) -> tuple[Evidence, ...]:
    lines = [line.strip() for line in report.lines if "NMI received" in line or "NMI:" in line]
    found = [Evidence("the kernel's own words", "log", line) for line in (lines or [report.message])[:2]]
    if _is_wanted(scene):
        if scene.workspace is not None:
            found.append(Evidence("the kernel was told to panic", "p unknown_nmi_panic", "1"))
        else:
            found.append(Evidence("the kernel was told to panic", "log", "unknown_nmi_panic"))
    return tuple(found)
