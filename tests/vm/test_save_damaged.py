"""Memory that is damaged: page tables that lead in circles, no kernel to be found; something is always saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from postpanic.cli.app import main
from postpanic.dumps.open import open_dump
from postpanic.kernel.memory import open_kernel_memory
from postpanic.process import find_program, run
from postpanic.units import VirtAddr
from tests.vm.lab import Crash

ENTRIES = 512
PRESENT_KERNEL_TABLE = 0x63


@pytest.fixture
def damaged(crashed: Callable[..., Crash], tmp_path: Path) -> Path:
    """Return a copy of a raw dump that may be changed."""
    path = tmp_path / "vmcore"
    run([find_program("cp"), "--sparse=always", crashed("6.1").raw, path])
    return path


def find_page(path: Path, symbol: str) -> tuple[int, int]:
    """Find the frame of a symbol's page, and where in the file it is."""
    with open_dump(path) as dump:
        kernel = open_kernel_memory(dump)
        vaddr = kernel.vmcoreinfo.get_symbol(symbol)
        assert vaddr is not None
        paddr = kernel.translate(VirtAddr(vaddr & ~0xFFF))
    with path.open("rb") as stream:
        for segment in ELFFile(stream).iter_segments("PT_LOAD"):
            if segment["p_paddr"] <= paddr < segment["p_paddr"] + segment["p_filesz"]:
                return paddr >> 12, segment["p_offset"] + paddr - segment["p_paddr"]
    raise AssertionError(f"{symbol} is in no segment")


def test_page_tables_that_lead_in_circles_end(damaged: Path, tmp_path: Path) -> None:
    pfn, at = find_page(damaged, "swapper_pg_dir")
    with damaged.open("r+b") as stream:
        stream.seek(at)
        table = np.frombuffer(stream.read(4096), dtype="<u8").copy()
        # Each entry of the kernel's half that led nowhere now leads back to the top.
        empty = np.flatnonzero(table[ENTRIES // 2 :] == 0) + ENTRIES // 2
        assert len(empty) > 100
        table[empty] = (pfn << 12) | PRESENT_KERNEL_TABLE
        stream.seek(at)
        stream.write(table.tobytes())
    assert main(["save", "--vmcore", str(damaged), str(tmp_path / "out")]) == 0
    (dump,) = (tmp_path / "out").iterdir()
    assert "Trigger a crash" in (dump / "vmcore-dmesg.txt").read_text()
    assert main(["verify", str(dump / "vmcore")]) == 0


def test_memory_without_page_tables_is_saved_with_its_log(damaged: Path, tmp_path: Path) -> None:
    _, at = find_page(damaged, "swapper_pg_dir")
    with damaged.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes(4096))
    assert main(["save", "--vmcore", str(damaged), "-d", "1", str(tmp_path / "out")]) == 0
    (dump,) = (tmp_path / "out").iterdir()
    # The kernel's image is found by its offset alone; what tells pages apart is not, so all are kept.
    assert "Trigger a crash" in (dump / "vmcore-dmesg.txt").read_text()
    manifest = json.loads((dump / "vmcore.manifest.json").read_text())
    assert manifest["complete"] is True
    assert any("they are kept" in note for note in manifest["notes"])
    skipped = [test["name"] for test in manifest["self_test"]["results"] if test["outcome"] != "ok"]
    assert "crashing task" in skipped, "nobody is told that this was looked at"
