"""
Decompress a dump by whatever the kernel had compressed it with.

No storage says which algorithm it was (``pstore.compress=`` chose among six
from 4.17 to 6.5), so each is tried; the first whose text begins as a dump
begins is right. What was damaged still gives the text up to the damage.

Sources: the kernel's ``fs/pstore/platform.c`` (raw deflate since 6.6, commit
438b8050; zlib's format with a window of 4 KiB before 4.17; the crypto
interface in between: ``crypto/deflate.c`` raw with a window of 2 KiB,
``crypto/lzo.c``, ``crypto/lz4.c`` and ``crypto/842.c`` bare, ``crypto/zstd.c`` frames).
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

from postpanic.evidence.pstore.eight42 import decode_842
from postpanic.evidence.pstore.lz4_block import decode_lz4_block

__all__ = ["MOST_TEXT_BYTES", "Decompressed", "decompress_dump"]

MOST_TEXT_BYTES = 8 << 20
"""No dump is longer: kmsg_bytes is 10 KiB unless set, and the log itself a few MiB at most."""
_MOST_STORED_BYTES = 4 << 20
_MOST_LZO_BYTES = 256 << 10
_MOST_SLOW_BYTES = 1 << 20
_STEP_BYTES = 64

_Decoder = Callable[[bytes], "tuple[bytes, bool] | None"]


class Decompressed(NamedTuple):
    """The text, how it was compressed, and whether it ended as it should."""

    data: bytes
    algorithm: str
    is_whole: bool


def decompress_dump(stored: bytes, begins: re.Pattern[bytes]) -> Decompressed | None:
    """
    Find out how a dump was compressed, and decompress it.

    Parameters
    ----------
    begins : Pattern
        What the text must begin with; nothing else proves the algorithm.
    """
    stored = stored[:_MOST_STORED_BYTES]
    best: Decompressed | None = None
    for algorithm, data, is_whole in _attempts(stored):
        if begins.match(data) is None:
            continue
        if is_whole:
            return Decompressed(data, algorithm, is_whole=True)
        if best is None or len(data) > len(best.data):
            best = Decompressed(data, algorithm, is_whole=False)
    return best


def _attempts(stored: bytes) -> Iterator[tuple[str, bytes, bool]]:
    for algorithm, decode in _DECODERS:
        found = decode(stored)
        if found is not None and found[0]:
            yield algorithm, *found


def _inflate(stored: bytes, window_bits: int) -> tuple[bytes, bool] | None:
    decoder = zlib.decompressobj(window_bits)
    output = bytearray()
    # In small steps: what came out before the damage is kept.
    for place in range(0, len(stored), _STEP_BYTES):
        try:
            output += decoder.decompress(stored[place : place + _STEP_BYTES], MOST_TEXT_BYTES - len(output) + 1)
        except zlib.error:
            return bytes(output), False
        if decoder.eof:
            return bytes(output), True
        if len(output) > MOST_TEXT_BYTES:
            break
    return bytes(output), False


def _decode_deflate(stored: bytes) -> tuple[bytes, bool] | None:
    return _inflate(stored, -zlib.MAX_WBITS)


def _decode_zlib(stored: bytes) -> tuple[bytes, bool] | None:
    return _inflate(stored, zlib.MAX_WBITS)


def _load(module: str) -> ModuleType | None:
    """Import a compiled codec, which comes without types of its own; None when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _decode_lzo(stored: bytes) -> tuple[bytes, bool] | None:
    module = _load("lzallright")
    if module is None:
        return None
    try:
        # A byte of LZO makes 255 of text at most: this bounds what a hostile record can ask for.
        stored = stored[:_MOST_LZO_BYTES]
        return bytes(module.LZOCompressor().decompress(stored, min(MOST_TEXT_BYTES, 64 * len(stored)))), True
    except module.InputNotConsumed as exc:
        # Something lies behind it: the zone of a ring buffer is longer than what was written last.
        output = exc.args[1] if len(exc.args) > 1 and isinstance(exc.args[1], bytes) else b""
        return output, True
    except Exception as exc:  # noqa: BLE001 - a compiled module's own errors
        output = exc.args[1] if len(exc.args) > 1 and isinstance(exc.args[1], bytes) else b""
        return output, False


def _decode_lz4(stored: bytes) -> tuple[bytes, bool] | None:
    return decode_lz4_block(stored[:_MOST_SLOW_BYTES], MOST_TEXT_BYTES)


def _decode_842(stored: bytes) -> tuple[bytes, bool] | None:
    return decode_842(stored[:_MOST_SLOW_BYTES], _MOST_SLOW_BYTES)


def _decode_zstd(stored: bytes) -> tuple[bytes, bool] | None:
    if not stored.startswith(b"\x28\xb5\x2f\xfd"):
        return None
    module = _load("zstandard")
    if module is None:
        return None
    decoder = module.ZstdDecompressor(max_window_size=MOST_TEXT_BYTES).decompressobj()
    output = bytearray()
    for place in range(0, len(stored), _STEP_BYTES):
        try:
            output += decoder.decompress(stored[place : place + _STEP_BYTES])
        except module.ZstdError:
            break
        if decoder.eof:
            return bytes(output), True
        if len(output) > MOST_TEXT_BYTES:
            break
    return bytes(output), False


_DECODERS: tuple[tuple[str, _Decoder], ...] = (
    ("deflate", _decode_deflate),
    ("zlib", _decode_zlib),
    ("zstd", _decode_zstd),
    ("lzo", _decode_lzo),
    ("842", _decode_842),
    ("lz4", _decode_lz4),
)
