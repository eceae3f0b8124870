"""The page pump on built files: order, threads, pages that cannot be read, writers that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink
from postpanic.dumps.writing import EncodedBatch, Encoder, PageBatch
from postpanic.errors import NoSpaceError, OutputError
from postpanic.pages.classify import select_pages
from postpanic.pages.filtering import FilterResult, OutputForm, WritePlan, divide_frames, write_dump
from postpanic.pages.pump import choose_batch_frames, pump_pages
from tests.builders.elfcore import EM_X86_64, Segment, build_elf_core
from tests.unit.dumps.pages import PAGE, make_noise, make_page

FRAMES = 300
ZERO_FRAMES = frozenset(range(40, 60))


def make_contents(pfn: int) -> bytes:
    if pfn in ZERO_FRAMES:
        return bytes(PAGE)
    return make_noise(pfn) if pfn % 7 == 0 else make_page(pfn)


@pytest.fixture(scope="module")
def source_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pump") / "vmcore"
    low = b"".join(make_contents(pfn) for pfn in range(200))
    high = b"".join(make_contents(pfn) for pfn in range(200, FRAMES))
    path.write_bytes(build_elf_core([Segment(0, low), Segment(1 << 30, high)], machine=EM_X86_64).raw)
    return path


@pytest.fixture
def source(source_path: Path) -> Iterator[Dump]:
    with open_dump(source_path) as dump:
        yield dump


def all_frames() -> NDArray[np.uint64]:
    return np.concatenate([np.arange(200), np.arange(200, FRAMES) - 200 + (1 << 18)]).astype(np.uint64)


class Recorder:
    """A writer that keeps what it is given, and fails when it is told to."""

    def __init__(self, *, fails_after: int | None = None) -> None:
        self.pages: dict[int, bytes] = {}
        self.order: list[int] = []
        self.zero: set[int] = set()
        self.lost: set[int] = set()
        self._fails_after = fails_after

    def begin(self) -> None: ...

    def make_encoder(self) -> Encoder:
        def encode(batch: PageBatch) -> EncodedBatch:
            count = len(batch.pfns)
            numbers = np.full(count, PAGE, dtype=np.uint32)
            data = [batch.pages.reshape(-1).data]
            return EncodedBatch(batch.pfns, batch.is_zero, batch.is_lost, numbers, numbers, data)

        return encode

    def write(self, batch: EncodedBatch) -> None:
        if self._fails_after is not None and len(self.order) >= self._fails_after:
            raise NoSpaceError("the disk is full", where="recorder")
        raw = bytes(batch.data[0])
        for row, pfn in enumerate(batch.pfns.tolist()):
            self.pages[pfn] = raw[row * PAGE : (row + 1) * PAGE]
            self.order.append(pfn)
        self.zero.update(batch.pfns[batch.is_zero].tolist())
        self.lost.update(batch.pfns[batch.is_lost].tolist())

    def finish(self, *, complete: bool, eraseinfo: bytes = b"") -> None: ...


def batches(size: int, frames: NDArray[np.uint64] | None = None) -> Iterator[NDArray[np.uint64]]:
    every = all_frames() if frames is None else frames
    for start in range(0, len(every), size):
        yield every[start : start + size]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_page_goes_through_in_order(source: Dump, threads: int) -> None:
    writer = Recorder()
    seen: list[int] = []
    outcome = pump_pages(source, batches(16), [writer], batch_frames=16, threads=threads, progress=seen.append)
    assert writer.order == all_frames().tolist()
    assert [writer.pages[pfn] for pfn in writer.order] == [make_contents(number) for number in range(FRAMES)]
    assert writer.zero == set(ZERO_FRAMES)
    assert outcome.zero_pages == len(ZERO_FRAMES)
    assert outcome.written_pages == FRAMES == sum(seen)
    assert not outcome.lost
    assert not outcome.failures


def fail_reads(monkeypatch: pytest.MonkeyPatch, start: int, end: int) -> None:
    """Let the disk fail on a range of bytes: what lies before it is read, then EIO."""
    preadv, pread = os.preadv, os.pread

    def failing_preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        size = sum(len(buffer) for buffer in buffers)
        if offset < end and offset + size > start:
            if offset >= start:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return preadv(fd, [buffers[0][: start - offset]], offset)
        return preadv(fd, buffers, offset)

    def failing_pread(fd: int, size: int, offset: int) -> bytes:
        if offset < end and offset + size > start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "preadv", failing_preadv)
    monkeypatch.setattr(os, "pread", failing_pread)


def file_place(path: Path, pfn: int) -> int:
    """Find the offset of a frame's page, which occurs once."""
    return path.read_bytes().index(make_contents(pfn))


@pytest.mark.parametrize(("first", "last"), [(100, 100), (90, 120), (0, 0), (199, 199), (64, 79)])
@pytest.mark.parametrize("threads", [1, 2])
def test_pages_that_cannot_be_read_cost_no_others(
    source: Dump, source_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, last: int, threads: int
) -> None:
    start = file_place(source_path, first)
    # A disk fails in sectors: not always at the ends of pages.
    fail_reads(monkeypatch, start + 512, start + (last - first) * PAGE + 1024)
    writer = Recorder()
    outcome = pump_pages(source, batches(32), [writer], batch_frames=32, threads=threads)
    bad = set(range(first, last + 1))
    assert writer.lost == bad
    assert sorted(outcome.lost) == sorted(bad)
    assert outcome.written_pages == FRAMES
    for number, pfn in enumerate(all_frames().tolist()):
        assert writer.pages[pfn] == (bytes(PAGE) if pfn in bad else make_contents(number))
    assert not writer.zero & bad


