"""Whatever lies on a stack, following it ends, and says where it stopped."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.analysis.stacks.walk import MAX_FRAMES, Start
from postpanic.kernel.orc import OrcEntry, OrcRegister, OrcType
from tests.unit.analysis.stacks.machine import END, TASK, Kernel, call_row, regs_row

BY_POINTER = OrcEntry(OrcType.CALL, OrcRegister.BP, 16, OrcRegister.PREV_SP, -16, signal=False)
BY_SLOT = OrcEntry(OrcType.CALL, OrcRegister.SP_INDIRECT, 8, OrcRegister.UNDEFINED, 0, signal=False)
PARTIAL = OrcEntry(OrcType.REGS_PARTIAL, OrcRegister.SP, 0, OrcRegister.UNDEFINED, 0, signal=True)
BY_R10 = OrcEntry(OrcType.CALL, OrcRegister.R10, 8, OrcRegister.UNDEFINED, 0, signal=False)
ROWS = {
    "small": call_row(8),
    "large": call_row(64),
    "by_pointer": BY_POINTER,
    "by_slot": BY_SLOT,
    "by_r10": BY_R10,
    "entry": regs_row(),
    "partial": PARTIAL,
    "end": END,
    "unknown": None,
}
KERNEL = Kernel(ROWS)
WORDS = 64
BASE = TASK.end - 8 * WORDS

word = st.one_of(
    st.sampled_from([KERNEL.back(name) for name in ROWS]),
    st.integers(BASE, TASK.end).map(lambda vaddr: vaddr & ~7),
    st.sampled_from([0, 0x10, 0x33, (1 << 64) - 1, 1 << 63]),
    st.integers(0, (1 << 64) - 1),
)


@settings(deadline=None, max_examples=200)
@given(words=st.lists(word, min_size=WORDS, max_size=WORDS), pc=word, sp=word, fp=word, interrupted=st.booleans())
def test_every_stack_ends(words: list[int], pc: int, sp: int, fp: int, *, interrupted: bool) -> None:
    kernel = Kernel(ROWS)
    kernel.put(BASE, *words)
    registers = {"rip": pc, "rsp": sp, "rbp": fp, "r10": fp} if interrupted else None
    trace = kernel.walker.trace(Start(pc, sp, fp, interrupted, registers), TASK)
    assert 1 <= len(trace.frames) <= MAX_FRAMES
    assert trace.complete or trace.problems
    assert all(frame.pc == pc for frame in trace.frames[:1])
