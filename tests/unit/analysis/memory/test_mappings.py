"""What a tree of page tables maps, all at once: the same as one address after the other."""

from __future__ import annotations

import pytest

from postpanic.analysis.memory.mappings import Mappings, read_mappings
from postpanic.dumps.memory import PageState
from postpanic.findings.table import Problem
from postpanic.kernel.paging.aarch64 import Arm64PageTables
from postpanic.kernel.paging.x86_64 import X86PageTables
from postpanic.units import PhysAddr
from tests.builders.page_tables import PageTableBuilder
from tests.unit.kernel.memories import DictDump

TABLES = 0x100000
MIB, GIB = 1 << 20, 1 << 30


def load(builder: PageTableBuilder) -> DictDump:
    dump = DictDump(page_size=1 << builder.page_shift)
    for paddr, page in builder.pages().items():
        dump.write(paddr, page)
    return dump


def runs(mappings: Mappings) -> list[tuple[int, int, int]]:
    return list(zip(mappings.vaddrs.tolist(), mappings.paddrs.tolist(), mappings.sizes.tolist(), strict=True))


@pytest.mark.parametrize(("va_bits", "base"), [(48, 0xFFFF888000000000), (57, 0xFF11000000000000)])
def test_x86_pages_of_all_sizes_become_runs(va_bits: int, base: int) -> None:
    builder = PageTableBuilder("x86", va_bits=va_bits, tables_paddr=TABLES)
    builder.map(base, 0x10000)
    builder.map(base + 0x1000, 0x11000)
    builder.map(base + 0x2000, 0x20000)
    builder.map(base + 2 * MIB, 0x40000000, leaf_level=1)
    builder.map(base + 4 * MIB, 0x40200000, leaf_level=1)
    builder.map(base + GIB, 0x80000000, leaf_level=2)
    builder.map(0x400000, 0x5000)
    dump = load(builder)
    tables = X86PageTables(dump, PhysAddr(builder.root_paddr), level_count=builder.levels)
    problems: list[Problem] = []
    assert runs(read_mappings(tables, dump, problems, kernel=True)) == [
        (base, 0x10000, 0x2000),
        (base + 0x2000, 0x20000, 0x1000),
        (base + 2 * MIB, 0x40000000, 4 * MIB),
        (base + GIB, 0x80000000, GIB),
    ]
    assert runs(read_mappings(tables, dump, problems, kernel=False)) == [(0x400000, 0x5000, 0x1000)]
    assert problems == []


@pytest.mark.parametrize(("page_shift", "va_bits"), [(12, 39), (12, 48), (14, 47), (16, 42), (16, 48)])
def test_arm64_kernel_tables(page_shift: int, va_bits: int) -> None:
    base = (1 << 64) - (1 << va_bits)
    size = 1 << page_shift
    builder = PageTableBuilder("arm", page_shift=page_shift, va_bits=va_bits, tables_paddr=TABLES)
    builder.map(base + 5 * size, 0x40000000)
    builder.map(base + 6 * size, 0x40000000 + size)
    builder.map((1 << 64) - 2 * size, 0x50000000)
    dump = load(builder)
    tables = Arm64PageTables(dump, PhysAddr(builder.root_paddr), page_shift=page_shift, va_bits=va_bits)
    assert runs(read_mappings(tables, dump, [], kernel=True)) == [
        (base + 5 * size, 0x40000000, 2 * size),
        ((1 << 64) - 2 * size, 0x50000000, size),
    ]


def test_tables_that_are_missing_are_said() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    base = 0xFFFF888000000000
    builder.map(base, 0x10000)
    builder.map(base + GIB, 0x20000)
    dump = load(builder)
    victim = builder.decode(builder.entries[builder.slot(builder.root_paddr, base, 3)])
    victim = builder.decode(builder.entries[builder.slot(victim, base, 2)])
    del dump.pages[victim // 4096]
    dump.states[victim // 4096] = PageState.EXCLUDED
    tables = X86PageTables(dump, PhysAddr(builder.root_paddr))
    problems: list[Problem] = []
    assert runs(read_mappings(tables, dump, problems, kernel=True)) == [(base + GIB, 0x20000, 0x1000)]
    assert "1 page tables are not in the dump" in problems[0].what


def test_a_table_that_leads_back_to_itself_ends() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    base = 0xFFFF888000000000
    builder.map(base, 0x10000)
    upper = builder.decode(builder.entries[builder.slot(builder.root_paddr, base, 3)])
    for index in range(512):
        builder.entries[upper + 8 * index] = builder.encode_table(upper)
    dump = load(builder)
    tables = X86PageTables(dump, PhysAddr(builder.root_paddr))
    read_mappings(tables, dump, [], kernel=True)


def test_clip() -> None:
    builder = PageTableBuilder("x86", tables_paddr=TABLES)
    base = 0xFFFF888000000000
    for number in range(4):
        builder.map(base + number * 0x1000, 0x10000 + number * 0x1000)
    builder.map((1 << 64) - 0x1000, 0x90000)
    dump = load(builder)
    mappings = read_mappings(X86PageTables(dump, PhysAddr(builder.root_paddr)), dump, [], kernel=True)
    assert runs(mappings.clip(base + 0x800, base + 0x1800)) == [(base + 0x800, 0x10800, 0x1000)]
    assert runs(mappings.clip(1 << 63, 1 << 64)) == runs(mappings)
    assert runs(mappings.clip(base + 0x4000, (1 << 64) - 0x1000)) == []
    assert mappings.size_bytes == 0x5000
