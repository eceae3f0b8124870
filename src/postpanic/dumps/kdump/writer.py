"""
Write kdump-compressed files of version 6, for 64-bit little-endian machines.

Pages come in any order: data is appended, and each descriptor is put where the
second bitmap says. Where compressing costs more than looking, a page that is
like an earlier one shares its data. Until the end the header has
makedumpfile's mark of an incomplete dump, and the descriptor of a page that
never came is zero, which all readers take for a page that is missing.

::

    header | sub header, notes | bitmap of RAM | bitmap of pages | descriptors | zero page, pages … | erase info
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.encoders import open_encoder
from postpanic.dumps.kdump.layout import (
    DESCRIPTOR_BYTES,
    SIGNATURES,
    SUB_HEADER_BYTES,
    BlobPlace,
    KdumpHeader,
    Status,
    descriptor_dtype,
    encode_header,
    encode_sub_header,
)
from postpanic.dumps.kdump.repeats import Repeats
from postpanic.dumps.writing import ByteSink, DumpOutline, EncodedBatch, Encoder, PageBatch
from postpanic.errors import NoSpaceError, UnsupportedError

__all__ = ["KdumpWriter"]

_VERSION = 6
_MACHINES = frozenset({"", "x86_64", "aarch64", "ppc64", "ppc64le", "riscv64", "loongarch64", "mips64"})

_UNKNOWN_UTSNAME = {"sysname": "Linux", "nodename": "(none)", "release": "(unknown)", "version": "(unknown)"}
"""What libkdumpfile (0.5) wants filled in before it believes any of it."""

_NOT_YET = 1 << 62
"""
Where a stream's first header has its erase info: beyond any file, which is thus cut.

