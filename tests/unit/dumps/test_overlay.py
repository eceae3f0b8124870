"""What is written over a dump: seen by every way of reading, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.memory import PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.overlay import Overlay
from postpanic.errors import PageAbsentError
from postpanic.units import PhysAddr
from tests.builders.elfcore import Segment, build_elf_core
from tests.builders.kdump import KdumpSpec, build_kdump
from tests.unit.dumps.conftest import Opener
from tests.unit.dumps.pages import PAGE, contents_of, frames, make_page, states_of

PRESENT, EXCLUDED, ABSENT = PageState.PRESENT, PageState.EXCLUDED, PageState.ABSENT


def open_overlay(open_bytes: Opener) -> Overlay:
    pages = {pfn: make_page(pfn) for pfn in (3, 4, 5, 9)}
    return Overlay(open_bytes(build_kdump(KdumpSpec(pages, ram=range(1, 20))).raw))


def test_nothing_written_is_the_dump_itself(open_bytes: Opener) -> None:
    overlay = open_overlay(open_bytes)
    beneath = overlay.beneath
    assert overlay.description == beneath.description
    assert overlay.ram_ranges.tolist() == beneath.ram_ranges.tolist()
    assert states_of(overlay, range(22)) == states_of(beneath, range(22))
    assert contents_of(overlay, 4) == contents_of(beneath, 4)
    assert not len(overlay.written_pfns)


def test_a_write_is_seen_by_every_way_of_reading(open_bytes: Opener) -> None:
    overlay = open_overlay(open_bytes)
    at = 4 * PAGE + 100
    before = contents_of(overlay.beneath, 4)
    overlay.write(PhysAddr(at), b"written")
    expected = before[:100] + b"written" + before[107:]
    assert overlay.read(PhysAddr(at - 2), 12) == before[98:100] + b"written" + before[107:110]
    assert overlay.read(PhysAddr(3 * PAGE), 3 * PAGE) == make_page(3) + expected + make_page(5)
    pages, states = overlay.read_pages(frames(3, 4, 9))
    assert [page.tobytes() for page in pages] == [make_page(3), expected, make_page(9)]
    assert states.tolist() == [PRESENT] * 3
    buffer = np.empty((2, PAGE), dtype=np.uint8)
    overlay.read_pages_into(frames(9, 4), buffer)
    assert buffer[1].tobytes() == expected
    assert contents_of(overlay.beneath, 4) == before
    assert overlay.written_pfns.tolist() == [4]


def test_a_write_across_pages_and_a_second_one_over_it(open_bytes: Opener) -> None:
    overlay = open_overlay(open_bytes)
    overlay.write(4 * PAGE - 3, b"abcdef")
    overlay.write(4 * PAGE - 1, b"XY")
    assert overlay.read(PhysAddr(4 * PAGE - 4), 8) == make_page(3)[-4:-3] + b"abXYef" + make_page(4)[3:4]
    assert overlay.written_pfns.tolist() == [3, 4]


def test_an_absent_page_is_written_whole_or_not_at_all(open_bytes: Opener) -> None:
    overlay = open_overlay(open_bytes)
    with pytest.raises(PageAbsentError, match="left out") as caught:
        overlay.write(5 * PAGE + 4000, bytes(200))
    assert caught.value.paddr == 6 * PAGE
    # Its first part lies in a page that is there, and is not written either.
    assert contents_of(overlay, 5) == make_page(5)
    overlay.write(6 * PAGE, make_page(77))
    assert states_of(overlay, [6, 7]) == [PRESENT, EXCLUDED]
    assert contents_of(overlay, 6) == make_page(77)
    overlay.write(6 * PAGE + 1, b"part")
    assert overlay.read(PhysAddr(6 * PAGE), 6) == make_page(77)[:1] + b"part" + make_page(77)[5:6]


def test_no_memory_no_write(open_bytes: Opener) -> None:
    overlay = open_overlay(open_bytes)
    for paddr in (0, 25 * PAGE, 1 << 60):
        with pytest.raises(PageAbsentError):
            overlay.write(paddr, make_page(1))
    assert not len(overlay.written_pfns)
    overlay.write(3 * PAGE, b"")
    assert not len(overlay.written_pfns)


def test_a_frame_of_which_a_part_is_memory(tmp_path: Path) -> None:
    path = tmp_path / "ragged"
    path.write_bytes(build_elf_core([Segment(0x10400, make_page(1)[:0x800])]).raw)
    with Overlay(open_dump(path)) as overlay:
        with pytest.raises(PageAbsentError):
            overlay.write(0x10300, b"outside")
        overlay.write(0x10400, b"inside")
        assert overlay.read(PhysAddr(0x10400), 8) == b"inside" + make_page(1)[6:8]


def test_listeners_are_told_which_pages_changed(open_bytes: Opener) -> None:
    overlay = open_overlay(open_bytes)
    told: list[frozenset[int]] = []
    overlay.listen(told.append)
    overlay.write(5 * PAGE - 1, b"ab")
    with pytest.raises(PageAbsentError):
        overlay.write(0, b"a")
    assert told == [frozenset({4, 5})]
