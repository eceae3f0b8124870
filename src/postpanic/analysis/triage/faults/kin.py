"""
Whose an object was before: others of the same cache that still look as the code that faulted expects.

A timer, a work item or a callback that is freed while it is queued is found by the
kernel's own code, which knows nothing of its owner. Objects of the same cache
that have a pointer to a module's code near the same offset tell whose it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from drgn import RelocatableModule

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.search import range_needle, search_physical
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.memory.slabs.pages import find_all_slabs
from postpanic.analysis.triage.faults.holders import find_holders, modules_of
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.wording import (
    chain_of,
    evidence_of_origin,
    evidence_of_use,
    faulting_task,
    thing_of_load,
    who,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.table import Problem
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_kin"]

_BEFORE, _BEHIND = 64, 64
"""How far from the member that was used a callback is looked for: bytes."""
_MOST_MATCHES = 4096
_FEWEST_KIN = 2


@dataclass(frozen=True, slots=True)
class _Kin:
    """Objects with a callback at the same offset."""

    function: str
    module: str
    offset: int
    count: int
    example: int


def _find_kin(scene: Scene, thing: Thing) -> _Kin | None:
    """Find the one callback of a module that objects of a cache have near an offset; None: none, or several."""
    needles = [
        range_needle(start, end)
        for module in scene.prog.modules()
        if isinstance(module, RelocatableModule)
        for start, end in module.address_ranges or ()
    ]
    info = thing.info
    if not needles or info is None:
        return None
    workspace = scene.dump
    found_slabs = find_all_slabs(workspace, page_structs(workspace), slab_allocator(workspace))
    slabs = found_slabs.get(info.slab.cache.vaddr)
    if slabs is None:
        return None
    # The slabs of one cache only: few pages, whatever the machine has.
    frames = (slabs.pfns[:, None] + np.arange(1 << info.slab.cache.order)).reshape(-1).astype(np.uint64)
    direct = info.slab.vaddr - info.slab.pfn * workspace.memory.page_size_bytes
    problems: list[Problem] = []
    found: Counter[tuple[str, str, int]] = Counter()
    examples: dict[tuple[str, str, int], int] = {}
    for match in search_physical(workspace.memory.physical, frames, needles, problems)[:_MOST_MATCHES]:
        place = scene.stacks.code.find(match.value)
        if place is None or place.offset or not place.module:
            # Only the beginning of a function can be a callback.
            continue
        other = find_thing(scene.dump, direct + match.address)
        if other is None or other.kind != "slab" or other.name != thing.name or other.start == thing.start:
            continue
        if other.is_free or not thing.offset - _BEFORE <= other.offset <= thing.offset + _BEHIND:
            continue
        key = (plain_name(place.function), place.module, other.offset)
        found[key] += 1
        examples.setdefault(key, other.start)
    ranked = found.most_common(2)
    if not ranked or ranked[0][1] < _FEWEST_KIN:
        return None
    (function, module, offset), count = ranked[0]
    if len(ranked) > 1 and ranked[1][0][1] != module and 2 * ranked[1][1] >= count:
        return None
    return _Kin(function, module, offset, count, examples[ranked[0][0]])


@detector(
    "kin",
    needs=(Need.FAULT, Need.MEMORY),
    about="whose timer, work or callback it was that was freed while queued: others like it tell",
    depth=76,
    families=(Family.MEMORY_ACCESS,),
)
def find_kin(scene: Scene) -> Iterator[Finding]:
    """Find the module whose object the kernel's own code ran into."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or culprit is None or culprit.module != "vmlinux":
        return
    thing = _damaged(scene, use)
    if thing is None:
        return
    try:
        kin = _find_kin(scene, thing)
    except UNREADABLE:
        return
    if kin is None:
        return
    owners = modules_of(find_holders(scene, [thing], through=False)[0]) if not thing.is_free else []
    if kin.module in owners:
        return
    state = f"free in its slab (cache {thing.name})" if thing.is_free else "somebody else's now"
    if owners:
        state = f"the module {owners[0]}'s now"
    yield Finding(
        detector="kin",
        role=Role.CAUSE,
        cause=Cause.USE_AFTER_FREE,
        sentence=(
            f"{who(culprit)} ran into the {thing.name} object {thing.start:#x}, which had been freed while it was "
            f"still queued and is {state}: {kin.count} others of its cache have the callback {kin.function} "
            f"[{kin.module}] (a timer, work or the like) at offset {kin.offset:#x}, so it was the module "
            f"{kin.module} that freed it."
        ),
        confidence=Confidence.LIKELY if owners or thing.is_free else Confidence.POSSIBLE,
        function="",
        module=kin.module,
        subject=Subject("object", "", thing.name, thing.start, thing.state),
        evidence=(
            *evidence_of_use(use),
            *evidence_of_origin(scene, use.origin),
            Evidence(
                f"another object, with {kin.function} at offset {kin.offset:#x}", f"rd -s {kin.example:x} 16",
                kin.function, kin.example,
            ),
        ),
        chain=tuple(chain_of(scene, use)),
        victims=faulting_task(scene, "it was interrupted when the timer or work was due"),
        refuted_by="another user of the cache whose objects are queued in the same way",
        next_steps=(f"rd -s {thing.start:x} 16", f"owners {thing.start:x}", f"rd -s {kin.example:x} 16"),
        explains=("overrun", "bad-pointer", "freed-object", "shared-object", "bit-flip", "reported"),
        time_s=use.fault.report.time_s,
    )  # fmt: skip


def _damaged(scene: Scene, use: Use) -> Thing | None:
    load = use.origin.load if use.origin is not None else None
    thing = thing_of_load(scene, load)
    return thing if thing is not None and thing.kind == "slab" and load is not None and load.is_verified else None
