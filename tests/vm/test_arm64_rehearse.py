"""Hosts of arm64 rehearsed on whatever machine this is, from their trees, by the command line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.process import find_program, run
from postpanic.rehearse.boards import BOARDS
from postpanic.rehearse.kernels import KernelStore
from tests.vm.arm64 import KERNELS
from tests.vm.arm64_captures import fetch_python_root
from tests.vm.lab import Lab, hold_machine
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


def test_kernel_that_has_no_host_is_proven(
    crash_lab: Lab, tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qemu
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS["6.12"])
    # Where the user keeps packages; here they outlive the test.
    monkeypatch.setenv("XDG_CACHE_HOME", str(crash_lab.cache_dir / "user"))
    packed = tmp_path / "Image.gz"
    packed.write_bytes(gzip.compress(kernel.image.read_bytes(), 1))
    words = ["--arch", "arm64", "--kernel", str(packed), "--modules", str(kernel.modules_dir)]
    with hold_machine(crash_lab.cache_dir):
        status = main(["rehearse", *words, "--cmdline", "console=tty1 crashkernel=192M", "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.out + captured.err
    value = json.loads(captured.out)
    assert (value["verdict"], value["reserved_bytes"]) == ("proven", 192 << 20)
    (one,) = value["rehearsals"].values()
    assert {link["state"] for link in one["links"]} == {"held"}
