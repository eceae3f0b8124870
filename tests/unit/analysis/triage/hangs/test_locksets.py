"""Which locks made-up machine code holds where."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from postpanic.analysis.stacks.arguments.flow import CodeFlow
from postpanic.analysis.stacks.arguments.state import Added, Entry, Number
from postpanic.analysis.stacks.code_index import CodeIndex, Place
from postpanic.analysis.triage.hangs.locksets import LockFlow, LockReader, classify_call
from postpanic.kernel.memory import KernelMemory
from tests.unit.analysis.stacks.machine import Kernel

NAMES = (
    *("function", "mutex_lock", "mutex_unlock", "mutex_lock_interruptible", "mutex_trylock"),
    *("_raw_spin_lock", "_raw_spin_unlock", "other", "__x86_return_thunk", "down_trylock", "up"),
)
RET = "c3"
LOCK = 0x1000
LOAD_LOCK = "48c7c700100000"  # mov $0x1000,%rdi


class _InModule:
    """The same code, where two functions belong to a module."""

    def __init__(self, kernel: Kernel) -> None:
        self._code = kernel.code

    def find(self, pc: int) -> Place | None:
        place = self._code.find(pc)
        if place is None or place.function not in {"function", "other"}:
            return place
        return replace(place, module="widget")


class Code:
    """One function whose calls are given by name, and ``je``/``jne``/``jmp`` by the line that they lead to."""

    def __init__(self, *lines: str, wrapper: tuple[str, ...] = ()) -> None:
        self.kernel = Kernel(dict.fromkeys(NAMES))
        if wrapper:
            self._write("other", wrapper)
        self._write("function", lines)
        index = cast("CodeIndex", _InModule(self.kernel) if wrapper else self.kernel.code)
        self.reader = LockReader(CodeFlow(cast("KernelMemory", self.kernel.memory), index), index)
        place = index.find(self.start)
        assert place is not None
        self.place = place
        found = self.reader.find(place)
        assert found is not None
        self.flow: LockFlow = found

    def _write(self, name: str, lines: tuple[str, ...]) -> None:
        self.start = self.kernel.code.start(name)
        sizes = [self._size(line) for line in lines]
        self.vaddrs = [self.start + sum(sizes[:number]) for number in range(len(lines))]
        code = b"".join(self._encode(line, vaddr) for line, vaddr in zip(lines, self.vaddrs, strict=True))
        self.kernel.memory.write(self.start, code.ljust(0x100, b"\xcc"))

    def _size(self, line: str) -> int:
        verb = line.partition(" ")[0]
        return {"call": 5, "tail": 5, "je": 2, "jne": 2, "jmp": 2}.get(verb) or len(bytes.fromhex(line))

    def _encode(self, line: str, vaddr: int) -> bytes:
        verb, _, target = line.partition(" ")
        if verb in {"call", "tail"}:
            relative = self.kernel.code.start(target) - (vaddr + 5)
            return (b"\xe8" if verb == "call" else b"\xe9") + relative.to_bytes(4, "little", signed=True)
        if verb in {"je", "jne", "jmp"}:
            relative = self.vaddrs[int(target)] - (vaddr + 2)
            return {"je": b"\x74", "jne": b"\x75", "jmp": b"\xeb"}[verb] + relative.to_bytes(1, "little", signed=True)
        return bytes.fromhex(line)

    def held(self, line: int) -> set[str]:
        return {held.kind for held in self.reader.held_at(self.place, self.vaddrs[line], is_return=False)}

    def leaks(self) -> list[tuple[str, bool]]:
        return [(held.kind, is_partial) for held, _, is_partial in self.flow.leaks()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mutex_lock", ("take", "mutex", "")),
        ("mutex_lock_killable_nested", ("take", "mutex", "zero")),
        ("mutex_unlock", ("release", "mutex", "")),
        ("down_read_trylock", ("take", "rwsem", "other")),
        ("down_trylock", ("take", "semaphore", "zero")),
        ("down", ("take", "semaphore", "")),
        ("up_write", ("release", "rwsem", "")),
        ("_raw_spin_lock_irqsave", ("take", "spinlock", "")),
        ("_raw_spin_trylock_bh", ("take", "spinlock", "other")),
        ("_raw_write_unlock_irq", ("release", "rwlock", "")),
        ("kfree", ("", "", "")),
        ("update_load_avg", ("", "", "")),
    ],
)
def test_calls_are_told_by_their_names(name: str, expected: tuple[str, str, str]) -> None:
    assert classify_call(name) == expected


def test_a_lock_is_held_between_its_calls() -> None:
    code = Code(LOAD_LOCK, "call mutex_lock", "call other", LOAD_LOCK, "call mutex_unlock", RET)
    assert [code.held(line) for line in range(6)] == [set(), set(), {"mutex"}, {"mutex"}, {"mutex"}, set()]
    assert code.leaks() == []


def test_an_early_return_leaks() -> None:
    # test %eax,%eax on the way: one branch returns with the lock, the other gives it back.
    code = Code(LOAD_LOCK, "call mutex_lock", "85f6", "je 6", LOAD_LOCK, "call mutex_unlock", RET)
    assert code.leaks() == [("mutex", True)]
    ((held, end, _),) = code.flow.leaks()
    assert (held.value, end) == (Number(LOCK), code.vaddrs[6])


def test_a_wrapper_that_keeps_the_lock_is_told_from_a_leak_on_some_ways() -> None:
    assert Code(LOAD_LOCK, "call mutex_lock", RET).leaks() == [("mutex", False)]


def test_a_jump_to_the_release_at_the_end_releases() -> None:
    assert Code(LOAD_LOCK, "call mutex_lock", LOAD_LOCK, "tail mutex_unlock").leaks() == []


def test_a_jump_to_the_return_thunk_is_a_return() -> None:
    assert Code(LOAD_LOCK, "call mutex_lock", "tail __x86_return_thunk").leaks() == [("mutex", False)]


def test_an_interrupted_attempt_does_not_hold() -> None:
    # test %eax,%eax; jne: returns without the lock; else it is released.
    code = Code(
        LOAD_LOCK, "call mutex_lock_interruptible", "85c0", "jne 7", "call other", LOAD_LOCK, "call mutex_unlock", RET
    )
    assert code.held(4) == {"mutex"}
    assert code.leaks() == []


def test_a_failed_trylock_does_not_hold() -> None:
    code = Code(LOAD_LOCK, "call mutex_trylock", "85c0", "je 7", "call other", LOAD_LOCK, "call mutex_unlock", RET)
    assert code.held(4) == {"mutex"}
    assert code.leaks() == []


def test_a_semaphore_that_down_trylock_got_is_held_at_zero() -> None:
    code = Code(LOAD_LOCK, "call down_trylock", "85c0", "jne 5", "call other", RET)
    assert code.held(4) == {"semaphore"}


def test_locks_in_objects_are_told_apart_by_their_offsets() -> None:
    # mov %rdi,%rbx; lea 8(%rbx),%rdi; lock; lea 0x20(%rbx),%rdi; lock; lea 0x20(%rbx),%rdi; unlock; ret
    code = Code(
        "4889fb",
        *("488d7b08", "call mutex_lock", "488d7b20", "call _raw_spin_lock"),
        *("488d7b20", "call _raw_spin_unlock", RET),
    )
    ((held, _, _),) = code.flow.leaks()
    assert (held.kind, held.value) == ("mutex", Added(Entry("rdi"), 8))


def test_a_store_of_zero_releases_a_spinlock() -> None:
    # movb $0,0x1000
    code = Code(LOAD_LOCK, "call _raw_spin_lock", "c604250010000000", RET)
    assert code.leaks() == []


def test_a_loop_comes_to_an_end() -> None:
    code = Code(LOAD_LOCK, "call mutex_lock", "85f6", "je 0", RET)
    assert ("mutex", False) in code.leaks()


def test_a_function_that_takes_the_lock_for_its_caller_is_like_the_lock_itself() -> None:
    # The wrapper: mutex_lock(8 + its argument).
    code = Code("4889f7", "call other", RET, wrapper=("4883c708", "call mutex_lock", RET))
    assert code.held(2) == {"mutex"}
    ((held, _, _),) = code.flow.leaks()
    assert held.value == Added(Entry("rsi"), 8)


def test_a_function_that_releases_for_its_caller_releases() -> None:
    code = Code(LOAD_LOCK, "call mutex_lock", LOAD_LOCK, "call other", RET, wrapper=("call mutex_unlock", RET))
    assert code.leaks() == []


def test_a_function_of_the_kernel_is_not_followed() -> None:
    assert Code(LOAD_LOCK, "call other", RET).leaks() == []
