"""Kernel modules: any compression, in the order in which they can be loaded."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard

from postpanic.capture.initramfs.modules import ModuleTree, read_module
from postpanic.errors import CorruptError, FactAbsentError
from tests.builders.kernel_module import make_module


def write_module(directory: Path, name: str, depends: str, ending: str = ".ko") -> None:
    content = b"\x7fELF junk \0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    if ending.endswith(".xz"):
        content = lzma.compress(content)
    if ending.endswith(".gz"):
        content = gzip.compress(content)
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


@pytest.mark.parametrize("ending", [".ko.xz", ".ko.zst", ".ko.gz"])
def test_damaged_compressed_module_is_one_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"broken{ending}"
    path.write_bytes(b"certainly not compressed")
    with pytest.raises(CorruptError, match="not a compressed module"):
        read_module(path)


@pytest.mark.parametrize("ending", [".ko.xz", ".ko.zst", ".ko.gz"])
def test_module_that_expands_without_end_is_bounded(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postpanic.capture.initramfs.module_files.MODULE_SIZE_LIMIT_BYTES", 1 << 16)
    path = tmp_path / f"bomb{ending}"
    zeros = bytes(1 << 22)
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".ko.xz": lzma.compress,
        ".ko.zst": zstandard.compress,
        ".ko.gz": gzip.compress,
    }
    path.write_bytes(packers[ending](zeros))
    with pytest.raises(CorruptError, match="more than 65536 bytes"):
        read_module(path)


def make_tree(directory: Path, modules: Mapping[str, bytes], **files: str) -> ModuleTree:
    for name, content in modules.items():
        path = directory / "kernel" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)
    return ModuleTree(directory)


FILE_SYSTEM = {
    "fs": make_module("softdep=pre: crc32c another post: helper", "alias=fs-test", depends="lib-one,core"),
    "lib-one": make_module("softdep=pre: gone", depends="core"),
    "crc32c-generic": make_module("alias=crypto-crc32c", "alias=crc32c"),
    "crc32c-fast": make_module("alias=crc32c", depends="core"),
    "helper": make_module(),
}
BUILT_IN = "kernel/lib/core.ko\nkernel/fs/plain-fs.ko\n"


def test_soft_dependencies_come_by_name_and_alias(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, FILE_SYSTEM, modules_builtin=BUILT_IN)
    order = tree.resolve(["fs"])
    assert order == ["crc32c_fast", "crc32c_generic", "lib_one", "fs", "helper"]
    assert tree.resolve(["fs-test"]) == order
    assert tree.resolve(["helper", "fs"])[0] == "helper"


def test_what_is_built_in_is_satisfied_and_what_is_nowhere_is_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, FILE_SYSTEM, modules_builtin=BUILT_IN)
    (tmp_path / "modules.builtin.modinfo").write_bytes(b"plain_fs.alias=fs-plain\0core.license=GPL\0")
    assert tree.resolve(["plain_fs", "core", "fs-plain"]) == []
    with pytest.raises(FactAbsentError, match="module helpr: the kernel has none") as caught:
        tree.resolve(["helper", "helpr"])
    assert caught.value.hint == "did you mean helper?"
    with pytest.raises(FactAbsentError, match="module qqq") as caught:
        tree.resolve(["qqq"])
    assert "right kernel" in caught.value.hint


def test_without_a_list_of_what_is_built_in_nothing_is_missed(tmp_path: Path) -> None:
    assert make_tree(tmp_path, FILE_SYSTEM).resolve(["virtio_pci", "helper"]) == ["helper"]


def test_what_the_kernel_would_ask_modprobe_for_comes_too(tmp_path: Path) -> None:
    modules = {"vfat": make_module(depends="fat"), "fat": make_module(), "nls_cp437": make_module()}
    assert make_tree(tmp_path, modules).resolve(["vfat"]) == ["nls_cp437", "fat", "vfat"]


def test_soft_dependencies_in_a_circle_end(tmp_path: Path) -> None:
    modules = {"a": make_module("softdep=pre: b"), "b": make_module("softdep=pre: a", depends="a")}
    assert sorted(make_tree(tmp_path, modules).resolve(["a"])) == ["a", "b"]


DRIVERS = {
    "virtio_blk": make_module("alias=virtio:d00000002v*"),
    "nvme": make_module("alias=pci:v*d*sv*sd*bc01sc08i02*", "firmware=nvme/fw.bin", "firmware=nvme/fw-*.bin"),
    "odd": make_module("alias=pci:v00001AF4d0000100[0-8]sv*sd*bc*sc*i*", "alias=*:odd", "alias=crypto-odd-one"),
}
ALIASES = {
    "virtio:d00000002v00001AF4": ["virtio_blk"],
    "virtio:d00000001v00001AF4": [],
    "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02": ["nvme"],
    "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc08i02": ["nvme", "odd"],
    "any:odd": ["odd"],
    "crypto-odd-one": ["odd"],
    "crypto_odd_one": ["odd"],
    "": [],
}


@pytest.mark.parametrize("indexed", [False, True])
def test_devices_find_their_drivers(tmp_path: Path, indexed: bool) -> None:
    lines = {
        "virtio_blk": "virtio:d00000002v*",
        "nvme": "pci:v*d*sv*sd*bc01sc08i02*",
        "odd": "pci:v00001AF4d0000100[0-8]sv*sd*bc*sc*i*",
    }
    index = "".join(f"alias {pattern} {name}\n" for name, pattern in lines.items())
    files = {"modules_alias": f"# of depmod\n{index}alias *:odd odd\nalias crypto-odd-one odd\nalias x none\n"}
    tree = make_tree(tmp_path, DRIVERS, **(files if indexed else {}))
    assert {alias: tree.find_by_modalias(alias) for alias in ALIASES} == ALIASES
    assert tree.find_by_modalias("x") == []


def test_module_says_which_kernel_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(make_module("vermagic=6.12.7-board+ SMP preempt mod_unload aarch64"))
    (tmp_path / "b.ko").write_bytes(make_module("vermagic="))
    tree = ModuleTree(tmp_path)
    assert tree.names == ("a", "b")
    assert [tree.read_info(name).release for name in tree.names] == ["6.12.7-board+", ""]


def test_only_the_section_speaks_for_a_module(tmp_path: Path) -> None:
    content = make_module("firmware=true.bin", depends="a,b", rodata=["depends=false", "firmware=false.bin"])
    info = make_tree(tmp_path, {"m": content}).read_info("m")
    assert (info.depends, info.firmware) == (("a", "b"), ("true.bin",))


@pytest.mark.parametrize("length", [5, 63, 64, 100, 150, 300])
def test_cut_module_says_what_it_can(tmp_path: Path, length: int) -> None:
    tree = make_tree(tmp_path, {"m": make_module(depends="a")[:length]})
    assert tree.resolve(["m"]) == ["m"]
