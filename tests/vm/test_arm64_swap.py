"""Pages of arm64 on a swap device: where the kernel itself says that they are, with what the program wrote there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.program import OpenedProgram, open_program
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError
from postpanic.report.text import render_text
from tests.vm.arm64 import LARGE_PAGES
from tests.vm.arm64_work import Arm64Work, fetch_work
from tests.vm.lab import Lab

pytestmark = pytest.mark.matrix

PAGES = 64
"""Swapped out; behind them is one that must not be touched, and one that never was."""
DEVICE, DISK = 1, "/dev/vdb"


@dataclass(frozen=True)
class Swapped:
    """A machine of which a process has pages on a swap device."""

    work: Arm64Work
    opened: OpenedProgram
    pid: int
    area: int
    page_bytes: int

    def records(self, line: str) -> list[dict[str, Any]]:
        answer = run_line(Workspace(self.opened), line)
        return [row for table in answer.tables for row in table.records()]

    def text(self, line: str) -> str:
        return "\n".join(render_text(run_line(Workspace(self.opened), line)))


@pytest.fixture(scope="module", params=["6.1", "6.12", LARGE_PAGES], ids=lambda key: f"arm64-{key}")
def swapped(request: pytest.FixtureRequest, crash_lab: Lab, installed: Callable[[str], str]) -> Iterator[Swapped]:
    installed("qemu-system-aarch64")
    try:
        work = fetch_work(crash_lab, request.param, "swapped")
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine: {exc}")
    found = re.search(r"^lab: swapped area (\d+) ([0-9a-f]+) (\d+)$", work.console, re.MULTILINE)
    assert found
    with open_program([work.dump], policy=DebugPolicy.SYNTHESIZED) as opened:
        yield Swapped(work, opened, int(found[1]), int(found[2], 16), int(found[3]))


def find_places(swapped: Swapped) -> dict[int, tuple[str, int]]:
    """Give the device and the page on it of each page of the area, as ``vm -p`` has them."""
    text = swapped.text(f"vm -p {swapped.pid}")
    found = re.findall(r"^([0-9a-f]+) +SWAP: (\S+)  OFFSET: (\d+)$", text, re.MULTILINE)
    return {int(vaddr, 16): (device, int(offset)) for vaddr, device, offset in found}


def test_every_page_is_where_the_kernel_says(swapped: Swapped) -> None:
    said = re.findall(r"^lab: swapped page (\d+) (\d+) (\d+)$", swapped.work.console, re.MULTILINE)
    places = find_places(swapped)
    # The kernel that is built here does not tell.
    assert len(said) == (PAGES if swapped.page_bytes == 4096 else 0)
    for number, device, offset in said:
        assert int(device) == DEVICE
        assert places[swapped.area + int(number) * swapped.page_bytes] == (DISK, int(offset))


def test_every_page_has_there_what_was_written(swapped: Swapped) -> None:
    places = find_places(swapped)
    contents = swapped.work.disk(DEVICE).read_bytes()
    for number in range(PAGES):
        device, offset = places[swapped.area + number * swapped.page_bytes]
        assert device == DISK
        text = contents[offset * swapped.page_bytes :][:64].split(b"\0")[0]
        assert text == b"page %d at 0 of the swapped area" % number


def test_translation_ends_on_the_device(swapped: Swapped) -> None:
    for number in (0, 1, PAGES - 1):
        vaddr = swapped.area + number * swapped.page_bytes
        text = swapped.text(f"vtop -c {swapped.pid} {vaddr:x}")
        assert "(not mapped)" in text
        _, offset = find_places(swapped)[vaddr]
        assert f"SWAP: {DISK}  OFFSET: {offset:x}" in text
        (entry,) = (row["entry"] for row in swapped.records(f"vtop -c {swapped.pid} {vaddr:x}") if "swap" in row)
        (decoded,) = swapped.records(f"pte {entry:x}")
        assert (decoded["swap"], decoded["offset"], decoded["type"]) == (DISK, offset, DEVICE)


def test_page_that_must_not_be_touched_is_in_memory(swapped: Swapped) -> None:
    vaddr = swapped.area + PAGES * swapped.page_bytes
    (row,) = (row for row in swapped.records(f"vtop -c {swapped.pid} {vaddr:x}") if "flags" in row and "paddr" in row)
    assert "PROTNONE" in row["flags"]
    with open_program([swapped.work.raw], policy=DebugPolicy.SYNTHESIZED) as whole:
        text = whole.memory.physical.read(row["paddr"], 64).split(b"\0")[0]
    assert text == b"page %d at 0 of the swapped area" % PAGES
    assert re.search(rf"^{vaddr:x} +{row['paddr']:x}$", swapped.text(f"vm -p {swapped.pid}"), re.MULTILINE)


def test_page_never_touched_is_nowhere(swapped: Swapped) -> None:
    vaddr = swapped.area + (PAGES + 1) * swapped.page_bytes
    assert vaddr not in find_places(swapped)
    assert re.search(rf"^{vaddr:x} +\(not mapped\)$", swapped.text(f"vm -p {swapped.pid}"), re.MULTILINE)


def test_device_is_listed(swapped: Swapped) -> None:
    (row,) = swapped.records("swap")
    assert (row["type"], row["file"]) == ("PARTITION", DISK)
    assert row["used"] >= PAGES * swapped.page_bytes >> 10
