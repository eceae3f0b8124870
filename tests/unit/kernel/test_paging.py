from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps.memory import PageState
from postpanic.errors import CorruptError, TranslationError
from postpanic.kernel.paging.aarch64 import Arm64PageTables
from postpanic.kernel.paging.tables import NOT_MAPPED, EntryKind, PageTables
from postpanic.kernel.paging.x86_64 import X86PageTables
from postpanic.units import PhysAddr, VirtAddr
from tests.builders.page_tables import GLOBAL, PSE, P, PageTableBuilder
from tests.unit.kernel.memories import DictDump

TABLES = 0x100000
MIB, GIB = 1 << 20, 1 << 30

ARM_GEOMETRIES = [
    pytest.param(12, 39, "", 3, id="4K-39"),
    pytest.param(12, 48, "", 4, id="4K-48"),
    pytest.param(12, 52, "lpa2", 5, id="4K-52-lpa2"),
    pytest.param(14, 36, "", 2, id="16K-36"),
    pytest.param(14, 47, "", 3, id="16K-47"),
    pytest.param(14, 48, "", 4, id="16K-48"),
    pytest.param(14, 52, "lpa2", 4, id="16K-52-lpa2"),
    pytest.param(16, 42, "lpa", 2, id="64K-42"),
    pytest.param(16, 48, "lpa", 3, id="64K-48"),
    pytest.param(16, 52, "lpa", 3, id="64K-52"),
]


def _load(builder: PageTableBuilder) -> DictDump:
    dump = DictDump(page_size=1 << builder.page_shift)
    for paddr, page in builder.pages().items():
        dump.write(paddr, page)
    return dump


def _x86(builder: PageTableBuilder, *, encryption_mask: int = 0) -> X86PageTables:
    return X86PageTables(
        _load(builder), PhysAddr(builder.root_paddr), level_count=builder.levels, encryption_mask=encryption_mask
    )


def _arm(builder: PageTableBuilder) -> Arm64PageTables:
    return Arm64PageTables(
        _load(builder), PhysAddr(builder.root_paddr), page_shift=builder.page_shift, va_bits=builder.va_bits
    )


def _assert_translates(tables: PageTables, vaddr: int, paddr: int) -> None:
    """Both ways of translating must agree."""
    assert tables.translate(VirtAddr(vaddr)) == paddr
    page = (1 << tables.page_shift) - 1
    assert tables.translate_pages(VirtAddr(vaddr), 1).tolist() == [paddr & ~page]


@pytest.mark.parametrize(("va_bits", "base"), [(48, 0xFFFF888000000000), (57, 0xFF11000000000000)])
@pytest.mark.parametrize(("leaf_level", "size"), [(0, 4096), (1, 2 * MIB), (2, GIB)])
def test_x86_pages_of_every_size_translate(va_bits: int, base: int, leaf_level: int, size: int) -> None:
    builder = PageTableBuilder("x86", va_bits=va_bits, tables_paddr=TABLES)
    builder.map(base + size, 3 * size, leaf_level=leaf_level)
    tables = _x86(builder)
    assert tables.va_bits == va_bits
    _assert_translates(tables, base + size, 3 * size)
    _assert_translates(tables, base + 2 * size - 1, 4 * size - 1)
    for unmapped in (base, base + 2 * size):
        with pytest.raises(TranslationError, match="is not present"):
            tables.translate(VirtAddr(unmapped))


def test_x86_large_page_attribute_bit_is_no_part_of_the_address() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0xFFFF888000000000, 6 * MIB, leaf_level=1, flags=1 << 12)
    _assert_translates(_x86(builder), 0xFFFF888000001234, 6 * MIB + 0x1234)


def test_x86_encryption_bit_is_no_part_of_the_address() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    mask = 1 << 51
    builder.map(0xFFFFC90000000000, 0x5000, flags=mask)
    builder.set_entry(
        0xFFFFC90000000000, 1, builder.entries[builder.slot(TABLES + 0x2000, 0xFFFFC90000000000, 1)] | mask
    )
    _assert_translates(_x86(builder, encryption_mask=mask), 0xFFFFC90000000000, 0x5000)


