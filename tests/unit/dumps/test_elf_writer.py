from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from postpanic.dumps.elfcore import writer as elf_writer
from postpanic.dumps.elfcore.pieces import find_pieces
from postpanic.dumps.elfcore.writer import ElfWriter
from postpanic.dumps.memory import PageState, VirtualSegment
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink, LimitedSink
from postpanic.dumps.writing import DumpOutline
from postpanic.errors import FileFaultError, NoSpaceError, UnsupportedError
from postpanic.units import PhysAddr, VirtAddr
from tests.unit.dumps.pages import contents_of, make_noise, make_page
from tests.unit.dumps.writing import RAM, CrampedSink, check_dump, make_batch, make_outline, make_set, pump, write_dump

PRESENT, EXCLUDED, HOLE, ABSENT, LOST = PageState
IMAGE, DIRECT = 0xFFFF_FFFF_8100_0000, 0xFFFF_8880_0000_0000
PAGES = {
    3: make_page(1),
    4: bytes(4096),
    5: make_noise(2),
    9: make_page(3),
    10: make_noise(7),
    300: make_page(4),
    301: make_noise(5),
}


def segment(vaddr: int, first: int, last: int) -> VirtualSegment:
    return VirtualSegment(VirtAddr(vaddr), PhysAddr(first * 4096), (last - first) * 4096)


SEGMENTS = (segment(IMAGE, 5, 10), segment(DIRECT + 2 * 4096, 2, 20), segment(DIRECT + 298 * 4096, 298, 310))


def write(
    path: Path,
    outline: DumpOutline,
    pages: dict[int, bytes],
    *,
    batches: list[list[int]] | None = None,
    lost: tuple[int, ...] = (),
    complete: bool = True,
) -> ElfWriter:
    return write_dump(
        path,
        lambda sink: ElfWriter(sink, outline),
        pages,
        page_size=outline.page_size_bytes,
        batches=batches,
        lost=lost,
        complete=complete,
    )


def check(path: Path, pages: dict[int, bytes], ram: tuple[int, ...], missing: tuple[int, ...] = ()) -> None:
    lost = [pfn for pfn in missing if pfn in ram]
    check_dump(path, pages, ram, left_out=HOLE, lost=lost, lost_state=HOLE)


@pytest.mark.parametrize("segments", [(), SEGMENTS, SEGMENTS[:1]])
def test_what_is_written_is_read(tmp_path: Path, segments: tuple[VirtualSegment, ...]) -> None:
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM, segments=segments)
    write(path, outline, PAGES)
    check(path, PAGES, RAM)
    with open_dump(path) as dump:
        description = dump.description
        assert description.format == "ELF vmcore"
        assert description.incomplete == ""
        assert description.warnings == ()
        assert description.machine == "x86_64"
        assert description.notes == outline.notes
        assert description.vmcoreinfo == outline.vmcoreinfo.rstrip(b"\0")
        mapped = {part.vaddr + at: part.paddr + at for part in segments for at in range(0, part.size_bytes, 4096)}
        parts = description.segments
        assert mapped == {part.vaddr + at: part.paddr + at for part in parts for at in range(0, part.size_bytes, 4096)}


def test_another_reader_finds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, make_outline(PAGES, RAM, segments=SEGMENTS), PAGES)
    raw = path.read_bytes()
    elf = ELFFile(io.BytesIO(raw))
    assert elf["e_type"] == "ET_CORE"
    assert elf["e_machine"] == "EM_X86_64"
    assert elf["e_flags"] == 0
    notes = elf.get_segment(0)
    assert isinstance(notes, NoteSegment)
    assert [note["n_name"] for note in notes.iter_notes()] == ["CORE", "VMCOREINFO"]
    by_vaddr: dict[int, bytes] = {}
    sizes: dict[int, int] = {}
    for load in elf.iter_segments("PT_LOAD"):
        for at in range(0, load["p_filesz"], 4096):
            by_vaddr[load["p_vaddr"] + at] = raw[load["p_offset"] + at : load["p_offset"] + at + 4096]
        sizes[load["p_vaddr"]] = load["p_memsz"]
    expected = {DIRECT + pfn * 4096: page for pfn, page in PAGES.items()}
    expected |= {IMAGE + (pfn - 5) * 4096: PAGES[pfn] for pfn in (5, 9)}
    assert by_vaddr == expected
    assert sum(sizes.values()) == 4096 * (len(RAM) + 5)


