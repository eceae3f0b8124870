"""What registers held before an instruction, of what they held after it; and what memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drgn import Program

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.faults.effects import Act, Effect, Memory, stack_pointer

__all__ = ["KnownValues", "Values"]

_WORD = (1 << 64) - 1
_STACK_REACH = 1 << 16
Values = Mapping[str, int]
"""Of registers, by their widest names, as far as they are known."""


class KnownValues:
    """
    Takes the values of registers backwards through code.

    Parameters
    ----------
    prog : Program
    machine : str
    """

    def __init__(self, prog: Program, machine: str) -> None:
        self._prog = prog
        self.sp = stack_pointer(machine)

    def before(self, effects: Sequence[Effect], after: Values) -> Values:
        """Tell what the registers held before an instruction, of what they hold after it."""
        if not effects:
            return after
        written = {effect.register for effect in effects if effect.act is not Act.STORE}
        before = {name: value for name, value in after.items() if name not in written} if written else dict(after)
        for effect in effects:
            value = after.get(effect.register)
            memory = effect.memory
            if value is None:
                continue
            if effect.act is Act.COPY and effect.bits == 64:
                before[effect.source] = value
            elif effect.act is Act.ADDRESS and memory is not None and _is_invertible(effect, memory, written):
                before[memory.base] = (value - memory.disp) & _WORD
        for effect in effects:
            # What was saved on the stack tells what the register held.
            if effect.act is Act.STORE and effect.register and effect.register not in before:
                address = self.address(effect.memory, before)
                if address is not None and self.is_on_stack(address, before):
                    saved = self.read(address, 64)
                    if saved is not None:
                        before[effect.register] = saved
        return before

    def is_on_stack(self, address: int, values: Values) -> bool:
        """Tell whether an address is near the stack pointer."""
        sp = values.get(self.sp)
        return sp is not None and -_STACK_REACH <= address - sp <= _STACK_REACH

    def address(self, memory: Memory | None, values: Values) -> int | None:
        """Reckon the address of an operand; None: a register of it is not known, or it is relative to a segment."""
        if memory is None or memory.segment:
            return None
        total = memory.disp
        for name, factor in ((memory.base, 1), (memory.index, memory.scale)):
            if name:
                value = values.get(name)
                if value is None:
                    return None
                total += value * factor
        return total & _WORD

    def read(self, address: int, bits: int) -> int | None:
        """Read a number; None: it is not in the dump."""
        try:
            return int.from_bytes(self._prog.read(address, bits // 8), "little")
        except UNREADABLE:
            return None


def _is_invertible(effect: Effect, memory: Memory, written: set[str]) -> bool:
    """Tell whether the sum tells its base: nothing but a constant was added, and the base is not overwritten."""
    return bool(memory.base) and not memory.index and (memory.base == effect.register or memory.base not in written)
