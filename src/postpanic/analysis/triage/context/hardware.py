"""Crashes of the hardware: which part failed, by what processor or firmware recorded."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.hardware.model import Confidence as Trust
from postpanic.evidence.hardware.model import HardwareError, Severity, Verdict
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_failed_part", "find_recorded_errors"]

_KINDS = (Kind.MACHINE_CHECK, Kind.HARDWARE_ERROR, Kind.SERROR)
_NEAR_BYTES = 8192


def _choose(scene: Scene, report: Report) -> HardwareError | None:
    """Choose what the crash is about: what the kernel panicked over, then the gravest, then the first."""
    near = [
        error
        for error in scene.hardware_errors
        if error.end >= report.offset - _NEAR_BYTES and error.offset <= report.end + _NEAR_BYTES
    ]
    grave = [error for error in near or scene.hardware_errors if error.severity.rank > Severity.CORRECTED.rank]
    if not grave:
        return None
    return max(grave, key=lambda error: (error.is_panic, error.severity.rank, -error.offset))


@detector(
    "hardware-failure",
    needs=(Need.REPORT,),
    about="the part of the machine that failed, by machine checks and firmware's records",
    depth=80,
    kinds=_KINDS,
)
def find_failed_part(scene: Scene) -> Iterator[Finding]:
    """Name the part that failed; who ran on the CPU had no part in it."""
    report = scene.first
    if report is None or report.kind not in _KINDS:
        return
    error = _choose(scene, report)
    if error is None:
        yield _undecoded(report)
        return
    place = f" at {error.place}" if error.place else ""
    cause, confidence = Cause.HARDWARE, Confidence.LIKELY
    if error.verdict is Verdict.INJECTED:
        cause = Cause.DELIBERATE
    elif error.verdict in {Verdict.SOFTWARE, Verdict.UNCLEAR, Verdict.FIRMWARE}:
        confidence = Confidence.POSSIBLE
    elif error.confidence is Trust.HIGH and (error.is_panic or report.is_panic):
        confidence = Confidence.PROVEN
    unit = f" ({error.unit})" if error.unit and error.unit not in error.what else ""
    said = "An error that was made on purpose" if cause is Cause.DELIBERATE else "The hardware failed"
    yield Finding(
        detector="hardware-failure",
        role=Role.CAUSE,
        cause=cause,
        sentence=f"{said}: {error.what}{unit}{place}, {error.severity.value}.",
        confidence=confidence,
        subject=Subject("device", error.part.value, error.unit or error.part.value, error.paddr, error.place),
        evidence=(
            Evidence(f"{error.source.value} recorded it", "log", _line(error)),
            Evidence(f"{error.verdict.value}: {error.reason}"),
        ),
        not_to_blame=_bystander(report),
        refuted_by="the same on another machine, or with this part replaced",
        next_steps=(f"# {error.advice}",) if error.advice else (),
        explains=("reported", "nmi"),
        time_s=error.time_s,
    )


def _line(error: HardwareError) -> str:
    return next((line.strip() for line in error.lines if "status" in line.lower() or "error" in line.lower()), "") or (
        error.lines[0].strip() if error.lines else ""
    )


def _undecoded(report: Report) -> Finding:
    what = report.panic_message or report.message
    is_timeout = "Not all CPUs entered" in what or "Not all CPUs" in report.message
    sentence = (
        "A machine check came, and not all CPUs answered it: the processor or what it is connected to has failed."
        if is_timeout
        else f"The hardware reported an error that the kernel could not go on from: {what}."
    )
    return Finding(
        detector="hardware-failure",
        role=Role.CAUSE,
        cause=Cause.HARDWARE,
        sentence=sentence,
        confidence=Confidence.LIKELY,
        subject=Subject("device", "processor", "processor"),
        evidence=(Evidence("the kernel's own words", "log", what),),
        not_to_blame=_bystander(report),
        explains=("reported", "nmi"),
        time_s=report.time_s,
    )


def _bystander(report: Report) -> tuple[str, ...]:
    if not report.comm:
        return ()
    return (f"{report.comm}: it only ran on the CPU that the hardware's error came to",)


@detector(
    "hardware-errors",
    needs=(Need.LOG,),
    about="errors that hardware reported before a crash of another kind",
    depth=20,
)
def find_recorded_errors(scene: Scene) -> Iterator[Finding]:
    """Tell of errors of memory, processor and PCI Express that came before the crash."""
    first = scene.first
    if first is not None and first.kind in _KINDS:
        return
    earlier = [error for error in scene.hardware_errors if first is None or error.end < first.offset]
    grave = [error for error in earlier if error.severity.rank > Severity.INFORMATIONAL.rank]
    if not grave:
        return
    error = max(grave, key=lambda one: (one.severity.rank, one.offset))
    count = sum(one.count for one in grave)
    yield Finding(
        detector="hardware-errors",
        role=Role.BACKGROUND,
        cause=Cause.HARDWARE,
        sentence=f"The hardware had reported {count} error{'s' if count != 1 else ''} before, the gravest: "
        f"{error.what}{f' at {error.place}' if error.place else ''} ({error.severity.value}).",
        confidence=Confidence.POSSIBLE,
        subject=Subject("device", error.part.value, error.unit or error.part.value, error.paddr, error.place),
        evidence=(Evidence(f"{error.source.value} recorded it", "log", _line(error)),),
        time_s=error.time_s,
    )
