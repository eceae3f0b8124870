"""Pointers that were none: NULL, error numbers, poison, text; and where they had been loaded from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.faults.effects import spell_register
from postpanic.analysis.triage.faults.origin import Step, StepKind
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Culprit, Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.values import BadKind
from postpanic.analysis.triage.faults.wording import (
    USER_REGISTERS,
    chain_of,
    evidence_of_origin,
    evidence_of_use,
    faulting_task,
    function_of,
    path_of,
    stack_command,
    subject_of,
    thing_of_load,
    who,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_bad_pointer"]

_CAUSES = {
    BadKind.NULL: Cause.NULL_POINTER,
    BadKind.SMALL: Cause.NULL_POINTER,
    BadKind.ERROR: Cause.WILD_POINTER,
    BadKind.LIST_POISON: Cause.LIST_CORRUPTION,
    BadKind.FREED: Cause.USE_AFTER_FREE,
    BadKind.UNSET: Cause.UNINITIALIZED,
    BadKind.RED_ZONE: Cause.OUT_OF_BOUNDS,
}
_SYSTEM_CALL_ARGUMENTS = (("rdi", "rsi", "rdx", "r10", "r8", "r9"), tuple(f"x{number}" for number in range(6)))
"""Of x86-64 and arm64: syscall(2)."""


def null_base(use: Use) -> Step | None:
    """Find the step where an offset was added to NULL: a member of an object that is not there."""
    steps = use.origin.steps if use.origin is not None else ()
    for step in steps:
        if step.kind is not StepKind.ADDRESS:
            return None
        if step.base_value == 0:
            return step
    return None


def _offset_words(use: Use, step: Step | None) -> str:
    offset = use.offset + (step.offset if step is not None else 0)
    origin = use.origin
    pointee = origin.pointee if origin is not None else None
    name = ""
    if pointee is not None:
        from postpanic.analysis.triage.faults.pointees import member_of

        moved = pointee.moved(use.offset)
        member = member_of(moved, use.access.size_bytes if use.access is not None else 8) if moved is not None else None
        if member is not None and member.path:
            name = f"{moved.name if moved is not None else ''}.{member.path}, "
    return f"{name}offset {offset:#x}"


@detector(
    "bad-pointer",
    needs=(Need.FAULT, Need.MEMORY),
    about="which pointer was NULL, poison or garbage, and from which object and member it was loaded",
    depth=50,
    families=(Family.MEMORY_ACCESS,),
)
def find_bad_pointer(scene: Scene) -> Iterator[Finding]:
    """Name the bad value, the instruction that used it, and where it came from."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or use.value is None or culprit is None:
        return
    if use.is_call:
        yield _bad_call(scene, use, culprit)
        return
    bad = use.value
    base = null_base(use)
    if not bad.is_bad and base is None:
        yield from _unmapped(scene, use, culprit)
        return
    is_null = base is not None or bad.kind in {BadKind.NULL, BadKind.SMALL}
    cause = Cause.NULL_POINTER if is_null else _CAUSES.get(bad.kind, Cause.WILD_POINTER)
    confidence = _confidence(scene, use, culprit) if is_null else _doubtful(bad.kind, use)
    yield Finding(
        detector="bad-pointer",
        role=Role.CAUSE,
        cause=cause,
        sentence=_sentence(scene, use, culprit, base),
        confidence=confidence,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, use.origin),
        evidence=(*evidence_of_use(use), *evidence_of_origin(scene, use.origin)),
        chain=tuple(chain_of(scene, use)),
        refuted_by="another writer of that memory: what neighbours it, or another pointer to it",
        next_steps=_next_steps(scene, use),
        explains=("reported",),
        time_s=use.fault.report.time_s,
    )


def _bad_call(scene: Scene, use: Use, culprit: Culprit) -> Finding:
    """Tell of a function pointer that leads to no code."""
    assert use.value is not None  # noqa: S101 - the caller looked
    report = use.fault.report
    value = use.value
    what = "NULL" if value.kind is BadKind.NULL else f"{value.text}, where there is no code"
    gone = unloaded_module(scene, value.value)
    if gone:
        return _unloaded(scene, use, culprit, gone, value.value)
    path = path_of(scene, use.origin)
    came = f"; it was loaded from {path}" if path and use.origin is not None and use.origin.load is not None else ""
    load = use.origin.load if use.origin is not None else None
    thing = thing_of_load(scene, load)
    is_plain = value.kind in {BadKind.NULL, BadKind.KERNEL} and thing is not None and load is not None
    is_proven = is_plain and use.fault.is_from_stack and load is not None and load.is_verified
    is_proven = is_proven and thing is not None and load is not None and _looks_whole(scene, thing, load)
    is_proven = is_proven and thing is not None and not _may_be_anybodys(culprit, thing)
    return Finding(
        detector="bad-pointer",
        role=Role.CAUSE,
        cause=Cause.BAD_FUNCTION_POINTER,
        sentence=f"{who(culprit)} called a function pointer that is {what}{came}.",
        confidence=Confidence.PROVEN if is_proven else Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, use.origin),
        evidence=(
            Evidence("the call", f"dis {use.instruction.vaddr:x}", use.text),
            Evidence("where it led to", stack_command(use.fault), f"{value.value:016x}"),
            *evidence_of_origin(scene, use.origin),
        ),
        chain=tuple(chain_of(scene, use)),
        refuted_by="another writer of the pointer: what else holds the object that it is in",
        next_steps=_next_steps(scene, use),
        explains=("reported",),
        time_s=report.time_s,
    )


