"""
Compress pages, a batch at a time, with whichever codec is asked for.

An encoder belongs to one thread: it keeps work memory and an output buffer of
its own, so what it returns is valid until it is called again. A page that does
not get smaller is stored as it is. Codecs are imported when they are asked
for; one that is missing is an error, never a reason to store pages raw.

References: makedumpfile's ``diskdump_mod.h`` (``DUMP_DH_COMPRESSED_*``).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.deflating import open_fast_deflate, open_zlib
from postpanic.dumps.writing import EncodedBatch, Encoder, PageBatch
from postpanic.errors import UnsupportedError, UsageError

__all__ = ["open_encoder"]

_Pack = Callable[[PageBatch, NDArray[np.int64]], "tuple[NDArray[np.uint32], list[memoryview]]"]
"""Stores the pages of some rows: the size of each, the page size meaning raw, and the bytes of all."""

_LZO_WORK_BYTES = 16384 * 8
"""``LZO1X_1_MEM_COMPRESS`` of lzo1x.h, with pointers of 8 bytes."""


def open_encoder(compression: Compression | None, level: int | None, page_size_bytes: int) -> Encoder:
    """
    Make an encoder for one thread.

    Parameters
    ----------
    compression : Compression or None
        None stores pages as they are.
    level : int or None
        Of zlib (1 to 9) or zstd (-7 to 22) as those libraries count; None
        takes what is fastest at a size below that of lzo.

    Raises
    ------
    UnsupportedError
        If no installed package can do it; the hint names the package.
    UsageError
        If there is no such level.
    """
    opener = _open_raw if compression is None else _OPENERS[compression]
    pack = opener(level, page_size_bytes)
    flag = np.uint32(compression or 0)

    def encode(batch: PageBatch) -> EncodedBatch:
        rows = np.flatnonzero(~(batch.is_zero | batch.is_lost))
        sizes = np.zeros(len(batch.pfns), dtype=np.uint32)
        flags = np.zeros(len(batch.pfns), dtype=np.uint32)
        data: list[memoryview] = []
        if len(rows):
            stored, data = pack(batch, rows)
            sizes[rows] = stored
            flags[rows[stored < page_size_bytes]] = flag
        return EncodedBatch(batch.pfns, batch.is_zero, batch.is_lost, sizes, flags, data)

    return encode


def _open_raw(level: int | None, page_size_bytes: int) -> _Pack:  # noqa: ARG001 - as the other openers
    if level is not None:
        raise UsageError("pages that are not compressed have no level")
    return _pack_raw


def _pack_raw(batch: PageBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint32], list[memoryview]]:
    """Refer to the pages where they are, neighbours together."""
    page_size = batch.pages.shape[1]
    flat = batch.pages.reshape(-1).data
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    firsts = (rows[np.concatenate([[0], breaks])] * page_size).tolist()
    lasts = ((rows[np.concatenate([breaks - 1, [len(rows) - 1]])] + 1) * page_size).tolist()
    parts = [flat[first:last] for first, last in zip(firsts, lasts, strict=True)]
    return np.full(len(rows), page_size, dtype=np.uint32), parts


def _open_zstd(level: int | None, page_size_bytes: int) -> _Pack:
    """
    Compress a whole batch in one call, which holds no lock meanwhile.

    Without a level: no entropy coding of what repeats nowhere (``target_length``),
    which takes most of the time, matches of at least 6 bytes, and a table no
    larger than a page needs, as it is cleared for each. On the memory of kernels
    that is as fast as lzo, and 5 % smaller; level 1 is 23 % smaller, and half as fast.
    """
    zstandard = _require("zstandard", "zstd")
    compressor = zstandard.ZstdCompressor(compression_params=_zstd_parameters(zstandard, level, page_size_bytes))
    if not hasattr(compressor, "multi_compress_to_buffer"):
        # As distributions build it, against their own libzstd.
        return _pack_copies(compressor.compress, page_size_bytes)
    compress, batch_of = compressor.multi_compress_to_buffer, zstandard.BufferWithSegments

    def pack(batch: PageBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint32], list[memoryview]]:
        places = np.full((len(rows), 2), page_size_bytes, dtype=np.uint64)
        places[:, 0] *= rows.astype(np.uint64)
        flat = batch.pages.reshape(-1).data
        frames = list(compress(batch_of(flat, places.tobytes()), threads=1))
        sizes = np.fromiter(map(len, frames), dtype=np.uint32, count=len(frames))
        for number in np.flatnonzero(sizes >= page_size_bytes).tolist():
            start = int(places[number, 0])
            frames[number] = flat[start : start + page_size_bytes]
        return np.minimum(sizes, np.uint32(page_size_bytes)), [memoryview(b"".join(frames))]

    return pack


def _pack_copies(compress: Callable[[memoryview], bytes], page_size_bytes: int) -> _Pack:
    """Compress page after page by what returns each as an object of its own."""

    def compress_into(page: memoryview, room: memoryview) -> int:
        packed = compress(page)
        if len(packed) < page_size_bytes:
            room[: len(packed)] = packed
        return len(packed)

    return _pack_one_by_one(compress_into, page_size_bytes, page_size_bytes)


def _zstd_parameters(zstandard: ModuleType, level: int | None, page_size_bytes: int) -> Any:  # noqa: ANN401 - untyped
    common = {"write_content_size": 1, "write_checksum": 0, "write_dict_id": 0}
    if level is None:
        window_log = max(page_size_bytes.bit_length() - 1, 10)
        return zstandard.ZstdCompressionParameters(
            window_log=window_log,
            chain_log=10,
            hash_log=min(window_log - 1, 13),
            search_log=1,
            min_match=6,
            target_length=2,
            strategy=zstandard.STRATEGY_FAST,
            **common,
        )
    if not -7 <= level <= zstandard.MAX_COMPRESSION_LEVEL or level == 0:
        raise UsageError(f"zstd has no level {level}, only -7 to -1 and 1 to {zstandard.MAX_COMPRESSION_LEVEL}")
    return zstandard.ZstdCompressionParameters.from_level(level, source_size=page_size_bytes, **common)


def _open_zlib(level: int | None, page_size_bytes: int) -> _Pack:
    """With a level, or without ISA-L, zlib itself does it."""
    if level is not None and not 1 <= level <= 9:
        raise UsageError(f"zlib has no level {level}, only 1 to 9")
    fast = _load("isal.isal_zlib")
    if level is None and fast is not None:
        deflate = open_fast_deflate(fast, _open_probe(page_size_bytes), page_size_bytes)
    else:
        deflate = open_zlib(page_size_bytes, level or 1)

    def pack(batch: PageBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint32], list[memoryview]]:
        parts = deflate(batch.pages, rows)
        sizes = np.fromiter(map(len, parts), dtype=np.uint32, count=len(parts))
        return sizes, [memoryview(b"".join(parts))]

    return pack


def _open_probe(page_size_bytes: int) -> Callable[[memoryview], int] | None:
    """Make what measures a page by its matches alone, which snappy does in no time; None without it."""
    module = _load("cramjam")
    if module is None:
        return None
    compress_into = module.snappy.compress_raw_into
    room = bytearray(int(module.snappy.compress_raw_max_len(bytes(page_size_bytes))))
    return lambda page: int(compress_into(page, room))


def _open_snappy(level: int | None, page_size_bytes: int) -> _Pack:
    _refuse_level("snappy", level)
    snappy = _require("cramjam", "snappy").snappy
    compress_into = snappy.compress_raw_into
    slack = int(snappy.compress_raw_max_len(bytes(page_size_bytes)))

    def compress(page: memoryview, room: memoryview) -> int:
        return int(compress_into(page, room))

    return _pack_one_by_one(compress, page_size_bytes, slack)


def _pack_one_by_one(
    compress: Callable[[memoryview, memoryview], int], page_size_bytes: int, slack_bytes: int
) -> _Pack:
    """Compress page after page into one buffer; *compress* may use *slack_bytes* of room for a page."""
    output = memoryview(bytearray())

    def pack(batch: PageBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint32], list[memoryview]]:
        nonlocal output
        if len(output) < len(rows) * page_size_bytes + slack_bytes:
            output = memoryview(bytearray(len(rows) * page_size_bytes + slack_bytes))
        room = output
        flat = batch.pages.reshape(-1).data
        sizes: list[int] = []
        append = sizes.append
        at = 0
        for start in (rows * page_size_bytes).tolist():
            page = flat[start : start + page_size_bytes]
            size = compress(page, room[at : at + slack_bytes])
            if size >= page_size_bytes:
                size = page_size_bytes
                room[at : at + size] = page
            append(size)
            at += size
        return np.array(sizes, dtype=np.uint32), [room[:at]]

    return pack


def _open_lzo(level: int | None, page_size_bytes: int) -> _Pack:
    _refuse_level("lzo", level)
    library = ctypes.util.find_library("lzo2")
    if library is not None:
        try:
            return _open_liblzo2(ctypes.PyDLL(library), page_size_bytes)
        except (OSError, AttributeError):
            pass
    module = _load("lzallright")
    if module is None:
        raise _missing("lzo", "liblzo2 or the Python package lzallright")
    return _pack_copies(module.LZOCompressor().compress, page_size_bytes)


def _open_liblzo2(library: ctypes.CDLL, page_size_bytes: int) -> _Pack:
    """
    Wrap ``lzo1x_1_compress(src, src_len, dst, *dst_len, wrkmem)``, which needs ``len + len/16 + 67`` of room.

    The calls keep the interpreter's lock: they take 4 microseconds, and passing
    the lock between two threads after each takes longer than it gains.
    """
    function = library.lzo1x_1_compress
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, ctypes.c_size_t, pointer, pointer, pointer]
    function.restype = ctypes.c_int
    slack = page_size_bytes + page_size_bytes // 16 + 67
    work = ctypes.create_string_buffer(_LZO_WORK_BYTES)
    size = ctypes.c_size_t()
    size_at = ctypes.addressof(size)
    output = np.empty(0, dtype=np.uint8)

    def pack(batch: PageBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint32], list[memoryview]]:
        nonlocal output
        if len(output) < len(rows) * page_size_bytes + slack:
            output = np.empty(len(rows) * page_size_bytes + slack, dtype=np.uint8)
        source, target = batch.pages.ctypes.data, output.ctypes.data
        sizes: list[int] = []
        append = sizes.append
        at = target
        for start in (rows * page_size_bytes + source).tolist():
            function(start, page_size_bytes, at, size_at, work)
            stored = size.value
            if stored >= page_size_bytes:
                stored = page_size_bytes
                ctypes.memmove(at, start, stored)
            append(stored)
            at += stored
        return np.array(sizes, dtype=np.uint32), [output[: at - target].data]

    return pack


_OPENERS: dict[Compression, Callable[[int | None, int], _Pack]] = {
    Compression.ZLIB: _open_zlib,
    Compression.LZO: _open_lzo,
    Compression.SNAPPY: _open_snappy,
    Compression.ZSTD: _open_zstd,
}


def _refuse_level(what: str, level: int | None) -> None:
    if level is not None:
        raise UsageError(f"{what} has no levels")


def _missing(name: str, package: str) -> UnsupportedError:
    return UnsupportedError(f"pages cannot be compressed with {name} here", hint=f"install {package}")


def _load(module: str) -> ModuleType | None:
    """Import a compiled codec, which comes without types of its own; None when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _require(module: str, name: str) -> ModuleType:
    loaded = _load(module)
    if loaded is None:
        raise _missing(name, f"the Python package {module}")
    return loaded
