"""The saver's archive goes behind a distribution's image, in a directory of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from postpanic.capture.hooks.borrowed_image import (
    append_archive,
    build_with_dracut,
    build_with_initramfs_tools,
    keep_boot_words,
    move_archive,
)
from postpanic.capture.initramfs.archive import ImageTree
from postpanic.errors import CorruptError, NotReadyError


def make_tree(directory: str = "") -> ImageTree:
    tree = ImageTree()
    tree.add_bytes(f"{directory}/init", b"#!/bin/sh\n", 0o755)
    tree.add_bytes(f"{directory}/etc/secret", b"12345", 0o600)
    tree.add_symlink(f"{directory}/lib", "usr/lib")
    tree.add_device(f"{directory}/dev/console", 5, 1)
    tree.add_directory(f"{directory}/mnt", 0o777)
    return tree


def test_every_entry_is_moved_as_it_is() -> None:
    moved = move_archive(make_tree().encode(), "postpanic")
    again = subprocess.run(["/bin/busybox", "cpio", "-t", "-v"], input=moved, capture_output=True, check=True)
    lines = [line.split() for line in again.stdout.decode().splitlines()]
    assert {line[-1]: line[0] for line in lines if "->" not in line} == {
        "postpanic": "drwxr-xr-x",
        "postpanic/init": "-rwxr-xr-x",
        "postpanic/etc": "drwxr-xr-x",
        "postpanic/etc/secret": "-rw-------",
        "postpanic/dev": "drwxr-xr-x",
        "postpanic/dev/console": "crw-------",
        "postpanic/mnt": "drwxrwxrwx",
    }
    assert any(line[-3:] == ["postpanic/lib", "->", "usr/lib"] for line in lines)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 109, 110, 200])
def test_a_cut_archive_is_refused(size: int) -> None:
    with pytest.raises(CorruptError):
        move_archive(make_tree().encode()[:size], "postpanic")


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(CorruptError, match="no header of a cpio archive at 0"):
        move_archive(b"\x28\xb5\x2f\xfd" * 100, "postpanic")
    with pytest.raises(CorruptError):
        move_archive(b"070701" + b"Z" * 200, "postpanic")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4])
def test_the_archive_begins_where_the_kernel_looks_for_it(size: int) -> None:
    combined = append_archive(b"x" * size, b"070701")
    assert combined.index(b"070701") % 4 == 0
    assert combined.startswith(b"x" * size)


def test_words_for_the_root_are_kept() -> None:
    line = "BOOT_IMAGE=/vmlinuz root=/dev/mapper/vg-root ro quiet rd.lvm.lv=vg/root rd.break cryptopts=a,b ip=dhcp"
    assert keep_boot_words(line) == ["root=/dev/mapper/vg-root", "rd.lvm.lv=vg/root", "cryptopts=a,b", "ip=dhcp"]


@pytest.mark.parametrize(
    ("build", "package"), [(build_with_dracut, "dracut"), (build_with_initramfs_tools, "initramfs-tools")]
)
def test_without_the_program_nothing_is_built(tmp_path: Path, build: object, package: str) -> None:
    (tmp_path / "var/tmp").mkdir(parents=True)
    with pytest.raises(NotReadyError, match="the distribution's image cannot be built") as caught:
        build("6.1.0", root=tmp_path)  # type: ignore[operator]
    assert caught.value.hint == f"install {package}"
    assert list((tmp_path / "var/tmp").iterdir()) == []
