"""Where the struct pages are, in each memory model, and with damage in between."""

from __future__ import annotations

import time

import pytest

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.pages.mem_map import find_mem_map
from tests.builders.struct_pages import FORMS, StructPageArray
from tests.unit.pages.machines import ARRAYS, DIRECT, MODELS, ROOTS, TABLE, Machine

FORM = FORMS["6.1"]


def make(model: str, **options: object) -> Machine:
    firsts = [0] if model.startswith("flat") else [0, 0x10000]
    return Machine([StructPageArray(FORM, 64, first) for first in firsts], model=model, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS)
def test_arrays_are_found_in_each_memory_model(model: str) -> None:
    machine = make(model)
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, 0x20000)
    for index, array in enumerate(machine.arrays):
        extents = list(found.extents(array.first + 3, array.first + 5))
        assert extents == [(array.first + 3, array.first + 5, machine._array_vaddr(index) + 3 * 64)]
    assert found.notes == ()
    assert found.model.split()[0] in {"sparsemem", "discontiguous", "flat"}


@pytest.mark.parametrize("bits", [22, 24, 27, 30])
@pytest.mark.parametrize("model", ["vmemmap", "extreme", "sparsemem"])
def test_sections_of_any_size(model: str, bits: int) -> None:
    frames = 1 << bits - 12
    first = 3 * frames
    machine = Machine([StructPageArray(FORM, 32, first)], model=model, section_bits=bits)
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, first + 32)
    assert list(found.extents(first, first + 32)) == [(first, first + 32, machine._array_vaddr(0))]
    assert list(found.extents(first - 10, first)) == []


@pytest.mark.parametrize("flags", [0b11, 0b111, 0b11111, 0b1111111])
def test_flags_in_the_low_bits_are_no_part_of_the_address(flags: int) -> None:
    machine = make("vmemmap", section_flags=flags)
    _, kernel = machine.build()
    assert next(iter(find_mem_map(kernel, 64, 0x20000).extents(0, 1))) == (0, 1, ARRAYS)


def test_section_without_a_map_has_no_struct_pages() -> None:
    machine = make("vmemmap", section_flags=0b101)
    _, kernel = machine.build()
    assert len(find_mem_map(kernel, 64, 0x20000).starts) == 0


def test_root_that_leads_nowhere_loses_its_sections_and_no_others() -> None:
    machine = make("extreme")
    machine.arrays.append(StructPageArray(FORM, 64, 256 << 15))
    machine.words[TABLE] = 0xFFFF800000000000
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, (256 << 15) + 64)
    assert list(found.extents(0, 64)) == []
    assert list(found.extents(256 << 15, (256 << 15) + 1)) == [(256 << 15, (256 << 15) + 1, machine._array_vaddr(2))]
    assert found.notes == ("256 sections of memory have no readable struct mem_section",)


@pytest.mark.parametrize("root", [1, 0x7FFF00000000, ROOTS + 4, (1 << 64) - 8])
def test_garbage_in_the_table_of_roots_is_counted(root: int) -> None:
    machine = make("extreme")
    machine.words[TABLE] = root
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, 0x20000)
    assert len(found.starts) == 0
    assert "no readable struct mem_section" in found.notes[0]


def test_garbage_in_a_section_is_counted() -> None:
    machine = make("extreme")
    machine.words[ROOTS] = 0x1234567800000003
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, 0x20000)
    assert list(found.extents(0, 64)) == []
    assert len(list(found.extents(0x10000, 0x10001))) == 1
    assert found.notes == ("1 sections of memory have no readable struct mem_section",)


def test_array_that_would_end_beyond_64_bits_is_not_one() -> None:
    machine = make("extreme")
    machine.words[ROOTS] = (1 << 64) - 4096 | 3
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, 0x20000)
    assert list(found.extents(0, 64)) == []


def test_node_that_cannot_be_read_is_counted() -> None:
    machine = make("discontiguous")
    machine.words[TABLE] = DIRECT + 0x7000000000
    _, kernel = machine.build()
    found = find_mem_map(kernel, 64, 0x20000)
    assert list(found.extents(0, 64)) == []
    assert len(list(found.extents(0x10000, 0x10001))) == 1
    assert found.notes == ("1 nodes have no readable pglist_data",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NUMBER(SECTION_SIZE_BITS)", 0),
        ("NUMBER(SECTION_SIZE_BITS)", 11),
        ("NUMBER(SECTION_SIZE_BITS)", 63),
        ("NUMBER(MAX_PHYSMEM_BITS)", 20),
        ("NUMBER(MAX_PHYSMEM_BITS)", 64),
        ("SIZE(mem_section)", 0),
        ("SIZE(mem_section)", 1 << 40),
        ("OFFSET(mem_section.section_mem_map)", 12),
    ],
)
def test_sizes_that_no_kernel_has_are_refused(key: str, value: int) -> None:
    machine = make("vmemmap")
    _, kernel = machine.build()
    kernel.vmcoreinfo.entries[key] = str(value)
    with pytest.raises(CorruptError, match="no kernel has"):
        find_mem_map(kernel, 64, 0x20000)


def test_kernel_without_any_model_says_what_is_missing() -> None:
    _, kernel = make("vmemmap", drop=("SYMBOL(mem_section)",)).build()
    with pytest.raises(FactAbsentError, match=r"SYMBOL\(mem_section\)"):
        find_mem_map(kernel, 64, 64)


def test_huge_machine_is_read_in_bounded_time() -> None:
    machine = make("extreme")
    _, kernel = machine.build()
    kernel.vmcoreinfo.entries["NUMBER(MAX_PHYSMEM_BITS)"] = "52"
    del kernel.vmcoreinfo.entries["LENGTH(mem_section)"]
    started = time.monotonic()
    found = find_mem_map(kernel, 64, 1 << 40)
    assert time.monotonic() - started < 20
    assert list(found.extents(0, 1)) == [(0, 1, ARRAYS)]
    assert "no readable struct mem_section" in found.notes[0]
