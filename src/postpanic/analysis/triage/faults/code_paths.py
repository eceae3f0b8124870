"""The code of a function as a graph: which instructions may have run right before another."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from postpanic.analysis.code.instructions import MACHINES, Disassembler, Flow, Instruction
from postpanic.analysis.code.veneers import resolve_veneer
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.code_index import CodeIndex, Place
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.analysis.triage.faults.effects import ARGUMENTS, Effect, find_effects
from postpanic.analysis.workspace import Workspace
from postpanic.evidence.oops.functions import plain_name

__all__ = ["CodeGraph", "CodeGraphs", "code_graphs"]

_COLD = ".cold"
_THUNKS = ("__x86_indirect_", "__x86_call_")
_THUNK_BYTES = 47
_THUNK_ALIGNMENT = 32
_OP_REG = 1
_ENDS = frozenset({Flow.JUMP, Flow.RETURN, Flow.TRAP})
_LONGEST_INSTRUCTION_BYTES = 15
_LARGEST_FUNCTION_BYTES = 1 << 17


@dataclass
class CodeGraph:
    """
    One function, with the unlikely part that the compiler moved away.

    Attributes
    ----------
    name, module : str
        The name without suffixes; the module is empty for the kernel itself.
    start : int
        Where it is entered.
    instructions : dict of int to Instruction
    effects : dict of int to list of Effect
        Of each instruction, as far as they were asked for.
    """

    name: str
    module: str
    start: int
    instructions: dict[int, Instruction]
    is_copy: bool = False
    """Whether the compiler made it of a function, with parameters of its own (``.isra``, ``.constprop``, ``.part``)."""
    effects: dict[int, list[Effect]] = field(default_factory=dict)

    @cached_property
    def before(self) -> dict[int, list[int]]:
        """For each instruction those that may have run right before it; the one that lies before it first."""
        found: dict[int, list[int]] = defaultdict(list)
        for instruction in self.instructions.values():
            if instruction.flow not in _ENDS and instruction.end in self.instructions:
                found[instruction.end].append(instruction.vaddr)
        for instruction in self.instructions.values():
            target = instruction.target
            if target is None or instruction.flow not in {Flow.JUMP, Flow.BRANCH}:
                continue
            if target in self.instructions and instruction.vaddr not in found[target]:
                found[target].append(instruction.vaddr)
        return dict(found)

    def ending_at(self, vaddr: int) -> Instruction | None:
        """Find the instruction right before an address: the call, where that is a return address."""
        for size in range(1, _LONGEST_INSTRUCTION_BYTES + 1):
            instruction = self.instructions.get(vaddr - size)
            if instruction is not None and instruction.end == vaddr:
                return instruction
        return None


class CodeGraphs:
    """The functions of one dump; made by :func:`code_graphs`."""

    def __init__(self, workspace: Workspace) -> None:
        self._prog = workspace.prog
        self._memory = workspace.memory
        self.machine = workspace.memory.machine
        self._graphs: dict[int, CodeGraph | None] = {}
        self._disassembler = Disassembler(self.machine) if self.machine in MACHINES else None
        self._index: CodeIndex = open_stacks(workspace).code

    @property
    def can_trace(self) -> bool:
        """Whether it is known what this machine's instructions do to registers."""
        return self._disassembler is not None and self.machine in ARGUMENTS

    def find(self, vaddr: int) -> CodeGraph | None:
        """Find the function that an address of code is in; None: there is no symbol, or its code cannot be read."""
        place = self._index.find(vaddr)
        if place is None or not place.start or self._disassembler is None:
            return None
        if place.start not in self._graphs:
            self._graphs[place.start] = self._make(place)
        return self._graphs[place.start]

    def resolve(self, vaddr: int) -> int:
        """Give where a call to an address really goes to: behind a veneer, else there."""
        return resolve_veneer(self._memory, vaddr)

    def name(self, vaddr: int) -> str:
        """Name the function that an address is in, or that a veneer leads to; empty: none."""
        place = self._index.find(self.resolve(vaddr))
        return plain_name(place.function) if place is not None else ""

    def instruction(self, vaddr: int) -> Instruction | None:
        """Decode one instruction; None: it cannot be read."""
        graph = self.find(vaddr)
        if graph is not None and vaddr in graph.instructions:
            return graph.instructions[vaddr]
        if self._disassembler is None:
            return None
        for size in (2 * _LONGEST_INSTRUCTION_BYTES, _LONGEST_INSTRUCTION_BYTES + 1):
            try:
                data = self._prog.read(vaddr, size)
            except UNREADABLE:
                continue
            return next(self._disassembler.decode(data, vaddr), None)
        return None

    def thunk_register(self, vaddr: int) -> str:
        """
        Name the register that a thunk of the compiler's jumps to; empty: it is none.

        It jumps, or puts the register where it returns to (``arch/x86/lib/retpoline.S``).
        """
        place = self._index.find(vaddr)
        if self._disassembler is None or place is None or not place.function.startswith(_THUNKS):
            return ""
        # One symbol may stand for all of them, which lie one behind the other.
        vaddr = max(place.start, vaddr // _THUNK_ALIGNMENT * _THUNK_ALIGNMENT)
        try:
            data = self._prog.read(vaddr, _THUNK_BYTES)
        except UNREADABLE:
            return ""
        for one in self._disassembler.decode(data, vaddr):
            if one.decoded is None:
                continue
            operands = list(one.decoded.operands)
            registers = [one.decoded.reg_name(each.reg) or "" for each in operands if each.type == _OP_REG]
            if one.flow is Flow.JUMP and one.target is None and registers:
                return registers[0]
            if one.mnemonic.startswith("mov") and len(operands) == 2 and len(registers) == 1:
                return registers[0]
        return ""

    def effects(self, graph: CodeGraph, instruction: Instruction) -> list[Effect]:
        """Tell what an instruction does to registers and memory."""
        found = graph.effects.get(instruction.vaddr)
        if found is None:
            callee = self.name(instruction.target) if instruction.flow is Flow.CALL and instruction.target else ""
            found = graph.effects[instruction.vaddr] = find_effects(instruction, self.machine, callee)
        return found

    def _make(self, place: Place) -> CodeGraph | None:
        stem, cold, _ = place.function.partition(_COLD)
        start = place.start
        instructions = self._decode(place)
        other = self._index.vaddr(stem if cold else place.function + _COLD)
        if other is not None:
            part = self._index.find(other)
            if part is not None and part.module == place.module:
                instructions.update(self._decode(part))
                start = part.start if cold else start
        if not instructions:
            return None
        return CodeGraph(plain_name(stem), place.module, start, instructions, is_copy="." in stem)

    def _decode(self, place: Place) -> dict[int, Instruction]:
        size = min(place.size_bytes, _LARGEST_FUNCTION_BYTES)
        try:
            data = self._prog.read(place.start, size)
        except UNREADABLE:
            return {}
        assert self._disassembler is not None  # noqa: S101 - find asked
        # Bytes behind the end let the last instruction be told from the beginning of a longer one.
        padded = data + bytes(_LONGEST_INSTRUCTION_BYTES)
        end = place.start + len(data)
        return {one.vaddr: one for one in self._disassembler.decode(padded, place.start) if one.vaddr < end}


def code_graphs(workspace: Workspace) -> CodeGraphs:
    """Give the functions of a dump as graphs; each is decoded once."""
    return workspace.once("triage code graphs", lambda: CodeGraphs(workspace))
