"""
What the kernel and its storage put around a log: headers, notices, compression.

Sources: the kernel's ``fs/pstore/platform.c`` (``pstore_dump``: ``Panic#1 Part1``),
``fs/pstore/ram_core.c`` (``persistent_ram_ecc_string``), ``fs/pstore/zone.c``
(``psz_kmsg_read``: ``Panic: Total 1 times``).
"""

from __future__ import annotations

import re

import msgspec

from postpanic.evidence.pstore.compression import decompress_dump
from postpanic.evidence.pstore.model import Quality, Record, RecordType

__all__ = ["REASONS", "find_type", "make_dump", "split_notice", "with_header"]

REASONS = ("Undefined", "Panic", "Oops", "Emergency", "Shutdown")
"""By their number, since 5.8: ``enum kmsg_dump_reason`` of include/linux/kmsg_dump.h."""

_NUMBER = rb"(\d{1,10})"
_HEADER = re.compile(rb"([A-Z][a-z]{2,15})#" + _NUMBER + rb" Part" + _NUMBER + rb"\n")
_TOTAL = re.compile(rb"([A-Z][a-z]{2,15}): Total " + _NUMBER + rb" times\n")
_NOTICE = re.compile(
    rb"\n(?:ECC: )?(?:No errors detected|" + _NUMBER + rb" Corrected bytes, " + _NUMBER + rb" unrecoverable blocks)\n\Z"
)
_NOTICE_BYTES = 96


def find_type(name: str) -> RecordType:
    """Give the type of a name; UNKNOWN for what only vendors have."""
    try:
        return RecordType(name)
    except ValueError:
        return RecordType.UNKNOWN


def split_notice(raw: bytes) -> tuple[bytes, Quality]:
    r"""
    Take the notice off that ramoops puts behind each record when it has parity; older kernels leave its ``ECC:`` out.

    >>> split_notice(b"text\n\nECC: 3 Corrected bytes, 0 unrecoverable blocks\n")
    (b'text\n', Quality(is_checked=True, corrected_bytes=3, bad_blocks=0, notes=()))
    """
    found = _NOTICE.search(raw, max(0, len(raw) - _NOTICE_BYTES))
    if found is None:
        return raw, Quality()
    return raw[: found.start()], Quality(
        is_checked=True, corrected_bytes=int(found[1] or 0), bad_blocks=int(found[2] or 0)
    )


def make_dump(record: Record, content: bytes, *, is_compressed: bool | None = None) -> Record:
    """
    Finish a record of the kernel log: decompress it, take its headers off.

    Parameters
    ----------
    content : bytes
        What was stored, without the notice at its end.
    is_compressed : bool, optional
        What the storage says; where it does not say, or is wrong, the content tells.
    """
    total = _TOTAL.match(content)
    if total is not None:
        content = content[total.end() :]
        record = msgspec.structs.replace(
            record, reason=record.reason or total[1].decode(), sequence=record.sequence or int(total[2])
        )
    if _HEADER.match(content) is None and is_compressed is not False:
        found = decompress_dump(content, _HEADER)
        if found is not None:
            notes = () if found.is_whole else (f"compressed data damaged: {len(found.data)} bytes of text came of it",)
            record = msgspec.structs.replace(record, compression=found.algorithm, quality=record.quality.noted(*notes))
            content = found.data
        elif is_compressed:
            note = "compressed, and by nothing that is known or so damaged that nothing came of it"
            return msgspec.structs.replace(record, data=b"", quality=record.quality.noted(note))
    return with_header(record, content)


def with_header(record: Record, content: bytes) -> Record:
    """Take the first line off that says why and which part; a record without one stays as it is."""
    found = _HEADER.match(content)
    if found is None:
        return msgspec.structs.replace(record, data=content)
    return msgspec.structs.replace(
        record, data=content[found.end() :], reason=found[1].decode(), count=int(found[2]), part=int(found[3])
    )
