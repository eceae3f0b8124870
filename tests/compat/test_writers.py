"""Real memory written by us, read by others: libkdumpfile, crash and makedumpfile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import drgn
import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.dumps.elfcore.writer import ElfWriter
from postpanic.dumps.flattened.writer import FlattenedSink
from postpanic.dumps.frames import FrameSet
from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.writer import KdumpWriter
from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink, Sink
from postpanic.dumps.writing import DumpOutline, DumpWriter, PageBatch
from postpanic.kernel.debuginfo.build import build
from postpanic.kernel.debuginfo.cache import DebuginfoCache
from postpanic.kernel.memory import open_kernel_memory
from postpanic.process import run
from tests.vm.lab import Crash, Lab

pytestmark = pytest.mark.compat

Crasher = Callable[..., Crash]

BATCH = 2048
PAGE = 4096
KDUMPS = ("raw", "zlib", "lzo", "snappy", "zstd")
FORMATS = (*KDUMPS, "elf", "flattened", "flattened-elf")
COMPRESSIONS = {
    "raw": None,
    "zlib": Compression.ZLIB,
    "lzo": Compression.LZO,
    "snappy": Compression.SNAPPY,
    "zstd": Compression.ZSTD,
    "flattened": Compression.ZLIB,
}


class Material(NamedTuple):
    """A raw dump, and which of its frames are to be written."""

    raw: Path
    outline: DumpOutline


def batches(frames: FrameSet, start: int = 0, end: int | None = None) -> list[NDArray[np.uint64]]:
    """Divide frames into batches, and shuffle those, as worth does."""
    members = frames.members(start, frames.limit if end is None else end)
    parts = [members[at : at + BATCH] for at in range(0, len(members), BATCH)]
    interleaved = [piece for part in parts for piece in (part[::3], part[1::3], part[2::3]) if len(piece)]
    order = np.random.default_rng(1).permutation(len(interleaved))
    return [interleaved[number] for number in order.tolist()]


def pump(dump: Dump, writer: DumpWriter, frames: list[NDArray[np.uint64]]) -> None:
    encode = writer.make_encoder()
    writer.begin()
    room = np.empty((BATCH, PAGE), dtype=np.uint8)
    for pfns in frames:
        pages = room[: len(pfns)]
        is_lost = dump.read_pages_into(pfns, pages) != PageState.PRESENT
        is_zero = ~pages.any(axis=1) & ~is_lost
        writer.write(encode(PageBatch(pfns, pages, is_zero, is_lost)))
    writer.finish(complete=True)


@contextmanager
def open_sink(path: Path, *, flattened: bool) -> Iterator[Sink]:
    if not flattened:
        yield FileSink(path, overwrite=False, synced=False)
        return
    with path.open("wb") as file:
        yield FlattenedSink(file.fileno(), str(path), synced=False)


def describe(dump: Dump, kept: FrameSet, level: int) -> DumpOutline:
    ram = FrameSet.from_runs((dump.ram_ranges // PAGE).astype(np.int64), kept.limit)
    description = dump.description
    release = re.search(rb"^OSRELEASE=(.*)$", description.vmcoreinfo, re.MULTILINE)
    assert release is not None
    phys_base = re.search(rb"^NUMBER\(phys_base\)=(-?\d+)$", description.vmcoreinfo, re.MULTILINE)
    assert phys_base is not None
    return DumpOutline(
        machine="x86_64",
        page_size_bytes=PAGE,
        ram=ram,
        kept=kept,
        dump_level=level,
        vmcoreinfo=description.vmcoreinfo,
        notes=description.notes,
        utsname={"sysname": "Linux", "nodename": "guest", "release": release[1].decode(), "machine": "x86_64"},
        timestamp_s=1_700_000_000,
        cpu_count=2,
        phys_base=int(phys_base[1]),
        segments=description.segments,
    )


@pytest.fixture(name="material", scope="module")
def _material(crashed: Crasher) -> Material:
    """Choose what makedumpfile keeps of a real dump at level 31."""
    crash = crashed("6.1")
    with open_dump(crash.raw) as raw, open_dump(crash.filtered) as filtered:
        limit = int(raw.ram_ranges.max()) // PAGE
        present = filtered.page_states(np.arange(limit, dtype=np.uint64)) == PageState.PRESENT
        kept = FrameSet(np.packbits(present, bitorder="little"), limit)
        return Material(crash.raw, describe(raw, kept, 31))


@pytest.fixture(name="written", scope="module")
def _written(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a file of a format."""
    directory = tmp_path_factory.mktemp("written")

    def write(name: str) -> Path:
        path = directory / name
        if not path.exists():
            with open_dump(material.raw) as raw, open_sink(path, flattened="flattened" in name) as sink:
                writer: DumpWriter
                if "elf" in name:
                    writer = ElfWriter(sink, material.outline)
                else:
                    writer = KdumpWriter(sink, material.outline, COMPRESSIONS[name])
                pump(raw, writer, batches(material.outline.kept))
                sink.finish()
        return path

    return write


