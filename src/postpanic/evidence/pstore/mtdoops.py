"""
Read a flash partition that mtdoops writes to.

A page of ``record_size`` bytes for each dump: a counter, a magic number, since
6.0 the time, then the text; what is not written is 0xff. The pages are used in turn.

Source: the kernel's ``drivers/mtd/mtdoops.c`` (``struct mtdoops_hdr``,
``find_next_position``; version 2 of the header: commit 5f53c9c6 "mtd: mtdoops:
add timestamp to the dumped oops header").
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from postpanic.evidence.pstore.content import make_dump
from postpanic.evidence.pstore.model import Quality, Record, RecordType
from postpanic.evidence.pstore.ramoops_layout import Bytes

__all__ = ["MAGIC_V1", "MAGIC_V2", "find_pages", "read_mtdoops"]

BACKEND = "mtdoops"
MAGIC_V1, MAGIC_V2 = 0x5D005D00, 0x5D005E00
_PAGE_BYTES = 4096
"""``record_size`` is a multiple of this."""
_MOST_PAGES = 1 << 16
_HEADERS = {MAGIC_V1: 8, MAGIC_V2: 16}
_ERASED = b"\xff" * 16
_WRAP = 1 << 32


class _Page(msgspec.Struct, frozen=True):
    offset: int
    sequence: int
    magic: int
    order: Literal["little", "big"]


def find_pages(data: Bytes) -> list[tuple[int, int]]:
    """Find the offsets of the pages that have a header, and their counters."""
    return [(page.offset, page.sequence) for page in _find_pages(data, _PAGE_BYTES)]


def read_mtdoops(data: Bytes, record_size: int = 0) -> list[Record]:
    """
    Read the records of an mtdoops partition, oldest first.

    Parameters
    ----------
    data : bytes or mmap
        The partition, or an image of it.
    record_size : int
        The module's parameter, bytes; 0: a record ends where the next begins, or where the flash is erased.
    """
    pages = _find_pages(data, record_size or _PAGE_BYTES)
    if not pages:
        return []
    ends = [*(page.offset for page in pages[1:]), len(data)]
    records = [
        _read_page(data, page, min(end, page.offset + record_size) if record_size else end, number)
        for number, (page, end) in enumerate(zip(pages, ends, strict=True))
    ]
    # The counter goes round: the newest is the one with the longest way to the next above it.
    counters = sorted({page.sequence for page in pages})
    gaps = [
        (later - earlier) % _WRAP or _WRAP for earlier, later in zip(counters, counters[1:] + counters[:1], strict=True)
    ]
    newest = counters[gaps.index(max(gaps))]
    return sorted(records, key=lambda record: -((newest - (record.sequence or 0)) % _WRAP))


def _find_pages(data: Bytes, step: int) -> list[_Page]:
    pages: list[_Page] = []
    for offset in range(0, len(data) - 8, step):
        word = data[offset + 4 : offset + 8]
        for order in ("little", "big"):
            magic = int.from_bytes(word, "little" if order == "little" else "big")
            if magic in _HEADERS:
                known: Literal["little", "big"] = "little" if order == "little" else "big"
                sequence = int.from_bytes(data[offset : offset + 4], known)
                pages.append(_Page(offset, sequence, magic, known))
        if len(pages) >= _MOST_PAGES:
            break
    return pages


def _read_page(data: Bytes, page: _Page, end: int, number: int) -> Record:
    raw = data[page.offset : end]
    time_s = None
    if page.magic == MAGIC_V2 and len(raw) >= 16:
        nanos = struct.unpack("<q" if page.order == "little" else ">q", raw[8:16])[0]
        time_s = nanos / 1e9 if nanos > 0 else None
    content = raw[_HEADERS[page.magic] :]
    erased = content.find(_ERASED)
    # Fewer than those bytes may be left at the end of a page.
    content = (content[:erased] if erased >= 0 else content).rstrip(b"\xff\0")
    quality = Quality()
    if b"\xff" in content:
        quality = quality.noted("erased bytes inside the text: the page was not written whole")
        content = content.replace(b"\xff", b"")
    raw = raw[: -(-(_HEADERS[page.magic] + len(content)) // _PAGE_BYTES) * _PAGE_BYTES]
    record = Record(
        type=RecordType.DMESG,
        backend=BACKEND,
        name=f"dmesg-{BACKEND}-{number}",
        source=f"+{page.offset:#x}",
        raw=raw,
        time_s=time_s,
        id=number,
        sequence=page.sequence,
        quality=quality,
    )
    return make_dump(record, content, is_compressed=False)
