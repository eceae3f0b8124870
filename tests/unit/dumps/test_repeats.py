"""Pages that are in the file already: found whatever the threads do, and never taken for another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.repeats import EPOCH_PAGES, Repeats
from postpanic.dumps.kdump.writer import KdumpWriter
from postpanic.dumps.memory import Dump
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink
from postpanic.pages.classify import select_pages
from postpanic.pages.outline import make_outline
from postpanic.pages.pump import pump_pages
from tests.builders.elfcore import EM_X86_64, Segment, build_elf_core
from tests.unit.dumps.pages import PAGE

COUNT = 4 * EPOCH_PAGES
KINDS = 3000


def page_of(kind: int) -> bytes:
    return random.Random(kind).randbytes(64) * (PAGE // 64) if kind else bytes(PAGE)


@pytest.fixture(scope="module")
def kinds() -> list[int]:
    chooser = random.Random(5)
    return [chooser.randrange(KINDS) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def source(kinds: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    path = tmp_path_factory.mktemp("repeats") / "vmcore"
    pages = {kind: page_of(kind) for kind in set(kinds)}
    path.write_bytes(build_elf_core([Segment(0, b"".join(map(pages.__getitem__, kinds)))], machine=EM_X86_64).raw)
    with open_dump(path) as dump:
        yield dump


def write(source: Dump, path: Path, *, threads: int, frames: int) -> None:
    selection = select_pages(source, None, 0)
    sink = FileSink(path, overwrite=True, hashed=False, synced=False)
    writer = KdumpWriter(sink, make_outline(source, None, selection), Compression.ZSTD, 1)
    writer.begin()
    batches = selection.batches(frames)
    outcome = pump_pages(source, batches, [writer], batch_frames=frames, threads=threads)
    assert not outcome.failures
    writer.finish(complete=True)
    sink.finish()


def read_kinds(path: Path) -> list[int]:
    numbers = {page_of(kind): kind for kind in range(KINDS)}
    found: list[int] = []
    with open_dump(path) as dump:
        for start in range(0, COUNT, 4096):
            pages, states = dump.read_pages(np.arange(start, start + 4096, dtype=np.uint64))
            assert not states.any()
            found += [numbers[page.tobytes()] for page in pages]
    return found


def test_pages_share_their_data_and_the_file_does_not_depend_on_threads(
    source: Dump, kinds: list[int], tmp_path: Path
) -> None:
    contents = set()
    for threads, frames in ((1, 512), (2, 300), (3, 77)):
        path = tmp_path / f"dump{threads}"
        write(source, path, threads=threads, frames=frames)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert read_kinds(path) == kinds
    # Nearly all pages from the third epoch on are like one of the first two.
    data_bytes = path.stat().st_size - COUNT * 24
    one_page = 95
    assert data_bytes < 2.5 * EPOCH_PAGES * one_page


def test_pages_that_only_look_alike_are_told_apart(
    source: Dump, kinds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poor(_self: Repeats, pages: NDArray[np.uint8]) -> NDArray[np.uint64]:
        # Sixteen numbers for three thousand kinds.
        return np.asarray((pages[:, 0] & 15).astype(np.uint64) << np.uint64(60))

    monkeypatch.setattr(Repeats, "fingerprint", poor)
    write(source, tmp_path / "dump", threads=2, frames=300)
    assert read_kinds(tmp_path / "dump") == kinds


def test_a_page_erased_differently_is_another(tmp_path: Path) -> None:
    pages = page_of(7) * COUNT
    path = tmp_path / "vmcore"
    path.write_bytes(build_elf_core([Segment(0, pages)], machine=EM_X86_64).raw)

    def erase(pfns: NDArray[np.uint64], batch: NDArray[np.uint8]) -> None:
        batch[pfns % np.uint64(1000) == 0, 8:16] = 0x58

    with open_dump(path) as source:
        selection = select_pages(source, None, 0)
        sink = FileSink(tmp_path / "dump", overwrite=True, hashed=False, synced=False)
        writer = KdumpWriter(sink, make_outline(source, None, selection), Compression.ZLIB)
        writer.begin()
        pump_pages(source, selection.batches(300), [writer], batch_frames=300, threads=2, erase=erase)
        writer.finish(complete=True)
        sink.finish()
    erased = page_of(7)[:8] + b"X" * 8 + page_of(7)[16:]
    with open_dump(tmp_path / "dump") as dump:
        frames = np.array([0, 1, 1000, 20_000, 20_001, 31_000, 31_999], dtype=np.uint64)
        found, _ = dump.read_pages(frames)
    assert [page.tobytes() == erased for page in found] == [True, False, True, True, False, True, False]
    assert all(page.tobytes() in (erased, page_of(7)) for page in found)


def test_fingerprints_depend_on_every_byte() -> None:
    repeats = Repeats(PAGE)
    page = np.frombuffer(page_of(3), dtype=np.uint8)
    variants = np.tile(page, (PAGE + 1, 1))
    variants[np.arange(PAGE), np.arange(PAGE)] ^= 1
    assert len(np.unique(repeats.fingerprint(variants))) > PAGE * 7 // 8 // 8
    assert (repeats.fingerprint(variants[:PAGE]) != repeats.fingerprint(variants[PAGE:])).all()
