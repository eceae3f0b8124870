"""
Compress pages with zlib's format as fast as can be, at zlib level 1's size.

ISA-L is two and a half times as fast as zlib, with two weaknesses that pages
of memory have. It takes its time over data that does not compress, which is
common (files that are compressed or encrypted, in the page cache and in
buffers): such pages are recognised by their bytes, and left alone. And it
finds no matches of three bytes, which tables of neighbouring 32-bit addresses
are full of (the kernel's unwind table has megabytes of them): zlib does those.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.bitmap import count_bits

__all__ = ["Deflate", "open_fast_deflate", "open_zlib"]

Deflate = Callable[[NDArray[np.uint8], NDArray[np.int64]], "list[bytes | memoryview]"]
"""Compresses rows of pages; those that do not get smaller come back as they are."""

_ISAL_LEVEL = 2
_ISAL_FASTEST = 0
_ZLIB_LEVEL = 1

_SAMPLED_BYTES = 512
_TOP_BITS = np.uint64(0x8080_8080_8080_8080)
_TOP_BITS_OF_NOISE = (196, 316)
"""Of the samples, those of 128 and more: half, and five standard deviations to either side."""
_MOST_PAIRS_OF_NOISE = 1700
"""Sum of the squares of a histogram of the samples: 1534 with a standard deviation of 45 for random bytes."""

_SUSPECT = (0.5, 0.8)
"""Sizes, relative to a page, among which three-byte matches make a difference."""
_HUFFMAN_GAIN = 1.35
"""Where level 0 (fixed codes) is larger than level 2 by this factor, all gain is in the codes: nothing was matched."""


class _Compress(Protocol):
    def __call__(self, data: memoryview, level: int, /) -> bytes: ...


def open_zlib(page_size_bytes: int, level: int) -> Deflate:
    """Compress with zlib itself."""
    compress = zlib.compress

    def deflate(pages: NDArray[np.uint8], rows: NDArray[np.int64]) -> list[bytes | memoryview]:
        flat = pages.reshape(-1).data
        found: list[bytes | memoryview] = []
        for start in (rows * page_size_bytes).tolist():
            page = flat[start : start + page_size_bytes]
            packed = compress(page, level)
            found.append(packed if len(packed) < page_size_bytes else page)
        return found

    return deflate


def open_fast_deflate(
    isal_zlib: ModuleType, probe: Callable[[memoryview], int] | None, page_size_bytes: int
) -> Deflate:
    """
    Compress with ISA-L.

    Parameters
    ----------
    isal_zlib : module
        Of the package ``isal``.
    probe : callable or None
        Tells quickly how small a page gets by matches alone; without it every page is compressed.
    """
    compress: _Compress = isal_zlib.compress
    low, high = (int(page_size_bytes * share) for share in _SUSPECT)

    def deflate(pages: NDArray[np.uint8], rows: NDArray[np.int64]) -> list[bytes | memoryview]:
        flat = pages.reshape(-1).data
        noisy = _find_noise(pages, rows) if probe is not None else np.zeros(len(rows), dtype=np.bool_)
        found: list[bytes | memoryview] = []
        append = found.append
        for start, is_noisy in zip((rows * page_size_bytes).tolist(), noisy.tolist(), strict=True):
            page = flat[start : start + page_size_bytes]
            if is_noisy and probe is not None and probe(page) >= page_size_bytes:
                append(page)
                continue
            packed = compress(page, _ISAL_LEVEL)
            size = len(packed)
            if low < size < high and len(compress(page, _ISAL_FASTEST)) > size * _HUFFMAN_GAIN:
                packed = min(packed, zlib.compress(page, _ZLIB_LEVEL), key=len)
            append(packed if size < page_size_bytes else page)
        return found

    return deflate


def _find_noise(pages: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find pages whose bytes all occur about equally often, as far as samples tell."""
    page_size = pages.shape[1]
    noisy = np.zeros(len(rows), dtype=np.bool_)
    words = pages.view(np.uint64)[:, :: page_size // _SAMPLED_BYTES][rows]
    set_bits = count_bits(words & _TOP_BITS).sum(axis=1, dtype=np.int64)
    likely = np.flatnonzero((set_bits > _TOP_BITS_OF_NOISE[0]) & (set_bits < _TOP_BITS_OF_NOISE[1]))
    if len(likely):
        # An odd step takes turns among the bytes of words.
        step = page_size // _SAMPLED_BYTES - 1 | 1
        samples = pages[:, ::step][rows[likely], :_SAMPLED_BYTES]
        keys = samples + np.arange(len(likely), dtype=np.int64)[:, None] * 256
        histograms = np.bincount(keys.reshape(-1), minlength=len(likely) * 256).reshape(-1, 256)
        noisy[likely] = np.einsum("ij,ij->i", histograms, histograms) < _MOST_PAIRS_OF_NOISE
    return noisy
