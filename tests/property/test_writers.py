"""What must hold for every dump that is written: it is read as it was, in any order, codec and container."""

from __future__ import annotations

import contextlib
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.dumps.digest import digest_file
from postpanic.dumps.elfcore.writer import ElfWriter
from postpanic.dumps.flattened.writer import FlattenedSink
from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.writer import KdumpWriter
from postpanic.dumps.memory import PageState, VirtualSegment
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink, Sink
from postpanic.dumps.writing import DumpOutline, DumpWriter
from postpanic.errors import FileFaultError, NoSpaceError
from postpanic.units import PhysAddr, VirtAddr
from tests.property.test_dumps import make_page
from tests.unit.dumps.writing import CrampedSink, make_outline, pump

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=60)
PRESENT, EXCLUDED, HOLE, ABSENT, LOST = PageState
FRAMES = 301

page_seeds = st.dictionaries(st.integers(0, FRAMES - 1), st.integers(0, 40), min_size=1, max_size=40)
formats = st.sampled_from(["elf", None, *Compression])
Format = str | Compression | None


def make_writer(sink: Sink | CrampedSink, outline: DumpOutline, form: Format) -> DumpWriter:
    if isinstance(form, str):
        return ElfWriter(sink, outline)
    return KdumpWriter(sink, outline, form)


def write(
    path: Path,
    outline: DumpOutline,
    form: Format,
    pages: dict[int, bytes],
    batches: list[list[int]],
    lost: set[int],
    *,
    flattened: bool = False,
) -> None:
    """Write a dump, and check its digest."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600) if flattened else -1
    sink: Sink = (
        FlattenedSink(fd, str(path), synced=False) if flattened else FileSink(path, overwrite=False, synced=False)
    )
    writer = make_writer(sink, outline, form)
    assert pump(writer, pages, batches=batches, lost=lost)
    writer.finish(complete=True)
    assert sink.finish() == digest_file(path)
    if flattened:
        os.close(fd)


def draw_batches(data: st.DataObject, pages: dict[int, bytes]) -> list[list[int]]:
    """Divide frames into batches of rising numbers, as worth does."""
    worth = data.draw(st.lists(st.integers(0, 5), min_size=len(pages), max_size=len(pages)))
    order = data.draw(st.permutations(range(6)))
    return [[pfn for pfn, one in zip(sorted(pages), worth, strict=True) if one == turn] for turn in order]


@DETERMINISTIC
@given(seeds=page_seeds, ram=st.sets(st.integers(0, FRAMES - 1)), form=formats, flattened=st.booleans(), data=st.data())
def test_every_dump_is_read_as_it_was(
    seeds: dict[int, int], ram: set[int], form: Format, *, flattened: bool, data: st.DataObject
) -> None:
    pages = {pfn: make_page(seed) for pfn, seed in seeds.items()}
    lost = data.draw(st.sets(st.sampled_from(sorted(pages)), max_size=5))
    cuts = sorted(data.draw(st.sets(st.integers(1, FRAMES - 1), max_size=4)))
    segments = tuple(
        VirtualSegment(
            VirtAddr(0xFFFF_8880_0000_0000 + number * (1 << 30)), PhysAddr(start * 4096), (end - start) * 4096
        )
        for number, (start, end) in enumerate(pairwise(cuts))
    )
    outline = make_outline(pages, ram, segments=segments)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out"
        write(path, outline, form, pages, draw_batches(data, pages), lost, flattened=flattened)
        gone, missing = (HOLE, HOLE) if form == "elf" else (EXCLUDED, LOST)
        with open_dump(path) as dump:
            assert dump.description.incomplete == ""
            contents, states = dump.read_pages(np.arange(FRAMES, dtype=np.uint64))
            assert dump.page_states(np.arange(FRAMES, dtype=np.uint64)).tolist() == states.tolist()
            for pfn in range(FRAMES):
                held = pfn in pages and pfn not in lost
                assert states[pfn] == (PRESENT if held else missing if pfn in lost else gone if pfn in ram else ABSENT)
                assert contents[pfn].tobytes() == (pages[pfn] if held else bytes(4096))


@DETERMINISTIC
@given(seeds=page_seeds, cuts=st.sets(st.integers(1, FRAMES - 1), max_size=4), data=st.data())
def test_every_split_set_is_read_as_it_was(seeds: dict[int, int], cuts: set[int], data: st.DataObject) -> None:
    pages = {pfn: make_page(seed) for pfn, seed in seeds.items()}
    with tempfile.TemporaryDirectory() as directory:
        paths: list[Path] = []
        for start, end in pairwise([0, *sorted(cuts), FRAMES]):
            held = {pfn: page for pfn, page in pages.items() if start <= pfn < end}
            outline = make_outline(pages, range(FRAMES), pfn_range=(start, end))
            paths.append(Path(directory) / f"part{start}")
            write(paths[-1], outline, Compression.SNAPPY, held, draw_batches(data, held), set())
        with open_dump(data.draw(st.permutations(paths))) as dump:
            assert dump.description.incomplete == ""
            contents, states = dump.read_pages(np.arange(FRAMES, dtype=np.uint64))
            assert np.flatnonzero(states == PRESENT).tolist() == sorted(pages)
            assert all(contents[pfn].tobytes() == page for pfn, page in pages.items())


@DETERMINISTIC
@given(seeds=page_seeds, form=formats, share=st.floats(0, 1), flattened=st.booleans(), data=st.data())
def test_a_cut_anywhere_never_gives_a_wrong_page(
    seeds: dict[int, int], form: Format, share: float, *, flattened: bool, data: st.DataObject
) -> None:
    pages = {pfn: make_page(seed) for pfn, seed in seeds.items()}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out"
        outline = make_outline(pages, range(FRAMES))
        write(path, outline, form, pages, draw_batches(data, pages), set(), flattened=flattened)
        size = path.stat().st_size
        os.truncate(path, min(int(size * share), size - 1))
        check_marked_and_true(path, pages)


@DETERMINISTIC
@given(seeds=page_seeds, form=formats, share=st.floats(0, 0.999), data=st.data())
def test_a_disk_that_fills_up_anywhere_never_gives_a_wrong_page(
    seeds: dict[int, int], form: Format, share: float, data: st.DataObject
) -> None:
    pages = {pfn: make_page(seed) for pfn, seed in seeds.items()}
    outline = make_outline(pages, range(FRAMES))
    batches = draw_batches(data, pages)
    with tempfile.TemporaryDirectory() as directory:
        whole = Path(directory) / "whole"
        write(whole, outline, form, pages, batches, set())
        path = Path(directory) / "out"
        sink = CrampedSink(path, int(whole.stat().st_blocks * 512 * share) // 2)
        writer = make_writer(sink, outline, form)
        fits = pump(writer, pages, batches=batches)
        try:
            writer.finish(complete=fits)
        except NoSpaceError:
            fits = False
        sink.finish()
        if not fits:
            check_marked_and_true(path, pages)


def check_marked_and_true(path: Path, pages: dict[int, bytes]) -> None:
    with contextlib.suppress(FileFaultError), open_dump(path) as dump:
        assert dump.description.incomplete
        contents, states = dump.read_pages(np.array(sorted(pages), dtype=np.uint64))
        for page, state, pfn in zip(contents, states, sorted(pages), strict=True):
            assert page.tobytes() == (pages[pfn] if state == PRESENT else bytes(4096))
