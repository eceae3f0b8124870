"""What must hold for every dump: what was written is read, and no bytes at all break the readers."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.errors import PageAbsentError, PostpanicError
from postpanic.units import PhysAddr
from tests.builders.elfcore import Segment, build_elf_core, build_note, build_vmcoreinfo_note
from tests.builders.flattened import build_flattened, flatten
from tests.builders.kdump import LAYOUTS, LZO, RAW, SNAPPY, ZLIB, ZSTD, KdumpSpec, build_kdump

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=60)
PAGE = 4096
PRESENT, EXCLUDED, HOLE, ABSENT, LOST = PageState
KINDS = (RAW, ZLIB, LZO, SNAPPY, ZSTD)

page_seeds = st.dictionaries(st.integers(0, 300), st.integers(0, 40), max_size=40)


def make_page(seed: int) -> bytes:
    """Make all kinds of pages: zero, hard to compress, easy to compress."""
    source = random.Random(seed)
    if seed % 5 == 0:
        return bytes(PAGE)
    if seed % 5 == 1:
        return source.randbytes(PAGE)
    return source.randbytes(64) * (PAGE // 64)


@contextlib.contextmanager
def opened(*contents: bytes) -> Iterator[Dump]:
    with tempfile.TemporaryDirectory() as directory:
        paths = []
        for number, content in enumerate(contents):
            paths.append(Path(directory) / f"dump{number}")
            paths[-1].write_bytes(content)
        with open_dump(paths) as dump:
            yield dump


def check_contents(dump: Dump, pages: dict[int, bytes], others: dict[int, PageState]) -> None:
    """Check every frame, in bulk and one by one, and reads across their edges."""
    numbers = sorted({*pages, *others, *range(310)})
    wanted = np.array(numbers, dtype=np.uint64)
    expected = [PRESENT if pfn in pages else others.get(pfn, ABSENT) for pfn in numbers]
    assert dump.page_states(wanted).tolist() == expected
    contents, states = dump.read_pages(wanted)
    assert states.tolist() == expected
    for row, pfn in enumerate(numbers):
        assert contents[row].tobytes() == pages.get(pfn, bytes(PAGE))
        start = PhysAddr(pfn * PAGE + PAGE - 3)
        following = pages.get(pfn + 1)
        if pfn in pages and following is not None:
            assert dump.read(start, 7) == pages[pfn][-3:] + following[:4]
        else:
            with pytest.raises(PageAbsentError):
                dump.read(start, 7)
    ram = np.zeros(400, dtype=bool)
    for first, last in dump.ram_ranges.tolist():
        ram[first // PAGE : last // PAGE] = True
    assert np.flatnonzero(ram).tolist() == [pfn for pfn in range(400) if pfn in pages or pfn in others]


@DETERMINISTIC
@given(
    seeds=page_seeds,
    ram=st.sets(st.integers(0, 300), max_size=60),
    version=st.integers(1, 6),
    layout=st.sampled_from(LAYOUTS),
    byte_order=st.sampled_from(["little", "big"]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    record_bytes=st.none() | st.integers(20, 30_000),
)
def test_kdump_gives_back_what_was_written(
    seeds: dict[int, int],
    ram: set[int],
    version: int,
    layout: str,
    byte_order: str,
    kinds: list[int],
    record_bytes: int | None,
) -> None:
    pages = {pfn: make_page(seed) for pfn, seed in seeds.items()}
    per_page = {pfn: kinds[pfn % len(kinds)] for pfn in pages}
    spec = KdumpSpec(pages, ram=ram, version=version, layout=layout, byte_order=byte_order, per_page=per_page)
    raw = build_kdump(spec).raw
    with opened(flatten(raw, record_bytes=record_bytes) if record_bytes else raw) as dump:
        assert dump.description.incomplete == ""
        check_contents(dump, pages, dict.fromkeys(ram - set(pages), EXCLUDED))


@DETERMINISTIC
@given(seeds=page_seeds, cuts=st.sets(st.integers(1, 299), max_size=4), missing=st.integers(0, 8), data=st.data())
def test_split_set_gives_back_what_was_written(
    seeds: dict[int, int], cuts: set[int], missing: int, data: st.DataObject
) -> None:
    pages = {pfn: make_page(seed) for pfn, seed in seeds.items()}
    edges = [0, *sorted(cuts), 301]
    ranges = list(pairwise(edges))
    left_out = ranges[missing] if missing < len(ranges) > 1 else (0, 0)
    kept = data.draw(st.permutations([pair for pair in ranges if pair != left_out]))
    parts = [build_kdump(KdumpSpec(pages, ram=range(301), split=pair)).raw for pair in kept]
    lost = range(*left_out)
    with opened(*parts) as dump:
        assert bool(dump.description.incomplete) == bool(lost)
        others = {pfn: LOST if pfn in pages else EXCLUDED for pfn in range(301)}
        check_contents(dump, {pfn: page for pfn, page in pages.items() if pfn not in lost}, {
            pfn: state for pfn, state in others.items() if pfn in lost or pfn not in pages
        })  # fmt: skip


@DETERMINISTIC
@given(
    runs=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 6), st.integers(0, 3)), max_size=12),
    bits=st.sampled_from([32, 64]),
    byte_order=st.sampled_from(["little", "big"]),
    extended=st.booleans(),
    record_bytes=st.none() | st.integers(20, 30_000),
)
def test_elf_gives_back_what_was_written(
    runs: list[tuple[int, int, int]], bits: int, byte_order: str, extended: bool, record_bytes: int | None
) -> None:
    runs = [(first, count, holes) for first, count, holes in runs if count + holes] or [(0, 1, 0)]
    pages: dict[int, bytes] = {}
    holes: dict[int, PageState] = {}
    segments = []
    for number, (first, count, hole_count) in enumerate(runs):
        contents = [make_page(number * 7 + index) for index in range(count)]
        segments.append(Segment(first * PAGE, b"".join(contents), memsz=(count + hole_count) * PAGE))
        for index, page in enumerate(contents):
            pages.setdefault(first + index, page)
        holes |= dict.fromkeys(range(first + count, first + count + hole_count), HOLE)
    note = build_vmcoreinfo_note(b"PAGESIZE=4096\n", byte_order=byte_order)
    image = build_elf_core(segments, bits=bits, byte_order=byte_order, extended_count=extended, notes=note)
    raw = image.raw
    with opened(flatten(raw, record_bytes=record_bytes) if record_bytes else raw) as dump:
        check_contents(dump, pages, {pfn: state for pfn, state in holes.items() if pfn not in pages})


class Specimen(NamedTuple):
    """A small file with at least one of everything, and where its structures are."""

    raw: bytes
    fields: dict[str, tuple[int, int]]
    boundaries: list[int]
    byte_order: str


def kdump_specimen(layout: str, byte_order: str, version: int = 6, *, split: tuple[int, int] | None = None) -> Specimen:
    pages = {3: make_page(2), 4: make_page(0), 6: make_page(1), 9: make_page(0), 10: make_page(3)}
    spec = KdumpSpec(
        pages, ram=range(2, 14), layout=layout, byte_order=byte_order, version=version, vmcoreinfo=b"PAGESIZE=4096\n",
        notes=build_vmcoreinfo_note(b"PAGESIZE=4096\n", byte_order=byte_order), eraseinfo=b"erase x\n",
        per_page={3: LZO, 10: ZSTD}, split=split,
    )  # fmt: skip
    image = build_kdump(spec)
    return Specimen(image.raw, image.fields, image.boundaries, byte_order)


def elf_specimen(bits: int, byte_order: str) -> Specimen:
    notes = build_note(b"CORE", 1, bytes(100), byte_order=byte_order)
    notes += build_vmcoreinfo_note(b"OSRELEASE=6.1.0\nPAGESIZE=4096\n", byte_order=byte_order)
    segments = [
        Segment(0x3000, make_page(2) + make_page(1), vaddr=0xC0003000, memsz=0x4000),
        Segment(0x4000, make_page(3) + make_page(4)[:100]),
        Segment(0x9800, make_page(6)),
    ]
    image = build_elf_core(segments, bits=bits, byte_order=byte_order, notes=notes, extended_count=True, align=16)
    return Specimen(image.raw, image.fields, image.boundaries, byte_order)


def flattened_specimen() -> Specimen:
    inner = kdump_specimen("lp64", "little").raw
    records = [(offset, inner[offset : offset + 3000]) for offset in range(0, len(inner), 3000)] + [(0, inner[:464])]
    fields: dict[str, tuple[int, int]] = {"type": (16, 8), "version": (24, 8)}
    boundaries = [0, 16, 32, 4096]
    place = 4096
    for number, (_, data) in enumerate(records):
        fields |= {f"offset[{number}]": (place, 8), f"size[{number}]": (place + 8, 8)}
        boundaries += [place, place + 8, place + 16]
        place += 16 + len(data)
    return Specimen(build_flattened(records), fields, [*boundaries, place, place + 16], "big")


SPECIMENS = {
    **{f"kdump-{layout}-{order}": kdump_specimen(layout, order) for layout in LAYOUTS for order in ("little", "big")},
    "kdump-v2": kdump_specimen("lp64", "little", 2),
    "kdump-split": kdump_specimen("lp64", "little", split=(4, 10)),
    **{f"elf{bits}-{order}": elf_specimen(bits, order) for bits in (32, 64) for order in ("little", "big")},
    "flattened": flattened_specimen(),
}


def check_well_formed(dump: Dump) -> None:
    """Ask a dump of unknown worth everything; every answer must have the shape it is promised to have."""
    description = dump.description
    assert description.byte_order in ("little", "big")
    size = dump.page_size_bytes
    assert size == description.page_size_bytes
    assert size & (size - 1) == 0
    assert all(isinstance(text, str) and text for text in description.warnings)
    with contextlib.suppress(PostpanicError):
        ranges = dump.ram_ranges
        assert ranges.dtype == np.uint64
        assert ranges.shape[1:] == (2,)
        assert (ranges[:, 0] < ranges[:, 1]).all()
        assert (ranges[1:, 0] > ranges[:-1, 1]).all()
    numbers = np.array([*range(64), 1 << 20, 1 << 40, (1 << 52) - 1, 1 << 63, (1 << 64) - 1], dtype=np.uint64)
    states = dump.page_states(numbers)
    pages, read = dump.read_pages(numbers)
    assert pages.shape == (len(numbers), size)
    assert pages.dtype == states.dtype == read.dtype == np.uint8
    assert set(read.tolist()) <= set(PageState)
    assert ((states == read) | ((states == PRESENT) & (read == LOST))).all()
    assert not pages[read != PRESENT].any()
    for row, pfn in enumerate(numbers[:20].tolist()):
        check_single_reads(dump, PhysAddr(pfn * size), pages[row].tobytes(), PageState(int(read[row])))


def check_single_reads(dump: Dump, paddr: PhysAddr, page: bytes, state: PageState) -> None:
    for start, length in ((0, len(page)), (8, 8)):
        missing = -1
        data = b""
        try:
            data = dump.read(PhysAddr(paddr + start), length)
        except PageAbsentError as exc:
            missing = exc.paddr
        if missing >= 0:
            assert paddr + start <= missing < paddr + start + length
        else:
            assert len(data) == length
            # Part of a frame that is not whole may still be read.
            assert state != PRESENT or data == page[start : start + length]


def survive(*contents: bytes) -> bool:
    """Open whatever this is: an error of ours or a well-formed dump, and neither takes long."""
    started = time.process_time()
    error: PostpanicError | None = None
    try:
        with opened(*contents) as dump:
            check_well_formed(dump)
    except PostpanicError as exc:
        error = exc
    assert time.process_time() - started < 5
    assert error is None or (error.exit_status == 2 and error.message and error.where)
    return error is None


@pytest.mark.parametrize("name", SPECIMENS)
def test_specimen_is_sound(name: str) -> None:
    assert survive(SPECIMENS[name].raw)


@pytest.mark.parametrize("name", SPECIMENS)
def test_cut_at_every_structure(name: str) -> None:
    """A cut file never passes for a whole one."""
    specimen = SPECIMENS[name]
    places = {place + by for place in specimen.boundaries for by in (-1, 0, 1)}
    rest = range(0, len(specimen.raw), 97)
    for place in sorted({*places, *rest} & set(range(len(specimen.raw)))):
        with contextlib.suppress(PostpanicError), opened(specimen.raw[:place]) as dump:
            check_well_formed(dump)
            missing_text = place >= len(specimen.raw) - len(b"erase x\n")
            assert dump.description.incomplete or (missing_text and dump.description.warnings), place


@pytest.mark.parametrize("name", SPECIMENS)
def test_garbage_in_every_field(name: str) -> None:
    specimen = SPECIMENS[name]
    order = "little" if specimen.byte_order == "little" else "big"
    for place, size in specimen.fields.values():
        if size > 8:
            continue
        top = (1 << 8 * size) - 1
        old = int.from_bytes(specimen.raw[place : place + size], order)  # type: ignore[arg-type]
        values = {
            0,
            1,
            2,
            7,
            top,
            top >> 1,
            (top >> 1) + 1,
            top - 4095,
            old + 1,
            old - 1,
            old ^ 0x1000,
            old << 8,
            1 << 31,
        }
        values |= {len(specimen.raw), len(specimen.raw) - 1, old * 16, 0x100000, 1 << 40}
        for value in values:
            raw = bytearray(specimen.raw)
            raw[place : place + size] = (value & top).to_bytes(size, order)  # type: ignore[arg-type]
            survive(bytes(raw))


@pytest.mark.parametrize("name", SPECIMENS)
def test_mutated_files_are_survived(name: str) -> None:
    specimen = SPECIMENS[name]
    source = random.Random(name)
    opened_count = 0
    for _ in range(120):
        raw = bytearray(specimen.raw)
        for _ in range(source.choice((1, 2, 4, 16))):
            # Most of the file is contents: aim at the structures.
            near = source.choice(specimen.boundaries) + source.randrange(-8, 64)
            place = min(max(near if source.random() < 0.7 else source.randrange(len(raw)), 0), len(raw) - 1)
            action = source.randrange(4)
            if action == 0:
                raw[place] ^= 1 << source.randrange(8)
            elif action == 1:
                raw[place] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
            elif action == 2:
                raw[place : place + 8] = source.choice((bytes(8), b"\xff" * 8, source.randbytes(8)))
            else:
                other = source.randrange(len(raw))
                raw[place : place + 16] = raw[other : other + 16]
        opened_count += survive(bytes(raw))
    assert opened_count > 10


@DETERMINISTIC
@given(
    st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"\x7fELF\x01\x02\x01", b"KDUMP   \6\0\0\0", b"DISKDUMP\0\0\0\1",
                     b"makedumpfile\0\0\0\0" + bytes(7) + b"\1" + bytes(7) + b"\1"]),
    st.binary(max_size=9000),
)  # fmt: skip
def test_any_bytes_are_survived(magic: bytes, rest: bytes) -> None:
    survive(magic + rest)


@pytest.mark.parametrize("name", SPECIMENS)
def test_memory_for_a_hostile_file_is_bounded(name: str) -> None:
    """Numbers in a small file never make the reader allocate more than the file could fill."""
    specimen = SPECIMENS[name]
    order = "little" if specimen.byte_order == "little" else "big"
    tracemalloc.start()
    try:
        for place, size in specimen.fields.values():
            if size > 8:
                continue
            for value in ((1 << 8 * size) - 1, 1 << 8 * size - 2, 1 << 8 * size - 8):
                raw = bytearray(specimen.raw)
                raw[place : place + size] = (value & (1 << 8 * size) - 1).to_bytes(size, order)  # type: ignore[arg-type]
                tracemalloc.reset_peak()
                with contextlib.suppress(PostpanicError), opened(bytes(raw)) as dump:
                    dump.page_states(np.arange(64, dtype=np.uint64))
                    dump.read_pages(np.arange(4, dtype=np.uint64))
                assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
