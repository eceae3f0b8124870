"""Following code: what is where at an instruction."""

from __future__ import annotations

from typing import cast

import pytest

from postpanic.analysis.stacks.arguments.flow import CodeFlow, FunctionFlow
from postpanic.analysis.stacks.arguments.recover import Certainty, Recovery
from postpanic.analysis.stacks.arguments.state import (
    Added,
    Defined,
    Doubtful,
    Entry,
    FrameAddress,
    Loaded,
    Low,
    Number,
    State,
)
from postpanic.analysis.stacks.code_index import CodeIndex
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.stacks.words import Words
from postpanic.kernel.memory import KernelMemory
from tests.unit.analysis.stacks.machine import TASK, Kernel

RET = "c3"
CALL_OTHER = "e8"


class Followed:
    """Code of one function, followed."""

    def __init__(self, *lines: str) -> None:
        self.kernel = Kernel({"function": None, "other": None})
        self.start = self.kernel.code.start("function")
        self.vaddrs: list[int] = []
        code = b""
        for line in lines:
            self.vaddrs.append(self.start + len(code))
            if line == CALL_OTHER:
                relative = self.kernel.code.start("other") - (self.start + len(code) + 5)
                code += b"\xe8" + relative.to_bytes(4, "little", signed=True)
            else:
                code += bytes.fromhex(line)
        self.kernel.memory.write(self.start, code.ljust(0x100, b"\xcc"))
        memory, index = cast("KernelMemory", self.kernel.memory), cast("CodeIndex", self.kernel.code)
        self.flows = CodeFlow(memory, index)
        place = self.kernel.code.find(self.start)
        assert place is not None
        flow = self.flows.find(place)
        assert flow is not None
        self.flow: FunctionFlow = flow

    def before(self, line: int) -> State:
        state = self.flow.before(self.vaddrs[line])
        assert state is not None
        return state


def test_arguments_are_in_their_registers_at_first() -> None:
    state = Followed(RET).before(0)
    assert state["rdi"] == Entry("rdi")
    assert state["rsp"] == FrameAddress(-8)
    assert state[0] == Entry("stack0")


def test_pushes_and_copies_are_followed() -> None:
    # push %rbx; sub $16,%rsp; mov %rdi,%rbx; mov %rsi,8(%rsp); mov %edx,%r12d; ret
    state = Followed("53", "4883ec10", "4889fb", "4889742408", "4189d4", RET).before(5)
    assert state["rsp"] == FrameAddress(-32)
    assert state[-16] == Entry("rbx")
    assert state["rbx"] == Entry("rdi")
    assert state[-24] == Entry("rsi")
    assert state["r12"] == Low(Entry("rdx"), 4)


def test_a_frame_pointer_is_an_address_on_the_stack() -> None:
    # push %rbp; mov %rsp,%rbp; mov %rdi,-8(%rbp); leave; ret
    followed = Followed("55", "4889e5", "48897df8", "c9", RET)
    assert followed.before(3)["rbp"] == FrameAddress(-16)
    assert followed.before(3)[-24] == Entry("rdi")
    assert followed.before(4)["rbp"] == Entry("rbp")
    assert followed.before(4)["rsp"] == FrameAddress(-8)
    assert followed.flow.taken == set()


def test_a_call_leaves_what_callees_must_keep() -> None:
    # mov %rdi,%rbx; call other; ret
    state = Followed("4889fb", CALL_OTHER, RET).before(2)
    assert state["rbx"] == Entry("rdi")
    assert "rdi" not in state
    assert isinstance(state["rax"], Defined)


def test_two_ways_that_disagree_leave_nothing() -> None:
    # mov %rdi,%rbx; test %rsi,%rsi; je 1f; mov %rsi,%rbx; mov %rsi,%r12; 1: ret
    state = Followed("4889fb", "4885f6", "7406", "4889f3", "4989f4", RET).before(5)
    assert "rbx" not in state
    assert "r12" not in state
    assert state["rdi"] == Entry("rdi")