@pytest.fixture(name="parts", scope="module")
def _parts(material: Material, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write a split set."""
    directory = tmp_path_factory.mktemp("parts")
    limit = material.outline.kept.limit
    middle = int(material.outline.kept.members(0, limit)[material.outline.kept.count // 2])
    paths: list[Path] = []
    with open_dump(material.raw) as raw:
        for start, end in pairwise((0, 1000, middle, limit)):
            outline = DumpOutline(
                **{name: getattr(material.outline, name) for name in material.outline.__slots__ if name != "pfn_range"},
                pfn_range=(start, end),
            )
            paths.append(directory / f"part{len(paths)}")
            sink = FileSink(paths[-1], overwrite=False, synced=False)
            pump(raw, KdumpWriter(sink, outline, Compression.LZO), batches(outline.kept, start, end))
            sink.finish()
    return paths


def check_pages(paths: Path | list[Path], material: Material, kept: FrameSet | None = None) -> None:
    """Compare every page with the raw dump's; all others must be missing."""
    kept = kept or material.outline.kept
    with open_dump(material.raw) as raw, open_dump(paths) as dump:
        assert dump.description.incomplete == ""
        assert dump.description.warnings == ()
        assert np.array_equal(dump.ram_ranges, raw.ram_ranges)
        states = dump.page_states(np.arange(kept.limit, dtype=np.uint64))
        assert np.flatnonzero(states == PageState.PRESENT).tolist() == kept.members(0, kept.limit).tolist()
        members = kept.members(0, kept.limit)
        for at in range(0, len(members), BATCH):
            ours, our_states = dump.read_pages(members[at : at + BATCH])
            assert not our_states.any()
            assert np.array_equal(ours, raw.read_pages(members[at : at + BATCH])[0])


@pytest.mark.parametrize("name", FORMATS)
def test_every_page_is_that_of_the_raw_dump(material: Material, written: Callable[[str], Path], name: str) -> None:
    check_pages(written(name), material)


def test_the_parts_of_a_set_make_the_whole(material: Material, parts: list[Path]) -> None:
    check_pages(parts, material)


@pytest.mark.parametrize("name", FORMATS)
def test_libkdumpfile_and_drgn_read_the_same(material: Material, written: Callable[[str], Path], name: str) -> None:
    if name == "flattened-elf":
        pytest.skip("drgn takes flattened streams for kdump files only")
    prog = drgn.Program()
    prog.set_core_dump(written(name))
    members = material.outline.kept.members(0, material.outline.kept.limit)
    rng = np.random.default_rng(2)
    with open_dump(material.raw) as raw:
        for pfn in rng.choice(members, 2000, replace=False).tolist():
            assert (
                prog.read(pfn * PAGE, PAGE, physical=True)
                == raw.read_pages(np.array([pfn], dtype=np.uint64))[0].tobytes()
            )
        ram = material.outline.ram
        excluded = np.setdiff1d(ram.members(0, ram.limit), members)
        for pfn in rng.choice(excluded, 50, replace=False).tolist():
            if name == "elf":
                # In a vmcore drgn takes memory without contents for zeroes.
                assert not any(prog.read(pfn * PAGE, PAGE, physical=True))
                continue
            with pytest.raises(drgn.FaultError):
                prog.read(pfn * PAGE, 8, physical=True)
    assert prog["UTS_RELEASE"].string_() == material.outline.utsname["release"].encode()


def test_drgn_reads_the_parts_of_a_set(material: Material, parts: list[Path]) -> None:
    """Each part by itself, as drgn opens one file at a time."""
    with open_dump(parts[1]) as part, open_dump(material.raw) as raw:
        members = material.outline.kept.members(0, material.outline.kept.limit)
        held = members[part.page_states(members) == PageState.PRESENT]
        assert len(held) > 1000
        prog = drgn.Program()
        prog.set_core_dump(parts[1])
        for pfn in held[::97].tolist():
            page = raw.read_pages(np.array([pfn], dtype=np.uint64))[0].tobytes()
            assert prog.read(pfn * PAGE, PAGE, physical=True) == page


@pytest.mark.parametrize("name", ["raw", "zlib", "lzo", "snappy", "zstd", "elf", "flattened", "flattened-elf"])
def test_debians_crash_opens_it(
    material: Material,
    written: Callable[[str], Path],
    installed: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
) -> None:
    with open_dump(material.raw) as dump:
        cache = DebuginfoCache(tmp_path_factory.getbasetemp() / "crash-debuginfo")
        built = build(open_kernel_memory(dump), cache=cache, include_text=True)
    program = installed("crash")
    finished = run([program, "-s", built.vmlinux, written(name)], stdin=b"bt\nsym schedule\nsys\nquit\n", timeout_s=300)
    output = finished.stdout.decode()
    assert "sysrq_handle_crash" in output
    assert "schedule" in output
    assert material.outline.utsname["release"] in output
    assert "incomplete" not in output.lower()


@pytest.mark.parametrize("name", ["raw", "zlib", "lzo", "zstd", "elf"])
def test_makedumpfile_filters_it_again(
    material: Material, written: Callable[[str], Path], crash_lab: Lab, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "again"
    run([*crash_lab.makedumpfile.command, "-l", "-d", "31", written(name), output], timeout_s=300)
    check_pages(output, material)


@pytest.mark.parametrize(("stream", "plain"), [("flattened", "zlib"), ("flattened-elf", "elf")])
def test_makedumpfile_rearranges_a_stream_to_the_very_file(
    written: Callable[[str], Path], crash_lab: Lab, tmp_path: Path, stream: str, plain: str
) -> None:
    output = tmp_path / "rearranged"
    run([*crash_lab.makedumpfile.command, "-R", output], stdin=written(stream).read_bytes(), timeout_s=300)
    assert output.read_bytes() == written(plain).read_bytes()


def test_makedumpfile_joins_a_set(material: Material, parts: list[Path], crash_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "joined"
    run([*crash_lab.makedumpfile.command, "--reassemble", *parts, output], timeout_s=300)
    check_pages(output, material)


def test_all_of_memory_is_written(crashed: Crasher, crash_lab: Lab, tmp_path: Path) -> None:
    crash = crashed("6.1")
    path = tmp_path / "whole"
    with open_dump(crash.raw) as raw:
        limit = int(raw.ram_ranges.max()) // PAGE
        ram = FrameSet.from_runs((raw.ram_ranges // PAGE).astype(np.int64), limit)
        material = Material(crash.raw, describe(raw, ram, 1))
        sink = FileSink(path, overwrite=False, synced=False)
        pump(raw, KdumpWriter(sink, material.outline, Compression.ZSTD), batches(ram))
        sink.finish()
    check_pages(path, material)
    output = tmp_path / "filtered"
    run([*crash_lab.makedumpfile.command, "-l", "-d", "31", path, output], timeout_s=300)
    with open_dump(output) as ours, open_dump(crash.filtered) as theirs:
        every = np.arange(limit, dtype=np.uint64)
        assert np.array_equal(ours.page_states(every), theirs.page_states(every))
