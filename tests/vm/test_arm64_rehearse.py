"""Hosts of arm64 rehearsed on whatever machine this is, from their trees, by the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.process import find_program, run
from postpanic.rehearse.boards import BOARDS
from postpanic.rehearse.kernels import KernelStore
from tests.vm.arm64 import KERNELS
from tests.vm.arm64_captures import fetch_python_root
from tests.vm.lab import Lab
from tests.vm.rehearsed import Tree, make_tree, rehearse_tree

pytestmark = pytest.mark.matrix

CONFIG = """
[capture]
modules = ["virtio_pci", "virtio_blk", "ext4"]
[[target]]
kind = "file"
path = "/var/crash"
device = "UUID=5c1d1f0e-4a1a-4a63-8a52-9a2d6a9d3c55"
filesystem = "ext4"
"""


@pytest.fixture(scope="module", params=["6.1", "6.12"], ids=lambda key: f"arm64-{key}")
def tree(request: pytest.FixtureRequest, crash_lab: Lab, tmp_path_factory: pytest.TempPathFactory, qemu: str) -> Tree:
    assert qemu
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS[request.param])
    made = make_tree(crash_lab, kernel, tmp_path_factory.mktemp("host"), fetch_python_root(crash_lab))
    made.configure(CONFIG)
    return made


@pytest.fixture(scope="module")
def qemu(installed: Callable[[str], str]) -> str:
    return installed("qemu-system-aarch64")


def test_host_is_proven_with_the_boards_own_device_tree(
    crash_lab: Lab, tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, dtb = BOARDS["aarch64"], tmp_path / "board.dtb"
    # As long as QEMU writes it, a kernel would not take it.
    run([find_program(board.program), "-M", f"{board.machine},dumpdtb={dtb}", "-cpu", board.cpu, "-smp", "2"])
    assert dtb.stat().st_size > 1 << 19
    value = rehearse_tree(
        crash_lab,
        tree,
        tmp_path / "kept",
        capsys,
        *("--crashkernel", "256M", "--dtb", str(dtb), "--cmdline", "postpanic.seen=1"),
    )
    (one,) = value["rehearsals"].values()
    assert (value["verdict"], value["broken"]) == ("proven", None)
    assert {link["state"] for link in one["links"]} == {"held"}
    (console,) = (tmp_path / "kept").glob("*/crash/console.log")
    assert "postpanic.seen=1" in console.read_text(errors="replace")
    assert "Machine model: linux,dummy-virt" in console.read_text(errors="replace")


def test_reservation_that_is_too_small_is_the_link_that_breaks(
    crash_lab: Lab, tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = rehearse_tree(crash_lab, tree, tmp_path / "kept", capsys, "--crashkernel", "48M", status=4)
    (one,) = value["rehearsals"].values()
    assert value["verdict"] == "broken"
    broken = next(link for link in one["links"] if link["state"] == "broken")
    assert broken["name"] in {"load", "verification", "capture kernel", "saver"}
