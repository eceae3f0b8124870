"""Evidence and sentences about values that were followed back: each piece names the command that shows it."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.effects import spell_register
from postpanic.analysis.triage.faults.origin import Origin, Step, StepKind
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Culprit, Use
from postpanic.analysis.triage.scene import Fault, Scene
from postpanic.evidence.oops.functions import plain_name
from postpanic.findings.verdict import Evidence, Link, Subject, Victim

__all__ = [
    "USER_REGISTERS",
    "chain_of",
    "chain_of_origin",
    "evidence_of_origin",
    "evidence_of_use",
    "faulting_task",
    "function_of",
    "path_of",
    "stack_command",
    "steps_of",
    "subject_of",
    "thing_of_load",
    "who",
]

_MOST_STEPS = 8
USER_REGISTERS = "struct pt_regs"
"""What a system call's own code gets; its members are the arguments that the process passed."""
_SIZES = {1: "-8 ", 2: "-16 ", 4: "-32 "}


def who(culprit: Culprit | None) -> str:
    """Name a function with its module: ``ledger_post [ledger]``."""
    if culprit is None:
        return "a function that is not known"
    return f"{culprit.function}{f' [{culprit.module}]' if culprit.module not in {'', 'vmlinux'} else ''}"


def thing_of_load(scene: Scene, step: Step | None) -> Thing | None:
    """Find what a value was read from."""
    return find_thing(scene.dump, step.address) if step is not None and step.address is not None else None


def steps_of(origin: Origin | None) -> tuple[Step, ...]:
    """Give the steps worth telling: not those that only hand a value on."""
    if origin is None:
        return ()
    return tuple(step for step in origin.steps if step.kind is not StepKind.ADDRESS or step.name)[:_MOST_STEPS]


def path_of(scene: Scene, origin: Origin | None) -> str:
    """
    Tell in words from where a value was loaded.

    ``struct account.book (offset 0x20) of the kmalloc-64 object 0xffff… (in use)``
    """
    if origin is None or not origin.steps:
        return ""
    load = origin.load
    if load is None:
        steps = steps_of(origin)
        # Who handed it on says less than who made it.
        made = next((step for step in steps if step.kind is not StepKind.ARGUMENT), None)
        told = made if made is not None and made.kind is not StepKind.CHANGE else next(iter(steps), None)
        return told.where if told is not None else ""
    if load.name and not load.base:
        return load.where
    if load.type == USER_REGISTERS:
        return f"what the process passed to its system call ({load.type}.{load.member})"
    thing = thing_of_load(scene, load)
    member = f"{load.type}.{load.member} (offset {load.offset:#x})" if load.type and load.member else ""
    if thing is None:
        return (member and f"{member} of the object at {load.base_value or 0:#x}") or load.where
    if thing.kind == "symbol":
        return f"{f'{member} in ' if member else ''}{thing.text}+{thing.offset:#x}"
    if not member and thing.member:
        member = f"member {thing.member} (offset {thing.offset:#x})"
    return f"{member or f'offset {thing.offset:#x}'} of {thing.text}"


def function_of(use: Use) -> str:
    """Name the function that faulted; empty: it is not known."""
    return plain_name(use.fault.place.function) if use.fault.place is not None else ""


def stack_command(fault: Fault) -> str:
    """Give the line for the prompt that shows the registers of a fault."""
    if fault.task is None or not fault.is_from_stack:
        return "log"
    return f"bt {fault.task.pid or format(fault.task.vaddr, 'x')}"


def chain_of(scene: Scene, use: Use) -> Iterator[Link]:
    """Give the way of the value as links: what faulted, what it was loaded from, and so on."""
    value = use.value.value if use.value is not None else 0
    name = f"{spell_register(use.register)} = {value:#x}" if use.register else f"{value:#x}"
    yield from chain_of_origin(scene, f"{name} in {function_of(use) or 'the fault'}", use.origin)


def chain_of_origin(scene: Scene, source: str, origin: Origin | None) -> Iterator[Link]:
    """Give the way of any value as links, which begin with *source*."""
    for step in steps_of(origin):
        thing = thing_of_load(scene, step)
        target = step.where
        if step.kind is StepKind.LOAD and thing is not None and thing.kind == "slab":
            target = f"{target}, {thing.name} object {thing.start:#x} ({thing.state})"
        relation = {
            StepKind.LOAD: f"loaded by {step.function} from",
            StepKind.ARGUMENT: "passed as",
            StepKind.RESULT: f"given to {step.function} as",
            StepKind.CONSTANT: f"set by {step.function} to",
        }.get(step.kind, f"made in {step.function}:")
        yield Link(source, relation, target, is_certain=step.is_verified or step.kind is not StepKind.LOAD)
        source = target


def evidence_of_use(use: Use) -> Iterator[Evidence]:
    """Show the instruction, and the register that held the value."""
    function = function_of(use)
    yield Evidence(
        f"the instruction that faulted{f', in {function}' if function else ''}",
        f"dis {use.instruction.vaddr:x}",
        use.text,
        use.instruction.vaddr,
    )
    if use.register and use.value is not None:
        command = stack_command(use.fault)
        yield Evidence(
            f"{use.register.upper()} was {use.value.text}", command, f"{use.register.upper()}: {use.value.value:016x}"
        )


def evidence_of_origin(scene: Scene, origin: Origin | None) -> Iterator[Evidence]:
    """Show each step back: the instruction, the memory that was read, and what it is in."""
    for step in steps_of(origin):
        if step.kind is StepKind.LOAD:
            yield Evidence(f"{step.function} loaded it from {step.where}", f"dis {step.vaddr:x}", step.text, step.vaddr)
            if step.address is not None and step.is_verified and step.value is not None:
                yield Evidence(
                    "memory still holds it there",
                    f"rd {_SIZES.get(step.size_bytes, '')}{step.address:x}",
                    f"{step.value:0{2 * step.size_bytes}x}",
                    step.address,
                )
            thing = thing_of_load(scene, step)
            if thing is not None and thing.kind == "slab":
                shows = f"{thing.name} object {thing.start:016x}"
                yield Evidence(f"that is in {thing.text}", thing.command, shows, step.address)
        elif step.kind is StepKind.RESULT:
            yield Evidence(f"{step.function} got it as {step.where}", f"dis {step.vaddr:x}", step.text, step.vaddr)
        elif step.kind is StepKind.CONSTANT:
            yield Evidence(f"{step.function} set it to a constant", f"dis {step.vaddr:x}", step.text, step.vaddr)


def subject_of(scene: Scene, origin: Origin | None) -> Subject | None:
    """Name the object that the value was loaded from."""
    load = origin.load if origin is not None else None
    if load is None:
        return None
    thing = thing_of_load(scene, load)
    if thing is None:
        return Subject("object", load.type, load.name, load.base_value, load.member)
    detail = f"{thing.state}, " if thing.state else ""
    return Subject(
        "object",
        load.type or (thing.name if thing.kind == "slab" else ""),
        load.name if not load.base else thing.name,
        thing.start,
        f"{detail}{load.member or thing.member or f'offset {thing.offset:#x}'}",
    )


def faulting_task(scene: Scene, why: str) -> tuple[Victim, ...]:
    """Name the task that faulted, where it is not at fault itself."""
    report = scene.first
    if report is None or not report.comm:
        return ()
    return (Victim(report.comm, report.pid, why),)