def test_what_a_loop_makes_again_is_not_what_it_made_before() -> None:
    # mov 8(%rdi),%rax; mov %rax,%rbx; test; jne back; ret
    followed = Followed("488b4708", "4889c3", "4885c0", "75f4", RET)
    state = followed.before(4)
    assert state["rax"] == state["rbx"] == Loaded(Added(Entry("rdi"), 8), 8, followed.vaddrs[0])
    # mov %rax,%rbx; mov 8(%rdi),%rax; jne back; ret: rbx has the one of the round before.
    again = Followed("4889c3", "488b4708", "75f7", RET).before(3)
    assert "rbx" not in again or again["rbx"] != again["rax"]


def test_a_pointer_that_is_followed_in_a_loop_stays_unknown() -> None:
    # mov (%rdi),%rdi; test %rdi,%rdi; jne back; ret
    state = Followed("488b3f", "4885ff", "75f8", RET).before(3)
    assert not isinstance(state.get("rdi"), Entry)


def test_constants_and_sums() -> None:
    # mov $5,%esi; xor %edx,%edx; lea 0x10(%rdi),%rbx; sub $8,%rbx; ret
    state = Followed("be05000000", "31d2", "488d5f10", "4883eb08", RET).before(4)
    assert state["rsi"] == Number(5)
    assert state["rdx"] == Number(0)
    assert state["rbx"] == Added(Entry("rdi"), 8)


def test_a_slot_whose_address_is_passed_on_is_not_believed() -> None:
    # sub $24,%rsp; movq $0,(%rsp); mov %rsi,8(%rsp); mov %rsp,%rdi; call other; ret
    followed = Followed("4883ec18", "48c7042400000000", "4889742408", "4889e7", CALL_OTHER, RET)
    assert followed.flow.taken == {-32}
    state = followed.before(5)
    assert -32 not in state
    assert state[-24] == Doubtful(Entry("rsi"))


def test_saved_registers_are_believed_nevertheless() -> None:
    # push %rbx; sub $16,%rsp; mov %rsp,%rdi; call other; ret
    followed = Followed("53", "4883ec10", "4889e7", CALL_OTHER, RET)
    assert followed.flow.pushed == {-16}
    assert followed.before(4)[-16] == Entry("rbx")


def test_a_write_of_part_of_a_slot_or_register_changes_it() -> None:
    # sub $16,%rsp; mov %rdi,8(%rsp); movl $1,0xc(%rsp); mov %rsi,%rbx; mov $1,%bl; ret
    state = Followed("4883ec10", "48897c2408", "c744240c01000000", "4889f3", "b301", RET).before(5)
    assert -16 not in state
    assert state["rbx"] != Entry("rsi")


def test_a_jump_to_anywhere_leaves_doubts() -> None:
    followed = Followed("ffe0", RET)
    assert not followed.flow.is_certain
    assert followed.flow.before(followed.vaddrs[1]) is None


def test_an_instruction_that_is_not_known_forgets_what_it_writes() -> None:
    # mov %rdi,%rbx; imul %rsi,%rbx; cmovne %rsi,%rdi; ret
    state = Followed("4889fb", "480fafde", "480f45fe", RET).before(3)
    assert isinstance(state["rbx"], Defined)
    assert isinstance(state["rdi"], Defined)
    assert state["rsi"] == Entry("rsi")


