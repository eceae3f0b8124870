"""
Decode an LZ4 block: the bare one, without a frame, that the kernel's ``lz4`` and ``lz4hc`` make.

Own code because the length of the text is not stored, and because a block that
was cut short must still give what it has; the compiled decoders want the one
and refuse the other.

Source: the LZ4 block format description (lz4_Block_format.md).
"""

from __future__ import annotations

__all__ = ["decode_lz4_block"]

_MATCH_BYTES = 4


def decode_lz4_block(data: bytes, limit_bytes: int) -> tuple[bytes, bool]:
    r"""
    Decode as far as it goes.

    Returns
    -------
    tuple of bytes and bool
        The text, and whether the block ended as a block ends.

    >>> decode_lz4_block(b"\x52Oops#\x01\x00\x10!", 100)
    (b'Oops#######!', True)
    """
    output = bytearray()
    place, size = 0, len(data)
    while place < size:
        token = data[place]
        place += 1
        length, place = _read_length(data, token >> 4, place)
        if place + length > size or len(output) + length > limit_bytes:
            return bytes(output + data[place : min(size, place + limit_bytes - len(output))]), False
        output += data[place : place + length]
        place += length
        if place == size:
            return bytes(output), True
        offset = int.from_bytes(data[place : place + 2], "little")
        place += 2
        length, place = _read_length(data, token & 15, place)
        length += _MATCH_BYTES
        if place > size or not 0 < offset <= len(output) or len(output) + length > limit_bytes:
            return bytes(output), False
        start = len(output) - offset
        piece = output[start : start + length]
        # What is copied may be what is being written.
        output += (piece * (length // len(piece) + 1))[:length]
    return bytes(output), False


def _read_length(data: bytes, length: int, place: int) -> tuple[int, int]:
    if length == 15:
        while place < len(data):
            more = data[place]
            place += 1
            length += more
            if more != 255:
                break
    return length, place
