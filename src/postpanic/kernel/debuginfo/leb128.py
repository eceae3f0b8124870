"""Single numbers as LEB128 (DWARF 5, 7.6); columns of them are :mod:`~postpanic.kernel.debuginfo.dwarf`'s."""

from __future__ import annotations

__all__ = ["encode_sleb128", "encode_uleb128"]


def encode_uleb128(value: int) -> bytes:
    """
    Encode an unsigned number.

    >>> encode_uleb128(624485).hex()
    'e58e26'
    """
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_sleb128(value: int) -> bytes:
    """
    Encode a signed number.

    >>> encode_sleb128(-123456).hex()
    'c0bb78'
    """
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40):
            return bytes((*out, byte))
        out.append(byte | 0x80)
