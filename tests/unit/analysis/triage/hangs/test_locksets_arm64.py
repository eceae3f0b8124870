"""Which locks code of arm64 holds where; spinlocks are inlined there."""

from __future__ import annotations

from typing import cast

import pytest

from postpanic.analysis.stacks.arguments.flow import CodeFlow
from postpanic.analysis.stacks.arguments.state import Entry, Number
from postpanic.analysis.stacks.code_index import CodeIndex
from postpanic.analysis.triage.hangs.locksets import LockFlow, LockReader
from postpanic.kernel.memory import KernelMemory
from tests.unit.analysis.stacks.machine import Kernel

NAMES = ("function", "mutex_lock", "mutex_lock_interruptible", "mutex_unlock", "queued_spin_lock_slowpath", "veneer")
RET, NOP = 0xD65F03C0, 0xD503201F
LOCK = 0x1000
MOV_X0_LOCK = 0xD2820000
# mov w1, #0; mov w0, #1; mov x2, #0x1000; casa w1, w0, [x2]
FAST_PATH = (0x52800001, 0x52800020, 0xD2820002, 0x88E17C40)
STLRB = 0x089FFC5F  # stlrb wzr, [x2]


class Code:
    """One function; a text calls (``bl NAME``), and branches if the word before left ``w1`` other than zero."""

    def __init__(self, *lines: int | str) -> None:
        self.kernel = Kernel(dict.fromkeys(NAMES), machine="aarch64")
        self.start = self.kernel.code.start("function")
        code = b"".join(self._encode(line, self.start + 4 * number) for number, line in enumerate(lines))
        self.kernel.memory.write(self.start, code.ljust(0x100, b"\0"))
        index = cast("CodeIndex", self.kernel.code)
        self._write_veneer()
        self.reader = LockReader(CodeFlow(cast("KernelMemory", self.kernel.memory), index), index)
        place = index.find(self.start)
        assert place is not None
        found = self.reader.find(place)
        assert found is not None
        self.flow: LockFlow = found

    def _write_veneer(self) -> None:
        """Write ``adrp x16, page; add x16, x16, #offset; br x16``, to mutex_lock."""
        vaddr, target = self.kernel.code.start("veneer"), self.kernel.code.start("mutex_lock")
        assert vaddr >> 12 == target >> 12
        words = (0x90000010, 0x91000210 | (target & 0xFFF) << 10, 0xD61F0200)
        self.kernel.memory.write(vaddr, b"".join(word.to_bytes(4, "little") for word in words).ljust(0x100, b"\0"))

    def _encode(self, line: int | str, vaddr: int) -> bytes:
        if isinstance(line, str):
            verb, _, target = line.partition(" ")
            if verb == "cbnz":
                line = 0x35000001 | int(target) << 5
            else:
                line = 0x94000000 | (self.kernel.code.start(target) - vaddr) >> 2 & 0x3FFFFFF
        return line.to_bytes(4, "little")

    def held(self, number: int) -> set[tuple[str, object]]:
        return {(held.kind, held.value) for state in self.flow.before[self.start + 4 * number] for held in state}


@pytest.mark.parametrize("way", ["mutex_lock", "veneer"])
def test_call_takes_a_lock_and_another_gives_it_back(way: str) -> None:
    code = Code(MOV_X0_LOCK, f"bl {way}", NOP, MOV_X0_LOCK, "bl mutex_unlock", RET)
    assert code.held(2) == {("mutex", Number(LOCK))}
    assert code.held(5) == set()
    assert list(code.flow.leaks()) == []


def test_argument_of_the_function_is_the_lock() -> None:
    assert Code("bl mutex_lock", RET).held(1) == {("mutex", Entry("x0"))}


def test_lock_that_can_be_interrupted_is_held_where_it_was_got() -> None:
    # mov w1, w0 is what asks: cbnz w1
    code = Code(MOV_X0_LOCK, "bl mutex_lock_interruptible", 0x2A0003E1, "cbnz 2", NOP, RET)
    assert code.held(4) == {("mutex", Number(LOCK))}


def test_inlined_spinlock_is_held_behind_its_fast_path() -> None:
    code = Code(*FAST_PATH, "cbnz 3", NOP, RET, NOP, RET)
    assert code.held(5) == {("spinlock", Number(LOCK))}
    assert code.held(7) == set()


def test_inlined_spinlock_is_held_behind_its_slow_path() -> None:
    code = Code(*FAST_PATH, "cbnz 3", STLRB, RET, MOV_X0_LOCK, "bl queued_spin_lock_slowpath", RET)
    assert code.held(9) == {("spinlock", Number(LOCK))}
    ((held, end, gives_back),) = list(code.flow.leaks())
    assert (held.kind, end, gives_back) == ("spinlock", code.start + 36, True)


def test_store_of_zero_gives_an_inlined_spinlock_back() -> None:
    code = Code(*FAST_PATH, "cbnz 3", STLRB, RET, NOP, RET)
    assert code.held(6) == set()
    assert list(code.flow.leaks()) == []


def test_inlined_spinlock_is_taken_by_an_exclusive_store_too() -> None:
    # mov w2, #1; mov x4, #0x1000; ldaxr w1, [x4]; eor w3, w1, w0; cbnz w3, +12; stxr w3, w2, [x4]; cbnz w3, -16
    exclusive = (0x52800022, 0xD2820004, 0x885FFC81, 0x4A000023, 0x35000063, 0x88037C82, 0x35FFFF83)
    assert Code(*exclusive, NOP, RET).held(7) == {("spinlock", Number(LOCK))}
