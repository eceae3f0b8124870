from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.writer import KdumpWriter
from postpanic.dumps.memory import PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink, LimitedSink
from postpanic.dumps.writing import DumpOutline
from postpanic.errors import FileFaultError, NoSpaceError, UnsupportedError
from tests.builders.kdump import HEADER_FIELDS, SUB_HEADER_FIELDS
from tests.unit.dumps.pages import contents_of, make_noise, make_page
from tests.unit.dumps.writing import (
    RAM,
    TIME_S,
    UTSNAME,
    CrampedSink,
    check_dump,
    make_batch,
    make_outline,
    pump,
    write_dump,
)

PRESENT, EXCLUDED, HOLE, ABSENT, LOST = PageState
PAGES = {
    2: make_page(1),
    3: bytes(4096),
    4: make_noise(2),
    9: make_page(3),
    10: bytes(4096),
    300: make_page(4),
    301: make_noise(5),
}


def write(
    path: Path,
    outline: DumpOutline,
    pages: dict[int, bytes],
    compression: Compression | None = Compression.ZSTD,
    *,
    batches: list[list[int]] | None = None,
    lost: tuple[int, ...] = (),
    complete: bool = True,
    eraseinfo: bytes = b"",
) -> None:
    write_dump(
        path,
        lambda sink: KdumpWriter(sink, outline, compression),
        pages,
        page_size=outline.page_size_bytes,
        batches=batches,
        lost=lost,
        complete=complete,
        eraseinfo=eraseinfo,
    )


def check(path: Path, pages: dict[int, bytes], ram: tuple[int, ...], lost: tuple[int, ...] = ()) -> None:
    check_dump(path, pages, ram, left_out=EXCLUDED, lost=lost)


@pytest.mark.parametrize("compression", [None, *Compression])
def test_what_is_written_is_read(tmp_path: Path, compression: Compression | None) -> None:
    path = tmp_path / "out"
    write(path, make_outline(PAGES, RAM), PAGES, compression)
    check(path, PAGES, RAM)
    with open_dump(path) as dump:
        description = dump.description
        assert description.format == "kdump-compressed v6"
        assert description.incomplete == ""
        assert description.warnings == ()
        assert description.compression == (() if compression is None else (str(compression.name).lower(),))
        assert description.dump_level == 31
        assert description.machine == "x86_64"
        assert description.utsname == {**UTSNAME, "domainname": ""}
        assert description.timestamp_s == TIME_S
        assert description.phys_base == 0x1000000
        outline = make_outline(PAGES, RAM)
        assert description.notes == outline.notes
        assert description.vmcoreinfo == outline.vmcoreinfo.rstrip(b"\0")


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_pages_of_other_sizes(tmp_path: Path, page_size: int) -> None:
    pages = {1: make_page(1, page_size), 5: make_noise(2, page_size), 6: bytes(page_size)}
    write(tmp_path / "out", make_outline(pages, range(9), page_size=page_size), pages)
    check(tmp_path / "out", pages, tuple(range(9)))


def test_fields_are_where_the_format_has_them(tmp_path: Path) -> None:
    """The builder's table of offsets is the judge, which was written from the format's description."""
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM)
    write(path, outline, PAGES, Compression.LZO)
    raw = path.read_bytes()
    header = {name: struct.unpack_from("<" + form, raw, at)[0] for name, (at, form) in HEADER_FIELDS["lp64"].items()}
    sub = {
        name: struct.unpack_from("<" + form, raw, 4096 + at)[0]
        for name, (at, form) in SUB_HEADER_FIELDS["lp64"].items()
    }
    notes_at = 4096 + 104
    found = outline.notes.index(b"OSRELEASE")
    assert raw[:8] == b"KDUMP   "
    assert header.pop("utsname") == b"".join(
        UTSNAME.get(name, "").encode().ljust(65, b"\0")
        for name in ("sysname", "nodename", "release", "version", "machine", "domainname")
    )
    assert header == {
        "header_version": 6, "tv_sec": TIME_S, "tv_usec": 0, "status": 2, "block_size": 4096, "sub_hdr_size": 1,
        "bitmap_blocks": 2, "max_mapnr": 310, "total_ram_blocks": 0, "device_blocks": 0, "written_blocks": 0,
        "current_cpu": 0, "nr_cpus": 2,
    }  # fmt: skip
    assert sub == {
        "phys_base": 0x1000000, "dump_level": 31, "split": 0, "start_pfn": 0, "end_pfn": 0,
        "offset_vmcoreinfo": notes_at + found, "size_vmcoreinfo": len(outline.vmcoreinfo),
        "offset_note": notes_at, "size_note": len(outline.notes), "offset_eraseinfo": len(raw), "size_eraseinfo": 0,
        "start_pfn_64": 0, "end_pfn_64": 0, "max_mapnr_64": 310,
    }  # fmt: skip
    bits = np.unpackbits(np.frombuffer(raw[8192:16384], dtype=np.uint8), bitorder="little").reshape(2, -1)
    assert np.flatnonzero(bits[0]).tolist() == sorted(RAM)
    assert np.flatnonzero(bits[1]).tolist() == sorted(PAGES)
    table = [struct.unpack_from("<QIIQ", raw, 16384 + 24 * rank) for rank in range(len(PAGES))]
    by_frame = dict(zip(sorted(PAGES), table, strict=True))
    assert by_frame[3] == by_frame[10]
    assert by_frame[3][0] == 16384 + 24 * len(PAGES)
    assert by_frame[4][1:] == (4096, 0, 0)
    assert by_frame[9][2] == 2


