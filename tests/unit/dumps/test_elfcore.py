from __future__ import annotations

import os

import numpy as np
import pytest

from postpanic.dumps.memory import PageState
from postpanic.errors import CorruptError, NotADumpError, PageAbsentError, TruncatedError, UnsupportedError
from postpanic.units import PhysAddr
from tests.builders.elfcore import (
    EM_386,
    EM_AARCH64,
    EM_ARM,
    EM_S390,
    Segment,
    build_elf_core,
    build_note,
    build_vmcoreinfo_note,
)
from tests.unit.dumps.conftest import Opener
from tests.unit.dumps.pages import PAGE, contents_of, frames, make_page, states_of

A, B, C = make_page(1), make_page(2), make_page(3)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_either_class_and_byte_order_is_read(open_bytes: Opener, bits: int, byte_order: str) -> None:
    note = build_vmcoreinfo_note(b"OSRELEASE=5.10.0\nPAGESIZE=4096\n", byte_order=byte_order)
    image = build_elf_core(
        [Segment(0x1000, A + B, vaddr=0xC0001000), Segment(0x8000, C)], bits=bits, byte_order=byte_order, notes=note
    )
    dump = open_bytes(image.raw)
    assert dump.description.format == "ELF vmcore"
    assert dump.description.byte_order == byte_order
    assert dump.description.vmcoreinfo == b"OSRELEASE=5.10.0\nPAGESIZE=4096\n"
    assert dump.description.incomplete == ""
    assert dump.description.warnings == ()
    assert dump.ram_ranges.tolist() == [[0x1000, 0x3000], [0x8000, 0x9000]]
    assert [contents_of(dump, pfn) for pfn in (1, 2, 8)] == [A, B, C]
    assert [(s.vaddr, s.paddr, s.size_bytes) for s in dump.description.segments] == [(0xC0001000, 0x1000, 0x2000)]


@pytest.mark.parametrize(
    ("machine", "bits", "name"),
    [(62, 64, "x86_64"), (EM_386, 32, "i686"), (EM_386, 64, "i686"), (EM_ARM, 32, "arm"), (EM_AARCH64, 64, "aarch64"),
     (EM_S390, 64, "s390x"), (EM_S390, 32, "s390"), (243, 64, "riscv64"), (0x1234, 64, "")],
)  # fmt: skip
def test_machine_is_spelled_as_uname_does(open_bytes: Opener, machine: int, bits: int, name: str) -> None:
    image = build_elf_core([Segment(0, A)], machine=machine, bits=bits)
    assert open_bytes(image.raw).description.machine == name


def test_read_crosses_segments_that_touch(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x2000, B), Segment(0x1000, A)]).raw)
    assert dump.ram_ranges.tolist() == [[0x1000, 0x3000]]
    assert dump.read(PhysAddr(0x1FF0), 32) == A[-16:] + B[:16]
    assert dump.read(PhysAddr(0x1000), 2 * PAGE) == A + B


def test_read_out_of_ram_names_the_first_missing_byte(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A)]).raw)
    with pytest.raises(PageAbsentError, match="not RAM") as caught:
        dump.read(PhysAddr(0x1FF8), 16)
    assert caught.value.paddr == 0x2000
    for paddr, size in ((0, 1), (0x2000, 1), (-8, 8), (1 << 64, 1), ((1 << 64) - 8, 8), (1 << 62, 8)):
        with pytest.raises(PageAbsentError, match="not RAM"):
            dump.read(PhysAddr(paddr), size)
    assert dump.read(PhysAddr(0x1000), 0) == b""


def test_what_lies_beyond_filesz_is_a_hole_and_not_zero(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A, memsz=3 * PAGE), Segment(0x5000, b"", memsz=PAGE)]).raw)
    hole, absent, present = PageState.HOLE, PageState.ABSENT, PageState.PRESENT
    assert states_of(dump, range(7)) == [absent, present, hole, hole, absent, hole, absent]
    assert dump.ram_ranges.tolist() == [[0x1000, 0x4000], [0x5000, 0x6000]]
    with pytest.raises(PageAbsentError, match="excluded or zero"):
        dump.read(PhysAddr(0x2000), 8)


def test_first_of_overlapping_segments_wins(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A + B + C), Segment(0x2000, C + A), Segment(0x2000, B)]).raw)
    assert [contents_of(dump, pfn) for pfn in (1, 2, 3)] == [A, B, C]
    assert dump.ram_ranges.tolist() == [[0x1000, 0x4000]]


def test_contents_win_over_a_hole_that_comes_first(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, b"", memsz=4 * PAGE), Segment(0x2000, B)]).raw)
    assert states_of(dump, (1, 2, 3)) == [PageState.HOLE, PageState.PRESENT, PageState.HOLE]
    assert contents_of(dump, 2) == B