In a stream that is the mark of incompleteness: crash finds this header, not
the last, also when the stream is whole, and would take the usual mark to heart.
"""


class KdumpWriter:
    """
    Write one kdump-compressed file, whole or a part of a split set.

    Parameters
    ----------
    sink : ByteSink
        Empty so far.
    outline : DumpOutline
        With ``pfn_range``, the file is the part of a split set that holds these frames.
    compression : Compression or None
        None stores pages as they are.
    level : int or None
        See :func:`~postpanic.dumps.kdump.encoders.open_encoder`.

    Raises
    ------
    UnsupportedError
        If the codec is not installed, or the machine's dumps are of another layout.
    UsageError
        If the codec has no such level.
    """

    def __init__(
        self, sink: ByteSink, outline: DumpOutline, compression: Compression | None, level: int | None = None
    ) -> None:
        if outline.machine not in _MACHINES or outline.byte_order != "little":
            what = outline.machine if outline.byte_order == "little" else f"big-endian {outline.machine}"
            raise UnsupportedError(f"kdump-compressed files of {what} cannot be written")
        self._sink = sink
        self._outline = outline
        self._compression = compression
        self._level = level
        self._dtype = descriptor_dtype("<")
        # The codecs that are made for speed would be done by the time a page is found.
        is_slow = compression is Compression.ZLIB or level is not None
        self._repeats = Repeats(outline.page_size_bytes) if is_slow else None
        # Tells at once whether the codec is there.
        self._zero_page = self._encode_zero_page()
        runs = outline.ram.runs()
        max_mapnr = int(runs[-1, 1]) if len(runs) else 0
        self._header = _plan_header(outline, max_mapnr, compression)
        start, end = outline.pfn_range or (0, max_mapnr)
        self._first_rank = _count_before(outline.kept, start)
        self.descriptor_count = _count_before(outline.kept, end) - self._first_rank
        """Pages that the file has room for."""
        self._data_end = self._header.descriptors_offset + self.descriptor_count * DESCRIPTOR_BYTES
        self._zero_at = 0

    def begin(self) -> None:
        """Write headers, notes and bitmaps, and the page of zeroes that all pages of zeroes share."""
        if self._sink.is_stream:
            self._header = replace(
                self._header, status=self._header.status & ~Status.INCOMPLETE, eraseinfo=BlobPlace(_NOT_YET, 0)
            )
        header, outline = self._header, self._outline
        self._sink.reserve(self._data_end)
        head = bytearray(header.bitmap_offset)
        self._put_headers(head)
        for place, blob in ((header.notes, outline.notes), (header.vmcoreinfo, outline.vmcoreinfo)):
            if place.size_bytes:
                head[place.offset : place.offset + place.size_bytes] = blob
        self._sink.write_at(0, [memoryview(head)])
        size = header.bitmap_blocks // 2 * header.block_size
        for number, frames in enumerate((outline.ram, outline.kept)):
            bits = frames.bits[:size].data
            self._sink.write_at(header.bitmap_offset + number * size, [bits, bytes(size - len(bits))])
        self._zero_at = self._data_end
        self._append(self._zero_page.data)

    def make_encoder(self) -> Encoder:
        """Make an encoder for one thread."""
        encode = open_encoder(self._compression, self._level, self._outline.page_size_bytes)
        repeats = self._repeats
        if repeats is None:
            return encode

        def encode_new(batch: PageBatch) -> EncodedBatch:
            prints = repeats.fingerprint(batch.pages)
            rows, entries = _find_equal(repeats, batch, prints)
            is_known = batch.is_zero.copy()
            is_known[rows] = True
            new = encode(replace(batch, is_zero=is_known))
            return _Batch(
                batch.pfns,
                batch.is_zero,
                batch.is_lost,
                new.sizes,
                new.flags,
                new.data,
                batch.index,
                prints,
                rows,
                entries,
            )

        return encode_new

    def write(self, batch: EncodedBatch) -> None:
        """Append the pages of a batch, then write their descriptors; those of lost pages stay zero."""
        sizes = batch.sizes.astype(np.uint64)
        table = np.zeros(len(sizes), dtype=self._dtype)
        table["offset"] = np.cumsum(sizes) - sizes + np.uint64(self._data_end)
        table["size"] = batch.sizes
        table["flags"] = batch.flags
        if batch.is_zero.any():
            table["offset"][batch.is_zero] = self._zero_at
            table["size"][batch.is_zero] = self._zero_page.sizes[0]
            table["flags"][batch.is_zero] = self._zero_page.flags[0]
        if isinstance(batch, _Batch) and self._repeats is not None:
            self._share(batch, table, self._repeats)
        pfns = batch.pfns
        if batch.is_lost.any():
            pfns, table = pfns[~batch.is_lost], table[~batch.is_lost]
        numbers = self._outline.kept.ranks(pfns) - self._first_rank
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < self.descriptor_count:
            raise ValueError(f"frames {int(pfns[0]):#x} to {int(pfns[-1]):#x} are not of this file")
        self._append(batch.data)
        rows = table.view(np.uint8).reshape(-1, DESCRIPTOR_BYTES)
        self._sink.write_rows(self._header.descriptors_offset, numbers, rows)

    def finish(self, *, complete: bool, eraseinfo: bytes = b"") -> None:
        """
        Write the erase info, and the headers again.

        Erase info is what comes last, so its place tells a reader where the
        file must end; it is noted also where there is none.
        """
        place = BlobPlace(self._data_end, len(eraseinfo))
        try:
            if eraseinfo:
                self._sink.write_at(self._data_end, [eraseinfo])
        except NoSpaceError:
            if complete:
                raise
            place = BlobPlace(self._data_end, 0)
        status = self._header.status & ~Status.INCOMPLETE
        self._header = replace(self._header, status=status if complete else status | Status.INCOMPLETE, eraseinfo=place)
        if complete:
            # Pages reach the disk before the word that they are there.
            self._sink.flush()
        head = bytearray(self._header.block_size + SUB_HEADER_BYTES)
        self._put_headers(head)
        self._sink.write_at(0, [memoryview(head)])

    @staticmethod
    def _share(batch: _Batch, table: NDArray[np.void], repeats: Repeats) -> None:
        """Describe pages that are in the file already, and remember those that come now."""
        for name in ("offset", "size", "flags"):
            table[name][batch.shared_rows] = batch.shared[name]
        is_new = ~(batch.is_zero | batch.is_lost)
        is_new[batch.shared_rows] = False
        repeats.add(batch.index, batch.pfns, batch.fingerprints, table, is_new)

    def _put_headers(self, head: bytearray) -> None:
        header = encode_header(self._header)
        head[: len(header)] = header
        start = self._header.block_size
        head[start : start + SUB_HEADER_BYTES] = encode_sub_header(self._header)

    def _append(self, parts: Sequence[memoryview]) -> None:
        self._sink.write_at(self._data_end, parts)
        self._data_end += sum(len(part) for part in parts)

    def _encode_zero_page(self) -> EncodedBatch:
        page = np.zeros((1, self._outline.page_size_bytes), dtype=np.uint8)
        no = np.zeros(1, dtype=np.bool_)
        encode = open_encoder(self._compression, self._level, self._outline.page_size_bytes)
        return encode(PageBatch(np.zeros(1, dtype=np.uint64), page, no, no))


@dataclass(frozen=True, slots=True)
class _Batch(EncodedBatch):
    """A batch that leaves out what is in the file already."""

    index: int
    fingerprints: NDArray[np.uint64]
    shared_rows: NDArray[np.int64]
    """Pages that are in the file already."""
    shared: NDArray[np.void]
    """Where: fields ``offset size flags``."""


def _find_equal(
    repeats: Repeats, batch: PageBatch, fingerprints: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Find the pages of a batch that are in the file already, and where; the pages themselves are compared."""
    found = repeats.find(batch.index, fingerprints, ~(batch.is_zero | batch.is_lost))
    if batch.reread is None or not len(found.rows):
        return found.rows[:0], found.entries[:0]
    earlier = batch.reread(found.entries["pfn"])
    is_equal = (earlier.view(np.uint64) == batch.pages.view(np.uint64)[found.rows]).all(axis=1)
    return found.rows[is_equal], found.entries[is_equal]