def test_x86_page_without_access_has_its_frame_inverted() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0x7F0000000000, 0)
    builder.set_entry(0x7F0000000000, 0, (~0x1234000 & 0x000FFFFFFFFFF000) | GLOBAL)
    _assert_translates(_x86(builder), 0x7F0000000000, 0x1234000)


@pytest.mark.parametrize("entry", [0, 0x1234000, 0x60 | 5 << 59, PSE])
def test_x86_entry_that_is_not_present_is_not_mapped(entry: int) -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0x7F0000000000, 0x9000)
    builder.set_entry(0x7F0000000000, 0, entry)
    tables = _x86(builder)
    walk = tables.walk(VirtAddr(0x7F0000000000))
    assert walk.paddr is None
    assert walk.steps[-1].entry == entry
    assert walk.steps[-1].kind is EntryKind.NONE
    assert tables.translate_pages(VirtAddr(0x7F0000000000), 1).tolist() == [NOT_MAPPED]


@pytest.mark.parametrize("vaddr", [0x0000800000000000, 0xFFFF7FFFFFFFFFFF, 1 << 62])
def test_x86_address_that_is_not_canonical_is_not_mapped(vaddr: int) -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0x7F0000000000, 0x9000)
    with pytest.raises(TranslationError, match="not an address of 48 bits"):
        _x86(builder).translate(VirtAddr(vaddr))


def test_walk_gives_each_entry_and_where_it_lies() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0xFFFFC90000003000, 0x5000)
    walk = _x86(builder).walk(VirtAddr(0xFFFFC90000003010))
    assert [step.level for step in walk.steps] == ["PGD", "PUD", "PMD", "PTE"]
    assert [step.entry_paddr for step in walk.steps] == [
        TABLES + 8 * 402,
        TABLES + 0x1000,
        TABLES + 0x2000,
        TABLES + 0x3000 + 8 * 3,
    ]
    assert walk.steps[-1].entry & P
    assert walk.paddr == 0x5010


@pytest.mark.parametrize(("page_shift", "va_bits", "wide", "levels"), ARM_GEOMETRIES)
def test_arm_pages_and_blocks_translate_in_every_geometry(
    page_shift: int, va_bits: int, wide: str, levels: int
) -> None:
    largest = {12: 39, 14: 36, 16: 42}[page_shift]
    top = (1 << 64) - (1 << va_bits)
    for leaf_level in range(levels):
        shift = page_shift + (page_shift - 3) * leaf_level
        if shift > largest or shift >= va_bits - 1:
            continue
        builder = PageTableBuilder("arm", page_shift=page_shift, va_bits=va_bits, tables_paddr=TABLES, wide=wide)
        assert builder.levels == levels
        paddr = ((0x9 << 48) if wide == "lpa" else (0x9 << 48 & ~((1 << 50) - 1)) if wide == "lpa2" else 0) | 1 << shift
        builder.map(top + (1 << shift), paddr, leaf_level=leaf_level)
        tables = _arm(builder)
        _assert_translates(tables, top + (1 << shift), paddr)
        _assert_translates(tables, top + (2 << shift) - 1, paddr + (1 << shift) - 1)
        with pytest.raises(TranslationError):
            tables.translate(VirtAddr(top))


def test_arm_high_address_bits_are_where_the_granule_has_them() -> None:
    for page_shift, va_bits, wide, paddr in (
        (16, 52, "lpa", 0xA_0000_1234_0000),
        (12, 52, "lpa2", 0xC_0000_1234_5000),
        (14, 52, "lpa2", 0x8_0000_1234_4000),
    ):
        builder = PageTableBuilder("arm", page_shift=page_shift, va_bits=va_bits, tables_paddr=TABLES, wide=wide)
        vaddr = (1 << 64) - (1 << page_shift)
        builder.map(vaddr, paddr)
        _assert_translates(_arm(builder), vaddr, paddr)


