"""The bits of page table entries, against the kernel's own way of making them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from postpanic.analysis.memory.entries import NOT_VALID, decode_page_entry
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import EntryKind
from tests.unit.kernel.memories import open_x86_kernel


@pytest.fixture(scope="module")
def memory() -> KernelMemory:
    return open_x86_kernel()


def swap_entry(kind: int, offset: int) -> int:
    """Make an entry as ``__swp_entry()`` of ``arch/x86/include/asm/pgtable_64.h`` does."""
    return ((~offset << 14 & (1 << 64) - 1) >> 5 | kind << 59) & (1 << 64) - 1


@pytest.mark.parametrize(
    ("entry", "paddr", "flags"),
    [
        (0xD8E067, 0xD8E000, "PRESENT|RW|USER|ACCESSED|DIRTY"),
        (0x8000000001001063, 0x1001000, "PRESENT|RW|ACCESSED|DIRTY|NX"),
        (0x1000 | 1 | 1 << 3 | 1 << 4, 0x1000, "PRESENT|PWT|PCD"),
        (0x25 | 0x7000, 0x7000, "PRESENT|USER|ACCESSED"),
    ],
)
def test_present_entries(memory: KernelMemory, entry: int, paddr: int, flags: str) -> None:
    decoded = decode_page_entry(memory, entry)
    assert (decoded.paddr, "|".join(decoded.flags), decoded.swap) == (paddr, flags, None)


def test_a_page_that_must_not_be_touched_is_still_there(memory: KernelMemory) -> None:
    """PROT_NONE: not present, GLOBAL set, frame inverted (6b28baca9b1f)."""
    entry = (~0x123000 & 0x000F_FFFF_FFFF_F000) | 1 << 8 | 1 << 6
    decoded = decode_page_entry(memory, entry)
    assert decoded.paddr == 0x123000
    assert decoded.flags == ("DIRTY", "PROTNONE")


@pytest.mark.parametrize(("kind", "offset"), [(0, 1), (0, 0x1234), (3, 5), (27, (1 << 50) - 1)])
def test_swap_entries(memory: KernelMemory, kind: int, offset: int) -> None:
    decoded = decode_page_entry(memory, swap_entry(kind, offset))
    assert decoded.paddr is None
    assert decoded.swap is not None
    assert (decoded.swap.type, decoded.swap.offset) == (kind, offset)


def test_an_empty_entry_is_nothing(memory: KernelMemory) -> None:
    decoded = decode_page_entry(memory, 0)
    assert (decoded.paddr, decoded.flags, decoded.swap) == (None, (), None)


def decode_arm64_page(_level_index: int, entry: int) -> tuple[EntryKind, int]:
    return (EntryKind.LEAF, entry & 0xFFFF_FFFF_F000) if entry & 3 == 3 else (EntryKind.NONE, 0)


def open_arm64_kernel() -> KernelMemory:
    """Make a memory of which only the shape of its tables is asked."""
    tables = SimpleNamespace(levels=("pgd", "pud", "pmd", "pte"), decode_entry=decode_arm64_page)
    return cast("KernelMemory", SimpleNamespace(machine="aarch64", tables=tables))


PROTNONE = 0x123000 | 1 << 58 | 1 << 11 | 1 << 10 | 1 << 7
"""``PAGE_NONE`` of arm64, with the page, as it was before 6.11: ``arch/arm64/include/asm/pgtable-prot.h``."""


def test_a_page_that_must_not_be_touched_is_there_where_all_layouts_of_arm64_say_so() -> None:
    decoded = decode_page_entry(open_arm64_kernel(), PROTNONE)
    assert decoded.paddr == 0x123000
    assert "PROTNONE" in decoded.flags


@pytest.mark.parametrize("entry", [5 << 2 | 0x1234 << 8, 5 << 6 | 0x1234 << 12, 0x123000 | 1 << 11, 1 << 58 | 0x123000])
def test_where_the_layout_is_not_known_an_entry_may_have_a_page(entry: int) -> None:
    decoded = decode_page_entry(open_arm64_kernel(), entry)
    assert (decoded.paddr, decoded.flags, decoded.swap) == (None, (NOT_VALID,), None)


def test_an_empty_entry_of_arm64_is_nothing() -> None:
    decoded = decode_page_entry(open_arm64_kernel(), 0)
    assert (decoded.paddr, decoded.flags, decoded.swap) == (None, (), None)
