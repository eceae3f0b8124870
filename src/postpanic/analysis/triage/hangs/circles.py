"""Loops that follow pointers in a circle: lists that come back to themselves, and not to their heads."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.arguments.machine import Instruction
from postpanic.analysis.triage.hangs.cpus import Cpu
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.findings.verdict import Evidence, Subject

__all__ = ["Circle", "find_circle"]

_MOST_ELEMENTS = 200_000
_LOWEST = 1 << 63
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Circle:
    """
    A circle of pointers.

    Attributes
    ----------
    text : str
        ``a circle of 3 elements at ffff… (next pointer at offset 8)``.
    """

    text: str
    subject: Subject
    evidence: tuple[Evidence, ...]


def find_circle(picture: Picture, cpu: Cpu) -> Circle | None:
    """
    Find the circle that the loop of a CPU walks in.

    A walk is an instruction that loads a pointer through the register it loads
    into (``mov 8(%rax), %rax``; ``ldr x0, [x0, #8]``), in the function that was interrupted. The
    pointers are followed from what the register holds. A doubly linked list is
    a circle by nature: it counts if it does not lead through its head, which shows
    in a neighbour that does not point back.
    """
    flows = picture.sleeps.flows
    if flows is None or not cpu.frames or cpu.registers is None:
        return None
    place = cpu.frames[0].place
    flow = flows.find(place) if place is not None else None
    if flow is None:
        return None
    for instruction in sorted(flow.by_address.values(), key=lambda one: abs(one.address - cpu.frames[0].pc)):
        found = _walk_of(instruction)
        if found is None:
            continue
        register, offset = found
        start = cpu.registers.get(register, 0)
        if start >= _LOWEST and (circle := _follow(picture, cpu, start, offset)) is not None:
            return circle
    return None


def _walk_of(instruction: Instruction) -> tuple[str, int] | None:
    """Tell the register and the offset of a step from one element to the next; None: it is none."""
    if instruction.mnemonic not in {"mov", "ldr", "ldur"} or len(instruction.operands) != 2:
        return None
    target, source = instruction.operands
    if target.type != 1 or source.type != 3 or source.mem.index:
        return None
    name = str(instruction.reg_name(target.reg))
    # Capstone has no sizes of arm64's operands; both register names begin otherwise if it is not a whole one.
    is_whole = target.size == 8 if instruction.mnemonic == "mov" else name.startswith("x")
    if target.reg != source.mem.base or not is_whole:
        return None
    return name, int(source.mem.disp)


def _follow(picture: Picture, cpu: Cpu, start: int, offset: int) -> Circle | None:
    memory = picture.workspace.memory
    places: dict[int, int] = {}
    path: list[int] = []
    current = start
    try:
        while current not in places:
            if current < _LOWEST or len(path) >= _MOST_ELEMENTS:
                return None
            places[current] = len(path)
            path.append(current)
            current = memory.read_u64(current + offset)
    except UNREADABLE:
        return None
    ring = path[places[current] :]
    wrong = _not_pointing_back(picture, ring, offset)
    if wrong is None and len(ring) > 1:
        # A list as it should be, and its head may be among them.
        return None
    first = ring[0]
    count = f"{len(ring)} element{'s' * (len(ring) != 1)}"
    text = f"a circle of {count} at {first:x} (next at offset {offset}), which has no end"
    where = picture.names.holding(first)
    evidence = [
        Evidence(
            f"{function_of(cpu.frames[0])}() follows the pointer at offset {offset} of {one:x} to {following:x}",
            f"rd {one + offset:x}",
            f"{following:x}",
            one,
        )
        for one, following in zip(ring[:_SHOWN], [*ring[1:], ring[0]], strict=False)
    ]
    return Circle(
        text,
        Subject("object", "list", picture.names.symbol(first), first, f"in {where}" if where else ""),
        tuple(evidence),
    )


def _not_pointing_back(picture: Picture, ring: list[int], offset: int) -> int | None:
    """Find an element whose successor does not point back to it, as it does in a ``struct list_head``."""
    for one, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        try:
            if picture.workspace.memory.read_u64(following + offset + 8) != one:
                return one
        except UNREADABLE:
            return one
    return None
