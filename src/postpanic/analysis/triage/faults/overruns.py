"""Who wrote over an object: contents that run on from the object before it, or from a text within it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.faults.code_paths import code_graphs
from postpanic.analysis.triage.faults.effects import Act
from postpanic.analysis.triage.faults.holders import Holder, find_holders, find_words, module_functions, modules_of
from postpanic.analysis.triage.faults.origin import Step
from postpanic.analysis.triage.faults.runs import Run, find_run
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Culprit, Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.wording import (
    chain_of,
    evidence_of_origin,
    evidence_of_use,
    faulting_task,
    subject_of,
    thing_of_load,
    who,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_overrun", "find_shared_object"]

_LOOK_BACK = 4
"""Objects before the one that was overwritten that are looked at."""
_MOST_FUNCTION_BYTES = 1 << 16
_SAME_BYTES = 16
_MOST_TWINS = 32


@dataclass(frozen=True, slots=True)
class _Overrun:
    """What was found: the run, the object it begins in, and the one it damaged."""

    run: Run
    base: int
    """Address of the first byte that was looked at."""
    first: Thing
    damaged: Thing
    step: Step

    @property
    def start(self) -> int:
        """Where the run begins."""
        return self.base + self.run.start


def _damaged_step(scene: Scene, use: Use) -> tuple[Step, Thing] | None:
    """Find the object in use that the bad value was read from."""
    load = use.origin.load if use.origin is not None else None
    thing = thing_of_load(scene, load)
    if load is None or thing is None or thing.kind != "slab" or thing.is_free or not load.is_verified:
        return None
    return load, thing


def _find_overrun(scene: Scene, use: Use) -> _Overrun | None:
    return scene.dump.once("triage overrun", lambda: _look_for_overrun(scene, use))


def _look_for_overrun(scene: Scene, use: Use) -> _Overrun | None:
    found = _damaged_step(scene, use)
    if found is None:
        return None
    step, thing = found
    info = thing.info
    assert info is not None  # noqa: S101 - a slab object has one
    assert step.address is not None  # noqa: S101 - it was verified
    slab = info.slab
    first = max(slab.vaddr, thing.start - _LOOK_BACK * slab.cache.size_bytes)
    try:
        data = scene.prog.read(first, thing.start + thing.size_bytes - first)
    except UNREADABLE:
        first = thing.start
        data = scene.prog.read(first, thing.size_bytes)
    run = find_run(data, step.address - first)
    if run is None:
        return None
    origin = find_thing(scene.dump, first + run.start)
    return _Overrun(run, first, origin or thing, thing, step)


@detector(
    "overrun",
    needs=(Need.FAULT, Need.MEMORY),
    about="a bad pointer that was overwritten by what runs on from the object before it",
    depth=72,
    families=(Family.MEMORY_ACCESS,),
)
def find_overrun(scene: Scene) -> Iterator[Finding]:
    """Find the neighbour that wrote beyond its end, and who holds it."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or culprit is None:
        return
    found = _find_overrun(scene, use)
    if found is None:
        return
    if found.first.start == found.damaged.start:
        yield from _inside(scene, use, culprit, found)
    else:
        yield _from_neighbour(scene, use, culprit, found)


def _inside(scene: Scene, use: Use, culprit: Culprit, found: _Overrun) -> Iterator[Finding]:
    """Tell of a text that begins in the object itself, before the pointer, and runs over it."""
    before = found.step.address is not None and found.start < found.step.address
    if found.run.unit or not before:
        return
    thing = found.damaged
    yield Finding(
        detector="overrun",
        role=Role.CAUSE,
        cause=Cause.OUT_OF_BOUNDS,
        sentence=(
            f"{who(culprit)} used a pointer at offset {thing.offset:#x} of {thing.text} that the text {found.run.text} "
            f"runs over: it begins at offset {found.start - thing.start:#x}, and was longer than its room."
        ),
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, use.origin),
        evidence=(*_evidence(scene, use, found),),
        chain=tuple(chain_of(scene, use)),
        refuted_by="the memory was another object's, which held a text there",
        next_steps=(f"rd -a {found.start:x} {found.run.size_bytes}", f"owners {thing.start:x}"),
        explains=("bad-pointer", "wild-call", "reported"),
        time_s=use.fault.report.time_s,
    )


