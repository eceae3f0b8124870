"""``.debug_frame`` for the functions that the kernel's own unwind tables leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.debuginfo.leb128 import encode_uleb128
from postpanic.kernel.orc import OrcTable, OrcType
from postpanic.kernel.prologue import FrameLayout

__all__ = ["encode_debug_frame", "functions_without_orc"]

_FUNCTION_LIMIT_BYTES = 16 * 1024
_COMMON = b"\xff\xff\xff\xff\x01\0\x01\x78\x10\x0c\x07\x08\x90\x01"
"""
A common information entry: version 1, no augmentation, factors 1 and -8, return
address in column 16; the frame at rsp + 8, the return address in its first word.
"""
_ADVANCE_4 = 0x04
_DEF_CFA_OFFSET = 0x0E
_OFFSET = 0x80
_RESTORE = 0xC0


def functions_without_orc(table: OrcTable, vaddrs: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """
    Find the functions that no unwind entry says anything about.

    Parameters
    ----------
    vaddrs, sizes : ndarray of uint64
        Of the functions, in the addresses of *table*.

    Returns
    -------
    ndarray of int64
        Their rows.
    """
    if not len(table) or not len(vaddrs):
        return np.zeros(0, dtype=np.int64)
    known = np.concatenate(([0], np.cumsum(table.type != OrcType.UNDEFINED)))
    first = np.maximum(np.searchsorted(table.vaddrs, vaddrs, side="right") - 1, 0)
    last = np.searchsorted(table.vaddrs, vaddrs + sizes, side="left")
    without = (known[last] == known[first]) & (last > first) & (sizes <= _FUNCTION_LIMIT_BYTES)
    return np.flatnonzero(without)


def encode_debug_frame(functions: Sequence[tuple[int, int]], decode: Callable[[int, int], FrameLayout | None]) -> bytes:
    """
    Encode the frames of functions, those that *decode* can tell.

    Parameters
    ----------
    functions : sequence of (address, size)
    decode : callable
        Gives the frame layout of the function at an address, or None.

    Returns
    -------
    bytes
        The section; empty when no function's frame is known.
    """
    entries: list[bytes] = []
    for vaddr, size in functions:
        layout = decode(vaddr, size)
        if layout is not None:
            entries.append(
                _entry(bytes(4) + vaddr.to_bytes(8, "little") + size.to_bytes(8, "little") + _program(layout))
            )
    return b"".join([_entry(_COMMON), *entries]) if entries else b""


def _entry(body: bytes) -> bytes:
    """Put the length before an entry and pad it with no-operations."""
    padded = body + bytes(-(len(body) + 4) % 8)
    return len(padded).to_bytes(4, "little") + padded


def _program(layout: FrameLayout) -> bytes:
    out = bytearray()
    at = 0
    saved: dict[int, int] = {}
    for row in layout.rows:
        if row.offset != at:
            out += bytes((_ADVANCE_4,)) + (row.offset - at).to_bytes(4, "little")
            at = row.offset
        out += bytes((_DEF_CFA_OFFSET,)) + encode_uleb128(row.cfa_offset)
        now = dict(row.saved)
        for register, below in now.items():
            if saved.get(register) != below:
                out += bytes((_OFFSET | register,)) + encode_uleb128(below // 8)
        out += bytes(_RESTORE | register for register in saved if register not in now)
        saved = now
    return bytes(out)
