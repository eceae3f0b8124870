"""Initramfs images: cpio unpacks them, modules come after what they need."""

from __future__ import annotations

import lzma
import shutil
import stat
from pathlib import Path

import pytest
import zstandard

from postpanic.errors import CorruptError, FactAbsentError, UsageError
from postpanic.process import find_program, run
from postpanic.rehearse.initramfs import ImageTree, ModuleTree, find_libraries, read_module


def write_module(directory: Path, name: str, depends: str, ending: str = ".ko") -> None:
    content = b"\x7fELF junk \0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    if ending.endswith(".xz"):
        content = lzma.compress(content)
    if ending.endswith(".zst"):
        content = zstandard.compress(content)
    path = directory / "kernel" / "drivers" / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_archive_of_one_file_is_as_the_specification_says() -> None:
    image = ImageTree()
    image.add_bytes("init", b"#!x\n", 0o755)
    archive = image.encode()
    header = archive[:110]
    assert header[:6] == b"070701"
    fields = [int(header[place : place + 8], 16) for place in range(6, 110, 8)]
    assert fields == [1, stat.S_IFREG | 0o755, 0, 0, 1, 0, 4, 0, 0, 0, 0, 5, 0]
    # 110 + 5 bytes of name are padded to 116, four of content need no padding.
    assert archive[110:115] == b"init\0"
    assert archive[116:120] == b"#!x\n"
    assert archive[120:126] == b"070701"
    assert b"TRAILER!!!\0" in archive[120:]
    assert len(archive) % 512 == 0


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_cpio_unpacks_what_was_added(tmp_path: Path) -> None:
    image = ImageTree()
    image.add_bytes("etc/deep/er/file", b"content", 0o640)
    image.add_directory("empty", 0o700)
    image.add_symlink("bin/sh", "busybox")
    for length in range(5):
        image.add_bytes(f"padding/{'n' * (length + 1)}", b"x" * length)
    run([find_program("busybox"), "cpio", "-i"], stdin=image.encode(), cwd=tmp_path)
    assert (tmp_path / "etc/deep/er/file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "etc/deep/er/file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")
    assert [(tmp_path / "padding" / ("n" * (length + 1))).read_bytes() for length in range(5)] == [
        b"x" * length for length in range(5)
    ]


def test_device_keeps_its_numbers() -> None:
    image = ImageTree()
    image.add_device("console", 5, 1)
    header = image.encode()[:110]
    assert header[6 + 8 * 9 : 6 + 8 * 11] == b"0000000500000001"
    assert header[6 + 8 * 6 : 6 + 8 * 7] == b"00000000"


def test_equal_trees_make_equal_archives() -> None:
    def make() -> bytes:
        image = ImageTree()
        image.add_bytes("a/b", b"1")
        image.add_bytes("a/c", b"2")
        return image.encode()

    assert make() == make()


@pytest.mark.parametrize("path", ["", "/", "../etc/passwd", "a/../../b"])
def test_path_that_leaves_the_image_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="not a path inside an image"):
        ImageTree().add_bytes(path, b"")


def test_libraries_of_a_shared_program_include_the_loader(tmp_path: Path) -> None:
    names = [path.name for path in find_libraries(Path("/bin/sh").resolve())]
    assert any(name.startswith("libc.") for name in names)
    assert any(name.startswith("ld-linux") for name in names)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert find_libraries(script) == []


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
    monkeypatch.setattr("postpanic.rehearse.initramfs.MODULE_SIZE_LIMIT_BYTES", 1 << 16)
    path = tmp_path / f"bomb{ending}"
    zeros = bytes(1 << 22)
    path.write_bytes(lzma.compress(zeros) if ending.endswith("xz") else zstandard.compress(zeros))
    with pytest.raises(CorruptError, match="more than 65536 bytes"):
        read_module(path)
