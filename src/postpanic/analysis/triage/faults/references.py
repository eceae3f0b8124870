"""Reference counts that went wrong: which object's, and who dropped or took the last one."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.reports import trace_argument
from postpanic.analysis.triage.faults.things import find_thing
from postpanic.analysis.triage.faults.uses import find_culprit
from postpanic.analysis.triage.faults.wording import chain_of_origin, evidence_of_origin, who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_reference"]

_REPORTER = "refcount_warn_saturate"
_STORIES = (
    ("underflow", "dropped a reference once too often: the count of {of} went below zero (underflow)"),
    ("decrement hit 0", "dropped the last reference of {of} where one must be left"),
    ("addition on 0", "took a reference of {of} whose last one had been dropped already (use after free)"),
    ("saturated", "took more references of {of} than there can be, or never dropped them (saturated)"),
)


@detector(
    "reference",
    needs=(Need.REPORT,),
    about="a reference count that underflowed or saturated, and the object that it counts for",
    depth=60,
    kinds=(Kind.REFCOUNT,),
)
def find_reference(scene: Scene) -> Iterator[Finding]:
    """Say whose count it is and what was done to it."""
    report, culprit = scene.first, find_culprit(scene)
    if report is None or culprit is None or report.kind is not Kind.REFCOUNT:
        return
    lines = " ".join(line for line in (report.message, report.condition, report.variant, *report.lines[:4]))
    story = next((text for key, text in _STORIES if key in lines), "changed the reference count of {of} wrongly")
    origin = trace_argument(scene, _REPORTER, 0) if scene.workspace is not None else None
    vaddr = origin.value if origin is not None else None
    if vaddr is None and origin is not None:
        vaddr = next((step.value for step in origin.steps if step.value is not None), None)
    thing = find_thing(scene.dump, vaddr) if vaddr is not None and scene.workspace is not None else None
    of = f"{thing.text}, offset {thing.offset:#x}" if thing is not None else "an object"
    yield Finding(
        detector="reference",
        role=Role.CAUSE,
        cause=Cause.REFERENCE_COUNT,
        sentence=f"{who(culprit)} {story.format(of=of)}.",
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("object", "refcount_t", thing.name if thing else "", vaddr, thing.state if thing else ""),
        evidence=(
            Evidence("the kernel's warning", "log", "refcount_t: "),
            *evidence_of_origin(scene, origin),
            *((Evidence("what the count is in", thing.command, f"{thing.start:016x}", vaddr),) if thing else ()),
        ),
        chain=tuple(chain_of_origin(scene, f"the count at {vaddr:#x}" if vaddr else "the count", origin)),
        refuted_by="another dropped a reference that was not its own, and this one only came after it",
        next_steps=(f"owners {thing.start:x}", f"rd {thing.start:x} 8") if thing is not None else (),
        explains=("reported", "assertion"),
        time_s=report.time_s,
    )
