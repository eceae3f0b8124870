"""Compress an image, as the kernel that will read it can."""

from __future__ import annotations

import gzip
import lzma
import re
from pathlib import Path
from typing import Literal

import zstandard

from postpanic.errors import UnsupportedError

__all__ = ["Compression", "choose_compression", "compress"]

Compression = Literal["zstd", "xz", "gzip", "none"]

# Best first: ratio and speed of decompression, on one slow processor.
_OPTIONS: tuple[tuple[Compression, str], ...] = (
    ("zstd", "CONFIG_RD_ZSTD"),
    ("gzip", "CONFIG_RD_GZIP"),
    ("xz", "CONFIG_RD_XZ"),
)
_CONFIG_LIMIT_BYTES = 4 << 20
_ZSTD_LEVEL = 9
# The kernel keeps a window of this size while it unpacks (lib/decompress_unzstd.c), in little memory.
_ZSTD_WINDOW_LOG = 21
_ZSTD_THREADS = 2
"""Of one or more threads the output is the same."""
_XZ_DICTIONARY_BYTES = 1 << 20


def choose_compression(modules_dir: Path, boot_dir: Path) -> Compression:
    """
    Return the best compression that a kernel's configuration names (``usr/Kconfig``).

    Where no configuration is found it is gzip, which nearly every kernel can read.

    Parameters
    ----------
    modules_dir : Path
        ``lib/modules/RELEASE``; some distributions have the configuration in it.
    boot_dir : Path
        Where ``config-RELEASE`` is.
    """
    for path in (modules_dir / "config", boot_dir / f"config-{modules_dir.name}"):
        try:
            with path.open("rb") as stream:
                text = stream.read(_CONFIG_LIMIT_BYTES).decode(errors="replace")
        except OSError:
            continue
        for name, option in _OPTIONS:
            if re.search(rf"^{option}=y$", text, re.MULTILINE):
                return name
        return "none"
    return "gzip"


def compress(archive: bytes, compression: Compression) -> bytes:
    """
    Compress an archive; equal archives give equal bytes.

    Raises
    ------
    UnsupportedError
        If the compression is unknown.
    """
    if compression == "zstd":
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _ZSTD_LEVEL, window_log=_ZSTD_WINDOW_LOG, threads=_ZSTD_THREADS, write_checksum=True
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compress(archive)
    if compression == "xz":
        # The kernel knows CRC-32 and none (Documentation/staging/xz.rst).
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _XZ_DICTIONARY_BYTES}]
        return lzma.compress(archive, check=lzma.CHECK_CRC32, filters=filters)
    if compression == "gzip":
        return gzip.compress(archive, 9, mtime=0)
    if compression == "none":
        return archive
    raise UnsupportedError(f"no compression of this name: {compression}; there are zstd, xz, gzip and none")
