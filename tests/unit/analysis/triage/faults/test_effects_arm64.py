"""What instructions of arm64 do to registers; they are words, as listings show them."""

from __future__ import annotations

import pytest

from postpanic.analysis.code.instructions import Disassembler
from postpanic.analysis.triage.faults.effects import Act, Effect, Memory, find_effects, spell_register

CASES = [
    # ldr x1, [x0, #8]
    (0xF9400401, [Effect(Act.LOAD, "x1", memory=Memory("x0", disp=8))]),
    # mov w0, #-34: the upper half becomes zero
    (0x12800420, [Effect(Act.CONSTANT, "x0", constant=0xFFFFFFDE)]),
    # mov x1, #0x12340000 (movz, shifted)
    (0xD2A24681, [Effect(Act.CONSTANT, "x1", constant=0x12340000)]),
    # mov x19, x2
    (0xAA0203F3, [Effect(Act.COPY, "x19", "x2")]),
    # str xzr, [x0, #0x10]
    (0xF900081F, [Effect(Act.STORE, "", memory=Memory("x0", disp=16))]),
    # stp w1, w2, [x0]
    (
        0x29000801,
        [Effect(Act.STORE, "x1", memory=Memory("x0")), Effect(Act.STORE, "x2", memory=Memory("x0", disp=4))],
    ),
    # casa w1, w0, [x2]: the compared register gets the old value
    (0x88E17C40, [Effect(Act.CHANGE, "x1")]),
    # ldadda x3, x4, [x2]
    (0xF8A30044, [Effect(Act.CHANGE, "x4")]),
]


@pytest.mark.parametrize(("word", "expected"), CASES)
def test_effects(word: int, expected: list[Effect]) -> None:
    (instruction,) = Disassembler("aarch64").decode(word.to_bytes(4, "little"), 0xFFFF800010000000)
    assert find_effects(instruction, "aarch64") == expected


def test_registers_are_written_as_listings_do() -> None:
    assert [spell_register(name) for name in ("rax", "r8", "x0", "sp")] == ["%rax", "%r8", "x0", "sp"]