def test_excluded_pages_are_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    frames = range(2, 400)
    pages = {pfn: make_noise(pfn) for pfn in frames if pfn % 2}
    write(path, make_outline(pages, frames), pages)
    check(path, pages, tuple(frames))
    assert path.stat().st_size < 4096 * (len(pages) + 20)


def test_pages_of_zeroes_take_no_room_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "out"
    pages = dict.fromkeys(range(1000), bytes(4096))
    write(path, make_outline(pages), pages)
    check(path, pages, tuple(pages))
    status = path.stat()
    assert status.st_size > 4096 * 1000
    assert status.st_blocks * 512 < 4096 * 100


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_pages_of_other_sizes_in_any_order(tmp_path: Path, page_size: int) -> None:
    pages = {1: make_page(1, page_size), 5: make_noise(2, page_size), 6: bytes(page_size), 8: make_page(5, page_size)}
    outline = make_outline(pages, range(9), page_size=page_size)
    write(tmp_path / "out", outline, pages, batches=[[8], [1, 6], [5]])
    check(tmp_path / "out", pages, tuple(range(9)))


@pytest.mark.parametrize("lost", [(3,), (4, 9), (10, 300, 301), tuple(PAGES)])
def test_lost_pages_are_holes_and_not_zeroes(tmp_path: Path, lost: tuple[int, ...]) -> None:
    path = tmp_path / "out"
    write(path, make_outline(PAGES, RAM, segments=SEGMENTS), PAGES, lost=lost)
    check(path, PAGES, RAM, missing=lost)
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""


def test_it_claims_only_what_it_has_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf_writer, "_REFRESH_BYTES", 2 * 4096)
    path = tmp_path / "out"
    sink = FileSink(path, overwrite=False)
    writer = ElfWriter(sink, make_outline(PAGES, RAM, segments=SEGMENTS))
    encode = writer.make_encoder()
    writer.begin()
    most = 0
    for pfn in sorted(PAGES, reverse=True):
        with open_dump(path) as dump:
            assert "marked incomplete" in dump.description.incomplete
            pages, states = dump.read_pages(np.array(sorted(PAGES), dtype=np.uint64))
            assert set(states.tolist()) <= {PRESENT, HOLE}
            for page, state, frame in zip(pages, states, sorted(PAGES), strict=True):
                assert state == HOLE or (frame > pfn and page.tobytes() == PAGES[frame])
            most = max(most, int(np.count_nonzero(states == PRESENT)))
        writer.write(encode(make_batch([pfn], PAGES, 4096)))
    assert most >= 4
    writer.finish(complete=True)
    sink.finish()
    check(path, PAGES, RAM)


def test_an_unfinished_dump_is_marked_and_has_no_made_up_pages(tmp_path: Path) -> None:
    path = tmp_path / "out"
    writer = write(path, make_outline(PAGES, RAM), PAGES, batches=[[301], [3, 4]], complete=False)
    check(path, PAGES, RAM, missing=(5, 9, 10, 300))
    assert writer.given_up_pages == 0
    with open_dump(path) as dump:
        assert "marked incomplete" in dump.description.incomplete


def test_more_holes_than_there_is_room_for_cost_the_shortest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elf_writer, "_MOST_ROOM", 8)
    path = tmp_path / "out"
    pages = {pfn: make_page(pfn) for pfn in range(200)}
    lost = tuple(range(1, 100, 2))
    writer = write(path, make_outline(pages), pages, lost=lost)
    assert writer.given_up_pages == 50
    check(path, pages, tuple(pages), missing=tuple(range(100)))


def test_more_headers_than_fit_in_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "out"
    ram = range(1, 140_001)
    pages = {pfn: make_page(pfn % 10) for pfn in (1, 3, 70_001, 139_999)} | dict.fromkeys(
        range(5, 139_999, 2), bytes(4096)
    )
    outline = make_outline(pages, ram)
    frames = sorted(pages)
    write(path, outline, pages, batches=[frames[at : at + 5000] for at in range(0, len(frames), 5000)])
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_phnum"] == 0xFFFF
        assert elf.num_segments() == len(pages) + 1
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""
        states = dump.page_states(np.arange(140_001, dtype=np.uint64))
        assert np.flatnonzero(states == PRESENT).tolist() == frames
        assert contents_of(dump, 70_001) == pages[70_001]


