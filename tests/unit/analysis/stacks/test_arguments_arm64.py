"""Following code of arm64: what is where at an instruction. Instructions are words, as listings show them."""

from __future__ import annotations

from typing import cast

import pytest

from postpanic.analysis.code.veneers import decode_veneer, resolve_veneer
from postpanic.analysis.stacks.arguments.flow import CodeFlow, FunctionFlow
from postpanic.analysis.stacks.arguments.recover import Certainty, Recovery
from postpanic.analysis.stacks.arguments.state import Added, Defined, Entry, FrameAddress, Loaded, Low, Number, State
from postpanic.analysis.stacks.code_index import CodeIndex
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.stacks.words import Words
from postpanic.kernel.memory import KernelMemory
from tests.unit.analysis.stacks.machine import TASK, Kernel

RET = 0xD65F03C0
NOP = 0xD503201F
PACIASP, AUTIASP = 0xD503233F, 0xD50323BF
ENTER = (PACIASP, 0xA9BE7BFD, 0x910003FD, 0xA90153F3)
"""``paciasp; stp x29, x30, [sp, #-32]!; mov x29, sp; stp x19, x20, [sp, #16]``."""


class Followed:
    """Code of one function, followed; a call goes to another function."""

    def __init__(self, *words: int | str) -> None:
        self.kernel = Kernel({"function": None, "other": None, "innermost": None}, machine="aarch64")
        self.start = self.kernel.code.start("function")
        code = b"".join(self._encode(word, self.start + 4 * number) for number, word in enumerate(words))
        self.kernel.memory.write(self.start, code.ljust(0x100, b"\0"))
        memory, index = cast("KernelMemory", self.kernel.memory), cast("CodeIndex", self.kernel.code)
        self.flows = CodeFlow(memory, index)
        place = self.kernel.code.find(self.start)
        assert place is not None
        flow = self.flows.find(place)
        assert flow is not None
        self.flow: FunctionFlow = flow

    def _encode(self, word: int | str, vaddr: int) -> bytes:
        if isinstance(word, str):
            word = 0x94000000 | ((self.kernel.code.start(word) - vaddr) >> 2 & 0x3FFFFFF)
        return word.to_bytes(4, "little")

    def before(self, number: int) -> State:
        state = self.flow.before(self.start + 4 * number)
        assert state is not None
        return state


def test_arguments_are_in_their_registers_at_first() -> None:
    state = Followed(RET).before(0)
    assert state["x0"] == Entry("x0")
    assert state["sp"] == FrameAddress(0)
    assert state[8] == Entry("stack1")


def test_prologue_saves_what_the_caller_wants_kept() -> None:
    followed = Followed(*ENTER, RET)
    state = followed.before(4)
    assert state["sp"] == state["x29"] == FrameAddress(-32)
    assert (state[-32], state[-16], state[-8]) == (Entry("x29"), Entry("x19"), Entry("x20"))
    assert {-32, -16, -8} <= followed.flow.pushed


def test_epilogue_brings_it_back() -> None:
    # mov x19, x0; ldp x19, x20, [sp, #16]; ldp x29, x30, [sp], #32; autiasp; ret
    state = Followed(*ENTER, 0xAA0003F3, 0xA94153F3, 0xA8C27BFD, AUTIASP, RET).before(8)
    assert state["sp"] == FrameAddress(0)
    assert (state["x19"], state["x29"]) == (Entry("x19"), Entry("x29"))


def test_values_are_copied_added_and_loaded() -> None:
    # mov x19, x0; mov w20, w1; add x2, x0, #0x10; ldr x3, [x2, #8]; ldr w4, [x19]
    followed = Followed(0xAA0003F3, 0x2A0103F4, 0x91004002, 0xF9400443, 0xB9400264, RET)
    state = followed.before(5)
    assert state["x19"] == Entry("x0")
    assert state["x20"] == Low(Entry("x1"), 4)
    assert state["x2"] == Added(Entry("x0"), 16)
    assert state["x3"] == Loaded(Added(Entry("x0"), 24), 8, followed.start + 12)
    assert state["x4"] == Loaded(Entry("x0"), 4, followed.start + 16)


