from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.digest import digest_file
from postpanic.dumps.elfcore.writer import ElfWriter
from postpanic.dumps.flattened.writer import FlattenedSink
from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.writer import KdumpWriter
from postpanic.dumps.memory import PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import LimitedSink
from postpanic.dumps.writing import DumpWriter
from postpanic.errors import FileFaultError, NoSpaceError, OutputError, OutputGoneError
from tests.unit.dumps.pages import contents_of, make_noise, make_page, states_of
from tests.unit.dumps.test_sink import file_size_limited
from tests.unit.dumps.writing import RAM, make_outline, pump

PRESENT, EXCLUDED, HOLE, ABSENT, LOST = PageState
PAGES = {
    2: make_page(1),
    3: bytes(4096),
    4: make_noise(2),
    9: make_page(3),
    300: make_page(4),
    301: make_noise(5),
}
FORMATS = ("kdump", "elf")


def make_writer(kind: str, sink: FlattenedSink | LimitedSink) -> DumpWriter:
    outline = make_outline(PAGES, RAM)
    return ElfWriter(sink, outline) if kind == "elf" else KdumpWriter(sink, outline, Compression.ZLIB)


@contextmanager
def open_fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def rearrange(raw: bytes) -> bytes:
    """Do what the format's description says a reader does."""
    assert raw[:16] == b"makedumpfile\0\0\0\0"
    assert raw[16:32] == (1).to_bytes(8, "big") * 2
    image = bytearray()
    at = 4096
    while True:
        offset = int.from_bytes(raw[at : at + 8], "big", signed=True)
        size = int.from_bytes(raw[at + 8 : at + 16], "big", signed=True)
        at += 16
        if (offset, size) == (-1, -1):
            assert at == len(raw)
            return bytes(image)
        assert size > 0
        image += bytes(max(offset + size - len(image), 0))
        image[offset : offset + size] = raw[at : at + size]
        at += size


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_streamed_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with open_fd(path) as fd:
        sink = FlattenedSink(fd, "stream")
        writer = make_writer(kind, sink)
        assert pump(writer, PAGES, batches=[[300, 301], [2, 4, 9], [3]])
        writer.finish(complete=True)
        digest = sink.finish()
        sink.close()
    assert digest == digest_file(path)
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""
        assert dump.description.format.startswith("flattened")
        for pfn, page in PAGES.items():
            assert contents_of(dump, pfn) == page
        gone = HOLE if kind == "elf" else EXCLUDED
        assert states_of(dump, RAM) == [PRESENT if pfn in PAGES else gone for pfn in RAM]
    plain = tmp_path / "plain"
    plain.write_bytes(rearrange(path.read_bytes()))
    with open_dump(plain) as dump:
        assert dump.description.incomplete == ""
        for pfn, page in PAGES.items():
            assert contents_of(dump, pfn) == page


