from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.dumps.flattened import reader as flattened_reader
from postpanic.dumps.flattened.reader import FlattenedSource
from postpanic.dumps.memory import PageState
from postpanic.dumps.source import FileSource
from postpanic.errors import NotADumpError, TruncatedError, UnsupportedError
from postpanic.units import PhysAddr
from tests.builders.elfcore import Segment, build_elf_core
from tests.builders.flattened import build_flattened, flatten, split_records
from tests.builders.kdump import INCOMPLETE, RAW, KdumpSpec, build_kdump
from tests.unit.dumps.conftest import Opener
from tests.unit.dumps.pages import PAGE, contents_of, make_noise, make_page, states_of

PAGES = {pfn: make_page(pfn) for pfn in range(3, 60, 3)}
KDUMP = build_kdump(KdumpSpec(PAGES, ram=range(64))).raw


def open_source(tmp_path: Path, raw: bytes) -> FlattenedSource:
    path = tmp_path / "stream"
    path.write_bytes(raw)
    return FlattenedSource(FileSource(path))


@pytest.mark.parametrize("record_bytes", [24, 1000, 4096, 16384, 1 << 20])
def test_kdump_is_read_through_a_stream(open_bytes: Opener, record_bytes: int) -> None:
    dump = open_bytes(flatten(KDUMP, record_bytes=record_bytes))
    assert dump.description.format == "flattened kdump-compressed v6"
    assert dump.description.incomplete == ""
    assert {pfn: contents_of(dump, pfn) for pfn in PAGES} == PAGES
    assert states_of(dump, (4, 64)) == [PageState.EXCLUDED, PageState.ABSENT]


def test_elf_is_read_through_a_stream(open_bytes: Opener) -> None:
    raw = build_elf_core([Segment(0x1000, make_page(1) + make_page(2))]).raw
    dump = open_bytes(flatten(raw, record_bytes=3000))
    assert dump.description.format == "flattened ELF vmcore"
    assert contents_of(dump, 1) == make_page(1)
    assert contents_of(dump, 2) == make_page(2)
    assert dump.read(PhysAddr(0x1F00), 0x200) == make_page(1)[-256:] + make_page(2)[:256]


def test_split_set_of_streams(open_bytes: Opener) -> None:
    parts = [build_kdump(KdumpSpec(PAGES, split=cut)).raw for cut in ((0, 30), (30, 58))]
    dump = open_bytes(flatten(parts[1]), flatten(parts[0]))
    assert dump.description.format == "split flattened kdump-compressed v6"
    assert {pfn: contents_of(dump, pfn) for pfn in PAGES} == PAGES
    mixed = open_bytes(parts[1], flatten(parts[0]))
    assert {pfn: contents_of(mixed, pfn) for pfn in PAGES} == PAGES


def test_later_records_overwrite_earlier_ones(tmp_path: Path) -> None:
    records = [(0, b"a" * 100), (40, b"b" * 20), (10, b"c" * 35), (100, b"d" * 10), (105, b"e" * 20), (0, b"f")]
    expected = bytearray(125)
    for offset, data in records:
        expected[offset : offset + len(data)] = data
    source = open_source(tmp_path, build_flattened(records))
    assert source.size_bytes == 125
    assert source.read(0, 125) == expected
    for start in range(125):
        for size in (1, 7, 60):
            assert source.read(start, size) == expected[start : start + size]
            buffer = bytearray(size)
            got = source.read_into(start, memoryview(buffer))
            assert buffer[:got] == expected[start : start + size]


def test_header_sent_again_counts(open_bytes: Opener) -> None:
    first = build_kdump(KdumpSpec(PAGES, ram=range(64), status=INCOMPLETE)).raw
    records = [*split_records(first, record_bytes=9999, resend_header=False), (0, KDUMP[:4096])]
    assert open_bytes(build_flattened(records[:-1])).description.incomplete == "marked incomplete by its writer"
    assert open_bytes(build_flattened(records)).description.incomplete == ""


def test_what_no_record_wrote_is_missing_and_not_zero(tmp_path: Path) -> None:
    source = open_source(tmp_path, build_flattened([(10, b"abc"), (20, b"def")]))
    assert source.read(0, 4) == b""
    assert source.read(10, 10) == b"abc"
    assert source.read(13, 1) == b""
    assert source.read(20, 10) == b"def"
    assert source.read(-1, 10) == b""
    assert source.read_into(5, memoryview(bytearray(3))) == 0


def test_empty_records_are_skipped(open_bytes: Opener) -> None:
    records = [record for pair in split_records(KDUMP, record_bytes=5000) for record in ((77, b""), pair)]
    assert {pfn: contents_of(open_bytes(build_flattened(records)), pfn) for pfn in [3, 57]} == {
        3: PAGES[3],
        57: PAGES[57],
    }


def test_stream_without_end_record_is_incomplete_and_readable(open_bytes: Opener) -> None:
    dump = open_bytes(flatten(KDUMP, end_record=False))
    assert dump.description.incomplete == "the flattened stream has no end record"
    assert {pfn: contents_of(dump, pfn) for pfn in PAGES} == PAGES


def test_cut_stream_is_read_up_to_the_cut(open_bytes: Opener) -> None:
    pages = {pfn: make_noise(pfn) for pfn in range(30)}
    raw = build_kdump(KdumpSpec(pages, compression=RAW)).raw
    stream = flatten(raw, record_bytes=4 * PAGE)
    dump = open_bytes(stream[: -9 * PAGE])
    states = states_of(dump, range(30))
    good = states.count(PageState.PRESENT)
    assert 18 < good < 24
    assert states == [PageState.PRESENT] * good + [PageState.LOST] * (30 - good)
    assert "no end record" in dump.description.incomplete


def test_broken_record_ends_the_stream(open_bytes: Opener) -> None:
    records = split_records(KDUMP, record_bytes=16384)
    stream = build_flattened(records[:1])[:-16] + (b"\x80" + bytes(15)) + build_flattened(records[1:])[4096:]
    dump = open_bytes(stream)
    assert "breaks off at 0x5010" in dump.description.incomplete


def test_stream_of_unknown_type_is_refused(open_bytes: Opener) -> None:
    for kind, version in ((2, 1), (1, 2), (1 << 56, 1 << 56)):
        with pytest.raises(UnsupportedError, match="only type 1, version 1"):
            open_bytes(build_flattened([(0, KDUMP)], kind=kind, version=version))


def test_stream_cut_within_its_header_is_truncated(open_bytes: Opener) -> None:
    stream = flatten(KDUMP)
    for size in (16, 31, 32, 4096, 4096 + 15):
        with pytest.raises(TruncatedError):
            open_bytes(stream[:size])


def test_stream_of_something_else_is_no_dump(open_bytes: Opener) -> None:
    for content in (b"hello", b"KDUM", flatten(KDUMP)):
        with pytest.raises(NotADumpError, match="holds no dump"):
            open_bytes(flatten(content))
    with pytest.raises(NotADumpError, match="holds no dump"):
        open_bytes(build_flattened([(4096, KDUMP)]))


def test_number_of_records_is_bounded(open_bytes: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flattened_reader, "MAX_RECORDS", 100)
    with pytest.raises(UnsupportedError, match="more than 100 records"):
        open_bytes(flatten(KDUMP, record_bytes=24))
