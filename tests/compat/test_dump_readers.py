"""Dumps of real kernels, read by us and by others: makedumpfile wrote them, drgn's libkdumpfile reads them too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import drgn
import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.notes import decode_notes
from postpanic.dumps.open import open_dump
from postpanic.errors import PageAbsentError
from postpanic.process import run
from postpanic.units import PhysAddr
from tests.builders.flattened import flatten
from tests.builders.kdump import LZO, RAW, SNAPPY, ZLIB, ZSTD, KdumpSpec, build_kdump
from tests.vm.lab import Crash, MemoryDumps

pytestmark = pytest.mark.compat

KERNELS = ("6.1", "6.12")
VARIANTS = ("zlib", "lzo", "elf", "flattened", "flattened-elf", "split")
BATCH = 8192

Crasher = Callable[..., Crash]


def frames_of(dump: Dump) -> NDArray[np.uint64]:
    """All frames of RAM."""
    size = dump.page_size_bytes
    ranges = dump.ram_ranges.tolist()
    return np.concatenate([np.arange(start // size, end // size, dtype=np.uint64) for start, end in ranges])


def sample(frames: NDArray[np.uint64], count: int) -> list[int]:
    picked: list[int] = np.random.default_rng(1).choice(frames, min(count, len(frames)), replace=False).tolist()
    return picked


def count_equal_pages(filtered: Dump, raw: Dump) -> int:
    """Compare every page that the filtered dump has with the raw one."""
    frames = frames_of(raw)
    states = filtered.page_states(frames)
    present = frames[states == PageState.PRESENT]
    for start in range(0, len(present), BATCH):
        wanted = present[start : start + BATCH]
        ours, our_states = filtered.read_pages(wanted)
        theirs, their_states = raw.read_pages(wanted)
        assert not our_states.any()
        assert not their_states.any()
        assert np.array_equal(ours, theirs)
    return len(present)


@pytest.mark.parametrize("kernel", KERNELS)
def test_filtered_dump_has_the_pages_of_the_raw_one(crashed: Crasher, kernel: str) -> None:
    crash = crashed(kernel)
    with open_dump(crash.raw) as raw, open_dump(crash.filtered) as filtered:
        assert np.array_equal(raw.ram_ranges, filtered.ram_ranges)
        assert count_equal_pages(filtered, raw) > 10_000
        description = filtered.description
        assert description.format == "kdump-compressed v6"
        assert description.compression == ("lzo",)
        assert description.dump_level == 31
        assert description.incomplete == raw.description.incomplete == ""
        assert description.warnings == raw.description.warnings == ()
        assert description.utsname["release"] == crash.release
        assert description.machine == raw.description.machine == "x86_64"
        assert description.vmcoreinfo == raw.description.vmcoreinfo
        assert f"OSRELEASE={crash.release}\n".encode() in description.vmcoreinfo
        assert b"NUMBER(phys_base)=%d\n" % (description.phys_base or 0) in description.vmcoreinfo
        names = [(note.name, note.type) for note in decode_notes(description.notes, byte_order="little")]
        assert (b"VMCOREINFO", 0) in names
        assert (b"CORE", 1) in names


@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_that_makedumpfile_writes_is_read(crashed: Crasher, name: str) -> None:
    crash = crashed("6.1")
    variant = crash.make_variant(name)
    with open_dump(crash.raw) as raw, open_dump(variant.paths) as dump:
        assert dump.description.incomplete == ""
        assert dump.description.warnings == ()
        assert np.array_equal(raw.ram_ranges, dump.ram_ranges)
        count = count_equal_pages(dump, raw)
        states = np.bincount(dump.page_states(frames_of(raw)), minlength=5)
        report = {key: int(value, 16) for key, value in re.findall(r"(\w[\w ]*?) *: 0x([0-9a-f]+)", variant.messages)}
        # makedumpfile counts the kernel's image twice, as two segments describe it.
        counted_twice = report["Original pages"] - len(frames_of(raw))
        kept = report["Remaining pages"] - counted_twice
        if "elf" in name:
            # Short runs of excluded pages are not worth a hole.
            assert count >= kept
            assert states[PageState.HOLE] == len(frames_of(raw)) - count
        elif name != "split":
            # Each part of a set has a report of its own.
            assert count == kept + report["Pages filled with zero"]
            assert states[PageState.EXCLUDED] == len(frames_of(raw)) - count


def test_unfiltered_dump_holds_everything(crashed: Crasher) -> None:
    crash = crashed("6.1")
    with open_dump(crash.raw) as raw, open_dump(crash.make_variant("raw-d0").paths) as dump:
        assert dump.description.dump_level == 0
        frames = frames_of(raw)
        assert not dump.page_states(frames).any()
        picked = np.sort(np.array(sample(frames, 20_000), dtype=np.uint64))
        assert np.array_equal(dump.read_pages(picked)[0], raw.read_pages(picked)[0])


@pytest.mark.parametrize("name", ["zlib", "lzo", "elf", "flattened"])
def test_libkdumpfile_reads_the_same(crashed: Crasher, name: str) -> None:
    path = crashed("6.1").make_variant(name).path
    prog = drgn.Program()
    prog.set_core_dump(path)
    with open_dump(path) as dump:
        frames = frames_of(dump)
        states = dump.page_states(frames)
        for pfn in sample(frames[states == PageState.PRESENT], 2000):
            paddr = PhysAddr(pfn * 4096 + pfn % 4000)
            assert dump.read(paddr, 96) == prog.read(paddr, 96, physical=True)
        for pfn in sample(frames[states == PageState.EXCLUDED], 20):
            with pytest.raises(drgn.FaultError):
                prog.read(pfn * 4096, 8, physical=True)
            with pytest.raises(PageAbsentError):
                dump.read(PhysAddr(pfn * 4096), 8)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", [RAW, ZLIB, LZO, SNAPPY, ZSTD])
def test_libkdumpfile_reads_what_the_builder_builds(crashed: Crasher, tmp_path: Path, kind: int, *, flat: bool) -> None:
    """Keep the builder honest: what it builds is what another reader of the format takes."""
    with open_dump(crashed("6.1").filtered) as real:
        frames = frames_of(real)
        picked = sorted(sample(frames[real.page_states(frames) == PageState.PRESENT], 300))
        pages = {pfn: real.read(PhysAddr(pfn * 4096), 4096) for pfn in picked}
        description = real.description
        spec = KdumpSpec(
            pages,
            ram=range(0x100, picked[-1]),
            compression=kind,
            vmcoreinfo=description.vmcoreinfo,
            notes=description.notes,
            utsname=description.utsname,
        )
    path = tmp_path / "built"
    raw = build_kdump(spec).raw
    path.write_bytes(flatten(raw) if flat else raw)
    prog = drgn.Program()
    prog.set_core_dump(path)
    with open_dump(path) as dump:
        for pfn, page in pages.items():
            assert prog.read(pfn * 4096, 4096, physical=True) == page
            assert dump.read(PhysAddr(pfn * 4096), 4096) == page


def test_split_set_without_a_part_says_so(crashed: Crasher) -> None:
    crash = crashed("6.1")
    parts = crash.make_variant("split").paths
    largest = max(parts, key=lambda path: path.stat().st_size)
    with open_dump(parts) as whole, open_dump([path for path in parts if path != largest]) as rest:
        assert "not given" in rest.description.incomplete
        frames = frames_of(whole)
        assert np.array_equal(rest.ram_ranges, whole.ram_ranges)
        lost = rest.page_states(frames) == PageState.LOST
        assert lost.any()
        assert not whole.page_states(frames[lost]).any()


def test_cut_dump_keeps_what_lies_before_the_cut(crashed: Crasher, tmp_path: Path) -> None:
    crash = crashed("6.1")
    content = crash.filtered.read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content[: len(content) * 2 // 3])
    with open_dump(crash.raw) as raw, open_dump(path) as cut, open_dump(crash.filtered) as whole:
        assert cut.description.incomplete
        frames = frames_of(raw)
        before, after = whole.page_states(frames), cut.page_states(frames)
        assert count_equal_pages(cut, raw) > 5_000
        assert set(after[before == PageState.PRESENT].tolist()) == {PageState.PRESENT, PageState.LOST}
        assert np.array_equal(before[before != PageState.PRESENT], after[before != PageState.PRESENT])


def test_segments_are_those_that_readelf_prints(crashed: Crasher, installed: Callable[[str], str]) -> None:
    path = crashed("6.1").raw
    listing = run([installed("readelf"), "-Wl", path]).stdout.decode()
    loads = [[int(word, 16) for word in line.split()[1:6]] for line in listing.splitlines() if " LOAD " in line]
    with open_dump(path) as dump:
        segments = [(part.vaddr, part.paddr, part.size_bytes) for part in dump.description.segments]
        assert segments == [(vaddr, paddr, memsz) for _, vaddr, paddr, _, memsz in loads]
        with path.open("rb") as file:
            for offset, _, paddr, filesz, _ in loads:
                for at in (0, filesz // 2 + 123, filesz - 300):
                    file.seek(offset + at)
                    assert dump.read(PhysAddr(paddr + at), 300) == file.read(300)


def test_both_dumps_of_qemu_hold_the_same(memory_dumped: Callable[[str], MemoryDumps]) -> None:
    dumps = memory_dumped("6.1")
    with open_dump(dumps.elf) as elf, open_dump(dumps.kdump) as kdump:
        assert elf.description.format == "ELF vmcore"
        assert kdump.description.format == "flattened kdump-compressed v6"
        assert elf.description.incomplete == kdump.description.incomplete == ""
        assert elf.description.machine == kdump.description.machine == "x86_64"
        assert elf.description.vmcoreinfo == kdump.description.vmcoreinfo
        assert np.array_equal(elf.ram_ranges, kdump.ram_ranges)
        assert count_equal_pages(kdump, elf) == len(frames_of(elf))
        # QEMU misreads phys_base; VMCOREINFO has it right.
        assert b"NUMBER(phys_base)=%d\n" % (kdump.description.phys_base or 0) in kdump.description.vmcoreinfo
