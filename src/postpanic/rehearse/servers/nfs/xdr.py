"""
External data representation: numbers and byte strings, in words of four bytes.

Sources: RFC 4506 (§4.1 integer, §4.4 boolean, §4.5 hyper, §4.9 fixed-length and §4.10 variable-length opaque data).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

__all__ = [
    "NO",
    "YES",
    "Fields",
    "XdrError",
    "encode_bitmap",
    "encode_bool",
    "encode_opaque",
    "encode_u32",
    "encode_u64",
]

_WORD_BYTES = 4
_MOST_BITMAP_WORDS = 8
"""Attributes have three words as yet (RFC 8881 §3.3.7 sets no bound)."""


class XdrError(Exception):
    """What was sent cannot be decoded."""


class Fields:
    """
    The fields of a message, taken one after the other.

    Examples
    --------
    >>> fields = Fields(bytes.fromhex("00000007" "00000003" "61626300"))
    >>> fields.take_u32(), fields.take_opaque(8), fields.left_bytes
    (7, b'abc', 0)
    """

    def __init__(self, body: bytes, at: int = 0) -> None:
        self._body = body
        self._at = at

    @property
    def left_bytes(self) -> int:
        """How much was not taken yet."""
        return len(self._body) - self._at

    def take_u32(self) -> int:
        """Take an unsigned integer."""
        return int.from_bytes(self._take(4), "big")

    def take_u64(self) -> int:
        """Take an unsigned hyper."""
        return int.from_bytes(self._take(8), "big")

    def take_bool(self) -> bool:
        """
        Take a boolean.

        Raises
        ------
        XdrError
            If it is neither 0 nor 1, or there is none.
        """
        value = self.take_u32()
        if value > 1:
            raise XdrError(f"no boolean: {value}")
        return value == 1

    def take_fixed(self, size_bytes: int) -> bytes:
        """Take bytes of a length that both sides know."""
        found = self._take(size_bytes)
        self._take(-size_bytes % _WORD_BYTES)
        return found

    def take_opaque(self, most_bytes: int) -> bytes:
        """
        Take bytes that are led by their length.

        Raises
        ------
        XdrError
            If there are more than that, or fewer than they should be.
        """
        size = self.take_u32()
        if size > most_bytes:
            raise XdrError(f"{size} bytes, at the most {most_bytes} are allowed")
        return self.take_fixed(size)

    def take_bitmap(self) -> frozenset[int]:
        """Take ``bitmap4``: the numbers of the bits that are set (RFC 8881 §3.3.7)."""
        count = self.take_u32()
        if count > _MOST_BITMAP_WORDS:
            raise XdrError(f"a bitmap of {count} words, at the most {_MOST_BITMAP_WORDS} are allowed")
        words = [self.take_u32() for _ in range(count)]
        return frozenset(32 * place + bit for place, word in enumerate(words) for bit in range(32) if word >> bit & 1)

    def _take(self, size_bytes: int) -> bytes:
        found = self._body[self._at : self._at + size_bytes]
        if len(found) < size_bytes:
            raise XdrError(f"{size_bytes} bytes are wanted, {len(found)} are left")
        self._at += size_bytes
        return found


def encode_u32(value: int) -> bytes:
    """Encode an unsigned integer."""
    return value.to_bytes(4, "big")


def encode_u64(value: int) -> bytes:
    """Encode an unsigned hyper."""
    return value.to_bytes(8, "big")


def encode_bool(value: bool) -> bytes:
    """Encode a boolean."""
    return encode_u32(int(value))


def encode_opaque(content: bytes) -> bytes:
    """
    Encode bytes, led by their length.

    >>> encode_opaque(b"abc").hex()
    '0000000361626300'
    """
    return struct.pack(">I", len(content)) + content + bytes(-len(content) % _WORD_BYTES)


YES, NO = encode_u32(1), encode_u32(0)
"""Of ``bool``, §4.4."""


def encode_bitmap(bits: Iterable[int]) -> bytes:
    """
    Encode ``bitmap4``.

    >>> encode_bitmap([1, 33]).hex()
    '000000020000000200000002'
    """
    words: list[int] = []
    for bit in bits:
        words += [0] * (bit // 32 + 1 - len(words))
        words[bit // 32] |= 1 << bit % 32
    return encode_u32(len(words)) + b"".join(map(encode_u32, words))
