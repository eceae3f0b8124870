"""
Veneers of arm64: what a call goes by whose function is too far away.

A direct branch reaches 128 MiB. Modules may lie further from the kernel: their calls go to an entry of the module's
own, which loads the address and jumps there (``arch/arm64/kernel/module-plts.c``, ``struct plt_entry``).
"""

from __future__ import annotations

import struct

from postpanic.errors import PostpanicError
from postpanic.kernel.memory import KernelMemory

__all__ = ["decode_veneer", "resolve_veneer"]

_WORD = (1 << 64) - 1
_BYTES = 16
_BTI = frozenset({0xD503245F, 0xD50324DF})
_BR_X16 = 0xD61F0200
_ADRP_MASK, _ADRP_X16 = 0x9F00001F, 0x90000010
_ADD_MASK, _ADD_X16 = 0xFFC003FF, 0x91000210
_MOV_MASK, _MOVN_X16, _MOVK_X16 = 0xFF80001F, 0x92800010, 0xF2800010


def decode_veneer(data: bytes, vaddr: int) -> int | None:
    """
    Give where a veneer leads to; None: it is none.

    Parameters
    ----------
    data : bytes
        Of at least 16 bytes of code.
    vaddr : int
        Where they lie.
    """
    words: list[int] = list(struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4]))
    if words and words[0] in _BTI:
        words, vaddr = words[1:], vaddr + 4
    if len(words) >= 3 and words[0] & _ADRP_MASK == _ADRP_X16:
        if words[1] & _ADD_MASK != _ADD_X16 or words[2] != _BR_X16:
            return None
        pages = (words[0] >> 29 & 3) | (words[0] >> 5 & 0x7FFFF) << 2
        pages -= (pages & 1 << 20) << 1
        return ((vaddr & ~0xFFF) + (pages << 12) + (words[1] >> 10 & 0xFFF)) & _WORD
    if len(words) >= 4 and words[0] & _MOV_MASK == _MOVN_X16 and words[3] == _BR_X16:
        value = ~_shifted(words[0]) & _WORD
        for word in words[1:3]:
            if word & _MOV_MASK != _MOVK_X16:
                return None
            value = value & ~(0xFFFF << _shift(word)) & _WORD | _shifted(word)
        return value
    return None


def _shift(word: int) -> int:
    return 16 * (word >> 21 & 3)


def _shifted(word: int) -> int:
    return (word >> 5 & 0xFFFF) << _shift(word)


def resolve_veneer(memory: KernelMemory, vaddr: int) -> int:
    """Give where a call to an address really goes to: behind a veneer, else there."""
    if memory.machine != "aarch64":
        return vaddr
    try:
        found = decode_veneer(memory.read(vaddr, _BYTES), vaddr)
    except PostpanicError:
        return vaddr
    return vaddr if found is None else found
