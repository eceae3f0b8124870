"""
Build flattened streams out of Python values.

Written from makedumpfile's IMPLEMENTATION: a header of 4096 bytes, records of
``{offset, size}`` in big-endian 64-bit numbers with their data, and an end
record of -1 and -1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable


def build_flattened(
    records: Iterable[tuple[int, bytes]], *, end_record: bool = True, kind: int = 1, version: int = 1
) -> bytes:
    header = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", kind, version)
    parts = [header.ljust(4096, b"\0")]
    for offset, data in records:
        parts += [struct.pack(">qq", offset, len(data)), data]
    if end_record:
        parts.append(struct.pack(">qq", -1, -1))
    return b"".join(parts)


def split_records(raw: bytes, *, record_bytes: int, resend_header: bool = True) -> list[tuple[int, bytes]]:
    """
    Cut a file into records, as a writer that cannot seek would.

    With *resend_header* the first bytes come again at the end, as makedumpfile sends its header twice.
    """
    records = [(offset, raw[offset : offset + record_bytes]) for offset in range(0, len(raw), record_bytes)]
    if resend_header and raw:
        records.append((0, raw[:512]))
    return records


def flatten(raw: bytes, *, record_bytes: int = 16384, end_record: bool = True) -> bytes:
    return build_flattened(split_records(raw, record_bytes=record_bytes), end_record=end_record)
