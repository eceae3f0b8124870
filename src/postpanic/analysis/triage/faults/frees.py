"""Objects that were freed twice, or were none: the allocator's own checks, and what slub_debug tells of an object."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.triage.faults.reports import find_line
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import find_culprit, full_registers
from postpanic.analysis.triage.faults.wording import stack_command, who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_free", "find_slab_report"]

_ALLOCATOR_FILES = ("mm/slub.c", "mm/slab.c", "mm/slab_common.c", "mm/slab.h")
_TRACK = re.compile(
    r"(Allocated|Freed) in ([\w.]{1,128})\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[([\w-]{1,64})[^\]]{0,64}\])? age=(\d+) "
    r"cpu=(\d+) pid=(-?\d+)"
)
_OBJECT = re.compile(r"Object 0x([0-9a-f]{8,16}) @offset")
_SLAB_NAMES = re.compile(r"BUG ([\w:. -]{1,80}?) \((?:Not t|T)ainted")


@detector(
    "free",
    needs=(Need.FAULT, Need.MEMORY),
    about="an object that was freed twice, found by a check of the allocator",
    depth=70,
    kinds=(Kind.KERNEL_BUG,),
)
def find_free(scene: Scene) -> Iterator[Finding]:
    """Find the object that was free already when it was freed."""
    report, culprit, fault = scene.first, find_culprit(scene), scene.fault
    if report is None or culprit is None or fault is None or fault.place is None:
        return
    if not any(name in report.source for name in _ALLOCATOR_FILES) or "free" not in fault.place.function:
        return
    thing = _freed_thing(scene)
    of = f"the {thing.name} object {thing.start:#x}" if thing is not None else "an object"
    state = ", which is first in the list of free objects already" if thing is not None and thing.is_free else ""
    yield Finding(
        detector="free",
        role=Role.CAUSE,
        cause=Cause.DOUBLE_FREE,
        sentence=f"{who(culprit)} freed {of} twice: the allocator found it free already{state} ({report.source}).",
        confidence=Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=Subject("object", thing.name, thing.name, thing.start, thing.state) if thing is not None else None,
        evidence=(
            Evidence("the allocator's check", "log", report.message),
            *(
                (Evidence("the object, in the registers", stack_command(fault), f"{thing.start:016x}", thing.start),
                 Evidence("its state", thing.command, thing.state, thing.start))
                if thing is not None
                else ()
            ),
        ),
        refuted_by="a pointer that was never allocated, or free objects that were written to",
        next_steps=(f"owners {thing.start:x}", f"rd {thing.start:x} 8") if thing is not None else (),
        explains=("assertion", "reported"),
        time_s=report.time_s,
    )  # fmt: skip


def _freed_thing(scene: Scene) -> Thing | None:
    """Find the object that the allocator worked on: of the slab objects that registers lead to, a free one first."""
    fault = scene.fault
    registers = full_registers(fault.registers) if fault is not None else {}
    counts = Counter(value for value in registers.values() if value >> 63)
    things: list[tuple[bool, int, Thing]] = []
    for value, count in counts.items():
        thing = find_thing(scene.dump, value)
        if thing is not None and thing.kind == "slab" and thing.offset == 0 and not _is_own(thing):
            things.append((bool(thing.is_free), count, thing))
    return max(things, key=lambda each: each[:2])[2] if things else None


def _is_own(thing: Thing) -> bool:
    """Tell whether it belongs to the allocator or the task itself."""
    return thing.name in {"kmem_cache", "kmem_cache_node", "task_struct"}


# ---- slub_debug


@dataclass(frozen=True, slots=True)
class _Track:
    """Who allocated or freed an object."""

    verb: str
    function: str
    module: str
    age: int
    cpu: int
    pid: int


def _tracks(scene: Scene) -> dict[str, _Track]:
    found: dict[str, _Track] = {}
    report = scene.first
    for line in report.lines if report is not None else ():
        match = _TRACK.search(line[:400])
        if match is not None and match[1] not in found:
            found[match[1]] = _Track(
                match[1], plain_name(match[2]), match[3] or "vmlinux", int(match[4]), int(match[5]), int(match[6])
            )
    return found


_SLAB_CAUSES = (
    ("object already free", Cause.DOUBLE_FREE, "freed twice"),
    ("double free", Cause.DOUBLE_FREE, "freed twice"),
    ("invalid object pointer", Cause.DOUBLE_FREE, "freed by a pointer that is none of the allocator's"),
    ("poison", Cause.USE_AFTER_FREE, "written to after it was freed"),
    ("redzone", Cause.OUT_OF_BOUNDS, "written beyond its bounds"),
    ("padding", Cause.OUT_OF_BOUNDS, "written beyond its bounds"),
    ("freepointer", Cause.MEMORY_CORRUPTION, "overwritten where a free object keeps the next one"),
    ("freechain", Cause.MEMORY_CORRUPTION, "overwritten where a free object keeps the next one"),
)


@detector(
    "slab-report",
    needs=(Need.REPORT,),
    about="what slub_debug says of an object: who allocated and who freed it, and what was written over",
    depth=80,
    kinds=(Kind.SLAB,),
)
def find_slab_report(scene: Scene) -> Iterator[Finding]:
    """Read the allocator's report, with who allocated and freed the object."""
    report, culprit = scene.first, find_culprit(scene)
    if report is None or report.kind is not Kind.SLAB:
        return
    variant = f"{report.variant} {report.message}".lower()
    known = next(((cause, text) for key, cause, text in _SLAB_CAUSES if key in variant), None)
    cause, text = known or (Cause.MEMORY_CORRUPTION, "found damaged")
    tracks = _tracks(scene)
    # Who owns an object writes over its end; who freed it goes on to use it.
    track = tracks.get("Allocated") if cause is Cause.OUT_OF_BOUNDS else tracks.get("Freed") or tracks.get("Allocated")
    function = track.function if track is not None else culprit.function if culprit is not None else ""
    module = track.module if track is not None else culprit.module if culprit is not None else ""
    if cause is Cause.DOUBLE_FREE and culprit is not None:
        function, module = culprit.function, culprit.module
    match, cache = find_line(scene, _OBJECT), find_line(scene, _SLAB_NAMES)
    vaddr = int(match[1], 16) if match is not None else None
    name = cache[1].strip() if cache is not None else ""
    told = "; ".join(
        f"{each.verb.lower()} by {each.function}{f' [{each.module}]' if each.module != 'vmlinux' else ''} "
        f"(PID {each.pid}, CPU {each.cpu}, {each.age} ticks before)"
        for each in tracks.values()
    )
    yield Finding(
        detector="slab-report",
        role=Role.CAUSE,
        cause=cause,
        sentence=(
            f"The {name} object{f' {vaddr:#x}' if vaddr else ''} was {text} ({report.variant or report.message})"
            f"{f': {told}' if told else ''}."
        ),
        confidence=Confidence.LIKELY,
        function=function,
        module=module,
        subject=Subject("object", name, name, vaddr, text),
        evidence=(
            Evidence("the allocator's report", "log", report.message),
            *(
                Evidence(f"who {each.verb.lower()} it", "log", f"{each.verb} in {each.function}")
                for each in tracks.values()
            ),
        ),
        refuted_by="a write by somebody who held neither",
        next_steps=(f"whereis {vaddr:x}", f"owners {vaddr:x}") if vaddr else (),
        explains=("reported", "assertion", "free"),
        time_s=report.time_s,
    )
