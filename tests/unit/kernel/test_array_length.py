"""An array has a length only where room, kernels and contents agree on one."""

from __future__ import annotations

import pytest

from postpanic.kernel.debuginfo.array_length import ArrayOffer, ElementKind, decide_length

VADDR = 0xFFFFFFFF82000000
POINTER = (0xFFFFFFFF81000000).to_bytes(8, "little")
NULL = bytes(8)


def offer(element_bytes: int, *lengths: int, kind: ElementKind = ElementKind.OTHER, witnesses: int = 1) -> ArrayOffer:
    return ArrayOffer(element_bytes, kind, lengths, witnesses)


def decide(told: ArrayOffer, contents: bytes | None, *, room: int | None = None, vaddr: int = VADDR) -> int:
    return decide_length(
        told, vaddr, room if room is not None else len(contents or b""), lambda _vaddr, _size: contents
    )


def test_room_that_leaves_one_length_decides_if_a_kernel_has_it() -> None:
    assert decide(offer(96, 3, 4), None, room=4 * 96) == 4
    assert decide(offer(96, 3, 5), None, room=4 * 96) == 0


def test_one_kernel_alone_is_not_believed_without_the_contents() -> None:
    assert decide(offer(4, 7), None, room=64) == 0
    assert decide(offer(4, 16, witnesses=2), None, room=64) == 16


def test_three_series_of_kernels_are_believed() -> None:
    assert decide(offer(4, 9, witnesses=3), bytes(64)) == 9


def test_length_behind_which_there_is_data_is_not_believed() -> None:
    assert decide(offer(4, 14, witnesses=2), b"\1" * 64) == 0


@pytest.mark.parametrize(
    ("length", "contents", "expected"),
    [
        pytest.param(3, POINTER * 2 + NULL + NULL, 3, id="one NULL ends the list"),
        pytest.param(4, POINTER * 2 + NULL + NULL, 0, id="a second NULL may be padding"),
        pytest.param(3, POINTER * 3 + NULL, 0, id="the padding may be the NULL"),
    ],
)
def test_list_of_pointers_ends_with_one_null(length: int, contents: bytes, expected: int) -> None:
    assert decide(offer(8, length, kind=ElementKind.POINTER, witnesses=2), contents, vaddr=VADDR) == expected


def test_text_that_differs_between_kernels_is_as_long_as_it_is() -> None:
    told = offer(1, 20, 25, kind=ElementKind.CHARACTER)
    assert decide(told, b"name: %d, flags: %x".ljust(32, b"\0")) == 20
    assert decide(told, b"two\0strings".ljust(32, b"\0")) == 0


def test_buffer_keeps_the_length_that_kernels_agree_on() -> None:
    told = offer(1, 32, kind=ElementKind.CHARACTER, witnesses=3)
    assert decide(told, b"performance".ljust(32, b"\0")) == 32


def test_length_larger_than_the_room_is_impossible() -> None:
    assert decide(offer(8, 100, witnesses=4), bytes(64)) == 0