def test_a_dump_that_is_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, make_outline(PAGES, RAM, segments=SEGMENTS), PAGES)
    raw = path.read_bytes()
    for size in {*range(0, len(raw), 997), 64, 120, len(raw) - 1, len(raw) - 4096}:
        path.write_bytes(raw[:size])
        try:
            with open_dump(path) as dump:
                assert dump.description.incomplete
                pages, states = dump.read_pages(np.array(sorted(PAGES), dtype=np.uint64))
                for page, state, pfn in zip(pages, states, sorted(PAGES), strict=True):
                    assert page.tobytes() == (PAGES[pfn] if state == PRESENT else bytes(4096))
        except FileFaultError:
            assert size < len(raw) - len(PAGES) * 4096


def test_a_full_disk_leaves_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM, segments=SEGMENTS)
    write(path, outline, PAGES)
    whole = path.stat().st_size
    most = opened = 0
    for room in range(0, whole + 64, 256):
        sink = CrampedSink(path, room)
        writer = ElfWriter(sink, outline)
        fits = pump(writer, PAGES, batches=[[300, 301], [3, 4, 5], [9, 10]])
        try:
            writer.finish(complete=fits)
        except NoSpaceError:
            # A disk that is too small for the headers.
            fits = False
        sink.finish()
        try:
            with open_dump(path) as dump:
                opened += 1
                assert bool(dump.description.incomplete) == (not fits)
                pages, states = dump.read_pages(np.array(sorted(PAGES), dtype=np.uint64))
                for page, state, pfn in zip(pages, states, sorted(PAGES), strict=True):
                    assert page.tobytes() == (PAGES[pfn] if state == PRESENT else bytes(4096))
                most = max(most, int(np.count_nonzero(states == PRESENT)))
        except FileFaultError:
            assert room < 16384
    assert most == len(PAGES)
    assert opened > 10


def test_a_limit_counts_what_takes_room(tmp_path: Path) -> None:
    path = tmp_path / "out"
    pages = dict.fromkeys(range(1000), bytes(4096)) | {number: make_noise(number) for number in range(100, 108)}
    outline = make_outline(pages)
    sink = LimitedSink(FileSink(path, overwrite=False), 16 * 4096)
    writer = ElfWriter(sink, outline)
    assert pump(writer, pages)
    writer.finish(complete=True)
    sink.finish()
    check(path, pages, tuple(pages))


def test_pieces_cover_all_of_memory_and_follow_the_segments() -> None:
    ram = make_set(RAM, 310)
    pieces = find_pieces(ram, SEGMENTS, 4096)
    assert pieces == [
        (5, 10, IMAGE),
        (2, 20, DIRECT + 2 * 4096),
        (298, 310, DIRECT + 298 * 4096),
    ]
    assert find_pieces(ram, SEGMENTS[:1], 4096) == [(5, 10, IMAGE), (2, 5, 0), (10, 20, 0), (298, 310, 0)]
    assert find_pieces(ram, (), 4096) == [(2, 20, 0), (298, 310, 0)]


def test_pieces_of_an_earlier_filter_are_joined_and_ragged_ones_rounded() -> None:
    ram = make_set(range(100), 100)
    shreds = [segment(DIRECT + pfn * 4096, pfn, pfn + 1) for pfn in range(99)]
    ragged = VirtualSegment(VirtAddr(DIRECT + 99 * 4096 + 100), PhysAddr(99 * 4096 + 100), 200)
    beyond = segment(IMAGE, 500, 600)
    assert find_pieces(ram, [*shreds[::-1], ragged, beyond], 4096) == [(0, 100, DIRECT)]


@pytest.mark.parametrize("machine", ["s390x", "i686", "", "pdp11"])
def test_machines_of_another_layout_are_refused(tmp_path: Path, machine: str) -> None:
    sink = FileSink(tmp_path / "out", overwrite=False)
    with pytest.raises(UnsupportedError, match="cannot be written"):
        ElfWriter(sink, dataclasses.replace(make_outline(PAGES), machine=machine))
    with pytest.raises(UnsupportedError, match="big-endian"):
        ElfWriter(sink, dataclasses.replace(make_outline(PAGES), byte_order="big"))
    sink.close()