def unloaded_module(scene: Scene, vaddr: int) -> str:
    """Name the module that was unloaded last, if an address is where modules are loaded, and in none of them."""
    line = next((line for line in scene.first.lines if "[last unloaded: " in line), "") if scene.first else ""
    if not line or vaddr >> 63 == 0:
        return ""
    start = next((address for name in ("_text", "_stext") if (address := scene.stacks.code.vaddr(name))), None)
    # Modules lie within 2 GiB of the kernel's image.
    if start is None or not -(1 << 31) <= vaddr - start <= 1 << 31:
        return ""
    with contextlib.suppress(LookupError):
        # It is in a module that is there, or in the kernel's image.
        scene.prog.module(vaddr)
        return ""
    return line.partition("[last unloaded: ")[2].partition("]")[0].split("(")[0].strip()


def _sentence(scene: Scene, use: Use, culprit: Culprit, base: Step | None) -> str:
    assert use.value is not None  # noqa: S101 - the caller looked
    what = {
        BadKind.NULL: "a NULL pointer",
        BadKind.SMALL: f"a pointer that is next to NULL ({use.value.value:#x})",
    }.get(use.value.kind, f"a pointer that is {use.value.text}")
    if base is not None:
        what = "a NULL pointer"
    path = path_of(scene, use.origin)
    text = f"{who(culprit)} {use.verb} {what} ({_offset_words(use, base)}"
    if not culprit.is_faulting and use.fault.place is not None:
        text += f", in {function_of(use)}, which it called"
    text += ")"
    step = use.origin.steps[0] if use.origin is not None and use.origin.steps else None
    passed = _passed_by_process(use)
    if passed:
        return f"{text}; the process passed it to its system call, as {passed}."
    if path and step is not None:
        load = use.origin.load if use.origin is not None else None
        verb = "was loaded from" if load is not None and load.type != USER_REGISTERS else "was"
        text += f"; the pointer {verb} {path}"
    return f"{text}."


def _passed_by_process(use: Use) -> str:
    """Name the argument of a system call that a pointer into user space was; empty: it was none of them."""
    saved = next((frame.saved for frame in use.fault.frames if frame.saved is not None and frame.saved.user), None)
    if saved is None or use.value is None or use.value.kind is not BadKind.USER:
        return ""
    found = next(
        (
            (number, register)
            for registers in _SYSTEM_CALL_ARGUMENTS
            for number, register in enumerate(registers, 1)
            if saved.registers.get(register) == use.value.value
        ),
        None,
    )
    return f"argument {found[0]} ({spell_register(found[1])})" if found is not None else ""


def _confidence(scene: Scene, use: Use, culprit: Culprit) -> Confidence:
    """Say how sure a NULL pointer is: proven where memory still shows it, in an object that looks whole."""
    origin = use.origin
    fits = use.access is not None and use.access.vaddr is not None and use.access.vaddr == use.fault.address
    if not fits or not use.fault.is_from_stack:
        return Confidence.LIKELY
    if origin is None or not origin.is_certain or not culprit.is_faulting:
        return Confidence.LIKELY
    load = origin.load
    if load is None:
        is_own = origin.steps[0].kind is StepKind.CONSTANT
        return Confidence.PROVEN if is_own else Confidence.LIKELY
    thing = thing_of_load(scene, load)
    if not load.is_verified or thing is None or not _looks_whole(scene, thing, load):
        return Confidence.LIKELY
    return Confidence.LIKELY if _may_be_anybodys(culprit, thing) else Confidence.PROVEN


def _may_be_anybodys(culprit: Culprit, thing: Thing) -> bool:
    """Tell whether the kernel's own code may only have met what others did: an object freed twice has two users."""
    return thing.kind == "slab" and culprit.module in {"", "vmlinux"}


