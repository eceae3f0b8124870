"""
Where the code of a function keeps values: what each register and stack slot holds at an instruction.

A value is a small expression over what the registers held when the function was
entered. A location that is missing from a state holds nothing that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Added",
    "Defined",
    "Doubtful",
    "Entry",
    "FrameAddress",
    "Loaded",
    "Location",
    "Low",
    "Number",
    "State",
    "Value",
    "add",
    "comes_from",
    "low",
    "meet",
    "too_deep",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a register held at the function's entry, or a slot of arguments on the stack (``stack0``)."""

    register: str


@dataclass(frozen=True, slots=True)
class Number:
    """A constant, modulo 2^64."""

    number: int


@dataclass(frozen=True, slots=True)
class FrameAddress:
    """An address on the stack: bytes from the caller's stack pointer (the canonical frame address)."""

    offset: int


@dataclass(frozen=True, slots=True)
class Added:
    """Another value and a constant."""

    base: Value
    number: int


@dataclass(frozen=True, slots=True)
class Low:
    """Something whose low bytes are those of another value."""

    base: Value
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an instruction loaded from memory."""

    address: Value
    size_bytes: int
    instruction: int


@dataclass(frozen=True, slots=True)
class Defined:
    """What an instruction computed; nothing more is known of it."""

    instruction: int
    register: str


@dataclass(frozen=True, slots=True)
class Doubtful:
    """What was put into a slot that a callee may have written to since."""

    base: Value


Value: TypeAlias = "Doubtful | Entry | Number | FrameAddress | Added | Low | Loaded | Defined"
Location: TypeAlias = "str | int"
"""A register of 64 bits by its name, or a slot of 8 bytes by its distance from the canonical frame address."""
State: TypeAlias = "dict[Location, Value]"

_DEEPEST = 6


def comes_from(value: Value, instruction: int) -> bool:
    """Tell whether a value was made by an instruction, or of what it made."""
    while True:
        if isinstance(value, (Added, Doubtful, Low)):
            value = value.base
        elif isinstance(value, Loaded):
            if value.instruction == instruction:
                return True
            value = value.address
        else:
            return isinstance(value, Defined) and value.instruction == instruction


def add(value: Value, number: int) -> Value:
    """Add a constant."""
    if isinstance(value, FrameAddress):
        return FrameAddress(value.offset + number)
    if isinstance(value, Number):
        return Number((value.number + number) & _WORD)
    if isinstance(value, Added):
        total = value.number + number
        return Added(value.base, total) if total else value.base
    return Added(value, number) if number else value


def low(value: Value, size_bytes: int) -> Value:
    """Give what is left of a value of which only the low bytes are kept."""
    if isinstance(value, Number):
        return Number(value.number & ((1 << 8 * size_bytes) - 1))
    if isinstance(value, Low):
        return Low(value.base, min(value.size_bytes, size_bytes))
    return Low(value, size_bytes)


def depth(value: Value) -> int:
    """Count the levels of an expression."""
    count = 1
    while isinstance(value, (Added, Doubtful, Low, Loaded)):
        value = value.address if isinstance(value, Loaded) else value.base
        count += 1
    return count


def too_deep(value: Value) -> bool:
    """Tell whether an expression grew so long that it is of no use: loops make such."""
    return depth(value) > _DEEPEST


def meet(first: State, second: State) -> State:
    """Keep what holds on both ways to an instruction."""
    return {location: value for location, value in first.items() if second.get(location) == value}


_WORD = (1 << 64) - 1
