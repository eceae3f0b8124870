"""Swap entries of page tables (``arch/x86/include/asm/pgtable_64.h``)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.filesystems.paths import inode_type
from postpanic.analysis.processes.user_pages import decode_swap_entry


def encode(type_: int, offset: int) -> int:
    """``__swp_entry(type, offset)``: ``(~(offset) << SWP_OFFSET_SHIFT >> SWP_TYPE_BITS) | (type << 59)``."""
    return ((~offset << 14) & (1 << 64) - 1) >> 5 | type_ << 59


@given(st.integers(0, 31), st.integers(0, (1 << 50) - 1))
def test_swap_entries(type_: int, offset: int) -> None:
    assert decode_swap_entry("x86_64", encode(type_, offset)) == (type_, offset)


def test_flags_in_the_low_bits_do_not_matter() -> None:
    # Soft-dirty, exclusive and userfaultfd are kept in bits 1 to 3.
    assert decode_swap_entry("x86_64", encode(3, 4711) | 0b1110) == (3, 4711)


def test_other_machines_are_not_guessed() -> None:
    assert decode_swap_entry("aarch64", 0x1234) is None


def test_types_of_inodes() -> None:
    kinds = {0o100644: "REG", 0o040755: "DIR", 0o020600: "CHR", 0o060600: "BLK", 0o010600: "FIFO", 0o140777: "SOCK"}
    assert {mode: inode_type(mode) for mode in kinds} == kinds
    assert (inode_type(0o120777), inode_type(0o600)) == ("LNK", "UNKN")
