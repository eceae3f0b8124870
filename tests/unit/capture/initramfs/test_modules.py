"""Kernel modules: any compression, in the order in which they can be loaded."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import zstandard

from postpanic.capture.initramfs.modules import ModuleTree, read_module
from postpanic.errors import CorruptError, FactAbsentError


def write_module(directory: Path, name: str, depends: str, ending: str = ".ko") -> None:
    content = b"\x7fELF junk \0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    if ending.endswith(".xz"):
        content = lzma.compress(content)
    if ending.endswith(".zst"):
        content = zstandard.compress(content)
    path = directory / "kernel" / "drivers" / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_modules_come_after_what_they_need_in_any_compression(tmp_path: Path) -> None:
    write_module(tmp_path, "virtio", "", ".ko.xz")
    write_module(tmp_path, "virtio_ring", "virtio", ".ko.zst")
    write_module(tmp_path, "virtio-pci", "virtio_ring,virtio")
    tree = ModuleTree(tmp_path)
    assert tree.sort_by_dependency(["virtio_pci"]) == ["virtio", "virtio_ring", "virtio_pci"]
    assert tree.read("virtio-pci") == tree.read("virtio_pci")
    assert "virtio_pci" in tree


def test_modules_that_are_built_in_are_left_out_of_the_order(tmp_path: Path) -> None:
    write_module(tmp_path, "virtio_blk", "virtio_ring")
    assert ModuleTree(tmp_path).sort_by_dependency(["ext4", "virtio_blk"]) == ["virtio_blk"]
    with pytest.raises(FactAbsentError, match="module ext4"):
        ModuleTree(tmp_path).read("ext4")


def test_modules_that_need_each_other_do_not_hang(tmp_path: Path) -> None:
    write_module(tmp_path, "one", "two")
    write_module(tmp_path, "two", "one")
    assert sorted(ModuleTree(tmp_path).sort_by_dependency(["one"])) == ["one", "two"]


@pytest.mark.parametrize("ending", [".ko.xz", ".ko.zst"])
def test_damaged_compressed_module_is_one_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"broken{ending}"
    path.write_bytes(b"certainly not compressed")
    with pytest.raises(CorruptError, match="not a compressed module"):
        read_module(path)


@pytest.mark.parametrize("ending", [".ko.xz", ".ko.zst"])
def test_module_that_expands_without_end_is_bounded(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postpanic.capture.initramfs.module_files.MODULE_SIZE_LIMIT_BYTES", 1 << 16)
    path = tmp_path / f"bomb{ending}"
    zeros = bytes(1 << 22)
    path.write_bytes(lzma.compress(zeros) if ending.endswith("xz") else zstandard.compress(zeros))
    with pytest.raises(CorruptError, match="more than 65536 bytes"):
        read_module(path)
