"""Configurations that work and such as do not, rehearsed: each broken link is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from postpanic.cli.app import main
from postpanic.process import find_program, run
from postpanic.rehearse.kernels import Kernel
from tests.vm.lab import Lab, hold_machine
from tests.vm.python_root import fetch_python_root

UUID = "6b1f7e2e-28c8-4f0b-b15b-9f0a7f6d5a10"
FILE_TARGET = f"""
[[target]]
kind = "file"
path = "/var/crash"
device = "UUID={UUID}"
filesystem = "ext4"
"""
RAW_TARGET = f"""
[[target]]
kind = "raw"
device = "UUID={UUID}"
swap = true
"""
VIRTIO = '[capture]\nmodules = ["virtio_pci", "virtio_blk", "ext4"]\n'
Rehearse = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Tree:
    """A host's files, in a directory."""

    root: Path
    kernel: Kernel

    def configure(self, text: str) -> None:
        (self.root / "etc/postpanic.toml").write_text(text)


@pytest.fixture(scope="module")
def tree(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Make a tree with Debian's Python and a kernel with its modules; files are links to the cache."""
    kernel = fetch_kernel("6.1")
    root = tmp_path_factory.mktemp("rehearsed") / "root"
    run([find_program("cp"), "-al", fetch_python_root(crash_lab), root])
    # The cache's own: its time is that of the last use, by whichever test.
    (root / "manifest.json").unlink()
    for directory in ("boot", "etc", "lib/modules"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for path in kernel.image.parent.iterdir():
        shutil.copy2(path, root / "boot" / path.name)
    run([find_program("cp"), "-al", kernel.modules_dir, root / "lib/modules" / kernel.release])
    return Tree(root, kernel)


@pytest.fixture
def rehearse(crash_lab: Lab, tree: Tree, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Rehearse:
    def call(text: str, *words: str, status: int = 0) -> dict[str, Any]:
        tree.configure(text)
        command = ["rehearse", "--root", str(tree.root), "--kernel", tree.kernel.release, "--json"]
        with hold_machine(crash_lab.cache_dir):
            found = main([*command, "--keep", str(tmp_path / "kept"), *words])
        captured = capsys.readouterr()
        assert found == status, captured.err
        value: dict[str, Any] = json.loads(captured.out)
        return value

    return call


def links(value: dict[str, Any], kind: str = "sysrq") -> dict[str, dict[str, str]]:
    return {link["name"]: link for link in value["rehearsals"][kind]["links"]}


def test_what_works_is_proven_and_the_tree_is_as_it_was(rehearse: Rehearse, tree: Tree, tmp_path: Path) -> None:
    before = describe(tree.root)
    value = rehearse(FILE_TARGET + VIRTIO, "--crashkernel", "160M")
    assert describe(tree.root) == before
    assert (value["verdict"], value["broken"]) == ("proven", None)
    assert {link["state"] for link in links(value).values()} == {"held"}
    one = value["rehearsals"]["sysrq"]
    assert 0 < one["seconds"] < 600
    assert 40 << 20 < one["peak_bytes"] < 160 << 20
    (dump,) = (tmp_path / "kept").rglob("vmcore")
    assert one["dump_bytes"] == dump.stat().st_size


def describe(root: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.rglob("*")
        # The tests write it themselves.
        if not path.is_dir() and path.name != "postpanic.toml"
    )


@pytest.mark.parametrize(
    ("text", "words", "link", "evidence"),
    [
        pytest.param(
            FILE_TARGET + VIRTIO, ("--free", "0=2M"), "target file", "no room", id="full-disk", marks=pytest.mark.matrix
        ),
        pytest.param(
            FILE_TARGET + '[capture]\nmodules = ["ext4"]\n',
            (),
            "target file",
            f"UUID={UUID}",
            id="no-driver",
            marks=pytest.mark.matrix,
        ),
        pytest.param(
            FILE_TARGET + VIRTIO, ("--crashkernel", "64M"), "", "memory", id="too-small", marks=pytest.mark.matrix
        ),
    ],
)
def test_the_broken_link_is_named(
    rehearse: Rehearse, text: str, words: tuple[str, ...], link: str, evidence: str
) -> None:
    size = () if "--crashkernel" in words else ("--crashkernel", "160M")
    value = rehearse(text, *size, *words, status=4)
    assert value["verdict"] == "broken"
    broken = next(one for one in links(value).values() if one["state"] == "broken")
    assert value["broken"].startswith(f"{broken['name']} (sysrq): ")
    assert broken["name"].startswith(link)
    assert evidence in f"{broken['evidence']} {broken['mend']}"


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(FILE_TARGET.replace('"ext4"', '"xfs"') + VIRTIO.replace("ext4", "xfs"), (), id="xfs"),
        pytest.param(FILE_TARGET + VIRTIO.replace("virtio_blk", "nvme"), (), id="nvme"),
        pytest.param(FILE_TARGET + VIRTIO.replace("virtio_blk", 'virtio_scsi", "sd_mod'), (), id="scsi"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "nmi"), id="nmi"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "out-of-memory"), id="out-of-memory"),
        pytest.param(RAW_TARGET + VIRTIO, (), id="swap"),
    ],
)
def test_others_are_proven(rehearse: Rehearse, text: str, words: tuple[str, ...]) -> None:
    value = rehearse(text, "--crashkernel", "192M", *words)
    assert value["verdict"] == "proven"


@pytest.mark.matrix
def test_crash_that_the_kernel_cannot_do_is_said(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.configure(FILE_TARGET + VIRTIO)
    words = ["rehearse", "--root", str(tree.root), "--kernel", tree.kernel.release, "--crashkernel", "160M"]
    assert main([*words, "--crash", "null"]) == 4
    assert "has no module lkdtm" in capsys.readouterr().err


@pytest.mark.matrix
def test_the_smallest_reservation_works_and_one_step_less_does_not(rehearse: Rehearse) -> None:
    value = rehearse(FILE_TARGET + VIRTIO, "--crashkernel", "160M", "--smallest")
    size = value["smallest_bytes"] >> 20
    assert 64 <= size < 160
    for _ in range(2):
        assert rehearse(FILE_TARGET + VIRTIO, "--crashkernel", f"{size}M")["verdict"] == "proven"
        assert rehearse(FILE_TARGET + VIRTIO, "--crashkernel", f"{size - 16}M", status=4)["verdict"] == "broken"


def test_an_image_that_is_armed_and_stale_is_a_broken_link(rehearse: Rehearse, tree: Tree) -> None:
    armed = tree.root / "var/lib/postpanic/capture.img"
    armed.parent.mkdir(parents=True)
    armed.write_bytes(b"an image of before")
    try:
        value = rehearse(FILE_TARGET + VIRTIO, "--crashkernel", "160M", status=4)
    finally:
        shutil.rmtree(armed.parent)
    assert value["broken"].startswith("the image that is armed is stale: ")
    assert value["rehearsals"] == {}
