"""Real panics, captured by our own image: the dump opens, is whole, and is what filtering the memory gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.cli.app import main
from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.printk import read_log
from postpanic.pages.checks import Outcome
from postpanic.pages.classify import select_pages
from postpanic.pages.filtering import WritePlan, write_dump
from postpanic.pages.selftest import check_dump
from tests.vm.captures import OUTPUT, Capture, Request, captured, find_dumps, plan_for, read_files
from tests.vm.lab import Lab

BATCH = 1 << 14
# What the kernel log says, and who crashed.
CRASHES = {
    "sysrq-c": (r"sysrq: Trigger a crash", "panic-maker"),
    "module-null": (r"BUG: kernel NULL pointer dereference", "packet-sender"),
    "irq-null": (r"Fatal exception in interrupt|BUG: kernel NULL pointer dereference", ""),
    "module-spin": (r"softlockup: hung tasks", "packet-sender"),
    "out-of-memory": (r"Out of memory: compulsory panic_on_oom|out of memory", ""),
    "nmi": (r"NMI: Not continuing|unknown NMI", ""),
}


def judge(capture: Capture, tmp_path: Path, scenario: str) -> None:
    """Hold the one dump on the output disk against everything that is promised."""
    (name,) = find_dumps(capture.disks.output)
    saved = read_files(capture.disks.output, name, tmp_path / "saved")
    message, task = CRASHES[scenario]
    assert re.search(message, (saved / "vmcore-dmesg.txt").read_text())
    vmcore = saved / "vmcore"
    manifest = json.loads((saved / "vmcore.manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["self_test"]["passed"] is True
    assert main(["verify", str(vmcore)]) == 0
    with open_dump(vmcore) as dump:
        test = check_dump(dump, quick=False)
        by_name = {result.name: result for result in test.results}
        assert {result.outcome for result in test.results} <= {Outcome.OK, Outcome.NOT_APPLICABLE}
        assert by_name["crashing task"].outcome is Outcome.OK
        assert f'"{task}' in by_name["crashing task"].detail
        assert read_log(open_kernel_memory(dump))
    compare_with_raw(capture, vmcore, tmp_path)


def compare_with_raw(capture: Capture, vmcore: Path, tmp_path: Path) -> None:
    """Filter the memory as it was, and find the same pages with the same contents."""
    again = tmp_path / "again"
    with open_dump(capture.raw_vmcore()) as raw:
        kernel = open_kernel_memory(raw)
        selection = select_pages(raw, kernel, 31)
        plan = WritePlan(compression=Compression.ZSTD)
        result = write_dump(raw, kernel, selection, [FileSink(again, overwrite=True, synced=False)], plan)
    assert result.complete
    # Not byte by byte: another libzstd may make other bytes of the same pages.
    with open_dump(vmcore) as one, open_dump(again) as other:
        pfns = selection.ram.members(0, selection.ram.limit)
        assert (one.page_states(pfns) == other.page_states(pfns)).all()
        kept = selection.kept.members(0, selection.kept.limit)
        for start in range(0, len(kept), BATCH):
            assert np.array_equal(read(one, kept[start : start + BATCH]), read(other, kept[start : start + BATCH]))


def read(dump: Dump, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
    pages = np.empty((len(pfns), dump.page_size_bytes), dtype=np.uint8)
    assert (dump.read_pages_into(pfns, pages) == PageState.PRESENT).all()
    return pages


@pytest.mark.parametrize(
    ("kernel", "scenario"),
    [
        pytest.param("6.1", "sysrq-c", marks=pytest.mark.matrix),
        ("6.12", "module-null"),
        pytest.param("6.1-generic", "irq-null", marks=pytest.mark.matrix),
        pytest.param("6.12", "irq-null", marks=pytest.mark.matrix),
        pytest.param("6.1", "module-spin", marks=pytest.mark.matrix),
        pytest.param("6.12", "out-of-memory", marks=pytest.mark.matrix),
        pytest.param("6.1", "nmi", marks=pytest.mark.matrix),
        pytest.param("newest", "sysrq-c", marks=pytest.mark.matrix),
        pytest.param("5.10", "sysrq-c", marks=pytest.mark.matrix),
    ],
)
def test_a_panic_is_captured(crash_lab: Lab, tmp_path: Path, kernel: str, scenario: str) -> None:
    request = Request(plan_for(OUTPUT), kernel=kernel, scenario=scenario, with_raw=True)
    with captured(crash_lab, request, tmp_path) as capture:
        assert any("file on vdc: log saved" in line for line in capture.said)
        assert any("file on vdc: self-test passed" in line for line in capture.said)
        judge(capture, tmp_path, scenario)
