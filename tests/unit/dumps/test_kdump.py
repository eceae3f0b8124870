from __future__ import annotations

import ctypes.util
import importlib
import os
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.kdump import codecs
from postpanic.dumps.memory import PageState
from postpanic.dumps.open import open_dump
from postpanic.errors import CorruptError, MismatchError, PageAbsentError, TruncatedError, UnsupportedError
from postpanic.units import PhysAddr
from tests.builders.elfcore import build_vmcoreinfo_note
from tests.builders.kdump import (
    COMPRESSORS,
    EXCLUDED_VMEMMAP,
    INCOMPLETE,
    LAYOUTS,
    LZO,
    RAW,
    SNAPPY,
    ZLIB,
    ZSTD,
    KdumpSpec,
    build_kdump,
)
from tests.unit.dumps.conftest import Opener
from tests.unit.dumps.pages import PAGE, contents_of, frames, make_noise, make_page, states_of

ZERO = bytes(PAGE)
PRESENT, EXCLUDED, ABSENT, LOST = PageState.PRESENT, PageState.EXCLUDED, PageState.ABSENT, PageState.LOST


def some_pages(count: int = 6, *, first: int = 3, step: int = 2, size: int = PAGE) -> dict[int, bytes]:
    return {first + number * step: make_page(number, size) for number in range(count)}


@pytest.mark.parametrize("version", range(1, 7))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_every_version_layout_and_byte_order_is_read(
    open_bytes: Opener, version: int, layout: str, byte_order: str
) -> None:
    pages = some_pages()
    text = b"OSRELEASE=6.1.0\n"
    note = build_vmcoreinfo_note(text, byte_order=byte_order)
    spec = KdumpSpec(
        pages, ram=range(1, 30), version=version, layout=layout, byte_order=byte_order, vmcoreinfo=text, notes=note
    )
    dump = open_bytes(build_kdump(spec).raw)
    description = dump.description
    assert description.format == f"kdump-compressed v{version}"
    assert description.byte_order == byte_order
    assert description.compression == ("zlib",)
    assert description.dump_level == 31
    assert description.phys_base == 0x1000000
    assert description.timestamp_s == 1_700_000_000
    assert description.incomplete == ""
    assert description.warnings == ()
    assert description.vmcoreinfo == (text if version >= 3 else b"")
    assert description.notes == (note if version >= 4 else b"")
    assert description.machine == {"lp64": "x86_64", "packed": "i686", "aligned": "armv7l"}[layout]
    assert description.utsname["release"] == "6.1.0"
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages
    assert states_of(dump, (0, 1, 2, 3, 29, 30)) == [ABSENT, EXCLUDED, EXCLUDED, PRESENT, EXCLUDED, ABSENT]


@pytest.mark.parametrize(("kind", "name"), [(ZLIB, "zlib"), (LZO, "lzo"), (SNAPPY, "snappy"), (ZSTD, "zstd")])
@pytest.mark.parametrize("size", [4096, 65536, 262144])
def test_every_compression_is_read(open_bytes: Opener, kind: int, name: str, size: int) -> None:
    pages = some_pages(size=size) | {40: make_noise(1, size), 41: bytes(size)}
    dump = open_bytes(build_kdump(KdumpSpec(pages, compression=kind, block_size=size)).raw)
    assert dump.description.compression == (name,)
    assert dump.page_size_bytes == size
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages


def test_each_page_says_itself_how_it_is_compressed(open_bytes: Opener) -> None:
    pages = some_pages(5, step=1)
    kinds = dict(zip(pages, (RAW, ZLIB, LZO, SNAPPY, ZSTD), strict=True))
    dump = open_bytes(build_kdump(KdumpSpec(pages, per_page=kinds, status=LZO)).raw)
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages


def test_uncompressed_dump_announces_no_compression(open_bytes: Opener) -> None:
    pages = some_pages()
    dump = open_bytes(build_kdump(KdumpSpec(pages, compression=RAW)).raw)
    assert dump.description.compression == ()
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages


