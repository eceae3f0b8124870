"""
Follow a value back: which instruction gave it to the register, from which object and member, and who gave the object.

The search goes backwards over the instructions that may have run before the
fault, and takes the registers' values along as far as they did not change. A
value that was read from memory is compared with what memory holds: of several
ways by which control may have come, the one that memory confirms counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from postpanic.analysis.code.instructions import Instruction
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.faults.chains import Chain, go_round, score, shifted
from postpanic.analysis.triage.faults.code_paths import CodeGraph, CodeGraphs
from postpanic.analysis.triage.faults.effects import ARGUMENTS, CALLEE_SAVED, Act, Effect, Memory
from postpanic.analysis.triage.faults.known_values import KnownValues, Values
from postpanic.analysis.triage.faults.origin import Origin, Step, StepKind
from postpanic.analysis.triage.faults.pointees import (
    Pointee,
    member_of,
    parameter_pointee,
    result_pointee,
    variable_pointee,
)
from postpanic.analysis.workspace import Workspace

__all__ = ["Tracer"]

_WORD = (1 << 64) - 1
_MOST_VISITS = 60_000
_MOST_STEPS = 24
_MOST_CALLERS = 6


@dataclass(frozen=True, slots=True)
class _Definition:
    """An instruction that gave a register its value; without one, the function was entered with it."""

    instruction: Instruction | None
    effect: Effect | None
    values: Values
    """Of registers right before it."""


class Tracer:
    """
    Follows values back through one stack.

    Parameters
    ----------
    workspace : Workspace
    graphs : CodeGraphs
    frames : sequence of Frame
        Of the stack, from the function that faulted outwards.
    """

    def __init__(self, workspace: Workspace, graphs: CodeGraphs, frames: Sequence[Frame]) -> None:
        self._prog = workspace.prog
        self._graphs = graphs
        self._frames = frames
        self._machine = graphs.machine
        self._values = KnownValues(workspace.prog, graphs.machine)
        self._sp = self._values.sp
        self._visits = 0
        self._active: set[tuple[int, str]] = set()

    def trace(self, register: str, vaddr: int, values: Values, *, frame: int = 0) -> Origin:
        """
        Follow a register back.

        Parameters
        ----------
        register : str
            By its widest name.
        vaddr : int
            An instruction; what the register held right before it is followed.
        values : mapping
            Of the registers at that moment, as far as they are known.
        frame : int
            Place in the frames of the function that the instruction is in.
        """
        self._visits = 0
        self._active.clear()
        chain = self._trace(register, vaddr, values, frame, 0)
        value = values.get(register)
        first = next((step for step in chain.steps if step.kind is StepKind.LOAD), None)
        certain = chain.is_only or (first is not None and first.is_verified)
        return Origin(register, value, chain.steps, certain and bool(chain.steps))

    def trace_memory(self, memory: Memory, instruction: Instruction, value: int | None, values: Values) -> Origin:
        """Follow a value back that an instruction took from memory itself, as an indirect call does."""
        self._visits = 0
        self._active.clear()
        graph = self._graphs.find(instruction.vaddr)
        if graph is None:
            return Origin("", value)
        own = Step(
            StepKind.LOAD, instruction.vaddr, f"{instruction.mnemonic} {instruction.operands}".rstrip(), graph.name,
            graph.module, "", value,
        )  # fmt: skip
        effect = Effect(Act.LOAD, "", memory=memory, bits=memory.size_bytes * 8)
        chain = self._load(own, effect, values, instruction.vaddr, graph, 0, 0)
        found = chain.steps[0].value if chain.steps else value
        return Origin("", found, chain.steps, bool(chain.steps) and chain.steps[0].is_verified)

    # ---- the search

    def _trace(self, register: str, vaddr: int, values: Values, frame: int, depth: int) -> Chain:
        graph = self._graphs.find(vaddr)
        if graph is None or depth > _MOST_STEPS:
            return Chain((), None, is_only=False)
        wanted = values.get(register)
        found: list[Chain] = []
        loops: dict[tuple[int, str], int] = {}
        definitions = list(self._definitions(graph, register, vaddr, values))
        for definition in definitions:
            key = (definition.instruction.vaddr if definition.instruction is not None else 0, register)
            if definition.instruction is not None and key in self._active:
                loops[key] = 0
                continue
            self._active.add(key)
            chain = self._explain(definition, register, wanted, graph, frame, depth)
            self._active.discard(key)
            if chain is not None:
                found.append(go_round(self._values, chain, key, wanted))
        if not found:
            return Chain((), None, loops, is_only=False)
        best = max(found, key=lambda chain: score(chain, wanted))
        return replace(best, loops={**best.loops, **loops}, is_only=best.is_only and len(definitions) == 1)

    def _definitions(self, graph: CodeGraph, register: str, vaddr: int, values: Values) -> Iterator[_Definition]:
        """Find what may have given a register the value that it has before an instruction."""
        if vaddr == graph.start:
            yield _Definition(None, None, values)
        seen: set[int] = set()
        queue: deque[tuple[int, Values]] = deque([(vaddr, values)])
        while queue and self._visits < _MOST_VISITS:
            at, after = queue.popleft()
            for previous in graph.before.get(at, ()):
                if previous in seen:
                    continue
                seen.add(previous)
                self._visits += 1
                instruction = graph.instructions[previous]
                effects = self._graphs.effects(graph, instruction)
                before = self._values.before(effects, after)
                effect = next((one for one in effects if one.act is not Act.STORE and one.register == register), None)
                if effect is not None:
                    yield _Definition(instruction, effect, before)
                    continue
                if previous == graph.start:
                    yield _Definition(None, None, before)
                queue.append((previous, before))

    # ---- what a definition means

    def _explain(
        self, definition: _Definition, register: str, wanted: int | None, graph: CodeGraph, frame: int, depth: int
    ) -> Chain | None:
        """Make steps of a definition; None: it cannot be the one."""
        instruction, effect = definition.instruction, definition.effect
        if instruction is None or effect is None:
            return self._from_caller(register, definition.values, graph, frame, depth)
        own = Step(
            StepKind.CHANGE, instruction.vaddr, f"{instruction.mnemonic} {instruction.operands}".rstrip(), graph.name,
            graph.module, register, wanted,
        )  # fmt: skip
        match effect.act:
            case Act.COPY:
                chain = self._trace(effect.source, instruction.vaddr, definition.values, frame, depth + 1)
                if effect.bits < 64 and chain.computed is not None:
                    chain = replace(chain, computed=chain.computed & ((1 << effect.bits) - 1))
                return chain
            case Act.CONSTANT:
                if wanted is not None and effect.constant != wanted:
                    return None
                return Chain((self._constant(own, effect.constant),), effect.constant)
            case Act.RESULT:
                return Chain((self._result(own, effect.target),), None)
            case Act.LOAD:
                return self._load(own, effect, definition.values, instruction.vaddr, graph, frame, depth)
            case Act.ADDRESS:
                return self._sum(own, effect, definition.values, instruction.vaddr, frame, depth)
            case _:
                return Chain((own,), None)

    def _constant(self, own: Step, constant: int) -> Step:
        try:
            name = self._prog.symbol(constant).name if constant >> 63 else ""
        except LookupError:
            name = ""
        _, pointee = "", None
        if name:
            pointee = self._variable_type(name)
        return replace(own, kind=StepKind.CONSTANT, value=constant, name=name, pointee=pointee)

    def _variable_type(self, name: str) -> Pointee | None:
        try:
            return Pointee(self._prog[name].type_)
        except UNREADABLE:
            return None

    def _result(self, own: Step, target: int | None) -> Step:
        name = self._graphs.name(target) if target is not None else ""
        pointee = result_pointee(self._prog, name) if name else None
        return replace(own, kind=StepKind.RESULT, name=name, pointee=pointee)

    def _sum(self, own: Step, effect: Effect, values: Values, vaddr: int, frame: int, depth: int) -> Chain:
        memory = effect.memory
        assert memory is not None  # noqa: S101 - ADDRESS has one
        if not memory.base:
            return Chain((self._constant(own, memory.disp & _WORD),), memory.disp & _WORD)
        if memory.base == self._sp:
            address = self._values.address(memory, values)
            return Chain((replace(own, kind=StepKind.ADDRESS, base=memory.base, name="the stack"),), address)
        chain = self._trace(memory.base, vaddr, values, frame, depth + 1)
        base = values.get(memory.base, chain.computed)
        index = values.get(memory.index) if memory.index else 0
        computed = None
        if base is not None and index is not None:
            computed = (base + index * memory.scale + memory.disp) & _WORD
        pointee = chain.steps[0].pointee if chain.steps and not memory.index else None
        step = replace(
            own,
            kind=StepKind.ADDRESS,
            value=own.value if own.value is not None else computed,
            base=memory.base,
            base_value=base,
            offset=memory.disp,
            pointee=pointee.moved(memory.disp) if pointee is not None else None,
        )
        return Chain((step, *chain.steps), computed, shifted(chain.loops), chain.is_only)

    def _load(
        self, own: Step, effect: Effect, values: Values, vaddr: int, graph: CodeGraph, frame: int, depth: int
    ) -> Chain:
        memory = effect.memory
        assert memory is not None  # noqa: S101 - LOAD has one
        if memory.segment or not memory.base:
            return self._load_variable(own, effect, memory, values)
        address = self._values.address(memory, values)
        if address is not None and self._values.is_on_stack(address, values):
            spilled = self._spilled(address, values, vaddr, graph, frame, depth)
            if spilled is not None:
                return spilled
        chain = self._trace(memory.base, vaddr, values, frame, depth + 1)
        base = values.get(memory.base, chain.computed)
        index = values.get(memory.index) if memory.index else 0
        if base is not None and index is not None:
            address = (base + index * memory.scale + memory.disp) & _WORD
        computed = self._values.read(address, effect.bits) if address is not None else None
        above = chain.steps[0].pointee if chain.steps and not memory.index else None
        moved = above.moved(memory.disp) if above is not None else None
        member = member_of(moved, effect.bits // 8) if moved is not None else None
        step = replace(
            own,
            kind=StepKind.LOAD,
            value=own.value if own.value is not None else computed,
            address=address,
            base=memory.base,
            base_value=base,
            offset=memory.disp + (index or 0) * memory.scale if memory.index else memory.disp,
            type=moved.name if moved is not None else "",
            member=member.path if member is not None else "",
            pointee=member.pointee if member is not None else None,
            is_function=member is not None and member.is_function,
            is_verified=computed is not None and own.value == computed,
            size_bytes=effect.bits // 8,
        )
        return Chain((step, *chain.steps), computed, shifted(chain.loops), chain.is_only)

    def _load_variable(self, own: Step, effect: Effect, memory: Memory, values: Values) -> Chain:
        """Read a variable of the kernel or a module, or one of this CPU."""
        address = self._values.address(memory, values) if not memory.segment else None
        name, offset = self._symbol(memory.disp & _WORD)
        path, pointee = variable_pointee(self._prog, name, offset) if name else ("", None)
        text = f"{name}{f'.{path}' if path else f'+{offset:#x}' if offset else ''}" if name else ""
        computed = self._values.read(address, effect.bits) if address is not None else None
        if memory.index:
            pointee = None
        step = replace(
            own,
            kind=StepKind.LOAD,
            value=own.value if own.value is not None else computed,
            address=address,
            offset=offset,
            pointee=pointee,
            name=f"{text} of this CPU" if memory.segment and text else text,
            is_verified=computed is not None and own.value == computed,
            size_bytes=effect.bits // 8,
        )
        return Chain((step,), computed)

    def _symbol(self, vaddr: int) -> tuple[str, int]:
        try:
            symbol = self._prog.symbol(vaddr)
        except LookupError:
            return "", 0
        return symbol.name, vaddr - symbol.address

    def _spilled(
        self, address: int, values: Values, vaddr: int, graph: CodeGraph, frame: int, depth: int
    ) -> Chain | None:
        """Find what was put into a place on the stack."""
        seen: set[int] = set()
        queue: deque[tuple[int, Values]] = deque([(vaddr, values)])
        while queue and self._visits < _MOST_VISITS:
            at, after = queue.popleft()
            for previous in graph.before.get(at, ()):
                if previous in seen:
                    continue
                seen.add(previous)
                self._visits += 1
                effects = self._graphs.effects(graph, graph.instructions[previous])
                before = self._values.before(effects, after)
                for effect in effects:
                    if effect.act is not Act.STORE or self._values.address(effect.memory, before) != address:
                        continue
                    if effect.register:
                        return self._trace(effect.register, previous, before, frame, depth + 1)
                    return None
                queue.append((previous, before))
        return None

    def _from_caller(self, register: str, values: Values, graph: CodeGraph, frame: int, depth: int) -> Chain | None:
        """Go on in the caller, with the registers that the function was entered with."""
        arguments = ARGUMENTS[self._machine]
        steps: tuple[Step, ...] = ()
        pointee = None
        if register in arguments:
            number = arguments.index(register)
            name, pointee = ("", None) if graph.is_copy else parameter_pointee(self._prog, graph.name, number)
            step = Step(
                StepKind.ARGUMENT, graph.start, "", graph.name, graph.module, register, values.get(register),
                pointee=pointee, name=name or f"{number + 1}",
            )  # fmt: skip
            steps = (step,)
        elif register not in CALLEE_SAVED[self._machine]:
            return None
        chain = self._in_caller(register, values, frame, depth)
        if steps and chain.steps and pointee is None:
            steps = (replace(steps[0], pointee=chain.steps[0].pointee),)
        computed = values.get(register, chain.computed)
        if not steps and not chain.steps:
            return None
        return Chain((*steps, *chain.steps), computed, {}, chain.is_only)

    def _in_caller(self, register: str, values: Values, frame: int, depth: int) -> Chain:
        nothing = Chain((), None)
        if frame + 1 >= len(self._frames) or frame >= _MOST_CALLERS:
            return nothing
        caller = self._frames[frame + 1]
        if caller.interrupted or not caller.reliable:
            return nothing
        graph = self._graphs.find(caller.pc - 1)
        call = graph.ending_at(caller.pc) if graph is not None else None
        if graph is None or call is None:
            return nothing
        known = dict(values)
        known[self._sp] = caller.sp
        return self._trace(register, call.vaddr, known, frame + 1, depth + 1)
