"""Swap entries of page tables, made as the kernel's headers do; what code tells of their layout."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.kernel.paging.swap import ARM64_LAYOUTS, X86_64_LAYOUT, SwapLayout, find_arm64_layout

OLDEST, EXCLUSIVE, NEWEST = ARM64_LAYOUTS
NOP = 0xD503201F
RET = 0xD65F03C0
offsets = st.integers(0, (1 << 50) - 1)


def encode_x86(type_: int, offset: int) -> int:
    """``__swp_entry(type, offset)``: ``(~(offset) << SWP_OFFSET_SHIFT >> SWP_TYPE_BITS) | (type << 59)``."""
    return ((~offset << 14) & (1 << 64) - 1) >> 5 | type_ << 59


@given(st.integers(0, 31), offsets, st.integers(0, 7))
def test_entries_of_x86(type_: int, offset: int, low: int) -> None:
    # Soft-dirty, exclusive and userfaultfd are kept in bits 1 to 3.
    assert X86_64_LAYOUT.decode(encode_x86(type_, offset) | low << 1) == (type_, offset)


@given(st.integers(0, 31), offsets)
def test_entries_of_arm64(type_: int, offset: int) -> None:
    """``__swp_entry()``: the type shifted, the offset shifted; the lowest bits but two are others'."""
    assert OLDEST.decode(type_ << 2 | offset << 8) == (type_, offset)
    assert EXCLUSIVE.decode(type_ << 3 | offset << 8 | 1 << 2) == (type_, offset)
    assert NEWEST.decode(type_ << 6 | offset << 12 | 0b1100) == (type_, offset)
    for layout in ARM64_LAYOUTS:
        assert not layout.is_kept(type_ << layout.type_shift | offset << layout.offset_shift)


@pytest.mark.parametrize(("layout", "bit"), [(OLDEST, 58), (EXCLUSIVE, 58), (EXCLUSIVE, 59), (NEWEST, 11)])
def test_pages_that_must_not_be_touched_are_there(layout: SwapLayout, bit: int) -> None:
    entry = 0x1234000 | 1 << bit
    assert layout.is_kept(entry)
    assert layout.restore(entry) == entry | 3
    # The hardware knows what to do with a valid one, whatever that bit is.
    assert not layout.is_kept(entry | 3)
    assert layout.restore(entry | 1) == entry | 1


def test_bits_of_one_layout_mean_nothing_in_another() -> None:
    assert not NEWEST.is_kept(0x1234000 | 1 << 58)
    assert not EXCLUSIVE.is_kept(0x1234000 | 1 << 11)


def take(target: int, source: int, low: int, count: int) -> int:
    """``ubfx xTARGET, xSOURCE, #low, #count``: UBFM with ``immr`` = low, ``imms`` = low + count - 1."""
    return 0xD3400000 | low << 16 | (low + count - 1) << 10 | source << 5 | target


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


@pytest.mark.parametrize("layout", ARM64_LAYOUTS)
def test_code_shows_the_layout(layout: SwapLayout) -> None:
    # lsr is the same with all bits above.
    shift = take(0, 19, layout.type_shift, 64 - layout.type_shift)
    pair = code(NOP, shift, NOP, take(19, 19, layout.offset_shift, 50), RET)
    assert find_arm64_layout([code(NOP, RET), pair, pair]) == layout
    turned = code(take(1, 5, layout.offset_shift, 50), take(0, 5, layout.type_shift, layout.type_bits), RET)
    assert find_arm64_layout([turned]) == layout


def test_code_that_does_not_tell_gives_none() -> None:
    assert find_arm64_layout([]) is None
    assert find_arm64_layout([code(NOP, RET), b"", b"\x01"]) is None
    # Another register, too far away, an offset alone, a type that no kernel has.
    assert find_arm64_layout([code(take(0, 18, 3, 61), take(19, 19, 8, 50))]) is None
    assert find_arm64_layout([code(take(0, 19, 3, 61), *[NOP] * 8, take(19, 19, 8, 50))]) is None
    assert find_arm64_layout([code(take(19, 19, 8, 50))]) is None
    assert find_arm64_layout([code(take(0, 19, 4, 60), take(19, 19, 8, 50))]) is None


def test_code_that_contradicts_itself_gives_none() -> None:
    first = code(take(0, 19, 3, 61), take(19, 19, 8, 50))
    second = code(take(0, 19, 6, 58), take(19, 19, 12, 50))
    assert find_arm64_layout([first, second]) is None