def test_excluded_page_is_not_zero(open_bytes: Opener) -> None:
    dump = open_bytes(build_kdump(KdumpSpec({1: ZERO, 3: ZERO}, ram=[2])).raw)
    assert contents_of(dump, 1) == ZERO
    with pytest.raises(PageAbsentError, match="left out of the dump by its filter") as caught:
        dump.read(PhysAddr(0x1FFC), 8)
    assert caught.value.paddr == 0x2000
    with pytest.raises(PageAbsentError, match="not RAM"):
        dump.read(PhysAddr(0x4000), 1)


def test_frames_that_share_a_page_are_all_read(open_bytes: Opener) -> None:
    pages = {pfn: ZERO if pfn % 3 else make_page(pfn) for pfn in range(60)}
    dump = open_bytes(build_kdump(KdumpSpec(pages)).raw)
    wanted = np.random.default_rng(2).integers(0, 60, 200).astype(np.uint64)
    contents, states = dump.read_pages(wanted)
    assert not states.any()
    assert [row.tobytes() for row in contents] == [pages[pfn] for pfn in wanted.tolist()]


def test_corrupt_descriptor_of_a_shared_page_spoils_only_its_own_frame(open_bytes: Opener) -> None:
    for victim in (1, 2, 3):
        for field, value in (("size", 5), ("flags", LZO)):
            pages = {0: make_page(1)} | dict.fromkeys((1, 2, 3), ZERO)
            image = build_kdump(KdumpSpec(pages))
            raw = bytearray(image.raw)
            place, size = image.fields[f"{field}[{victim}]"]
            raw[place : place + size] = value.to_bytes(size, "little")
            dump = open_bytes(bytes(raw))
            _, states = dump.read_pages(frames(0, 1, 2, 3))
            expected = [LOST if pfn == victim else PRESENT for pfn in pages]
            assert states.tolist() == expected
            for pfn, state in enumerate(expected):
                if state == PRESENT:
                    assert dump.read(PhysAddr(pfn * PAGE), 64) == pages[pfn][:64]


def test_long_read_crosses_many_pages(open_bytes: Opener) -> None:
    pages = some_pages(64, first=0, step=1)
    dump = open_bytes(build_kdump(KdumpSpec(pages)).raw)
    everything = b"".join(pages.values())
    assert dump.read(PhysAddr(100), 50 * PAGE) == everything[100 : 100 + 50 * PAGE]
    assert dump.read(PhysAddr(PAGE - 4), 8) == everything[PAGE - 4 : PAGE + 4]
    with pytest.raises(PageAbsentError) as caught:
        dump.read(PhysAddr(100), 64 * PAGE)
    assert caught.value.paddr == 64 * PAGE


def test_cache_is_bounded(open_bytes: Opener) -> None:
    pages = some_pages(64, first=0, step=1)
    dump = open_bytes(build_kdump(KdumpSpec(pages)).raw)
    dump._cache_pages = 4  # type: ignore[attr-defined]
    for _ in range(2):
        for pfn, page in pages.items():
            assert dump.read(PhysAddr(pfn * PAGE), 16) == page[:16]
    assert len(dump._cache) == 4  # type: ignore[attr-defined]


def test_sparse_frames_need_no_more_than_their_bitmap(open_bytes: Opener) -> None:
    pages = {5: make_page(1), 1_000_003: make_page(2), 5_000_000: make_page(3)}
    dump = open_bytes(build_kdump(KdumpSpec(pages, ram=range(4_999_000, 5_000_100))).raw)
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages
    assert dump.ram_ranges.tolist() == [
        [5 * PAGE, 6 * PAGE],
        [1_000_003 * PAGE, 1_000_004 * PAGE],
        [4_999_000 * PAGE, 5_000_100 * PAGE],
    ]
    asked = frames(5, 6, 1_000_003, 4_999_999, 5_000_000, 5_000_100, (1 << 64) - 1)
    assert dump.page_states(asked).tolist() == [PRESENT, ABSENT, PRESENT, EXCLUDED, PRESENT, ABSENT, ABSENT]