def test_fractional_page_is_read_byte_by_byte(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1800, A[:0x1000]), Segment(0x2C00, B[:0x100])]).raw)
    pages, states = dump.read_pages(frames(1, 2))
    assert states.tolist() == [PageState.PRESENT, PageState.PRESENT]
    assert pages[0].tobytes() == bytes(0x800) + A[:0x800]
    assert pages[1].tobytes() == A[0x800:] + bytes(0x400) + B[:0x100] + bytes(0x300)
    assert dump.read(PhysAddr(0x1800), 0x1000) == A
    with pytest.raises(PageAbsentError) as caught:
        dump.read(PhysAddr(0x2700), 0x200)
    assert caught.value.paddr == 0x2800


def test_frame_with_a_hole_in_it_counts_as_hole_but_its_bytes_are_read(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A[:0x400], memsz=PAGE)]).raw)
    assert states_of(dump, [1]) == [PageState.HOLE]
    assert dump.read(PhysAddr(0x1000), 0x400) == A[:0x400]
    with pytest.raises(PageAbsentError) as caught:
        dump.read(PhysAddr(0x13F8), 16)
    assert caught.value.paddr == 0x1400


def test_extended_count_of_program_headers(open_bytes: Opener) -> None:
    for bits in (32, 64):
        dump = open_bytes(build_elf_core([Segment(0x1000, A), Segment(0x3000, B)], extended_count=True, bits=bits).raw)
        assert contents_of(dump, 1) == A
        assert contents_of(dump, 3) == B


def test_seventy_thousand_segments(open_bytes: Opener) -> None:
    # All of one page in the file, as QEMU's paging mode points many headers at the same memory.
    base = build_elf_core([Segment(0, A)])
    offset = base.raw.index(A)
    image = build_elf_core([Segment(pfn * 2 * PAGE, b"", offset=0, filesz=PAGE) for pfn in range(70_000)], notes=b"")
    assert offset
    dump = open_bytes(image.raw)
    assert len(dump.ram_ranges) == 70_000
    assert dump.page_states(frames(0, 1, 2, 139_998, 139_999, 140_000)).tolist() == [0, 3, 0, 0, 3, 3]
    assert dump.read(PhysAddr(139_998 * PAGE), 4) == b"\x7fELF"


def test_bulk_read_keeps_the_order_asked_for(open_bytes: Opener) -> None:
    contents = [make_page(seed) for seed in range(40)]
    dump = open_bytes(
        build_elf_core([Segment(0, b"".join(contents[:20])), Segment(0x30000, b"".join(contents[20:]))]).raw
    )
    order = np.random.default_rng(1).permutation(80).astype(np.uint64)
    order = np.concatenate([order, order[:7]])
    pages, states = dump.read_pages(order)
    expected = {pfn: contents[pfn] for pfn in range(20)} | {48 + pfn: contents[20 + pfn] for pfn in range(20)}
    for row, pfn in enumerate(order.tolist()):
        assert (states[row] == PageState.PRESENT) == (pfn in expected)
        assert pages[row].tobytes() == expected.get(pfn, bytes(PAGE))


def test_page_size_comes_from_vmcoreinfo(open_bytes: Opener) -> None:
    note = build_vmcoreinfo_note(b"PAGESIZE=65536\n")
    image = build_elf_core([Segment(0x10000, make_page(1, 65536))], machine=EM_AARCH64, notes=note)
    dump = open_bytes(image.raw)
    assert dump.page_size_bytes == 65536
    assert contents_of(dump, 1) == make_page(1, 65536)
    assert dump.description.warnings == ()


def test_assumed_page_size_is_said(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0, A)], machine=EM_AARCH64, notes=b"").raw)
    assert dump.page_size_bytes == PAGE
    assert "page size" in dump.description.warnings[0]


def test_qemu_notes_do_not_hide_vmcoreinfo(open_bytes: Opener) -> None:
    text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n" + b"SYMBOL(x)=ffffffff81000000\n" * 3000
    notes = build_note(b"CORE", 1, bytes(336)) + build_note(b"QEMU", 0, bytes(436)) + build_vmcoreinfo_note(text)
    dump = open_bytes(build_elf_core([Segment(0, A)], notes=notes).raw)
    assert dump.description.vmcoreinfo == text
    assert dump.description.notes == notes


def test_padding_between_notes_is_skipped(open_bytes: Opener) -> None:
    notes = build_note(b"CORE", 1, b"x" * 10) + bytes(24) + build_vmcoreinfo_note(b"PAGESIZE=4096\n")
    assert open_bytes(build_elf_core([Segment(0, A)], notes=notes).raw).description.vmcoreinfo == b"PAGESIZE=4096\n"


def test_marked_incomplete_by_makedumpfile(open_bytes: Opener) -> None:
    assert "marked incomplete" in open_bytes(build_elf_core([Segment(0, A)], flags=1).raw).description.incomplete
    # RISC-V has a meaning of its own for that bit.
    assert open_bytes(build_elf_core([Segment(0, A)], flags=1, machine=243).raw).description.incomplete == ""


def test_cut_file_is_read_up_to_the_cut(open_bytes: Opener) -> None:
    raw = build_elf_core([Segment(0x1000, A + B + C, memsz=4 * PAGE)]).raw
    dump = open_bytes(raw[: -PAGE - 100])
    lost, present = PageState.LOST, PageState.PRESENT
    assert states_of(dump, (1, 2, 3, 4)) == [present, lost, lost, PageState.HOLE]
    assert dump.read(PhysAddr(0x2000), PAGE - 100) == B[:-100]
    assert "4.1 KiB of memory are missing" in dump.description.incomplete
    with pytest.raises(PageAbsentError, match="cut, incomplete") as caught:
        dump.read(PhysAddr(0x2000), PAGE)
    assert caught.value.paddr == 0x3000 - 100


