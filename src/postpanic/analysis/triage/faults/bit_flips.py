"""A value that differs in one bit from one that would have been right."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.faults.origin import Step
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.values import BadKind
from postpanic.analysis.triage.faults.wording import chain_of, evidence_of_origin, evidence_of_use, subject_of, who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_bit_flip"]

_FIRST_BIT = 12
"""Bits below lead to the same page, where everything looks alike."""
_KINDS = frozenset({BadKind.KERNEL, BadKind.NON_CANONICAL, BadKind.USER})


def _value_of(use: Use) -> tuple[int, Step | None]:
    load = use.origin.load if use.origin is not None else None
    if load is not None and load.is_verified and load.value is not None:
        return load.value, load
    return (use.value.value if use.value is not None else 0), None


def _fits(scene: Scene, value: int, load: Step | None) -> Thing | None:
    """Tell whether a value would have been right: the beginning of an object in use, or a neighbour in a list."""
    if value & 7 or not value >> 63:
        return None
    thing = find_thing(scene.dump, value)
    if thing is None or thing.kind != "slab" or thing.is_free:
        return None
    if thing.offset == 0:
        return thing
    if load is None or load.address is None:
        return None
    for back in (load.address, load.address - 8):
        try:
            if back in {scene.prog.read_word(value), scene.prog.read_word(value + 8)}:
                return thing
        except UNREADABLE:
            return None
    return None


@detector(
    "bit-flip",
    needs=(Need.FAULT, Need.MEMORY),
    about="a bad pointer that is right but for one bit",
    depth=71,
    families=(Family.MEMORY_ACCESS,),
)
def find_bit_flip(scene: Scene) -> Iterator[Finding]:
    """Flip each bit: exactly one must lead to a live object."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or culprit is None or use.value.kind not in _KINDS or use.is_call:
        return
    value, load = _value_of(use)
    if find_thing(scene.dump, value) is not None:
        return
    fitting = [
        (bit, thing) for bit in range(_FIRST_BIT, 64) if (thing := _fits(scene, value ^ 1 << bit, load)) is not None
    ]
    if len(fitting) != 1:
        return
    bit, thing = fitting[0]
    right = value ^ 1 << bit
    if load is None and thing.offset:
        return
    path = f" at {load.address:#x}" if load is not None and load.address is not None else ""
    yield Finding(
        detector="bit-flip",
        role=Role.CAUSE,
        cause=Cause.BIT_FLIP,
        sentence=(
            f"A single bit is wrong in a pointer{path}: it is {value:#x}, and with bit {bit} ({1 << bit:#x}) the other "
            f"way it would be {right:#x}, {thing.text}; {who(culprit)} only used it. Faulty memory does that, or a "
            "write of one bit."
        ),
        confidence=Confidence.LIKELY if load is not None else Confidence.POSSIBLE,
        function="",
        module=culprit.module,
        subject=subject_of(scene, use.origin),
        evidence=(
            *evidence_of_use(use),
            *evidence_of_origin(scene, use.origin),
            Evidence(f"with bit {bit} flipped it leads to {thing.text}", f"whereis {right:x}", f"{thing.start:016x}"),
        ),
        chain=tuple(chain_of(scene, use)),
        refuted_by="the same crash again on another machine, or at another address: software would do that",
        next_steps=(f"whereis {right:x}", f"owners {right:x}", "log | grep -i -e edac -e mce"),
        explains=("bad-pointer", "wild-call", "reported"),
        time_s=use.fault.report.time_s,
    )
