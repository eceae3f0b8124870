"""What the report itself says, for every kind: the verdict where nobody knows better, and all that a log gives."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.uses import module_in
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_reported"]

_CAUSES: dict[Kind, Cause] = {
    Kind.NULL_DEREFERENCE: Cause.NULL_POINTER,
    Kind.PAGING_REQUEST: Cause.WILD_POINTER,
    Kind.GENERAL_PROTECTION: Cause.WILD_POINTER,
    Kind.LIST_CORRUPTION: Cause.LIST_CORRUPTION,
    Kind.KERNEL_BUG: Cause.ASSERTION,
    Kind.WARNING: Cause.ASSERTION,
    Kind.REFCOUNT: Cause.REFERENCE_COUNT,
    Kind.STACK_PROTECTOR: Cause.STACK_CORRUPTION,
    Kind.STACK_OVERFLOW: Cause.STACK_OVERFLOW,
    Kind.DIVIDE_ERROR: Cause.DIVISION_BY_ZERO,
    Kind.DEADLOCK: Cause.DEADLOCK,
    Kind.ATOMIC_SLEEP: Cause.SLEEP_IN_ATOMIC,
    Kind.SLAB: Cause.MEMORY_CORRUPTION,
    Kind.BAD_PAGE: Cause.MEMORY_CORRUPTION,
    Kind.OUT_OF_MEMORY: Cause.MEMORY_EXHAUSTED,
    Kind.MACHINE_CHECK: Cause.HARDWARE,
    Kind.HARDWARE_ERROR: Cause.HARDWARE,
    Kind.INIT_DIED: Cause.INIT_DIED,
    Kind.NO_ROOT: Cause.NO_ROOT,
    Kind.FILE_SYSTEM: Cause.FILE_SYSTEM_DAMAGE,
    Kind.MEMORY_LEAK: Cause.MEMORY_LEAK,
    Kind.NETDEVICE_REFERENCE: Cause.REFERENCE_COUNT,
}
"""Where the kind alone says what it is; hangs are not among them: who waits is not who is at fault."""
_VARIANTS = (
    ("use-after-free", Cause.USE_AFTER_FREE),
    ("double-free", Cause.DOUBLE_FREE),
    ("invalid-free", Cause.DOUBLE_FREE),
    ("out-of-bounds", Cause.OUT_OF_BOUNDS),
    ("null-ptr-deref", Cause.NULL_POINTER),
    ("wild-memory-access", Cause.WILD_POINTER),
    ("uninit-value", Cause.UNINITIALIZED),
)
"""What sanitizers prove, by parts of their names."""
_OF_NUMBERS = "shift-"
"""UBSAN's ``shift-out-of-bounds`` is of no memory: ``lib/ubsan.c``."""


@detector("reported", needs=(Need.REPORT,), about="what the kernel's own report says", depth=10)
def find_reported(scene: Scene) -> Iterator[Finding]:
    """Repeat the first report as a finding, with the function that its text blames."""
    report = scene.first
    if report is None:
        return
    cause = _cause_of(report)
    blamed = report.blame[0] if report.blame else None
    yield Finding(
        detector="reported",
        role=Role.CAUSE,
        cause=cause,
        sentence=f"{report.title[:1].upper()}{report.title[1:]}.",
        confidence=Confidence.POSSIBLE if cause is not Cause.UNKNOWN else Confidence.UNKNOWN,
        function=report.function,
        module=module_in(report, blamed) if blamed is not None else "",
        evidence=(Evidence("the kernel's report", "log", report.message),),
        next_steps=("log | tail -n 100", "bt -a"),
        time_s=report.time_s,
    )


def _cause_of(report: Report) -> Cause:
    if report.variant.startswith(_OF_NUMBERS):
        return Cause.ARITHMETIC
    for part, cause in _VARIANTS:
        if part in report.variant:
            return cause
    return _CAUSES.get(report.kind, Cause.UNKNOWN)