def test_gaps_are_sent_as_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_fd(path) as fd:
        sink = FlattenedSink(fd, "stream")
        sink.reserve(100)
        sink.write_at(40, [b"abc", b"", b"def"])
        sink.write_at(3 << 20, [])
        sink.write_rows(50, np.array([0, 1, 5], dtype=np.int64), np.full((3, 4), 7, dtype=np.uint8))
        sink.write_rows(50, np.empty(0, dtype=np.int64), np.empty((0, 4), dtype=np.uint8))
        sink.write_at(2 << 20, [b"end"])
        sink.write_at(0, [b"head"])
        sink.extend((2 << 20) + 5)
        sink.flush()
        sink.finish()
    expected = bytearray((2 << 20) + 5)
    expected[:4], expected[40:46], expected[50:58], expected[70:74] = b"head", b"abcdef", b"\7" * 8, b"\7" * 4
    expected[2 << 20 : (2 << 20) + 3] = b"end"
    assert rearrange(path.read_bytes()) == bytes(expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pipe_takes_it_as_slowly_as_it_likes(tmp_path: Path, kind: str) -> None:
    reading, writing = os.pipe()
    path = tmp_path / "out"

    def drain() -> None:
        with path.open("wb") as file:
            while part := os.read(reading, 1777):
                file.write(part)

    thread = threading.Thread(target=drain)
    thread.start()
    sink = FlattenedSink(writing, "pipe")
    writer = make_writer(kind, sink)
    assert pump(writer, PAGES)
    writer.finish(complete=True)
    digest = sink.finish()
    os.close(writing)
    thread.join()
    os.close(reading)
    assert digest == digest_file(path)
    with open_dump(path) as dump:
        assert dump.description.incomplete == ""
        for pfn, page in PAGES.items():
            assert contents_of(dump, pfn) == page


def test_a_pipe_that_nobody_reads_is_an_error() -> None:
    reading, writing = os.pipe()
    sink = FlattenedSink(writing, "pipe")
    os.close(reading)
    with pytest.raises(OutputGoneError):
        sink.write_at(0, [bytes(10)])
    with pytest.raises(OutputGoneError):
        sink.finish()
    os.close(writing)


def test_a_descriptor_that_cannot_be_written_is_an_error() -> None:
    reading, writing = os.pipe()
    with pytest.raises(OutputError, match="cannot write"):
        FlattenedSink(reading, "pipe")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_stream_that_is_cut_is_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with open_fd(path) as fd:
        sink = FlattenedSink(fd, "stream")
        writer = make_writer(kind, sink)
        assert pump(writer, PAGES, batches=[[300, 301], [2, 4, 9], [3]])
        writer.finish(complete=True)
        sink.finish()
    raw = path.read_bytes()
    for size in [*range(0, len(raw), 613), len(raw) - 1, len(raw) - 16]:
        path.write_bytes(raw[:size])
        try:
            with open_dump(path) as dump:
                assert dump.description.incomplete
                pages, states = dump.read_pages(np.array(sorted(PAGES), dtype=np.uint64))
                for page, state, pfn in zip(pages, states, sorted(PAGES), strict=True):
                    assert page.tobytes() == (PAGES[pfn] if state == PRESENT else bytes(4096))
        except FileFaultError:
            continue


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_leaves_a_stream_that_says_so(tmp_path: Path, kind: str) -> None:
    """The kernel itself refuses more; the record that did not fit is taken back."""
    path = tmp_path / "out"
    with open_fd(path) as fd:
        sink = FlattenedSink(fd, "stream")
        writer = make_writer(kind, sink)
        assert pump(writer, PAGES)
        writer.finish(complete=True)
        sink.finish()
    whole = path.stat().st_size
    ended = 0
    for limit in range(4096, whole, 997):
        with open_fd(path) as fd, file_size_limited(limit):
            sink = FlattenedSink(fd, "stream")
            writer = make_writer(kind, sink)
            fits = pump(writer, PAGES, batches=[[300, 301], [2, 4, 9], [3]])
            try:
                writer.finish(complete=fits)
                assert sink.finish() == digest_file(path)
                ended += 1
            except NoSpaceError:
                fits = False
        assert not fits
        try:
            with open_dump(path) as dump:
                assert dump.description.incomplete
                pages, states = dump.read_pages(np.array(sorted(PAGES), dtype=np.uint64))
                for page, state, pfn in zip(pages, states, sorted(PAGES), strict=True):
                    assert page.tobytes() == (PAGES[pfn] if state == PRESENT else bytes(4096))
        except FileFaultError:
            assert limit < 24_000
    assert ended > 0 or kind == "elf"


def test_a_stream_can_begin_in_the_middle_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with path.open("ab") as file, file_size_limited(6 + 4096 + 200):
        sink = FlattenedSink(file.fileno(), "stream")
        with pytest.raises(NoSpaceError):
            sink.write_at(0, [bytes(500)])
        sink.write_at(0, [b"little"])
        sink.finish()
    raw = path.read_bytes()
    assert raw[:6] == b"before"
    assert rearrange(raw[6:]) == b"little"


@pytest.mark.parametrize(("kind", "limit"), [("kdump", 20_000), ("elf", 24_000)])
def test_a_limit_holds_for_streams_too(tmp_path: Path, kind: str, limit: int) -> None:
    path = tmp_path / "out"
    with open_fd(path) as fd:
        sink = LimitedSink(FlattenedSink(fd, "stream", hashed=False), limit)
        writer = make_writer(kind, sink)
        assert not pump(writer, PAGES, batches=[[300], [301], [2, 3, 4], [9]])
        writer.finish(complete=False)
        assert sink.finish().sha256 == ""
    with open_dump(path) as dump:
        assert "marked incomplete" in dump.description.incomplete
        assert contents_of(dump, 300) == PAGES[300]
