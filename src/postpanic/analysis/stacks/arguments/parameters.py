"""
The parameters of functions, and in which registers they are passed.

Sources: System V ABI, AMD64 supplement, 3.2.3; Procedure Call Standard for the Arm 64-bit Architecture (AAPCS64),
6.8.2 (stages B and C), 6.9 (what is returned). The kernel uses no registers for floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from drgn import Program, Type, TypeKind, alignof, sizeof

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.arguments.machine import Machine
from postpanic.analysis.stacks.code_index import Place

__all__ = ["Parameter", "find_parameters"]

_BOTH_REGISTERS_BYTES = 16
_WORD_BYTES = 8
_CHANGED = (".constprop", ".isra", ".part")
"""Copies of functions that the compiler gave other parameters."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """
    One parameter of a function.

    Parameters
    ----------
    name : str
        Empty where the debug information has none.
    type : Type
    registers : tuple of str
        Where it is passed: one register, or two for a structure of 16 bytes; ``stack0`` and on: on the stack;
        none: it is empty.
    by_address : bool
        Whether its address is passed instead of it.
    """

    name: str
    type: Type
    registers: tuple[str, ...]
    by_address: bool = False

    @property
    def size_bytes(self) -> int:
        """Size of the value."""
        return int(sizeof(self.type))


@dataclass(frozen=True, slots=True)
class _Passed:
    """How one parameter is passed."""

    registers: tuple[str, ...]
    by_address: bool = False


def find_parameters(prog: Program, place: Place, machine: Machine) -> tuple[Parameter, ...] | None:
    """
    Find the parameters of the function of a place, by the ABI of the machine.

    Returns
    -------
    tuple of Parameter or None
        None: the function's type is not known, or the compiler changed its parameters.
    """
    name = place.function.removesuffix(".cold")
    if not name or any(mark in name for mark in _CHANGED):
        return None
    try:
        function = prog.function(name)
        if name == place.function and function.address_ != place.start:
            # Another function of that name.
            return None
        declared = function.type_.parameters
        types = [parameter.type for parameter in declared if parameter.type.kind is not TypeKind.VOID]
        registers = machine.arguments[1:] if _gets_room(machine, function.type_.type) else machine.arguments
        passed = list(_RULES[machine.name](types, registers))
    except UNREADABLE:
        return None
    return tuple(
        Parameter(parameter.name or "", parameter.type, one.registers, one.by_address)
        for parameter, one in zip(declared, passed, strict=False)
    )


def _gets_room(machine: Machine, returned: Type) -> bool:
    """Tell whether the first register is the address of room for what the function returns; on arm64 that is x8."""
    while returned.kind is TypeKind.TYPEDEF:
        returned = returned.type
    if machine.name != "x86_64" or returned.kind not in {TypeKind.STRUCT, TypeKind.UNION}:
        return False
    return returned.is_complete() and int(sizeof(returned)) > _BOTH_REGISTERS_BYTES


def _pass_on_x86_64(types: Sequence[Type], registers: Sequence[str]) -> Iterator[_Passed]:
    """System V: what does not fit into the free registers is on the stack, later ones may still fit."""
    free, on_stack = list(registers), 0
    for type_ in types:
        size = sizeof(type_)
        count = _count_words(size)
        if size <= _BOTH_REGISTERS_BYTES and count <= len(free):
            yield _Passed(tuple(free[:count]))
            free = free[count:]
        else:
            yield _Passed(_stack_slots(on_stack, count))
            on_stack += count


def _pass_on_arm64(types: Sequence[Type], registers: Sequence[str]) -> Iterator[_Passed]:
    """AAPCS64: of what is large the address is passed; once one is on the stack, all that follow are."""
    used, on_stack = 0, 0
    for type_ in types:
        size = sizeof(type_)
        by_address = size > _BOTH_REGISTERS_BYTES
        words = 1 if by_address else _count_words(size)
        is_wide = words == 2 and alignof(type_) == _BOTH_REGISTERS_BYTES
        used += is_wide and used % 2
        if used + words <= len(registers):
            yield _Passed(tuple(registers[used : used + words]), by_address)
            used += words
        else:
            used = len(registers)
            on_stack += is_wide and on_stack % 2
            yield _Passed(_stack_slots(on_stack, words), by_address)
            on_stack += words


_RULES: dict[str, Callable[[Sequence[Type], Sequence[str]], Iterator[_Passed]]] = {
    "x86_64": _pass_on_x86_64,
    "aarch64": _pass_on_arm64,
}


def _count_words(size_bytes: int) -> int:
    """Of an empty structure, which GCC has in C, nothing is passed."""
    return -(-size_bytes // _WORD_BYTES)


def _stack_slots(first: int, count: int) -> tuple[str, ...]:
    return tuple(f"stack{first + number}" for number in range(count))
