"""Initramfs images: cpio unpacks them, equal ones are equal."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.libraries import find_libraries
from postpanic.errors import UsageError
from postpanic.process import find_program, run


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


def test_digest_tells_what_is_there_and_not_in_which_order() -> None:
    def make(*paths: str, mode: int = 0o644) -> str:
        image = ImageTree()
        for path in paths:
            image.add_bytes(path, path.encode(), mode)
        return image.digest()

    assert make("a/b", "c") == make("c", "a/b")
    assert len({make("a/b", "c"), make("a/b"), make("a/b", "c", mode=0o755), make("a", "b", "c")}) == 4


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
