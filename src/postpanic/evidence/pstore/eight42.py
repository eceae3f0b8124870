"""
Decode the 842 compression of IBM's processors, which the kernel also has in software.

No package has it. A stream of five-bit templates; each makes eight bytes out
of data that follows and of copies of what was written, by an index into a ring
of the last 512 bytes (pairs) or 2048 bytes (fours and eights).

Source: the kernel's ``lib/842/842.h`` (the description at its top), ``lib/842/842_decompress.c``.
"""

from __future__ import annotations

__all__ = ["decode_842"]

_OP_BITS = 5
_REPEAT, _ZEROS, _SHORT, _END = 0x1B, 0x1C, 0x1D, 0x1E
_REPEAT_BITS, _SHORT_BITS = 6, 3
_INDEX_BITS = {2: 8, 4: 9, 8: 8}

_TEMPLATES = (
    "D8", "D4D2I2", "D4I2D2", "D4I2I2", "D4I4", "D2I2D4", "D2I2D2I2", "D2I2I2D2", "D2I2I2I2", "D2I2I4",
    "I2D2D4", "I2D4I2", "I2D2I2D2", "I2D2I2I2", "I2D2I4", "I2I2D4", "I2I2D2I2", "I2I2I2D2", "I2I2I2I2", "I2I2I4",
    "I4D4", "I4D2I2", "I4I2D2", "I4I2I2", "I4I4", "I8",
)  # fmt: skip
"""By their code: data that follows (D) and copies (I) of so many bytes."""


class _Cut(Exception):  # noqa: N818 - the end of the data is no error here
    """The data ended, or cannot be true."""


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Take up to 64 bits, the highest first."""
        if count > self._left:
            raise _Cut
        first, skipped = divmod(self._place, 8)
        window = self._data[first : first + 9]
        self._place += count
        self._left -= count
        return (int.from_bytes(window, "big") >> (8 * len(window) - skipped - count)) & ((1 << count) - 1)


def decode_842(data: bytes, limit_bytes: int) -> tuple[bytes, bool]:
    """
    Decode as far as it goes.

    Returns
    -------
    tuple of bytes and bool
        The text, and whether the mark of the end was reached.
    """
    bits, output = _Bits(data), bytearray()
    try:
        while len(output) <= limit_bytes:
            template = bits.take(_OP_BITS)
            if template == _END:
                return bytes(output), True
            _apply(template, bits, output)
    except _Cut:
        pass
    return bytes(output[:limit_bytes]), False


def _apply(template: int, bits: _Bits, output: bytearray) -> None:
    if template == _REPEAT:
        count = bits.take(_REPEAT_BITS) + 1
        if len(output) < 8:
            raise _Cut
        output += output[-8:] * count
    elif template == _ZEROS:
        output += bytes(8)
    elif template == _SHORT:
        count = bits.take(_SHORT_BITS)
        if not count:
            raise _Cut
        for _ in range(count):
            output.append(bits.take(8))
    elif template < len(_TEMPLATES):
        actions = _TEMPLATES[template]
        for place in range(0, len(actions), 2):
            size = int(actions[place + 1])
            if actions[place] == "D":
                output += bits.take(8 * size).to_bytes(size, "big")
            else:
                output += _copied(output, size, bits.take(_INDEX_BITS[size]))
    else:
        raise _Cut


def _copied(output: bytearray, size: int, index: int) -> bytes:
    ring = size << _INDEX_BITS[size]
    total = len(output) & ~7
    offset = index * size
    if total > ring:
        start, place = total - total % ring, total % ring
        offset += start - ring if offset >= place else start
    if offset + size > total:
        raise _Cut
    return bytes(output[offset : offset + size])
