"""
Free objects that were written to: the allocator stumbles over them, and whoever asked for memory then is a victim.

The pointer from one free object to the next lies in the object itself; what is
written there after the object was freed, or beyond the end of its neighbour,
leads the allocator astray.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.memory.slabs.values import Cache
from postpanic.analysis.triage.faults.holders import Holder, find_holders, modules_of
from postpanic.analysis.triage.faults.runs import Run, find_run
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.wording import evidence_of_use, faulting_task, who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.table import Problem
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_freelist"]

_ALLOCATES = ("alloc", "freelist", "freepointer", "deactivate_slab", "get_partial", "slab_free", "kfree", "cache_free")


@dataclass(frozen=True, slots=True)
class _Broken:
    """A list of free objects that breaks off: the cache, and the object whose pointer leads astray."""

    cache: Cache
    thing: Thing
    run: Run | None
    run_start: int


def _is_allocator(use: Use) -> bool:
    place = use.fault.place
    name = plain_name(place.function) if place is not None and not place.module else ""
    return bool(name) and any(word in name for word in _ALLOCATES)


def _find_cache(scene: Scene, use: Use) -> Cache | None:
    """Find the cache that the allocator worked on: a register leads to its ``struct kmem_cache``."""
    allocator = slab_allocator(scene.dump)
    for value in dict.fromkeys(use.registers.values()):
        cache = allocator.by_vaddr.get(value)
        if cache is not None:
            return cache
    return None


def _find_broken(scene: Scene, cache: Cache) -> _Broken | None:
    allocator = slab_allocator(scene.dump)
    for cpu in range(len(allocator.cpus(cache, []))):
        problems: list[Problem] = []
        found = allocator.cpu(cache, cpu, problems)
        slabs = [slab for slab in (found.slab, *found.partial) if slab is not None]
        lists = [found.freelist]
        for slab in slabs:
            own: list[Problem] = []
            lists.append(allocator.freelist(cache, slab.freelist, "", own, slab.objects))
        for objects in lists:
            broken = _last_bad(scene, cache, objects)
            if broken is not None:
                return broken
    return None


def _last_bad(scene: Scene, cache: Cache, objects: tuple[int, ...]) -> _Broken | None:
    """Tell whether a list leads out of its slab: the object before the first stray one was written to."""
    for before, vaddr in itertools.pairwise(objects):
        thing = find_thing(scene.dump, vaddr)
        if thing is not None and thing.name == cache.name and thing.offset == 0:
            continue
        own = find_thing(scene.dump, before)
        return _describe(scene, cache, own) if own is not None else None
    return None


def _describe(scene: Scene, cache: Cache, thing: Thing) -> _Broken:
    first = thing.start - cache.size_bytes
    try:
        data = scene.prog.read(first, 2 * cache.size_bytes)
    except UNREADABLE:
        return _Broken(cache, thing, None, thing.start)
    run = find_run(data, cache.size_bytes + cache.free_offset)
    return _Broken(cache, thing, run, first + run.start if run is not None else thing.start)


@detector(
    "freelist",
    needs=(Need.FAULT, Need.MEMORY),
    about="a free object that was written to, which the allocator then stumbled over",
    depth=78,
    families=(Family.MEMORY_ACCESS,),
)
def find_freelist(scene: Scene) -> Iterator[Finding]:
    """Find the free object whose pointer leads astray, and who still holds it."""
    use, caller = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or use.is_call or not _is_allocator(use):
        return
    try:
        cache = _find_cache(scene, use)
        broken = _find_broken(scene, cache) if cache is not None else None
    except UNREADABLE:
        return
    if cache is None:
        return
    if broken is None:
        yield _unknown(scene, use, cache)
        return
    neighbour = find_thing(scene.dump, broken.run_start) if broken.run is not None else None
    is_overrun = neighbour is not None and neighbour.start < broken.thing.start
    guilty = neighbour if is_overrun and neighbour is not None else broken.thing
    holders = find_holders(scene, [guilty])[0]
    modules = modules_of(holders, direct=True) or modules_of(holders)
    module = modules[0] if len(modules) == 1 else ""
    what = (
        f"it holds {broken.run.text} for {broken.run.size_bytes} bytes"
        if broken.run is not None
        else "its pointer to the next leads astray"
    )
    how = (
        f"the object before it, {guilty.start:#x}, was written beyond its end"
        if is_overrun
        else "it was written to after it had been freed"
    )
    by = f", by the module {module}, whose {holders[0].variable} leads to it" if module else ""
    victim = f"; {who(caller)} only asked for memory" if caller is not None else ""
    yield Finding(
        detector="freelist",
        role=Role.CAUSE,
        cause=Cause.OUT_OF_BOUNDS if is_overrun else Cause.USE_AFTER_FREE,
        sentence=(
            f"The free {cache.name} object {broken.thing.start:#x} was overwritten ({what}): {how}{by}. The allocator "
            f"followed it{victim}."
        ),
        confidence=Confidence.LIKELY if module else Confidence.POSSIBLE,
        function="",
        module=module,
        subject=Subject("object", cache.name, cache.name, broken.thing.start, "free, overwritten"),
        evidence=(
            *evidence_of_use(use),
            Evidence(
                "the object is free, and its contents", f"rd -a {broken.thing.start:x} 64", "", broken.thing.start
            ),
            *_held(holders, guilty),
        ),
        victims=faulting_task(scene, "it only asked for memory"),
        refuted_by="a write through a stray pointer that nobody holds any more",
        next_steps=(f"kmem -S {broken.thing.start:x}", f"owners {guilty.start:x}"),
        explains=("bad-pointer", "bit-flip", "overrun", "shared-object", "freed-object", "kin", "reported"),
        time_s=use.fault.report.time_s,
    )


def _held(holders: list[Holder], thing: Thing) -> Iterator[Evidence]:
    for holder in holders[:3]:
        yield Evidence(
            f"{holder.variable} of {holder.module} still leads to it", f"owners {thing.start:x}",
            f"{holder.vaddr:016x}", holder.vaddr,
        )  # fmt: skip


def _unknown(scene: Scene, use: Use, cache: Cache) -> Finding:
    assert use.value is not None  # noqa: S101 - the caller looked
    return Finding(
        detector="freelist",
        role=Role.CAUSE,
        cause=Cause.MEMORY_CORRUPTION,
        sentence=(
            f"The allocator followed {use.value.text} as a free object of {cache.name}: a free object of the cache was "
            "written to, by whom is not known; who asked for memory is a victim."
        ),
        confidence=Confidence.POSSIBLE,
        subject=Subject("object", cache.name, cache.name, cache.vaddr, "free objects"),
        evidence=tuple(evidence_of_use(use)),
        victims=faulting_task(scene, "it only asked for memory"),
        next_steps=(f"kmem -s {cache.name}", f"kmem -S {cache.name}"),
        explains=("bad-pointer", "bit-flip", "reported"),
        time_s=use.fault.report.time_s,
    )