def _plan_header(outline: DumpOutline, max_mapnr: int, compression: Compression | None) -> KdumpHeader:
    """Fill in a header, its mark of incompleteness set, and find a place for everything before the pages."""
    block = outline.page_size_bytes
    notes_at = block + SUB_HEADER_BYTES
    end = notes_at + len(outline.notes)
    found = outline.notes.find(outline.vmcoreinfo) if outline.vmcoreinfo else -1
    vmcoreinfo = BlobPlace(0, 0)
    if found >= 0:
        vmcoreinfo = BlobPlace(notes_at + found, len(outline.vmcoreinfo))
    elif outline.vmcoreinfo:
        vmcoreinfo = BlobPlace(end, len(outline.vmcoreinfo))
        end += len(outline.vmcoreinfo)
    bits_of_block = block * 8
    start, stop = outline.pfn_range or (0, 0)
    return KdumpHeader(
        signature=SIGNATURES[0],
        version=_VERSION,
        byte_order="little",
        word_bytes=8,
        utsname={**_UNKNOWN_UTSNAME, "machine": outline.machine, **{k: v for k, v in outline.utsname.items() if v}},
        timestamp_s=outline.timestamp_s,
        status=(0 if compression is None else int(compression)) | Status.INCOMPLETE,
        block_size=block,
        sub_header_blocks=-(-(end - block) // block),
        bitmap_blocks=2 * -(-max_mapnr // bits_of_block),
        max_mapnr=max_mapnr,
        cpu_count=outline.cpu_count,
        phys_base=outline.phys_base,
        dump_level=outline.dump_level,
        is_split=outline.pfn_range is not None,
        start_pfn=start,
        end_pfn=stop,
        vmcoreinfo=vmcoreinfo,
        notes=BlobPlace(notes_at if outline.notes else 0, len(outline.notes)),
    )


def _count_before(frames: FrameSet, pfn: int) -> int:
    """Count the frames of a set before one that may be beyond it."""
    if pfn >= frames.limit:
        return frames.count
    return int(frames.ranks(np.array([pfn], dtype=np.uint64))[0])
