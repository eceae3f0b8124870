from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.host import IoMemory, MemoryRange
from postpanic.capture.kexec.core_header import (
    CoreHeader,
    compare_coverage,
    decode_core_header,
    find_repeated,
    merge,
    subtract,
)
from postpanic.errors import CorruptError, FileFaultError, PostpanicError
from tests.builders.elfcore import EM_AARCH64, Segment, build_elf_core

SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=6
)


def points(spans: list[tuple[int, int]]) -> set[int]:
    return {point for start, end in spans for point in range(start, end)}


def note(paddr: int) -> Segment:
    return Segment(paddr, filesz=0x160, memsz=0x160, offset=paddr, type=4)


def load(start: int, end: int, vaddr: int = 0) -> Segment:
    return Segment(start, vaddr=vaddr, filesz=end - start, memsz=end - start, offset=start)


def test_text_of_x86_is_not_memory_twice() -> None:
    raw = build_elf_core(
        [note(0x5000), load(0x1000000, 0x2000000, 0xFFFFFFFF81000000), load(0x100000, 0x8000000, 0xFFFF888000100000)],
        notes=b"",
    ).raw
    assert decode_core_header(raw) == CoreHeader(
        "x86_64", ((0x5000, 0x160),), ((0x100000, 0x8000000),), ((0x1000000, 0x2000000),)
    )


def test_header_of_arm64_has_no_text() -> None:
    raw = build_elf_core(
        [note(0x5000), load(0x40000000, 0x80000000, 0xFFFF000000000000)], notes=b"", machine=EM_AARCH64
    ).raw
    header = decode_core_header(raw)
    assert (header.machine, header.loads, header.texts) == ("aarch64", ((0x40000000, 0x80000000),), ())
    memory = IoMemory((MemoryRange(0x40000000, 0x80000000, "System RAM"),), (), is_hidden=False)
    assert not compare_coverage(header, memory)


def test_text_that_the_kernel_of_arm64_adds_is_not_memory_twice() -> None:
    linear, image = 0xFFF0_0000_0000_0000, 0xFFFF_A000_0000_0000
    loads = [
        load(0x40210000, 0x41CF0000, image + 0x210000),
        load(0x40000000, 0x70000000, linear),
        load(0x74000000, 0x80000000, linear + 0x34000000),
    ]
    header = decode_core_header(build_elf_core(loads, notes=b"", machine=EM_AARCH64).raw)
    assert header.texts == ((0x40210000, 0x41CF0000),)
    assert header.loads == ((0x40000000, 0x70000000), (0x74000000, 0x80000000))
    # The same memory twice in the same place is not the text.
    twice = decode_core_header(build_elf_core([*loads[1:], loads[2]], notes=b"", machine=EM_AARCH64).raw)
    assert find_repeated(twice.loads) == [(0x74000000, 0x80000000)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 3)), max_size=30))
def test_header_of_arm64_loses_no_memory(spans: list[tuple[int, int, int]]) -> None:
    """What is taken for text is within what is not: together they are what there was."""
    loads = [load(start << 16, (start + size) << 16, (start << 16) + (shift << 40)) for start, size, shift in spans]
    if not loads:
        return
    header = decode_core_header(build_elf_core(loads, notes=b"", machine=EM_AARCH64).raw)
    assert merge(header.loads) == merge([(start << 16, (start + size) << 16) for start, size, _ in spans])


def test_what_is_lent_until_the_crash_is_in_no_dump() -> None:
    ram, lent = MemoryRange(0x100000, 0x800000, "System RAM"), MemoryRange(0x300000, 0x400000, "Crash kernel CMA")
    memory = IoMemory((ram,), (MemoryRange(0x400000, 0x500000, "Crash kernel"),), is_hidden=False, lent=(lent,))
    raw = build_elf_core([load(0x100000, 0x300000), load(0x500000, 0x800000)], notes=b"").raw
    assert not compare_coverage(decode_core_header(raw), memory)
    raw = build_elf_core([load(0x100000, 0x400000), load(0x500000, 0x800000)], notes=b"").raw
    assert compare_coverage(decode_core_header(raw), memory).foreign == ((0x300000, 0x400000),)


def test_arm64_header_of_a_program_that_knew_no_symbols() -> None:
    """What kexec 2.0.25 writes on a kernel whose ``_text`` it cannot find: a load of nearly all addresses."""
    wrong = Segment(0x40000000, filesz=(1 << 64) - 0x1000, memsz=(1 << 64) - 0x1000, offset=0x40000000)
    header = decode_core_header(build_elf_core([wrong], notes=b"", machine=EM_AARCH64).raw)
    memory = IoMemory((MemoryRange(0x40000000, 0x80000000, "System RAM"),), (), is_hidden=False)
    assert compare_coverage(header, memory).foreign


@pytest.mark.parametrize("size", [0, 10, 63, 64, 100, 119])
def test_cut_header(size: int) -> None:
    raw = build_elf_core([load(0x1000, 0x2000)], notes=b"").raw
    with pytest.raises(FileFaultError):
        decode_core_header(raw[:size])


def test_header_without_entries() -> None:
    with pytest.raises(CorruptError, match="0 program headers"):
        decode_core_header(build_elf_core([], notes=b"").raw)


@given(st.integers(0, 180), st.binary(min_size=1, max_size=8))
def test_damaged_header_is_one_error(at: int, noise: bytes) -> None:
    raw = build_elf_core([note(0x5000), load(0x1000, 0x2000)], notes=b"").raw[:200]
    memory = IoMemory((MemoryRange(0x1000, 0x2000, "System RAM"),), (), is_hidden=False)
    with contextlib.suppress(PostpanicError):
        compare_coverage(decode_core_header(raw[:at] + noise + raw[at + len(noise) :]), memory)


@given(SPANS, SPANS)
def test_subtract_is_that_of_sets(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    assert points(subtract(spans, others)) == points(spans) - points(others)
    assert points(merge(spans)) == points(spans)


@given(SPANS)
def test_repeated_is_what_two_have(spans: list[tuple[int, int]]) -> None:
    counts = [sum(start <= point < end for start, end in spans) for point in range(80)]
    assert points(find_repeated(spans)) == {point for point, count in enumerate(counts) if count > 1}