def _looks_whole(scene: Scene, thing: Thing, load: Step) -> bool:
    """Tell whether something is left of the object before the pointer."""
    if thing.kind == "symbol":
        return True
    if thing.kind != "slab" or thing.is_free or load.address is None:
        return False
    try:
        # What clears more than its own clears a run: then all before the pointer is zero.
        return any(scene.prog.read(max(thing.start, load.address - 4096), min(thing.offset, 4096)))
    except UNREADABLE:
        return False


def _doubtful(kind: BadKind, use: Use) -> Confidence:
    origin = use.origin
    is_verified = origin is not None and origin.load is not None and origin.load.is_verified
    if kind in {BadKind.FREED, BadKind.LIST_POISON, BadKind.ERROR, BadKind.UNSET}:
        return Confidence.LIKELY
    if kind is BadKind.USER:
        # Handed down from a system call's arguments, it is the user's own pointer, used as if it were the kernel's.
        load = origin.load if origin is not None else None
        is_argument = origin is not None and bool(origin.steps) and load is None
        is_argument = is_argument or (load is not None and load.type == USER_REGISTERS) or bool(_passed_by_process(use))
        return Confidence.LIKELY if is_argument else Confidence.POSSIBLE
    return Confidence.LIKELY if is_verified else Confidence.POSSIBLE


def _unmapped(scene: Scene, use: Use, culprit: Culprit) -> Iterator[Finding]:
    """Tell of an address that looks like one of the kernel, and is not mapped, or not to be written."""
    assert use.value is not None  # noqa: S101 - the caller looked
    address = use.fault.address if use.fault.address is not None else use.value.value
    gone = unloaded_module(scene, address)
    if gone:
        yield _unloaded(scene, use, culprit, gone, address)
        return
    thing = find_thing(scene.dump, address)
    at = f", in {thing.text}" if thing is not None else ", where nothing is mapped"
    if thing is not None and any("permissions violation" in line for line in use.fault.report.lines):
        at += ", which must not be written to" if use.verb.startswith("wrote") else ", which may not be accessed so"
    path = path_of(scene, use.origin)
    came = f"; it was loaded from {path}" if path and use.origin is not None and use.origin.load is not None else ""
    yield Finding(
        detector="bad-pointer",
        role=Role.CAUSE,
        cause=Cause.WILD_POINTER,
        sentence=(
            f"{who(culprit)} {use.verb} the address {address:#x}{at} "
            f"({use.register} = {use.value.value:#x}, offset {use.offset:#x}){came}."
        ),
        confidence=Confidence.POSSIBLE,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, use.origin),
        evidence=(*evidence_of_use(use), *evidence_of_origin(scene, use.origin)),
        chain=tuple(chain_of(scene, use)),
        next_steps=_next_steps(scene, use),
        explains=("reported",),
        time_s=use.fault.report.time_s,
    )


def _unloaded(scene: Scene, use: Use, culprit: Culprit, gone: str, address: int) -> Finding:
    """Tell of something that a module left behind when it was unloaded: a timer, work, a callback."""
    path = path_of(scene, use.origin)
    came = f"; {path} still leads there" if path and use.origin is not None and use.origin.load is not None else ""
    return Finding(
        detector="unloaded-module",
        role=Role.CAUSE,
        cause=Cause.USE_AFTER_FREE,
        sentence=(
            f"{who(culprit)} {use.verb} {address:#x}, where the module {gone} was, which has been unloaded: the module "
            f"left something registered (a timer, work, a callback, an entry of a list){came}."
        ),
        confidence=Confidence.LIKELY,
        function="",
        module=gone,
        subject=subject_of(scene, use.origin),
        evidence=(
            Evidence("the module that was unloaded last", "log", f"[last unloaded: {gone}"),
            Evidence("nothing is there any more", f"whereis {address:x}", ""),
            *evidence_of_use(use),
            *evidence_of_origin(scene, use.origin),
        ),
        chain=tuple(chain_of(scene, use)),
        victims=faulting_task(scene, "it ran into what the module left behind"),
        refuted_by="another module that was unloaded earlier and lay there",
        next_steps=("mod", f"dis -r {use.instruction.vaddr:x}"),
        explains=("bad-pointer", "bit-flip", "reported"),
        time_s=use.fault.report.time_s,
    )


def _next_steps(scene: Scene, use: Use) -> tuple[str, ...]:
    steps = [f"dis -r {use.instruction.vaddr:x}"]
    load = use.origin.load if use.origin is not None else None
    thing = thing_of_load(scene, load)
    if thing is not None and thing.kind == "slab":
        steps += [f"rd {thing.start:x} {max(thing.size_bytes // 8, 1)}", f"owners {thing.start:x}"]
    return tuple(steps)