def test_arm_lpa2_bits_are_attributes_where_addresses_have_48_bits() -> None:
    builder = PageTableBuilder("arm", tables_paddr=TABLES)
    vaddr = (1 << 64) - (1 << 30)
    builder.map(vaddr, 0x5000, flags=0x300)
    _assert_translates(_arm(builder), vaddr, 0x5000)


@pytest.mark.parametrize("entry", [0, 1 << 58 | 0x5000, 0x5000 | 1])
def test_arm_last_level_entry_that_is_no_page_is_not_mapped(entry: int) -> None:
    builder = PageTableBuilder("arm", tables_paddr=TABLES)
    vaddr = (1 << 64) - (1 << 30)
    builder.map(vaddr, 0x5000)
    builder.set_entry(vaddr, 0, entry)
    tables = _arm(builder)
    assert tables.walk(VirtAddr(vaddr)).paddr is None
    assert tables.translate_pages(VirtAddr(vaddr), 1).tolist() == [NOT_MAPPED]


def test_arm_block_larger_than_the_architecture_has_is_not_mapped() -> None:
    builder = PageTableBuilder("arm", page_shift=16, va_bits=52, tables_paddr=TABLES, wide="lpa")
    vaddr = (1 << 64) - (1 << 42)
    builder.map(vaddr, 0, leaf_level=2)
    assert _arm(builder).walk(VirtAddr(vaddr)).paddr == 0
    builder = PageTableBuilder("arm", page_shift=14, va_bits=48, tables_paddr=TABLES)
    builder.map(vaddr, 0, leaf_level=3)
    assert _arm(builder).walk(VirtAddr(vaddr)).paddr is None


@pytest.mark.parametrize(("page_shift", "va_bits"), [(13, 48), (12, 35), (12, 53), (0, 48), (16, 64)])
def test_arm_geometry_that_does_not_exist_is_corrupt(page_shift: int, va_bits: int) -> None:
    with pytest.raises(CorruptError):
        Arm64PageTables(DictDump(), PhysAddr(0), page_shift=page_shift, va_bits=va_bits)


def test_range_across_pages_of_several_sizes_translates_as_each_address_does() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    start = 0xFFFF88803FE00000
    builder.map(start - 4096, 0x7000)
    builder.map(start, 2 * MIB, leaf_level=1)
    builder.map(start + 2 * MIB, GIB, leaf_level=2)
    tables = _x86(builder)
    vaddrs = np.arange(start - 3 * 4096, start + 4 * MIB, 4096, dtype=np.uint64)
    bulk = tables.translate_pages(VirtAddr(start - 3 * 4096), len(vaddrs)).tolist()
    single = [tables.walk(VirtAddr(vaddr)).paddr for vaddr in vaddrs.tolist()]
    assert bulk == [NOT_MAPPED if paddr is None else paddr for paddr in single]
    assert bulk[:4] == [NOT_MAPPED, NOT_MAPPED, 0x7000, 2 * MIB]


def test_table_that_is_not_in_the_dump_is_the_reason_and_not_an_error_of_the_walk() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0xFFFFC90000003000, 0x5000)
    dump = _load(builder)
    dump.states[(TABLES + 0x2000) // 4096] = PageState.EXCLUDED
    tables = X86PageTables(dump, PhysAddr(TABLES))
    walk = tables.walk(VirtAddr(0xFFFFC90000003000))
    assert [step.level for step in walk.steps] == ["PGD", "PUD"]
    assert "PMD table" in walk.reason
    assert "left out" in walk.reason
    assert tables.translate_pages(VirtAddr(0xFFFFC90000003000), 2).tolist() == [NOT_MAPPED] * 2


def test_tables_of_a_process_are_walked_from_their_own_root() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    builder.map(0x400000, 0x5000)
    dump = _load(builder)
    kernel = X86PageTables(dump, PhysAddr(0x9000), level_count=4)
    assert kernel.with_root(PhysAddr(TABLES)).translate(VirtAddr(0x400008)) == 0x5008
