"""
The framing of a flattened stream.

A header of 4096 bytes, then records: where the data belongs in the dump, how
long it is, the data. All numbers are big-endian. A record with both numbers -1
ends the stream. Records may overwrite what earlier ones wrote.

Reference: makedumpfile's ``IMPLEMENTATION`` ("Flattened format") and
``makedumpfile.h`` (``struct makedumpfile_header``, ``makedumpfile_data_header``).
"""

from __future__ import annotations

import struct

from postpanic.errors import TruncatedError, UnsupportedError

__all__ = ["FLAT_HEADER_BYTES", "FLAT_SIGNATURE", "RECORD", "check_flat_header", "encode_flat_header"]

FLAT_SIGNATURE = b"makedumpfile\0\0\0\0"
FLAT_HEADER_BYTES = 4096
RECORD = struct.Struct(">qq")
"""``offset size`` in front of each record's data."""

_TYPE_AND_VERSION = struct.Struct(">qq")


def check_flat_header(raw: bytes, *, where: str = "") -> None:
    """
    Check type and version of a flattened stream.

    Raises
    ------
    TruncatedError
        If *raw* is shorter than the header's fields.
    UnsupportedError
        If type or version are not 1, the only ones there ever were.
    """
    if len(raw) < len(FLAT_SIGNATURE) + _TYPE_AND_VERSION.size:
        raise TruncatedError(f"{len(raw)} bytes of flattened header, 32 are needed", where=where)
    kind, version = _TYPE_AND_VERSION.unpack_from(raw, len(FLAT_SIGNATURE))
    if (kind, version) != (1, 1):
        raise UnsupportedError(
            f"flattened stream of type {kind}, version {version}; only type 1, version 1 is known",
            where=f"{where}+0x10",
        )


def encode_flat_header() -> bytes:
    """Encode the header of a stream, of type 1 and version 1."""
    return (FLAT_SIGNATURE + _TYPE_AND_VERSION.pack(1, 1)).ljust(FLAT_HEADER_BYTES, b"\0")