def test_file_that_shrinks_while_it_is_open_loses_pages_only(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A + B + C)]).raw)
    os.truncate(dump.description.paths[0], dump.description.file_size_bytes - PAGE - 1)
    contents, states = dump.read_pages(frames(1, 2, 3))
    assert states.tolist() == [PageState.PRESENT, PageState.LOST, PageState.LOST]
    assert [row.tobytes() for row in contents] == [A, bytes(PAGE), bytes(PAGE)]
    assert dump.read(PhysAddr(0x2000), 16) == B[:16]
    with pytest.raises(PageAbsentError, match="cut, incomplete"):
        dump.read(PhysAddr(0x3000), 16)


def test_segment_with_more_in_the_file_than_in_memory_is_clipped(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A + B, memsz=PAGE)]).raw)
    assert dump.ram_ranges.tolist() == [[0x1000, 0x2000]]
    assert states_of(dump, (1, 2)) == [PageState.PRESENT, PageState.ABSENT]
    assert "larger in the file" in dump.description.warnings[0]


def test_segments_without_physical_address_are_left_out(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment((1 << 64) - 1, A), Segment(0x1000, B)]).raw)
    assert dump.ram_ranges.tolist() == [[0x1000, 0x2000]]
    assert dump.description.incomplete == ""


def test_impossible_segment_spoils_only_itself(open_bytes: Opener) -> None:
    dump = open_bytes(build_elf_core([Segment(0x1000, A), Segment(0x8000, B, memsz=1 << 63)]).raw)
    assert contents_of(dump, 1) == A
    assert "1 of 2 PT_LOAD" in dump.description.warnings[0]
    assert "cannot be read" in dump.description.incomplete


@pytest.mark.parametrize("kind", [3, 6, 0x46494C45, 0x53494749])
def test_core_of_a_process_is_refused(open_bytes: Opener, kind: int) -> None:
    notes = build_note(b"CORE", 1, bytes(336)) + build_note(b"CORE", kind, bytes(136))
    with pytest.raises(NotADumpError, match="core of a process") as caught:
        open_bytes(build_elf_core([Segment(0, A, vaddr=0x400000)], notes=notes).raw)
    assert "gdb" in caught.value.hint


def test_core_without_any_physical_address_is_refused(open_bytes: Opener) -> None:
    segments = [Segment(0, A, vaddr=0x400000), Segment(0, B, vaddr=0x7FFFF7DD0000)]
    with pytest.raises(NotADumpError, match="none of 2 segments has a physical address"):
        open_bytes(build_elf_core(segments, notes=build_note(b"CORE", 1, bytes(336))).raw)


@pytest.mark.parametrize(("kind", "words"), [(1, "relocatable"), (2, "vmlinux"), (3, "shared object"), (9, "type 9")])
def test_other_elf_files_are_named(open_bytes: Opener, kind: int, words: str) -> None:
    with pytest.raises(NotADumpError, match=words):
        open_bytes(build_elf_core([Segment(0, A)], kind=kind).raw)


@pytest.mark.parametrize("size", [4, 15, 16, 51, 63])
def test_cut_within_the_header_is_truncated(open_bytes: Opener, size: int) -> None:
    with pytest.raises(TruncatedError):
        open_bytes(build_elf_core([Segment(0, A)]).raw[:size])


def test_cut_within_the_program_headers_is_truncated(open_bytes: Opener) -> None:
    with pytest.raises(TruncatedError, match="program header table is cut"):
        open_bytes(build_elf_core([Segment(0, A)]).raw[:100])


def test_header_with_fields_of_the_other_byte_order_is_refused(open_bytes: Opener) -> None:
    raw = bytearray(build_elf_core([Segment(0, A)]).raw)
    raw[5] = 2
    with pytest.raises(NotADumpError, match="type 1024"):
        open_bytes(bytes(raw))


def test_impossible_identification_is_corrupt(open_bytes: Opener) -> None:
    raw = build_elf_core([Segment(0, A)]).raw
    for place in (4, 5, 6):
        broken = bytearray(raw)
        broken[place] = 7
        with pytest.raises(CorruptError, match="must be 1"):
            open_bytes(bytes(broken))


def test_core_without_memory_is_corrupt(open_bytes: Opener) -> None:
    with pytest.raises(CorruptError, match="without memory"):
        open_bytes(build_elf_core([]).raw)


def test_absurd_number_of_program_headers_is_refused(open_bytes: Opener) -> None:
    image = build_elf_core([Segment(0, A)], extended_count=True)
    raw = bytearray(image.raw)
    place, size = image.fields["sh_info"]
    raw[place : place + size] = b"\xff" * size
    with pytest.raises(UnsupportedError, match="4294967295 program headers"):
        open_bytes(bytes(raw))