def test_pages_may_come_in_any_order(tmp_path: Path) -> None:
    batches = [[300, 301], [4], [2, 9], [3, 10]]
    write(tmp_path / "out", make_outline(PAGES, RAM), PAGES, batches=batches)
    check(tmp_path / "out", PAGES, RAM)
    with open_dump(tmp_path / "out") as dump:
        assert dump.description.incomplete == ""


def test_lost_pages_are_missing_and_the_dump_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "out", make_outline(PAGES, RAM), PAGES, lost=(9, 301))
    check(tmp_path / "out", PAGES, RAM, lost=(9, 301))
    with open_dump(tmp_path / "out") as dump:
        assert dump.description.incomplete == ""


def test_it_is_marked_incomplete_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM)
    sink = FileSink(path, overwrite=False)
    writer = KdumpWriter(sink, outline, Compression.ZLIB)
    encode = writer.make_encoder()
    writer.begin()
    written: list[int] = []
    for pfn in [None, *sorted(PAGES, reverse=True)]:
        if pfn is not None:
            writer.write(encode(make_batch([pfn], PAGES, 4096)))
            written.append(pfn)
        with open_dump(path) as dump:
            assert "marked incomplete" in dump.description.incomplete
            states = dump.page_states(np.array(sorted(PAGES), dtype=np.uint64))
            assert states.tolist() == [PRESENT if frame in written else LOST for frame in sorted(PAGES)]
    writer.finish(complete=True)
    sink.finish()
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""


def test_an_unfinished_dump_is_marked_and_keeps_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, make_outline(PAGES, RAM), PAGES, batches=[[300], [2, 3]], complete=False, eraseinfo=b"erase x\n")
    with open_dump(path) as dump:
        assert "marked incomplete" in dump.description.incomplete
    check(path, PAGES, RAM, lost=(4, 9, 10, 301))


@pytest.mark.parametrize("eraseinfo", [b"", b"erase task_struct.comm 16\n"])
def test_a_complete_dump_that_is_cut_later_is_noticed(tmp_path: Path, eraseinfo: bytes) -> None:
    path = tmp_path / "out"
    write(path, make_outline(PAGES, RAM), PAGES, batches=[[300, 301], [2, 3, 4, 9, 10]], eraseinfo=eraseinfo)
    raw = path.read_bytes()
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""
        assert any("erased" in text for text in dump.description.warnings) == bool(eraseinfo)
    edges = {0, 8, 464, 4096, 4200, 8192, 12288, 16384, 16384 + 24 * len(PAGES), len(raw) - len(eraseinfo), len(raw)}
    sizes = {edge + step for edge in edges for step in (-1, 0, 1)} | set(range(0, len(raw), 531))
    for size in sorted(size for size in sizes if 0 <= size < len(raw)):
        path.write_bytes(raw[:size])
        try:
            with open_dump(path) as dump:
                assert dump.description.incomplete
                pages, states = dump.read_pages(np.array(sorted(PAGES), dtype=np.uint64))
                for page, state, pfn in zip(pages, states, sorted(PAGES), strict=True):
                    assert state in (PRESENT, LOST, ABSENT)
                    assert page.tobytes() == (PAGES[pfn] if state == PRESENT else bytes(4096))
        except FileFaultError:
            assert size < 16384