class Called:
    """Two functions, the outer of which calls the inner."""

    def __init__(self, outer: list[str], inner: list[str], frame_bytes: tuple[int, int]) -> None:
        self.kernel = Kernel({"outer": None, "inner": None})
        code = self.kernel.code
        self.returns = []
        for name, lines in (("outer", outer), ("inner", inner)):
            data = b""
            for line in lines:
                if line == CALL_OTHER:
                    relative = code.start("inner") - (code.start(name) + len(data) + 5)
                    data += b"\xe8" + relative.to_bytes(4, "little", signed=True)
                    self.returns.append(code.start(name) + len(data))
                else:
                    data += bytes.fromhex(line)
            self.kernel.memory.write(code.start(name), data.ljust(0x100, b"\xcc"))
        self.inner_sp = TASK.end - 0x400
        self.outer_sp = self.inner_sp + frame_bytes[0]
        self.frame_bytes = frame_bytes

    def recover(self, **registers: int) -> Recovery:
        code = self.kernel.code
        outer, inner = self.returns[0], code.start("inner") + 0x80
        self.kernel.memory.write(inner - 5, bytes.fromhex("e800000000"))
        inner = self.returns[1] if len(self.returns) > 1 else inner
        top = self.outer_sp + self.frame_bytes[1]
        frames = [
            Frame(inner, self.inner_sp, 0, code.find_caller(inner), area=TASK),
            Frame(outer, self.outer_sp, 0, code.find_caller(outer), area=TASK),
            Frame(code.start("outer") + 1, top, 0, None, area=TASK),
        ]
        memory, index = cast("KernelMemory", self.kernel.memory), cast("CodeIndex", self.kernel.code)
        return Recovery(Words(memory), index, CodeFlow(memory, index), Trace(frames), registers)


PUSH_RBX, SUB_16, CALL = "53", "4883ec10", CALL_OTHER


def test_an_argument_in_a_register_that_the_callee_saved() -> None:
    # outer: push %rbx; mov %rdi,%rbx; call inner. inner: push %rbx; xor %ebx,%ebx; call inner
    called = Called([PUSH_RBX, "4889fb", CALL, RET], [PUSH_RBX, "31db", CALL, RET], (16, 16))
    called.kernel.put(called.inner_sp, 0xABCD)
    found = called.recover(rbx=0).argument(1, "rdi")
    assert found is not None
    assert (found.value, found.certainty) == (0xABCD, Certainty.PROVEN)
    assert "outer keeps it in rbx" in found.reason
    assert "where inner put it" in found.reason


def test_an_argument_that_the_caller_still_has() -> None:
    # outer: push %rbx; mov %rsi,%rbx; lea 8(%rbx),%rdi; mov $7,%esi; call inner. inner: sub $8,%rsp; call inner
    called = Called([PUSH_RBX, "4889f3", "488d7b08", "be07000000", CALL, RET], ["4883ec08", CALL, RET], (16, 16))
    recovery = called.recover(rbx=0x1000)
    first, second = recovery.argument(0, "rdi"), recovery.argument(0, "rsi")
    assert first is not None
    assert (first.value, first.certainty) == (0x1008, Certainty.PROVEN)
    assert second is not None
    assert (second.value, second.reason) == (7, "constant in outer")
    assert recovery.argument(0, "rdx") is None


def test_what_is_read_again_is_only_likely() -> None:
    # outer: push %rbx; mov %rsi,%rbx; mov 8(%rbx),%rdi; call inner. inner: sub $8,%rsp; call inner
    called = Called([PUSH_RBX, "4889f3", "488b7b08", CALL, RET], ["4883ec08", CALL, RET], (16, 16))
    called.kernel.put(TASK.start + 8, 0x5555)
    found = called.recover(rbx=TASK.start).argument(0, "rdi")
    assert found is not None
    assert (found.value, found.certainty) == (0x5555, Certainty.LIKELY)
    assert "may have changed since" in found.reason


def test_code_that_does_not_agree_with_the_stack_is_not_believed() -> None:
    # outer's frame is said to be 40 bytes, and its code makes one of 16.
    called = Called([PUSH_RBX, "4889fb", CALL, RET], ["4883ec08", CALL, RET], (16, 40))
    recovery = called.recover(rbx=0x1234)
    assert recovery.argument(1, "rdi") is None


@pytest.mark.parametrize("register", ["rdx", "rcx"])
def test_what_nobody_kept_is_not_made_up(register: str) -> None:
    called = Called([PUSH_RBX, "4889fb", CALL, RET], ["4883ec08", CALL, RET], (16, 16))
    assert called.recover(rbx=0x1234).kept(0, register) is None
    assert called.recover(rbx=0x1234).argument(0, register) is None
