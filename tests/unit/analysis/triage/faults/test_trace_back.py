"""Values followed back through code that is assembled here, with memory of our own."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from drgn import Architecture, Platform, Program

from postpanic.analysis.code.instructions import Disassembler, Instruction
from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.faults.code_paths import CodeGraph, CodeGraphs
from postpanic.analysis.triage.faults.effects import Effect, find_effects
from postpanic.analysis.triage.faults.origin import StepKind
from postpanic.analysis.triage.faults.trace_back import Tracer

CODE = 0xFFFFFFFF81000000
HEAP = 0xFFFF888000000000
STACK = 0xFFFFC90000000000


class _Graphs:
    """Functions by address, as :class:`CodeGraphs` gives them of a dump."""

    def __init__(self, machine: str, functions: Mapping[str, tuple[int, bytes]]) -> None:
        self.machine = machine
        disassembler = Disassembler(machine)
        self._graphs = []
        for name, (start, code) in functions.items():
            padded = code + bytes(15)
            found = {one.vaddr: one for one in disassembler.decode(padded, start) if one.vaddr < start + len(code)}
            self._graphs.append((start, start + len(code), CodeGraph(name, "", start, found)))

    def find(self, vaddr: int) -> CodeGraph | None:
        return next((graph for start, end, graph in self._graphs if start <= vaddr < end), None)

    def name(self, vaddr: int) -> str:
        graph = self.find(vaddr)
        return graph.name if graph is not None else ""

    def effects(self, _graph: CodeGraph, instruction: Instruction) -> list[Effect]:
        return find_effects(instruction, self.machine, self.name(instruction.target or 0))


def _program(words: Mapping[int, int], architecture: Architecture = Architecture.X86_64) -> Program:
    prog = Program(Platform(architecture))
    for base in (HEAP, STACK):
        data = bytearray(0x1000)
        for vaddr, value in words.items():
            if base <= vaddr < base + len(data):
                data[vaddr - base : vaddr - base + 8] = value.to_bytes(8, "little")
        prog.add_memory_segment(
            base, len(data), lambda _, count, offset, __, data=bytes(data): data[offset : offset + count]
        )
    return prog


def _tracer(
    machine: str,
    functions: Mapping[str, tuple[int, bytes]],
    words: Mapping[int, int],
    frames: list[Frame] | None = None,
) -> Tracer:
    architecture = Architecture.AARCH64 if machine == "aarch64" else Architecture.X86_64
    workspace = SimpleNamespace(prog=_program(words, architecture))
    return Tracer(cast("Any", workspace), cast("CodeGraphs", _Graphs(machine, functions)), frames or [])


def test_two_loads_lead_to_the_argument() -> None:
    # mov 0x20(%rdi),%rax; mov 0x8(%rax),%rbx; mov 0x28(%rbx),%rdx
    code = bytes.fromhex("488b4720 488b5808 488b5328")
    tracer = _tracer("x86_64", {"f": (CODE, code)}, {HEAP + 0x120: HEAP + 0x200, HEAP + 0x208: 0})
    origin = tracer.trace("rbx", CODE + 8, {"rdi": HEAP + 0x100, "rax": HEAP + 0x200, "rbx": 0})
    assert [(step.kind, step.address) for step in origin.steps] == [
        (StepKind.LOAD, HEAP + 0x208),
        (StepKind.LOAD, HEAP + 0x120),
        (StepKind.ARGUMENT, None),
    ]
    assert origin.is_certain
    assert all(step.is_verified for step in origin.loads)


def test_a_base_that_is_overwritten_by_its_own_load_is_read_again() -> None:
    # mov 0x20(%rdi),%rax; mov 0x8(%rax),%rax; mov 0x28(%rax),%rdx
    code = bytes.fromhex("488b4720 488b4008 488b5028")
    tracer = _tracer("x86_64", {"f": (CODE, code)}, {HEAP + 0x120: HEAP + 0x200, HEAP + 0x208: 0x1234})
    origin = tracer.trace("rax", CODE + 8, {"rdi": HEAP + 0x100, "rax": 0x1234})
    load = origin.load
    assert load is not None
    assert (load.base_value, load.address, load.is_verified) == (HEAP + 0x200, HEAP + 0x208, True)


def test_memory_that_changed_since_is_not_taken_for_confirmed() -> None:
    code = bytes.fromhex("488b4720 488b5028")
    tracer = _tracer("x86_64", {"f": (CODE, code)}, {HEAP + 0x120: 0x5555})
    load = tracer.trace("rax", CODE + 4, {"rdi": HEAP + 0x100, "rax": 0}).load
    assert load is not None
    assert (load.address, load.value, load.is_verified) == (HEAP + 0x120, 0, False)


def test_the_round_of_a_list_that_gave_the_value_is_found() -> None:
    # mov (%rdi),%rbx; again: cmpq $0,0x10(%rbx); mov (%rbx),%rbx; jmp again
    code = bytes.fromhex("488b1f 48837b1000 488b1b ebf6")
    words = {HEAP: HEAP + 0x40, HEAP + 0x40: HEAP + 0x80, HEAP + 0x80: HEAP + 0xC0, HEAP + 0xC0: 0xBAD}
    tracer = _tracer("x86_64", {"f": (CODE, code)}, words)
    load = tracer.trace("rbx", CODE + 3, {"rdi": HEAP, "rbx": 0xBAD}).load
    assert load is not None
    assert (load.base_value, load.address, load.rounds) == (HEAP + 0xC0, HEAP + 0xC0, 2)
    assert load.is_verified


def test_of_two_ways_the_one_that_memory_confirms_counts() -> None:
    # test %rcx,%rcx; je 1f; mov 0x8(%rdi),%rax; jmp 2f; 1: mov 0x10(%rdi),%rax; 2: mov (%rax),%rdx
    code = bytes.fromhex("4885c9 7406 488b4708 eb04 488b4710 488b10")
    tracer = _tracer("x86_64", {"f": (CODE, code)}, {HEAP + 8: 0x111, HEAP + 0x10: 0x222})
    for value, address in ((0x111, HEAP + 8), (0x222, HEAP + 0x10)):
        origin = tracer.trace("rax", CODE + 15, {"rdi": HEAP, "rax": value})
        assert origin.load is not None
        assert origin.load.address == address
        assert origin.is_certain


def test_a_value_is_followed_through_its_place_on_the_stack() -> None:
    # push %rdi; call next; next: mov (%rsp),%rax; mov 0x8(%rax),%rcx
    code = bytes.fromhex("57 e800000000 488b0424 488b4808")
    tracer = _tracer("x86_64", {"f": (CODE, code), "next": (CODE + 0x100, b"\xc3")}, {STACK + 0x100: HEAP})
    origin = tracer.trace("rax", CODE + 10, {"rax": HEAP, "rsp": STACK + 0x100})
    assert [step.kind for step in origin.steps] == [StepKind.ARGUMENT]
    assert origin.steps[0].register == "rdi"


def test_the_caller_is_asked_for_an_argument() -> None:
    # caller: mov 0x30(%rbx),%rdi; call callee; nop      callee: push %rbx; xor %ebx,%ebx; mov (%rdi),%rax
    caller, callee = CODE, CODE + 0x100
    code = bytes.fromhex("488b7b30") + b"\xe8" + (callee - (CODE + 9)).to_bytes(4, "little") + b"\x90"
    inner = bytes.fromhex("53 31db 488b07")
    words = {HEAP + 0x130: 0, STACK + 0x200: HEAP + 0x100, STACK + 0x208: CODE + 9}
    frames = [
        Frame(callee + 3, STACK + 0x200, 0, Place("callee", 3, "", callee, len(inner)), interrupted=True),
        Frame(CODE + 9, STACK + 0x210, 0, Place("caller", 9, "", caller, len(code))),
    ]
    tracer = _tracer("x86_64", {"caller": (caller, code), "callee": (callee, inner)}, words, frames)
    origin = tracer.trace("rdi", callee + 3, {"rdi": 0, "rbx": 0, "rsp": STACK + 0x200})
    assert [(step.kind, step.function) for step in origin.steps] == [
        (StepKind.ARGUMENT, "callee"),
        (StepKind.LOAD, "caller"),
    ]
    assert origin.steps[1].base_value == HEAP + 0x100
    assert origin.steps[1].is_verified


@pytest.mark.parametrize("register", ["rbx", "r15", "nothing"])
def test_what_nobody_gave_is_not_made_up(register: str) -> None:
    tracer = _tracer("x86_64", {"f": (CODE, bytes.fromhex("90 488b5328"))}, {})
    assert tracer.trace(register, CODE + 1, {register: 5}).steps == ()


def test_arm64_is_followed_too() -> None:
    # ldr x1,[x0,#0x20]; ldr x2,[x1,#8]; ldr x3,[x2]
    code = bytes.fromhex("011040f9 220440f9 430040f9")
    tracer = _tracer("aarch64", {"f": (CODE, code)}, {HEAP + 0x20: HEAP + 0x200, HEAP + 0x208: 0})
    origin = tracer.trace("x2", CODE + 8, {"x0": HEAP, "x1": HEAP + 0x200, "x2": 0})
    assert [step.kind for step in origin.steps] == [StepKind.LOAD, StepKind.LOAD, StepKind.ARGUMENT]
    assert origin.steps[0].address == HEAP + 0x208
    assert origin.is_certain
