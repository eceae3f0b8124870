"""A frame is only said to be known where prologue and epilogue agree."""

from __future__ import annotations

import pytest

from postpanic.kernel.prologue import decode_frame_layout

RBX, RBP, R12 = 3, 6, 12


def code(text: str) -> bytes:
    return bytes.fromhex(text)


def test_pushes_and_allocation_are_followed_through_both_ends() -> None:
    # endbr64; push %rbp; push %r12; xor %eax,%eax; sub $0xb0,%rsp; nop...; add $0xb0,%rsp; pop %r12; pop %rbp; ret; ud2
    function = code("f30f1efa 55 4154 31c0 4881ecb0000000 90909090 4881c4b0000000 415c 5d c3 0f0b")
    layout = decode_frame_layout(function)
    assert layout is not None
    body = layout.at(20)
    assert body.cfa_offset == 8 + 16 + 0xB0
    assert dict(body.saved) == {RBP: 16, R12: 24}
    assert layout.at(0).cfa_offset == 8
    assert layout.at(5).cfa_offset == 16
    assert layout.at(27).cfa_offset == 24
    assert layout.at(29).cfa_offset == 16
    assert dict(layout.at(29).saved) == {RBP: 16}
    assert layout.at(30).cfa_offset == 8
    # Behind the return the body's frame holds again.
    assert layout.at(31) == layout.at(20).__class__(31, body.cfa_offset, body.saved)


def test_return_thunk_counts_as_a_return() -> None:
    layout = decode_frame_layout(code("53 4883ec10 9090 4883c410 5b e900000000"))
    assert layout is not None
    assert layout.at(6).cfa_offset == 8 + 8 + 16
    assert dict(layout.at(6).saved) == {RBX: 16}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c3",
        "4883ec10",
        "4883ec10 9090 4883c418 c3",  # another size is given back
        "4883ec10 9090 4883c410 90",  # no return follows
        "4883ec10 9090 4883c410 5b c3",  # popped and never pushed
        "4883ec11 9090 4883c411 c3",  # no stack is aligned so
        "53 4883ec10 4883c410 5b c3 4883c410 c3",  # two ends that disagree
        "4881ec00000000 4881c400000000 c3",
    ],
)
def test_nothing_is_said_where_it_is_not_certain(text: str) -> None:
    assert decode_frame_layout(code(text)) is None
