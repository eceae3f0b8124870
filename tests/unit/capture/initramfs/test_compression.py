"""Compression: chosen by the kernel's configuration, the same bytes each time."""

from __future__ import annotations

import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from postpanic.capture.initramfs.compression import Compression, choose_compression, compress
from postpanic.errors import UnsupportedError

ARCHIVE = random.Random(1).randbytes(100000) + bytes(3 << 20) + b"text " * 10000


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("CONFIG_RD_GZIP=y\nCONFIG_RD_XZ=y\nCONFIG_RD_ZSTD=y\n", "zstd"),
        ("CONFIG_RD_GZIP=y\nCONFIG_RD_XZ=y\n# CONFIG_RD_ZSTD is not set\n", "gzip"),
        ("# CONFIG_RD_GZIP is not set\nCONFIG_RD_XZ=y\n", "xz"),
        ("CONFIG_RD_BZIP2=y\n", "none"),
    ],
)
def test_kernels_configuration_decides(tmp_path: Path, lines: str, expected: str) -> None:
    modules = tmp_path / "lib/modules/6.1.0-test"
    modules.mkdir(parents=True)
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "config-6.1.0-test").write_text(lines)
    assert choose_compression(modules, boot) == expected
    (boot / "config-6.1.0-test").rename(modules / "config")
    assert choose_compression(modules, boot) == expected


def test_without_a_configuration_it_is_what_nearly_all_can_read(tmp_path: Path) -> None:
    assert choose_compression(tmp_path / "6.1", tmp_path) == "gzip"


def test_every_compression_is_undone_and_reproducible() -> None:
    undo: dict[str, Callable[[bytes], bytes]] = {
        "zstd": zstandard.decompress,
        "xz": lzma.decompress,
        "gzip": gzip.decompress,
        "none": bytes,
    }
    names: tuple[Compression, ...] = ("zstd", "xz", "gzip", "none")
    for name in names:
        data = compress(ARCHIVE, name)
        assert undo[name](data) == ARCHIVE
        assert compress(ARCHIVE, name) == data
    with pytest.raises(UnsupportedError, match="lzo"):
        compress(ARCHIVE, "lzo")  # type: ignore[arg-type]


def test_kernel_can_read_the_parameters() -> None:
    parameters = zstandard.get_frame_parameters(compress(ARCHIVE, "zstd"))
    assert parameters.window_size <= 2 << 20
    # xz: the first block's check is CRC-32 (file format 1.2, section 2.1.1.2).
    assert compress(ARCHIVE, "xz")[7] & 0xF == 1