def test_the_parts_of_a_split_set_are_read_together(tmp_path: Path) -> None:
    ranges = [(0, 4), (4, 10), (10, 10), (10, 310)]
    paths: list[Path] = []
    for start, end in ranges:
        paths.append(tmp_path / f"part{len(paths)}")
        held = {pfn: page for pfn, page in PAGES.items() if start <= pfn < end}
        write(paths[-1], make_outline(PAGES, RAM, pfn_range=(start, end)), held)
    with open_dump(paths) as dump:
        assert dump.description.format == "split kdump-compressed v6"
        assert dump.description.incomplete == ""
        for pfn, page in PAGES.items():
            assert contents_of(dump, pfn) == page
    with open_dump(paths[:2]) as dump:
        assert "not given: frames 0xa-0x135" in dump.description.incomplete


@pytest.mark.parametrize("compression", [None, Compression.ZLIB])
@pytest.mark.parametrize("eraseinfo", [b"", b"erase init_task\n"])
def test_a_full_disk_leaves_what_was_written(tmp_path: Path, compression: Compression | None, eraseinfo: bytes) -> None:
    """The disk fills up at every point; what opens holds true pages only, and is marked."""
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM)
    write(path, outline, PAGES, compression, eraseinfo=eraseinfo)
    whole = path.stat().st_size
    opened = most = 0
    for room in range(0, whole + 64 * 3, 64):
        sink = CrampedSink(path, room)
        writer = KdumpWriter(sink, outline, compression)
        fits = pump(writer, PAGES, batches=[[300, 301], [2, 3, 4], [9, 10]])
        try:
            writer.finish(complete=fits, eraseinfo=eraseinfo)
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
            assert room <= 16384
    assert opened > 5
    assert most == len(PAGES)


def test_a_limit_is_kept_and_leaves_an_openable_dump(tmp_path: Path) -> None:
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM)
    limit = 16384 + 24 * len(PAGES) + 2 * 4096 + 1000
    sink = LimitedSink(FileSink(path, overwrite=False), limit)
    writer = KdumpWriter(sink, outline, None)
    assert not pump(writer, PAGES, batches=[[pfn] for pfn in PAGES])
    writer.finish(complete=False)
    assert sink.finish().size_bytes <= limit
    check(path, PAGES, RAM, lost=(4, 9, 10, 300, 301))


def test_vmcoreinfo_that_is_in_no_note_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out"
    outline = dataclasses.replace(make_outline(PAGES, RAM), notes=b"")
    write(path, outline, PAGES)
    with open_dump(path) as dump:
        assert dump.description.vmcoreinfo == outline.vmcoreinfo.rstrip(b"\0")
        assert dump.description.notes == b""
    write(path, dataclasses.replace(outline, vmcoreinfo=b""), PAGES)
    check(path, PAGES, RAM)


def test_notes_of_many_processors_take_more_blocks(tmp_path: Path) -> None:
    path = tmp_path / "out"
    outline = make_outline(PAGES, RAM)
    outline = dataclasses.replace(outline, notes=outline.notes * 100, phys_base=-0x200000)
    write(path, outline, PAGES)
    check(path, PAGES, RAM)
    with open_dump(path) as dump:
        assert dump.description.notes == outline.notes
    raw = path.read_bytes()
    assert struct.unpack_from("<q", raw, 4096)[0] == -0x200000


def test_nothing_kept_is_a_dump_too(tmp_path: Path) -> None:
    path = tmp_path / "out"
    outline = make_outline([], RAM)
    write(path, outline, {})
    check(path, {}, RAM)
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""


def test_frames_of_another_part_are_refused(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out", overwrite=False)
    writer = KdumpWriter(sink, make_outline(PAGES, RAM, pfn_range=(4, 20)), None)
    writer.begin()
    with pytest.raises(ValueError, match="not of this file"):
        writer.write(writer.make_encoder()(make_batch([300], PAGES, 4096)))
    sink.close()


def test_machines_of_another_layout_are_refused(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out", overwrite=False)
    with pytest.raises(UnsupportedError, match="s390x"):
        KdumpWriter(sink, dataclasses.replace(make_outline(PAGES), machine="s390x"), None)
    with pytest.raises(UnsupportedError, match="big-endian"):
        KdumpWriter(sink, dataclasses.replace(make_outline(PAGES), byte_order="big"), None)
    sink.close()


def test_names_that_are_not_known_are_filled_in(tmp_path: Path) -> None:
    """What is empty makes libkdumpfile take the header for one of another layout."""
    path = tmp_path / "out"
    write(path, dataclasses.replace(make_outline(PAGES), utsname={"release": "6.1", "version": ""}), PAGES)
    with open_dump(path) as dump:
        names = dump.description.utsname
        assert (names["sysname"], names["release"], names["machine"]) == ("Linux", "6.1", "x86_64")
        assert names["nodename"]
        assert names["version"]