def test_descriptor_never_written_is_lost(open_bytes: Opener) -> None:
    pages = some_pages()
    dump = open_bytes(build_kdump(KdumpSpec(pages, unwritten=[7, 13], status=ZLIB | INCOMPLETE)).raw)
    assert states_of(dump, (5, 7, 13)) == [PRESENT, LOST, LOST]
    assert "marked incomplete by its writer" in dump.description.incomplete
    assert "never written" in dump.description.incomplete
    with pytest.raises(PageAbsentError, match="cut, incomplete"):
        dump.read(PhysAddr(7 * PAGE), 8)


def test_unwritten_end_is_noticed_without_the_mark(open_bytes: Opener) -> None:
    dump = open_bytes(build_kdump(KdumpSpec(some_pages(), unwritten=[13])).raw)
    assert dump.description.incomplete == "page descriptors at the end were never written"


def test_excluded_vmemmap_is_a_warning(open_bytes: Opener) -> None:
    dump = open_bytes(build_kdump(KdumpSpec(some_pages(), status=ZLIB | EXCLUDED_VMEMMAP)).raw)
    assert any("makedumpfile -e" in text for text in dump.description.warnings)
    assert dump.description.incomplete == ""


def test_erase_info_is_a_warning(open_bytes: Opener) -> None:
    dump = open_bytes(build_kdump(KdumpSpec(some_pages(), eraseinfo=b"erase key.data 16\n")).raw)
    assert any("erased" in text for text in dump.description.warnings)


def test_vmcoreinfo_of_the_notes_serves_where_the_sub_header_has_none(open_bytes: Opener) -> None:
    note = build_vmcoreinfo_note(b"OSRELEASE=7.0.0\n")
    assert (
        open_bytes(build_kdump(KdumpSpec(some_pages(), notes=note)).raw).description.vmcoreinfo == b"OSRELEASE=7.0.0\n"
    )


def test_phys_base_of_vmcoreinfo_wins(open_bytes: Opener) -> None:
    # 0x385875968 is what QEMU makes of the decimal number 385875968.
    for stored, text, expected, warned in (
        (0x385875968, b"NUMBER(phys_base)=385875968\n", 385875968, True),
        (385875968, b"NUMBER(phys_base)=385875968\n", 385875968, False),
        ((1 << 64) - 0x200000, b"NUMBER(phys_base)=-2097152\n", -0x200000, False),
        ((1 << 64) - 0x200000, b"OSRELEASE=5.10\n", -0x200000, False),
    ):
        description = open_bytes(
            build_kdump(KdumpSpec(some_pages(), phys_base=stored, vmcoreinfo=text)).raw
        ).description
        assert description.phys_base == expected
        assert any("phys_base" in warning for warning in description.warnings) == warned


@pytest.mark.parametrize("layout", ["packed", "aligned"])
def test_alignment_of_a_32_bit_sub_header_is_told_by_where_it_points(open_bytes: Opener, layout: str) -> None:
    # QEMU packs the sub header for arm too; a nameless machine gives no clue at all.
    for machine in ("armv7l", "i686", ""):
        spec = KdumpSpec(some_pages(), layout=layout, vmcoreinfo=b"OSRELEASE=5\n", utsname={"machine": machine})
        dump = open_bytes(build_kdump(spec).raw)
        assert dump.description.vmcoreinfo == b"OSRELEASE=5\n"
        assert dump.description.incomplete == ""


def test_old_diskdump_with_one_bitmap(open_bytes: Opener) -> None:
    pages = some_pages()
    spec = KdumpSpec(pages, version=1, signature=b"DISKDUMP", one_bitmap=True, compression=RAW)
    dump = open_bytes(build_kdump(spec).raw)
    assert dump.description.format == "diskdump v1"
    assert dump.description.dump_level is None
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages
    assert states_of(dump, (4, 5)) == [ABSENT, PRESENT]


