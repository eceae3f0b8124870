"""
Decompress pages, with whichever codec is installed.

Codecs are looked for when the first page needs one, so that opening a dump
and reading its description work without any. A decoder takes the compressed
bytes and the page size; that the result is a whole page is for the caller to
check. What a hostile page can make it allocate is bounded.

References: makedumpfile's ``diskdump_mod.h`` (``DUMP_DH_COMPRESSED_*``).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import enum
import importlib
import zlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import cast

from postpanic.errors import CorruptError, UnsupportedError

__all__ = ["COMPRESSION_MASK", "Compression", "Decoder", "find_decoder"]

Decoder = Callable[[bytes, int], bytes]
"""Takes compressed bytes and the page size; raises CorruptError."""


class Compression(enum.IntFlag):
    """How the pages of a dump, or one page, are compressed; 0 is raw."""

    ZLIB = 0x01
    LZO = 0x02
    SNAPPY = 0x04
    ZSTD = 0x20


COMPRESSION_MASK = int(Compression.ZLIB | Compression.LZO | Compression.SNAPPY | Compression.ZSTD)

_EXPANSION_LIMIT_BYTES = 64 << 10
"""Up to this page size zlib's greatest expansion (1032 times) is harmless."""


def find_decoder(compression: int) -> Decoder:
    """
    Get the decoder of one compression.

    Raises
    ------
    UnsupportedError
        If no installed package can do it; the hint names the package.
    CorruptError
        If it is none of :class:`Compression`.
    """
    try:
        kind = Compression(compression)
        opener = _OPENERS[kind]
    except (KeyError, ValueError):
        raise CorruptError(f"page compression {compression:#x}, must be 0x1, 0x2, 0x4 or 0x20") from None
    return opener()


def _missing(name: str, package: str) -> UnsupportedError:
    return UnsupportedError(f"pages are compressed with {name}, which cannot be read here", hint=f"install {package}")


def _load(module: str) -> ModuleType | None:
    """Import a compiled codec, which comes without types of its own; None when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@cache
def _open_zlib() -> Decoder:
    fast = _load("isal.isal_zlib")
    module = fast if fast is not None else zlib
    errors = (zlib.error, fast.error) if fast is not None else (zlib.error,)
    decompress, decompressobj = module.decompress, module.decompressobj

    def decode(data: bytes, page_size_bytes: int) -> bytes:
        try:
            if page_size_bytes > _EXPANSION_LIMIT_BYTES:
                return cast("bytes", decompressobj(15).decompress(data, page_size_bytes + 1))
            return cast("bytes", decompress(data, 15, page_size_bytes))
        except errors as exc:
            raise CorruptError(f"zlib: {exc}") from exc

    return decode


@cache
def _open_lzo() -> Decoder:
    library = ctypes.util.find_library("lzo2")
    if library is not None:
        try:
            return _open_liblzo2(ctypes.CDLL(library))
        except (OSError, AttributeError):
            pass
    module = _load("lzallright")
    if module is None:
        raise _missing("lzo", "liblzo2 or the Python package lzallright")
    decompress, error = module.LZOCompressor.decompress, module.LZOError

    def decode(data: bytes, page_size_bytes: int) -> bytes:
        try:
            page = bytes(decompress(data, page_size_bytes))
        except (error, ValueError, MemoryError, OverflowError) as exc:
            raise CorruptError(f"lzo: {exc}") from exc
        if len(page) > page_size_bytes:
            raise CorruptError(f"lzo: {len(page)} bytes, must be {page_size_bytes}")
        return page

    return decode


def _open_liblzo2(library: ctypes.CDLL) -> Decoder:
    """Wrap ``lzo1x_decompress_safe(src, src_len, dst, *dst_len, wrkmem)``, which never writes past ``dst_len``."""
    function = library.lzo1x_decompress_safe
    pointer = ctypes.c_void_p
    array_of = cache(ctypes.c_char.__mul__)
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, pointer, pointer, pointer]
    function.restype = ctypes.c_int

    def decode(data: bytes, page_size_bytes: int) -> bytes:
        # A buffer of its own for each call: ctypes lets other threads run meanwhile.
        page = array_of(page_size_bytes)()
        size = ctypes.c_size_t(page_size_bytes)
        status = function(data, len(data), page, ctypes.byref(size), None)
        if status != 0:
            raise CorruptError(f"lzo: error {status}")
        whole: bytes = page.raw
        return whole[: size.value]

    return decode


@cache
def _open_snappy() -> Decoder:
    module = _load("cramjam")
    if module is None:
        raise _missing("snappy", "the Python package cramjam")
    measure, decompress_into = module.snappy.decompress_raw_len, module.snappy.decompress_raw_into
    error = module.DecompressionError

    def decode(data: bytes, page_size_bytes: int) -> bytes:
        try:
            size = measure(data)
            if size != page_size_bytes:
                raise CorruptError(f"snappy: {size} bytes, must be {page_size_bytes}")
            page = bytearray(page_size_bytes)
            decompress_into(data, page)
        except (error, ValueError, OverflowError) as exc:
            raise CorruptError(f"snappy: {exc}") from exc
        return bytes(page)

    return decode


@cache
def _open_zstd() -> Decoder:
    module = _load("zstandard")
    if module is None:
        raise _missing("zstd", "the Python package zstandard")
    decompress, error = module.ZstdDecompressor().decompress, module.ZstdError
    measure = module.frame_content_size

    def decode(data: bytes, page_size_bytes: int) -> bytes:
        try:
            # The frame's own size is what the library allocates: it must be the page's.
            if measure(data) not in (page_size_bytes, -1):
                raise CorruptError(f"zstd: {measure(data)} bytes, must be {page_size_bytes}")
            return cast("bytes", decompress(data, max_output_size=page_size_bytes))
        except (error, ValueError, MemoryError) as exc:
            raise CorruptError(f"zstd: {exc}") from exc

    return decode


_OPENERS: dict[Compression, Callable[[], Decoder]] = {
    Compression.ZLIB: _open_zlib,
    Compression.LZO: _open_lzo,
    Compression.SNAPPY: _open_snappy,
    Compression.ZSTD: _open_zstd,
}
