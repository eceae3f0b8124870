"""Follow the code of a function: what is known where, at each instruction, on every way that leads to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from postpanic.analysis.code.veneers import resolve_veneer
from postpanic.analysis.stacks.arguments.arm64_code import Arm64Machine
from postpanic.analysis.stacks.arguments.machine import Control, Instruction, Machine
from postpanic.analysis.stacks.arguments.state import Doubtful, State, meet
from postpanic.analysis.stacks.arguments.x86_64_code import X86Machine
from postpanic.analysis.stacks.code_index import CodeIndex, Place
from postpanic.errors import AbsentError
from postpanic.kernel.memory import KernelMemory

__all__ = ["MACHINES", "CodeFlow", "FunctionFlow"]

MACHINES: dict[str, type[Machine]] = {"x86_64": X86Machine, "aarch64": Arm64Machine}
"""Whose code can be followed."""

_MAX_CODE_BYTES = 64 << 10
_MAX_RANGES = 8
_MAX_VISITS = 200_000
_TRACERS = ("__fentry__", "ftrace_", "mcount")
_RETURN_THUNKS = ("__x86_return_thunk", "__x86_indirect_thunk")
_COLD = ".cold"
_ENDS = frozenset({Control.RETURN, Control.STOP, Control.JUMP})
_NEAR_BYTES = 128
"""A variable whose address is taken this far below a slot may reach up to it."""


@dataclass(slots=True)
class FunctionFlow:
    """
    What is known in one function.

    Parameters
    ----------
    start : int
    by_address : dict
        Its instructions.
    states : dict
        Before each instruction that can be reached.
    taken : set of int
        Slots whose address is put into a register somewhere: others may write there.
    pushed : set of int
        Slots in which registers are saved for the caller: nobody else writes there.
    is_certain : bool
        False: there are jumps that nobody knows where to.
    """

    start: int
    by_address: dict[int, Instruction]
    states: dict[int, State] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    pushed: set[int] = field(default_factory=set)
    is_certain: bool = True

    def is_doubtful(self, slot: int) -> bool:
        """Tell whether a slot may be part of a variable whose address others have."""
        return slot not in self.pushed and any(0 <= slot - start < _NEAR_BYTES for start in self.taken)

    def before(self, vaddr: int) -> State | None:
        """Give what is known before an instruction; None: nothing leads there."""
        return self.states.get(vaddr)


class CodeFlow:
    """
    Follows functions, each of them once.

    Parameters
    ----------
    memory : KernelMemory
        Of one of :data:`MACHINES`.
    code : CodeIndex
    """

    def __init__(self, memory: KernelMemory, code: CodeIndex) -> None:
        self.machine: Machine = MACHINES[memory.machine]()
        self._memory = memory
        self._code = code
        self._flows: dict[int, FunctionFlow | None] = {}

    def find(self, place: Place) -> FunctionFlow | None:
        """Follow the function of a place, with what of it was put apart; None: its code cannot be had."""
        start = place.start
        if place.function.endswith(_COLD):
            start = self._code.vaddr(place.function.removesuffix(_COLD)) or 0
        if start not in self._flows:
            self._flows[start] = self._follow(start) if start else None
        return self._flows[start]

    def call_before(self, flow: FunctionFlow, return_vaddr: int) -> Instruction | None:
        """Find the call that returns to an address."""
        for size in self.machine.call_sizes:
            found = flow.by_address.get(return_vaddr - size)
            if found is not None and found.size == size:
                return found if self.machine.control(found) is Control.CALL else None
        return None

    def target(self, instruction: Instruction) -> int | None:
        """Give the target of a direct call or jump; what lies on the way to a function too far away is passed over."""
        target = self.machine.target(instruction)
        if target is None or self.machine.control(instruction) not in {Control.CALL, Control.JUMP}:
            return target
        return resolve_veneer(self._memory, target)

    def _follow(self, start: int) -> FunctionFlow | None:
        found = self._code.find(start)
        if found is None or not 0 < found.size_bytes <= _MAX_CODE_BYTES:
            return None
        flow = FunctionFlow(start, {})
        try:
            self._decode_all(flow, found)
        except AbsentError:
            return None
        # What is taken anywhere counts everywhere, so it has to be known before.
        self._propagate(flow)
        if flow.taken:
            flow.states.clear()
            self._propagate(flow)
        return flow

    def _decode_all(self, flow: FunctionFlow, place: Place) -> None:
        """Decode the function, and what it jumps to that was put apart."""
        pending = [(place.start, place.size_bytes)]
        done: set[int] = set()
        while pending and len(done) < _MAX_RANGES:
            start, size = pending.pop()
            if start in done:
                continue
            done.add(start)
            for instruction in self.machine.decode(self._memory.read(start, size), start):
                flow.by_address[instruction.address] = instruction
                if self.machine.control(instruction) not in {Control.JUMP, Control.BRANCH}:
                    continue
                target = self.machine.target(instruction)
                if target is None or start <= target < start + size:
                    continue
                other = self._code.find(target)
                if other is not None and other.function.endswith(_COLD) and other.size_bytes <= _MAX_CODE_BYTES:
                    pending.append((other.start, other.size_bytes))

    def _propagate(self, flow: FunctionFlow) -> None:
        states = flow.states
        states[flow.start] = self.machine.entry_state()
        pending = [flow.start]
        visits = 0
        while pending:
            visits += 1
            if visits > _MAX_VISITS:
                flow.is_certain = False
                return
            vaddr = pending.pop()
            instruction = flow.by_address.get(vaddr)
            if instruction is None:
                continue
            before = states[vaddr]
            after = self.after(flow, instruction, before)
            flow.taken.update(self.machine.addresses_taken(before, after))
            flow.pushed.update(self.machine.saved_slots(instruction, after))
            for successor in self._successors(flow, instruction):
                known = states.get(successor)
                new = after if known is None else meet(known, after)
                if known is None or len(new) != len(known):
                    states[successor] = new
                    pending.append(successor)

    def after(self, flow: FunctionFlow, instruction: Instruction, before: State) -> State:
        """Give what is known behind an instruction."""
        is_call = self.machine.control(instruction) is Control.CALL
        traced = is_call and self._is_tracer(instruction, flow)
        after = self.machine.step(instruction, before, is_traced_entry=traced)
        if is_call and not traced and flow.taken:
            _doubt(flow, after)
        return after

    def _is_tracer(self, instruction: Instruction, flow: FunctionFlow) -> bool:
        """Tell whether a call is the one to the function tracer, which changes nothing."""
        if instruction.address - flow.start > 8:
            return False
        target = self.target(instruction)
        place = self._code.find(target) if target is not None else None
        return place is None or place.function.startswith(_TRACERS)

    def _successors(self, flow: FunctionFlow, instruction: Instruction) -> list[int]:
        control = self.machine.control(instruction)
        following = instruction.address + instruction.size
        if control not in {Control.JUMP, Control.BRANCH}:
            return [] if control in _ENDS else [following]
        target = self.machine.target(instruction)
        if target is None:
            # A jump through a register or a table: anywhere in the function.
            flow.is_certain = False
            return []
        inside = [target] if target in flow.by_address else []
        if not inside and control is Control.JUMP:
            place = self._code.find(target)
            if place is not None and place.function.startswith(_RETURN_THUNKS[1]):
                flow.is_certain = False
        return inside if control is Control.JUMP else [*inside, following]


def _doubt(flow: FunctionFlow, state: State) -> None:
    """Let go of what the callee may have written to."""
    for slot in [place for place in state if isinstance(place, int)]:
        if slot in flow.taken:
            del state[slot]
        elif flow.is_doubtful(slot) and not isinstance(state[slot], Doubtful):
            state[slot] = Doubtful(state[slot])