def _evidence(scene: Scene, use: Use, found: _Overrun) -> Iterator[Evidence]:
    yield from evidence_of_use(use)
    yield from evidence_of_origin(scene, use.origin)
    words = max(found.run.size_bytes // 8, 1)
    yield Evidence(
        f"{found.run.size_bytes} bytes of {found.run.text} run over the pointer",
        f"rd {found.start & ~7:x} {words}",
        f"{found.step.value or 0:016x}",
        found.start,
    )


def _from_neighbour(scene: Scene, use: Use, culprit: Culprit, found: _Overrun) -> Finding:
    writer, victim = find_holders(scene, [found.first, found.damaged], through=False)
    if not modules_of(writer):
        writer, victim = find_holders(scene, [found.first, found.damaged])
    own = modules_of(victim, direct=True) or modules_of(victim)
    others = [module for module in modules_of(writer, direct=True) or modules_of(writer) if module not in own]
    module = others[0] if others else own[0] if own and modules_of(writer) else ""
    function = _storing_function(scene, module, found.run) if module else ""
    by = who(Culprit(function, module)) if function else f"module {module}" if module else "its holder, not known here"
    holder = next((each for each in writer if each.module == module and module), None)
    held = f", which {holder.variable} of {holder.module} leads to" if holder is not None else ""
    is_free = " (free now)" if found.first.is_free else ""
    return Finding(
        detector="overrun",
        role=Role.CAUSE,
        cause=Cause.OUT_OF_BOUNDS,
        sentence=(
            f"The {found.damaged.name} object {found.damaged.start:#x} that {who(culprit)} uses was overwritten from "
            f"the neighbour before it, {found.first.start:#x}{is_free}{held}: {found.run.text} for "
            f"{found.run.size_bytes} bytes runs on over its end; written by {by}."
        ),
        confidence=Confidence.LIKELY if module else Confidence.POSSIBLE,
        function=function,
        module=module,
        subject=Subject("object", found.damaged.name, found.damaged.name, found.damaged.start, "overwritten"),
        evidence=(*_evidence(scene, use, found), *_holder_evidence(writer, found.first)),
        chain=tuple(chain_of(scene, use)),
        victims=faulting_task(scene, f"it used an object of {own[0] if own else culprit.module} that was overwritten"),
        refuted_by="the run was written by the owner of the damaged object itself",
        next_steps=(f"rd {found.first.start:x} {2 * found.damaged.size_bytes // 8}", f"owners {found.first.start:x}"),
        explains=("bad-pointer", "wild-call", "shared-object", "bit-flip", "reported"),
        time_s=use.fault.report.time_s,
    )


def _holder_evidence(holders: list[Holder], thing: Thing) -> Iterator[Evidence]:
    for holder in holders[:3]:
        way = f" by way of the object {holder.through:#x}" if holder.through else ""
        yield Evidence(
            f"{holder.variable} of {holder.module} holds {thing.text}{way}",
            f"owners {thing.start:x}",
            f"{holder.vaddr:016x}",
            holder.vaddr,
        )


def _storing_function(scene: Scene, module: str, run: Run) -> str:
    """Find the one function of a module that stores the unit of a run as a constant; empty: none, or several."""
    if len(run.unit) < 2:
        return ""
    number = int.from_bytes(run.unit, "little")
    graphs = code_graphs(scene.dump)
    found: set[str] = set()
    for start in module_functions(scene, module):
        place = scene.stacks.code.find(start)
        if place is None or place.module != module:
            continue
        graph = graphs.find(place.start) if place.size_bytes <= _MOST_FUNCTION_BYTES else None
        for instruction in graph.instructions.values() if graph is not None else ():
            for effect in graphs.effects(graph, instruction) if graph is not None else ():
                if effect.act in {Act.STORE, Act.CONSTANT} and _has_unit(effect.constant, number, len(run.unit)):
                    found.add(plain_name(place.function))
    return found.pop() if len(found) == 1 else ""


def _has_unit(constant: int, number: int, size: int) -> bool:
    mask = (1 << size * 8) - 1
    return constant & mask == number and constant != 0


# ---- objects that two hold


@detector(
    "shared-object",
    needs=(Need.FAULT, Need.MEMORY),
    about="an object with contents of another kind, which somebody else holds: freed, and given away",
    depth=74,
    families=(Family.MEMORY_ACCESS,),
)
def find_shared_object(scene: Scene) -> Iterator[Finding]:
    """Find an object that two modules hold: one of them freed it, and went on."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or culprit is None:
        return
    damaged = _damaged_step(scene, use)
    if damaged is None:
        return
    _, thing = damaged
    run = _find_overrun(scene, use)
    if run is not None and run.first.start != thing.start:
        # It was overwritten from outside: what it holds says nothing of its owner.
        return
    holders = find_holders(scene, [thing], through=False)[0]
    mine = [holder for holder in holders if holder.module == culprit.module]
    twins = _twins(scene, thing, culprit.module) if not _others(holders, culprit) else []
    if mine and twins:
        yield _given_away(scene, use, culprit, thing, mine[0], twins)
        return
    direct = _others(holders, culprit)
    if not mine or not direct:
        return
    other = direct[0]
    yield Finding(
        detector="shared-object",
        role=Role.CAUSE,
        cause=Cause.USE_AFTER_FREE,
        sentence=(
            f"{who(culprit)} used {thing.text} after it had been freed and given away: {mine[0].variable} of "
            f"{culprit.module} still leads to it, but {other.variable} of {other.module} holds it too, and what it "
            f"contains is not what {culprit.function} expects (offset {thing.offset:#x} holds {use.value.text})."
        ),
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("object", "", thing.name, thing.start, "in use, held by two"),
        evidence=(
            *evidence_of_use(use),
            *evidence_of_origin(scene, use.origin),
            *_holder_evidence([mine[0], other], thing),
        ),
        chain=tuple(chain_of(scene, use)),
        refuted_by=f"{other.module} is meant to share the object with {culprit.module}",
        next_steps=(f"rd -a {thing.start:x} {thing.size_bytes}", f"owners {thing.start:x}"),
        explains=("bad-pointer", "overrun", "wild-call", "reported"),
        time_s=use.fault.report.time_s,
    )


def _others(holders: list[Holder], culprit: Culprit) -> list[Holder]:
    """Give the pointers to the object in variables of other modules."""
    return [
        holder
        for holder in holders
        if holder.module not in {culprit.module, "", "vmlinux"} and holder.is_start and not holder.through
    ]


def _twins(scene: Scene, thing: Thing, module: str) -> list[Thing]:
    """
    Find objects of the same cache that begin with the same bytes, and that the module does not hold.

    They show that the memory is somebody else's now, whose objects all look like that.
    """
    if thing.size_bytes < _SAME_BYTES:
        return []
    try:
        begin = scene.prog.read(thing.start, _SAME_BYTES)
    except UNREADABLE:
        return []
    if len(set(begin)) < _SAME_BYTES // 4:
        return []
    found: list[Thing] = []
    for vaddr in find_words(scene, int.from_bytes(begin[:8], "little")):
        other = find_thing(scene.dump, vaddr)
        if other is None or other.offset or other.is_free or other.name != thing.name or vaddr == thing.start:
            continue
        if scene.prog.read(vaddr, _SAME_BYTES) == begin:
            found.append(other)
        if len(found) >= _MOST_TWINS:
            break
    held = find_holders(scene, found, through=False) if found else []
    return [twin for twin, holders in zip(found, held, strict=True) if module not in modules_of(holders)]


def _given_away(scene: Scene, use: Use, culprit: Culprit, thing: Thing, holder: Holder, twins: list[Thing]) -> Finding:
    assert use.value is not None  # noqa: S101 - the caller looked
    return Finding(
        detector="shared-object",
        role=Role.CAUSE,
        cause=Cause.USE_AFTER_FREE,
        sentence=(
            f"{who(culprit)} used {thing.text} after it had been freed and its memory given to somebody else: "
            f"{holder.variable} of {holder.module} still leads to it, but it begins with the same {_SAME_BYTES} bytes "
            f"as other objects of its cache, which {holder.module} does not hold ({twins[0].start:#x}); offset "
            f"{thing.offset:#x} holds {use.value.text}."
        ),
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("object", "", thing.name, thing.start, "in use, by somebody else"),
        evidence=(
            *evidence_of_use(use),
            *evidence_of_origin(scene, use.origin),
            *_holder_evidence([holder], thing),
            Evidence("what the object holds", f"rd -a {thing.start:x} 32", "", thing.start),
            Evidence("another object that begins like it", f"rd -a {twins[0].start:x} 32", "", twins[0].start),
        ),
        chain=tuple(chain_of(scene, use)),
        refuted_by=f"those objects are of {holder.module} too",
        next_steps=(f"rd -a {thing.start:x} {thing.size_bytes}", f"owners {thing.start:x}"),
        explains=("bad-pointer", "overrun", "wild-call", "reported"),
        time_s=use.fault.report.time_s,
    )
