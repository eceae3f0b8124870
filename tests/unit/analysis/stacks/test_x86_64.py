"""What is read off words and bytes of x86-64."""

from __future__ import annotations

import numpy as np
import pytest

from postpanic.analysis.stacks.x86_64 import (
    PT_REGS_BYTES,
    REGISTER_NAMES,
    decode_registers,
    ends_with_call,
    find_entry_frames,
    is_user_mode,
)

KERNEL = {"rip": 0xFFFFFFFF81000010, "cs": 0x10, "rflags": 0x246, "rsp": 0xFFFFC90000013F00, "ss": 0x18}
USER = {"rip": 0x401000, "cs": 0x33, "rflags": 0x202, "rsp": 0x7FFC00000000, "ss": 0x2B}


def words_of(registers: dict[str, int], lead: int = 3) -> np.ndarray:
    values = [0] * lead + [registers.get(name, 0) for name in REGISTER_NAMES] + [0, 0]
    return np.array(values, dtype=np.uint64)


def search(registers: dict[str, int]) -> list[int]:
    words = words_of(registers)
    return find_entry_frames(words, words == KERNEL["rip"])


@pytest.mark.parametrize("registers", [KERNEL, USER, KERNEL | {"ss": 0}, USER | {"cs": 0x23}])
def test_entry_frames_are_found(registers: dict[str, int]) -> None:
    assert search(registers) == [3]


@pytest.mark.parametrize(
    "changed",
    [
        KERNEL | {"rip": 0xFFFFFFFF82000000},
        KERNEL | {"rflags": 0x244},
        KERNEL | {"rflags": 0x8246},
        KERNEL | {"rsp": 0x7FFC00000000},
        USER | {"rip": 0xFFFFFFFF81000010},
        USER | {"ss": 0x18},
        USER | {"cs": 0x10},
    ],
)
def test_what_cannot_be_one_is_not(changed: dict[str, int]) -> None:
    assert search(changed) == []


def test_too_few_words_have_no_entry_frame() -> None:
    assert find_entry_frames(np.zeros(20, dtype=np.uint64), np.zeros(20, dtype=np.bool_)) == []


def test_registers_are_decoded_by_name() -> None:
    data = words_of(USER, lead=0)[: len(REGISTER_NAMES)].tobytes()
    assert len(data) == PT_REGS_BYTES
    registers = decode_registers(data)
    assert registers["rip"] == USER["rip"]
    assert is_user_mode(registers)
    # What the processor pushes by itself is the end of it.
    assert decode_registers(data[-40:]) == USER


@pytest.mark.parametrize(
    ("code", "is_call"),
    [
        ("9090e8aabbccdd", True),  # call rel32
        ("9090909090ffd0", True),  # call *%rax
        ("90909041ffd3ff", False),
        ("909090ff5708ff", False),
        ("90909090ff5708", True),  # call *8(%rdi)
        ("90ff9780000000", True),  # call *0x80(%rdi)
        ("ff14c500000000", True),  # call *table(,%rax,8)
        ("90909090909090", False),
        ("909090909090e8", False),
        ("9090909090ffe0", False),  # jmp *%rax
    ],
)
def test_a_return_address_is_behind_a_call(code: str, *, is_call: bool) -> None:
    assert ends_with_call(bytes.fromhex(code)) is is_call


def test_too_little_code_is_no_call() -> None:
    assert not ends_with_call(bytes.fromhex("e800000000"))