@pytest.mark.parametrize("threads", [1, 3])
def test_a_writer_that_fails_does_not_stop_another(source: Dump, threads: int) -> None:
    good, bad = Recorder(), Recorder(fails_after=100)
    outcome = pump_pages(source, batches(20), [bad, good], batch_frames=20, threads=threads)
    assert good.order == all_frames().tolist()
    assert bad.order == all_frames().tolist()[:100]
    assert list(outcome.failures) == [0]
    assert isinstance(outcome.failures[0], NoSpaceError)
    assert outcome.written_pages == FRAMES


@pytest.mark.parametrize("threads", [1, 3])
def test_the_pump_ends_when_all_writers_have_failed(source: Dump, threads: int) -> None:
    bad = Recorder(fails_after=40)
    outcome = pump_pages(source, batches(20), [bad], batch_frames=20, threads=threads)
    assert bad.order == all_frames().tolist()[:40]
    assert outcome.written_pages == 40
    assert list(outcome.failures) == [0]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_pump_stops_when_it_is_told_to(source: Dump, threads: int) -> None:
    writer = Recorder()
    reasons = iter([*[""] * 4, *["enough"] * 100])
    outcome = pump_pages(source, batches(10), [writer], batch_frames=10, threads=threads, stop=lambda: next(reasons))
    assert outcome.stopped == "enough"
    assert writer.order == all_frames().tolist()[:40]
    assert outcome.written_pages == 40


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_an_encoder_is_the_callers(source: Dump, threads: int) -> None:
    class Broken(Recorder):
        def make_encoder(self) -> Encoder:
            def encode(_batch: PageBatch) -> EncodedBatch:
                raise OutputError("cannot")

            return encode

    with pytest.raises(OutputError, match="cannot"):
        pump_pages(source, batches(10), [Broken()], batch_frames=10, threads=threads)


def test_secrets_are_erased_before_anyone_sees_the_page(source: Dump) -> None:
    def erase(pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> None:
        pages[pfns == 5, 100:200] = 0x58

    writer = Recorder()
    pump_pages(source, batches(16), [writer], batch_frames=16, threads=2, erase=erase)
    page = make_contents(5)
    assert writer.pages[5] == page[:100] + b"X" * 100 + page[200:]
    assert writer.pages[6] == make_contents(6)


def test_memory_is_divided_among_threads() -> None:
    assert choose_batch_frames(1 << 40, 4096, 1) * 4096 == 2 << 20
    two, five = choose_batch_frames(12 << 20, 4096, 2), choose_batch_frames(12 << 20, 4096, 5)
    # Three carriers for two threads, six for five.
    assert two // 2 - 1 <= five <= two // 2 + 1
    assert choose_batch_frames(1, 65536, 64) == 16


def write(source: Dump, paths: Sequence[Path], plan: WritePlan) -> FilterResult:
    selection = select_pages(source, None, 0)
    sinks = [FileSink(path, overwrite=True, synced=False) for path in paths]
    return write_dump(source, None, selection, sinks, plan)


@pytest.mark.parametrize("compression", [None, *Compression])
@pytest.mark.parametrize("form", list(OutputForm))
def test_the_file_is_the_same_for_any_number_of_threads(
    source: Dump, tmp_path: Path, compression: Compression | None, form: OutputForm
) -> None:
    contents = set()
    for threads in (1, 2, 4):
        path = tmp_path / f"dump{threads}"
        plan = WritePlan(form, compression, threads=threads, buffer_bytes=1 << 20)
        result = write(source, [path], plan)
        assert result.complete
        contents.add(path.read_bytes())
        with open_dump(path) as dump:
            pages, states = dump.read_pages(all_frames())
            assert not states.any()
            assert [page.tobytes() for page in pages] == [make_contents(number) for number in range(FRAMES)]
    # ISA-L's bytes depend on what its memory held before; they mean the same.
    if form is OutputForm.ELF or compression is not Compression.ZLIB:
        assert len(contents) == 1


def test_parts_have_as_many_pages_each(source: Dump, tmp_path: Path) -> None:
    paths = [tmp_path / f"part{number}" for number in range(3)]
    assert write(source, paths, WritePlan()).complete
    with open_dump(paths) as dump:
        assert not dump.page_states(all_frames()).any()
    selection = select_pages(source, None, 0)
    ranges = [pair for pair in divide_frames(selection, 3) if pair is not None]
    assert [len(selection.kept.members(*pair)) for pair in ranges] == [100, 100, 100]
    assert ranges[0][0] == 0
    assert [end for _, end in ranges[:-1]] == [start for start, _ in ranges[1:]]


def test_lost_pages_make_a_dump_incomplete(
    source: Dump, source_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = file_place(source_path, 100)
    selection = select_pages(source, None, 0)
    sink = FileSink(tmp_path / "dump", overwrite=False, hashed=False, synced=False)
    with monkeypatch.context() as patched:
        fail_reads(patched, start, start + PAGE)
        result = write_dump(source, None, selection, [sink], WritePlan(threads=2))
    assert result.lost == [100]
    assert result.faults == ["1 page could not be read"]
    with open_dump(tmp_path / "dump") as dump:
        assert "incomplete" in dump.description.incomplete
        states = dump.page_states(all_frames())
        assert states[100] == PageState.LOST
        assert np.count_nonzero(states) == 1
