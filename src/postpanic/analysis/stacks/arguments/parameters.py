"""The parameters of functions, and in which registers of x86-64 they are passed."""

from __future__ import annotations

from dataclasses import dataclass

from drgn import Program, Type, TypeKind, sizeof

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks import x86_64
from postpanic.analysis.stacks.code_index import Place

__all__ = ["Parameter", "find_parameters"]

_BOTH_REGISTERS_BYTES = 16
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
        Where it is passed: one register, or two for a structure of 16 bytes; ``stack0`` and on: on the stack.
    """

    name: str
    type: Type
    registers: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the value."""
        return int(sizeof(self.type))


def find_parameters(prog: Program, place: Place) -> tuple[Parameter, ...] | None:
    """
    Find the parameters of the function of a place, by the ABI (System V, AMD64, 3.2.3).

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
    except UNREADABLE:
        return None
    found: list[Parameter] = []
    free = list(x86_64.ARGUMENT_REGISTERS)
    on_stack = 0
    for parameter in declared:
        size = sizeof(parameter.type) if parameter.type.kind is not TypeKind.VOID else 0
        count = 1 if size <= 8 else 2
        if size <= _BOTH_REGISTERS_BYTES and count <= len(free):
            registers, free = tuple(free[:count]), free[count:]
        else:
            words = -(-max(size, 8) // 8)
            registers = tuple(f"stack{on_stack + number}" for number in range(words))
            on_stack += words
        found.append(Parameter(parameter.name or "", parameter.type, registers))
    return tuple(found)