def test_newer_header_version_is_read_with_a_warning(open_bytes: Opener) -> None:
    pages = some_pages()
    dump = open_bytes(build_kdump(KdumpSpec(pages, version=7)).raw)
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages
    assert any("version 7" in text for text in dump.description.warnings)


def test_addresses_that_no_machine_has_are_not_ram(open_bytes: Opener) -> None:
    dump = open_bytes(build_kdump(KdumpSpec(some_pages(64, first=0, step=1))).raw)
    for paddr, size in ((-1, 1), (-PAGE, 8 * PAGE), ((1 << 64) - 8, 8), ((1 << 64) - 8, 64 * PAGE), (1 << 70, 8)):
        with pytest.raises(PageAbsentError, match="not RAM"):
            dump.read(PhysAddr(paddr), size)
    with pytest.raises(ValueError, match="-1 bytes"):
        dump.read(PhysAddr(0), -1)


# Damage.


def test_file_that_shrinks_while_it_is_open_loses_pages_only(open_bytes: Opener) -> None:
    pages = some_pages(20)
    dump = open_bytes(build_kdump(KdumpSpec(pages, compression=RAW)).raw)
    os.truncate(dump.description.paths[0], dump.description.file_size_bytes - 5 * PAGE - 1)
    assert dump.read_pages(frames(*pages))[1].tolist() == [PRESENT] * 14 + [LOST] * 6
    with pytest.raises(PageAbsentError, match="cut, incomplete"):
        dump.read(PhysAddr(41 * PAGE), 8)


def test_garbage_in_page_data_loses_that_page_only(open_bytes: Opener) -> None:
    for kind in (ZLIB, LZO, SNAPPY, ZSTD):
        pages = some_pages()
        image = build_kdump(KdumpSpec(pages, compression=kind))
        raw = bytearray(image.raw)
        offset, size = struct.unpack_from("<QI", raw, image.descriptors[7])
        raw[offset : offset + size] = make_noise(3, size)
        dump = open_bytes(bytes(raw))
        contents, states = dump.read_pages(frames(*pages))
        expected = [LOST if pfn == 7 else PRESENT for pfn in pages]
        assert states.tolist() == expected
        assert [row.tobytes() for row in contents] == [ZERO if pfn == 7 else page for pfn, page in pages.items()]
        with pytest.raises(PageAbsentError, match="corrupt"):
            dump.read(PhysAddr(7 * PAGE), 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [("offset", 0), ("offset", 1 << 63), ("offset", (1 << 64) - 1), ("offset", 1 << 40), ("size", 0), ("size", 4097),
     ("size", 0xFFFFFFFF), ("flags", 3), ("flags", 0x23), ("flags", 0)],
)  # fmt: skip
def test_impossible_descriptor_loses_that_page_only(open_bytes: Opener, field: str, value: int) -> None:
    pages = some_pages()
    image = build_kdump(KdumpSpec(pages))
    raw = bytearray(image.raw)
    place, size = image.fields[f"{field}[7]"]
    raw[place : place + size] = value.to_bytes(size, "little")
    dump = open_bytes(bytes(raw))
    _, states = dump.read_pages(frames(*pages))
    assert states.tolist() == [LOST if pfn == 7 else PRESENT for pfn in pages]
    with pytest.raises(PageAbsentError):
        dump.read(PhysAddr(7 * PAGE), 8)


@pytest.mark.parametrize(("field", "value"), [("offset", 0), ("size", 100), ("size", 4095), ("flags", ZLIB)])
def test_impossible_descriptor_of_a_raw_page(open_bytes: Opener, field: str, value: int) -> None:
    pages = some_pages()
    image = build_kdump(KdumpSpec(pages, compression=RAW))
    raw = bytearray(image.raw)
    place, size = image.fields[f"{field}[7]"]
    raw[place : place + size] = value.to_bytes(size, "little")
    dump = open_bytes(bytes(raw))
    if field != "flags":
        assert states_of(dump, (5, 7, 9)) == [PRESENT, LOST, PRESENT]
    assert dump.read_pages(frames(7))[1].tolist() == [LOST]
    with pytest.raises(PageAbsentError):
        dump.read(PhysAddr(7 * PAGE), 8)