def test_addresses_are_made_of_pages_and_of_halves() -> None:
    # adrp x0, +1 page; add x0, x0, #0x123; mov w1, #0x5678; movk w1, #0x1234, lsl #16; mov w2, #-34
    followed = Followed(0xB0000000, 0x91048C00, 0x528ACF01, 0x72A24681, 0x12800422, RET)
    state = followed.before(5)
    assert state["x0"] == Number((followed.start & ~0xFFF) + 0x1123)
    assert state["x1"] == Number(0x12345678)
    assert state["x2"] == Number(0xFFFFFFDE)


def test_call_forgets_what_it_may_change() -> None:
    # mov x19, x0; bl other
    followed = Followed(*ENTER, 0xAA0003F3, "other", RET)
    state = followed.before(6)
    assert state["x19"] == Entry("x0")
    assert "x1" not in state
    assert isinstance(state["x0"], Defined)


def test_both_ways_of_a_branch_are_followed() -> None:
    # cbz x0, +8; mov x1, #1; ret
    followed = Followed(0xB4000040, 0xD2800021, RET)
    assert "x1" not in followed.before(2)
    assert followed.before(2)["x0"] == Entry("x0")


def test_atomic_instruction_changes_the_register_that_it_compares() -> None:
    # casa w1, w0, [x2]; ldadda w3, w4, [x2]
    state = Followed(0x88E17C41, 0xB8A30044, RET).before(2)
    assert isinstance(state["x1"], Defined)
    assert isinstance(state["x4"], Defined)


def test_argument_is_found_in_the_register_that_a_callee_saved() -> None:
    # The caller keeps x0 in x19, and the innermost function saves x19.
    followed = Followed(*ENTER, 0xAA0003F3, "innermost", RET)
    inner = followed.kernel.code.start("innermost")
    code = b"".join(word.to_bytes(4, "little") for word in (*ENTER, NOP, RET))
    followed.kernel.memory.write(inner, code.ljust(0x100, b"\0"))
    inner_fp, fp = TASK.end - 0x100, TASK.end - 0x80
    followed.kernel.put(inner_fp, fp, followed.start + 4 * 6, 0xFFFF000012345678, 0)
    frames = [
        Frame(inner + 16, inner_fp, inner_fp, followed.kernel.code.find(inner + 16), interrupted=True, return_bytes=0),
        Frame(followed.start + 24, fp, fp, followed.kernel.code.find(followed.start + 20), return_bytes=0),
    ]
    memory = cast("KernelMemory", followed.kernel.memory)
    index = cast("CodeIndex", followed.kernel.code)
    recovery = Recovery(Words(memory), index, followed.flows, Trace(frames))
    found = recovery.argument(1, "x0")
    assert found is not None
    assert (found.value, found.certainty) == (0xFFFF000012345678, Certainty.PROVEN)


@pytest.mark.parametrize(
    ("words", "target"),
    [
        # adrp x16, 0xffff800010002000; add x16, x16, #0x40; br x16 (arch/arm64/kernel/module-plts.c)
        ((0xD0000010, 0x91010210, 0xD61F0200, NOP), 0xFFFF800010002040),
        # The same behind bti c.
        ((0xD503245F, 0xD0000010, 0x91010210, 0xD61F0200), 0xFFFF800010002040),
        # movn x16, #0x2fff; movk x16, #0x1000, lsl #16; movk x16, #0x8000, lsl #32; br x16
        ((0x9285FFF0, 0xF2A20010, 0xF2D00010, 0xD61F0200), 0xFFFF80001000D000),
        ((0xD0000010, 0x91010210, RET, NOP), None),
        ((NOP, NOP, NOP, NOP), None),
    ],
)
def test_veneer_leads_to_the_function(words: tuple[int, ...], target: int | None) -> None:
    data = b"".join(word.to_bytes(4, "little") for word in words)
    assert decode_veneer(data, 0xFFFF800010000000) == target


def test_veneer_whose_code_is_not_there_is_the_target_itself() -> None:
    memory = cast("KernelMemory", Kernel({"function": None}, machine="aarch64").memory)
    assert resolve_veneer(memory, 0xFFFF800012345000) == 0xFFFF800012345000
