"""Objects that were used although they are free, and who freed them."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.origin import Origin, Step
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.tracks import Track, read_tracks
from postpanic.analysis.triage.faults.uses import Culprit, Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.values import BadKind
from postpanic.analysis.triage.faults.wording import (
    chain_of,
    evidence_of_origin,
    evidence_of_use,
    subject_of,
    thing_of_load,
    who,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_freed_object"]


def freed_step(scene: Scene, origin: Origin | None) -> tuple[Step, Thing] | None:
    """Find the nearest object on a value's way that is free."""
    for step in origin.loads if origin is not None else ():
        thing = thing_of_load(scene, step)
        if thing is not None and thing.is_free:
            return step, thing
    return None


@detector(
    "freed-object",
    needs=(Need.FAULT, Need.MEMORY),
    about="a bad pointer that was loaded from an object that is free in its slab",
    depth=75,
    families=(Family.MEMORY_ACCESS,),
)
def find_freed_object(scene: Scene) -> Iterator[Finding]:
    """Find the object that was used although it had been freed."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or culprit is None:
        return
    found = freed_step(scene, use.origin)
    if found is not None:
        step, thing = found
    elif (target := _freed_target(scene, use)) is not None:
        step, thing = None, target
    else:
        return
    allocated, freed = read_tracks(scene, thing)
    text = _freed_words(use, culprit, step, thing, freed)
    is_sure = step is not None and step.is_verified
    is_proven = is_sure and freed is not None and culprit.is_faulting and use.value.kind is BadKind.FREED
    yield Finding(
        detector="freed-object",
        role=Role.CAUSE,
        cause=Cause.USE_AFTER_FREE,
        sentence=text,
        confidence=Confidence.PROVEN if is_proven else Confidence.LIKELY if is_sure else Confidence.POSSIBLE,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, use.origin),
        evidence=(
            *evidence_of_use(use),
            *evidence_of_origin(scene, use.origin),
            Evidence("the object is free in its slab", thing.command, "free", thing.start),
            *(
                Evidence(f"{verb} by {track.text}", f"rd -s {track.vaddr:x}", track.symbol, track.vaddr)
                for verb, track in (("allocated", allocated), ("freed", freed))
                if track is not None
            ),
        ),
        chain=tuple(chain_of(scene, use)),
        refuted_by="the object was freed after the fault, by another CPU",
        next_steps=(f"rd {thing.start:x} {max(thing.size_bytes // 8, 1)}", f"owners {thing.start:x}"),
        explains=("bad-pointer", "reported", "bit-flip", "overrun", "shared-object", "wild-call"),
        time_s=use.fault.report.time_s,
    )


def _freed_target(scene: Scene, use: Use) -> Thing | None:
    """Find a free object that the address itself is in: its page was given back, or is protected."""
    address = use.fault.pc if use.is_call else use.fault.address
    thing = find_thing(scene.dump, address) if address is not None else None
    return thing if thing is not None and thing.is_free else None


def _freed_words(use: Use, culprit: Culprit, step: Step | None, thing: Thing, freed: Track | None) -> str:
    assert use.value is not None  # noqa: S101 - the caller looked
    if step is None:
        return f"{who(culprit)} {use.verb} {thing.text}, which had been freed."
    what_is, state = thing.text, "it is free in its slab"
    if thing.kind == "slab":
        what_is = f"the {thing.name} object {thing.start:#x}"
        state += f", kept in the {thing.keeper}" if thing.keeper else ""
    else:
        state = "its page is free"
    state += f"; freed by {freed.text}" if freed is not None else ""
    what = f"{step.type}.{step.member}" if step.type and step.member else f"offset {thing.offset:#x}"
    by = f"{step.function} loaded" if step.function != culprit.function else "it loaded"
    end = "called it" if use.is_call else f"{use.verb} it at offset {use.offset:#x}"
    return (
        f"{who(culprit)} used {what_is} after it had been freed ({state}): {by} {what}, which held {use.value.text}, "
        f"and {end}."
    )
