"""Firmware: where the kernel looks, decompressed."""

from __future__ import annotations

import lzma
from pathlib import Path

import zstandard

from postpanic.capture.initramfs.firmware import find_firmware
from postpanic.capture.initramfs.root import RootTree


def add(root: Path, path: str, content: bytes) -> None:
    target = root / "lib/firmware" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def find(root: Path, name: str) -> dict[str, bytes]:
    return dict(find_firmware(RootTree(root), name, "6.1"))


def test_compressed_files_are_found_by_their_plain_name(tmp_path: Path) -> None:
    add(tmp_path, "plain.bin", b"1")
    add(tmp_path, "dir/packed.bin.xz", lzma.compress(b"2"))
    add(tmp_path, "dir/squeezed.bin.zst", zstandard.compress(b"3"))
    assert find(tmp_path, "plain.bin") == {"plain.bin": b"1"}
    assert find(tmp_path, "dir/packed.bin") == {"dir/packed.bin": b"2"}
    assert find(tmp_path, "dir/squeezed.bin") == {"dir/squeezed.bin": b"3"}


def test_updates_win_and_patterns_find_all(tmp_path: Path) -> None:
    add(tmp_path, "a-1.bin", b"old")
    add(tmp_path, "a-2.bin", b"2")
    add(tmp_path, "updates/6.1/a-1.bin", b"new")
    add(tmp_path, "b-1.bin", b"3")
    assert find(tmp_path, "a-*.bin") == {"a-1.bin": b"new", "a-2.bin": b"2"}


def test_what_is_not_there_or_outside_is_nothing(tmp_path: Path) -> None:
    add(tmp_path, "x.bin", b"1")
    (tmp_path / "secret").write_bytes(b"2")
    for name in ("none.bin", "../../secret", "/secret", "x.bin/y", ""):
        assert find(tmp_path, name) == {}