def test_frame_that_unpacks_to_another_size_is_lost(open_bytes: Opener) -> None:
    for kind in (ZLIB, LZO, SNAPPY, ZSTD):
        short, long, good = make_page(1, PAGE // 2), make_page(2, 4 * PAGE), make_page(3)
        spec = KdumpSpec({1: short, 2: long, 3: good}, compression=kind)
        raw = build_kdump(spec).raw
        dump = open_bytes(raw)
        assert dump.read_pages(frames(1, 2, 3))[1].tolist() == [LOST, LOST, PRESENT]
        for pfn in (1, 2):
            with pytest.raises(PageAbsentError):
                dump.read(PhysAddr(pfn * PAGE), 8)


@pytest.mark.parametrize(("kind", "mebibytes"), [(ZLIB, 32), (LZO, 32), (SNAPPY, 5), (ZSTD, 200)])
def test_zip_bomb_of_a_page_is_lost_without_unpacking_it(open_bytes: Opener, kind: int, mebibytes: int) -> None:
    block = 262144
    bomb = bytes(mebibytes << 20)
    spec = KdumpSpec({1: bomb, 2: make_page(1, block)}, compression=kind, block_size=block, share_zero_page=False)
    image = build_kdump(spec)
    assert struct.unpack_from("<I", image.raw, image.descriptors[1] + 8)[0] <= block
    dump = open_bytes(image.raw)
    # The first page of a kind imports its codec, which is not what is measured.
    dump.read_pages(frames(2))
    tracemalloc.start()
    assert dump.read_pages(frames(1, 2))[1].tolist() == [LOST, PRESENT]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_cut_file_is_read_up_to_the_cut(open_bytes: Opener) -> None:
    pages = some_pages(20)
    image = build_kdump(KdumpSpec(pages, compression=RAW))
    dump = open_bytes(image.raw[: -5 * PAGE - 1])
    _, states = dump.read_pages(frames(*pages))
    assert states.tolist() == [PRESENT] * 14 + [LOST] * 6
    assert dump.description.incomplete == "the file ends before its pages do"


def test_file_cut_within_its_descriptors(open_bytes: Opener) -> None:
    pages = some_pages(20)
    image = build_kdump(KdumpSpec(pages))
    dump = open_bytes(image.raw[: image.descriptors[13] + 3])
    assert set(states_of(dump, pages)) == {LOST}
    assert dump.description.incomplete == "the file ends before its page descriptors do"


def test_file_cut_within_its_bitmaps_calls_unknown_frames_lost(open_bytes: Opener) -> None:
    pages = {5: make_page(1), 70_000: make_page(2)}
    image = build_kdump(KdumpSpec(pages, ram=[6]))
    dump = open_bytes(image.raw[: 2 * PAGE + 3 * PAGE + 100])
    assert dump.description.incomplete == "the file ends within its bitmaps"
    assert states_of(dump, (4, 5, 6, 799, 800, 70_000, 70_001)) == [ABSENT, LOST, EXCLUDED, ABSENT, LOST, LOST, ABSENT]


@pytest.mark.parametrize("size", [8, 100, 463])
def test_cut_within_the_header_is_truncated(open_bytes: Opener, size: int) -> None:
    with pytest.raises(TruncatedError):
        open_bytes(build_kdump(KdumpSpec(some_pages())).raw[:size])


def test_cut_within_the_sub_header_is_truncated(open_bytes: Opener) -> None:
    with pytest.raises(TruncatedError, match="sub header"):
        open_bytes(build_kdump(KdumpSpec(some_pages())).raw[: PAGE + 50])


def test_header_without_sense_is_corrupt(open_bytes: Opener) -> None:
    for field, value in (("block_size", 1000), ("block_size", 0), ("block_size", -4096), ("block_size", 1 << 21)):
        with pytest.raises(CorruptError, match="power of two"):
            open_bytes(build_kdump(KdumpSpec(some_pages(), overrides={field: value})).raw)


def test_header_without_room_for_its_tables_is_corrupt(open_bytes: Opener) -> None:
    for field, value in (("sub_hdr_size", 0), ("sub_hdr_size", -1), ("bitmap_blocks", 0), ("header_version", -1)):
        with pytest.raises(CorruptError, match="makes no sense"):
            open_bytes(build_kdump(KdumpSpec(some_pages(), overrides={field: value})).raw)
    with pytest.raises(CorruptError, match="1 blocks of bitmap"):
        open_bytes(build_kdump(KdumpSpec(some_pages(), overrides={"bitmap_blocks": 1})).raw)
    with pytest.raises(CorruptError, match="max_mapnr is 0"):
        open_bytes(build_kdump(KdumpSpec(some_pages(), overrides={"max_mapnr": 0, "max_mapnr_64": 0})).raw)


def test_split_range_that_ends_before_it_starts_is_corrupt(open_bytes: Opener) -> None:
    with pytest.raises(CorruptError, match="the start is beyond the end"):
        open_bytes(build_kdump(KdumpSpec(some_pages(), split=(9, 5))).raw)


def test_absurd_bitmap_is_refused(open_bytes: Opener) -> None:
    with pytest.raises(UnsupportedError, match="bitmaps of 4294967295 blocks"):
        open_bytes(build_kdump(KdumpSpec(some_pages(), overrides={"bitmap_blocks": 0xFFFFFFFF})).raw)


def test_more_frames_than_the_bitmap_has_is_a_warning(open_bytes: Opener) -> None:
    pages = some_pages()
    dump = open_bytes(build_kdump(KdumpSpec(pages, overrides={"max_mapnr_64": 1 << 50})).raw)
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages
    assert any("bitmaps for 32768 only" in text for text in dump.description.warnings)


def test_shredded_bitmap_of_ram_is_corrupt(open_bytes: Opener) -> None:
    spec = KdumpSpec({0: make_page(1)}, max_mapnr=1 << 24)
    raw = bytearray(build_kdump(spec).raw)
    raw[2 * PAGE : 2 * PAGE + (1 << 21)] = b"\x55" * (1 << 21)
    dump = open_bytes(bytes(raw))
    with pytest.raises(CorruptError, match="more than 1048576 runs"):
        _ = dump.ram_ranges


def test_blobs_beyond_the_file_are_a_warning(open_bytes: Opener) -> None:
    pages = some_pages()
    spec = KdumpSpec(pages, vmcoreinfo=b"x", overrides={"offset_vmcoreinfo": 1 << 62, "size_vmcoreinfo": 1 << 63})
    dump = open_bytes(build_kdump(spec).raw)
    assert dump.description.vmcoreinfo == b""
    assert any("VMCOREINFO" in text for text in dump.description.warnings)
    assert {pfn: contents_of(dump, pfn) for pfn in pages} == pages


# Split sets.


def split_set(pages: dict[int, bytes], *cuts: int, **common: object) -> list[bytes]:
    edges = [0, *cuts, 1000]
    return [
        build_kdump(KdumpSpec(pages, ram=range(1000), split=(start, end), **common)).raw  # type: ignore[arg-type]
        for start, end in pairwise(edges)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", [2, 5, 6])
def test_split_set_in_any_order(open_bytes: Opener, layout: str, version: int) -> None:
    pages = some_pages(200, step=4)
    parts = split_set(pages, 100, 101, 600, layout=layout, version=version)
    dump = open_bytes(parts[2], parts[0], parts[3], parts[1])
    assert dump.description.format == f"split kdump-compressed v{version}"
    assert len(dump.description.paths) == 4
    assert dump.description.incomplete == ""
    wanted = np.array([*pages][::-1], dtype=np.uint64)
    contents, states = dump.read_pages(wanted)
    assert not states.any()
    assert [row.tobytes() for row in contents] == [pages[pfn] for pfn in wanted.tolist()]
    assert contents_of(dump, 103) == pages[103]


def test_missing_part_of_a_split_set_is_lost(open_bytes: Opener) -> None:
    pages = some_pages(200, step=4)
    parts = split_set(pages, 100, 600)
    dump = open_bytes(parts[2], parts[0])
    assert dump.description.incomplete == "parts of the split set were not given: frames 0x64-0x257"
    _, states = dump.read_pages(np.array([*pages], dtype=np.uint64))
    assert states.tolist() == [LOST if 100 <= pfn < 600 else PRESENT for pfn in pages]
    assert states_of(dump, (3, 4, 103, 104, 603)) == [PRESENT, EXCLUDED, LOST, EXCLUDED, PRESENT]
    with pytest.raises(PageAbsentError, match="cut, incomplete"):
        dump.read(PhysAddr(103 * PAGE), 1)


def test_one_part_alone_says_what_is_missing(open_bytes: Opener) -> None:
    dump = open_bytes(split_set(some_pages(), 100)[1])
    assert dump.description.incomplete == "parts of the split set were not given: frames 0x0-0x63"


def test_same_part_twice_is_a_mismatch(open_bytes: Opener) -> None:
    parts = split_set(some_pages(), 7)
    with pytest.raises(MismatchError, match="holds frames from 0x7") as caught:
        open_bytes(parts[1], parts[0], parts[1])
    assert caught.value.hint == "give each part once"


def test_parts_of_different_sets_are_a_mismatch(open_bytes: Opener) -> None:
    ours = split_set(some_pages(), 7)
    for common, word in (
        ({"timestamp_s": 5}, "time"),
        ({"dump_level": 1}, "dump level"),
        ({"utsname": {"release": "7"}}, "kernel"),
        ({"block_size": 65536}, "page size"),
        ({"byte_order": "big"}, "architecture"),
        ({"version": 5}, "version"),
    ):
        with pytest.raises(MismatchError, match=word):
            open_bytes(ours[0], split_set(some_pages(), 7, **common)[1])


def test_whole_dump_among_parts_is_a_mismatch(open_bytes: Opener) -> None:
    with pytest.raises(MismatchError, match="not part of a split set"):
        open_bytes(split_set(some_pages(), 7)[0], build_kdump(KdumpSpec(some_pages())).raw)


# Codecs.


@pytest.mark.parametrize(
    ("kind", "modules", "package"),
    [(SNAPPY, ["cramjam"], "cramjam"), (ZSTD, ["zstandard"], "zstandard"), (LZO, ["lzallright"], "liblzo2")],
)
def test_missing_codec_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, modules: list[str], package: str
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(KdumpSpec(some_pages(), compression=kind)).raw)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    load = importlib.import_module

    def import_without(name: str) -> object:
        if name.partition(".")[0] in modules:
            raise ImportError(name)
        return load(name)

    monkeypatch.setattr(importlib, "import_module", import_without)
    for opener in codecs._OPENERS.values():
        opener.cache_clear()  # type: ignore[attr-defined]
    try:
        with open_dump(path) as dump:
            assert dump.page_states(frames(3)).tolist() == [PRESENT]
            for attempt in (lambda: dump.read_pages(frames(3)), lambda: dump.read(PhysAddr(3 * PAGE), 8)):
                with pytest.raises(UnsupportedError, match="cannot be read here") as caught:
                    attempt()
                assert package in caught.value.hint
    finally:
        for opener in codecs._OPENERS.values():
            opener.cache_clear()  # type: ignore[attr-defined]


def test_both_lzo_decoders_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    page = make_page(9)
    packed = COMPRESSORS[LZO](page)
    for library in (ctypes.util.find_library("lzo2"), None):
        monkeypatch.setattr(ctypes.util, "find_library", lambda _name, found=library: found)
        decode = codecs._open_lzo.__wrapped__()
        assert decode(packed, PAGE) == page
        for broken in (packed[:-9], packed[:40], make_noise(1, 300), b""):
            with pytest.raises(CorruptError, match="lzo"):
                decode(broken, PAGE)
        with pytest.raises(CorruptError, match="lzo"):
            decode(packed, PAGE // 2)
