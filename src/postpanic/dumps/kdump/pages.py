"""
Page descriptors and page data of one kdump-compressed file.

The descriptor of a frame is found by counting the set bits of the second
bitmap before it. Bulk reads take descriptors in windows, then page data in the
order of the file, neighbours together, and decompress what several frames
share (the zero page) once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.bitmap import Bitmap
from postpanic.dumps.kdump.codecs import COMPRESSION_MASK, Decoder, find_decoder
from postpanic.dumps.kdump.layout import DESCRIPTOR_BYTES, KdumpHeader, descriptor_dtype
from postpanic.dumps.memory import PageState
from postpanic.dumps.source import ByteSource
from postpanic.errors import CorruptError
from postpanic.units import KIB, MIB

__all__ = ["PageFile"]

_WINDOW_BYTES = MIB
_GAP_BYTES = 16 * KIB
"""Reading over a gap of this size costs less than another call."""

_DESCRIPTORS_KEPT = 128
_DESCRIPTORS_TOGETHER = 128


class PageFile:
    """
    The pages of one file: of a whole dump, or of one part of a split set.

    Parameters
    ----------
    bitmap : Bitmap
        The second bitmap, of the frames that the dump holds.
    """

    def __init__(self, source: ByteSource, header: KdumpHeader, bitmap: Bitmap) -> None:
        self.source = source
        self.header = header
        self.bitmap = bitmap
        self._page_size = header.block_size
        self._first_rank = bitmap.rank(header.start_pfn)
        self.descriptor_count = bitmap.rank(header.end_pfn) - self._first_rank
        self._dtype = descriptor_dtype(header.prefix)
        self._form = struct.Struct(header.prefix + "QII")
        self._descriptors: dict[int, bytes] = {}
        self._decoders: dict[int, Decoder] = {0: _decode_raw}

    def load_page(self, pfn: int) -> bytes | PageState:
        """Get the contents of a frame whose bit is set, or ``LOST``."""
        index = self.bitmap.rank(pfn) - self._first_rank
        group, within = divmod(index, _DESCRIPTORS_TOGETHER)
        raw = self._descriptors.get(group)
        if raw is None:
            raw = self._read_descriptor_bytes(group * _DESCRIPTORS_TOGETHER, _DESCRIPTORS_TOGETHER)
            if len(self._descriptors) >= _DESCRIPTORS_KEPT:
                del self._descriptors[next(iter(self._descriptors))]
            self._descriptors[group] = raw
        if len(raw) < (within + 1) * DESCRIPTOR_BYTES:
            return PageState.LOST
        offset, size, flags = self._form.unpack_from(raw, within * DESCRIPTOR_BYTES)
        if offset == 0 or not 0 < size <= self._page_size:
            return PageState.LOST
        data = self.source.read(offset, size)
        if len(data) < size:
            return PageState.LOST
        try:
            page = self._decoder(flags & COMPRESSION_MASK)(data, self._page_size)
        except CorruptError:
            return PageState.LOST
        return page if len(page) == self._page_size else PageState.LOST

    def read_descriptors(self, pfns: NDArray[np.int64]) -> NDArray[np.void]:
        """
        Read the descriptors of frames whose bits are set.

        Returns
        -------
        ndarray
            Fields ``offset size flags page_flags``; all zero where the file is
            cut or where the descriptor could not be true.
        """
        found = self.read_descriptors_at(self.bitmap.rank_many(pfns) - self._first_rank)
        found[~self._are_readable(found)] = np.zeros(1, dtype=found.dtype)[0]
        return found

    def read_descriptors_at(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Read descriptors by their place in the table; zero where the file is cut."""
        result = np.zeros(len(indices), dtype=self._dtype)
        if len(indices) == 0:
            return result
        order = np.argsort(indices, kind="stable")
        wanted = indices[order]
        window = _WINDOW_BYTES // DESCRIPTOR_BYTES
        for first, last in _group(wanted, wanted + 1, gap=_GAP_BYTES // DESCRIPTOR_BYTES, window=window):
            base = int(wanted[first])
            raw = self._read_descriptor_bytes(base, int(wanted[last - 1]) + 1 - base)
            table = np.frombuffer(raw[: len(raw) // DESCRIPTOR_BYTES * DESCRIPTOR_BYTES], dtype=self._dtype)
            places = wanted[first:last] - base
            there = places < len(table)
            result[order[first:last][there]] = table[places[there]]
        return result

    def read_into(
        self, pfns: NDArray[np.int64], pages: NDArray[np.uint8], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """
        Read the pages of frames whose bits are set.

        Parameters
        ----------
        pages : ndarray of uint8, shape (n, page size)
            Receives the contents.
        rows : ndarray of int64, shape (len(pfns),)
            Row of *pages* for each frame.

        Returns
        -------
        ndarray of bool, shape (len(pfns),)
            Whether the page could be read; the row of others is left alone.
        """
        descriptors = self.read_descriptors(pfns)
        offsets = descriptors["offset"].astype(np.int64)
        good = np.flatnonzero(offsets)
        done = np.zeros(len(pfns), dtype=bool)
        # Many frames may share one page of zeroes: read it once.
        _, leaders, inverse = np.unique(offsets[good], return_index=True, return_inverse=True)
        first_of = good[leaders]
        success = self._fetch(descriptors[first_of], pages.reshape(-1).data, rows[first_of])
        shared = np.ones(len(good), dtype=bool)
        for name in ("size", "flags"):
            # Only a corrupt descriptor calls the same data something else.
            shared &= descriptors[name][good] == descriptors[name][first_of][inverse]
        done[good] = success[inverse] & shared
        is_leader = first_of[inverse] == good
        follows = done[good] & ~is_leader
        if follows.any():
            pages[rows[good[follows]]] = pages[rows[first_of[inverse[follows]]]]
        alone = good[~done[good] & ~is_leader]
        if len(alone):
            alone = alone[np.argsort(offsets[alone], kind="stable")]
            done[alone] = self._fetch(descriptors[alone], pages.reshape(-1).data, rows[alone])
        return done

    def _fetch(self, descriptors: NDArray[np.void], flat: memoryview, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Read and decompress what descriptors, sorted by offset, point at; whether each is a whole page."""
        size_of_page = self._page_size
        starts = descriptors["offset"].astype(np.int64)
        sizes = descriptors["size"].astype(np.int64)
        decoders = [self._decoder(kind) for kind in (descriptors["flags"] & COMPRESSION_MASK).tolist()]
        targets = (rows * size_of_page).tolist()
        success = np.zeros(len(descriptors), dtype=bool)
        for first, last in _group(starts, starts + sizes, gap=_GAP_BYTES, window=_WINDOW_BYTES):
            base = int(starts[first])
            data = self.source.read(base, int((starts[first:last] + sizes[first:last]).max()) - base)
            places = (starts[first:last] - base).tolist()
            for number, place, size in zip(range(first, last), places, sizes[first:last].tolist(), strict=True):
                part = data[place : place + size]
                try:
                    page = decoders[number](part, size_of_page) if len(part) == size else b""
                except CorruptError:
                    continue
                if len(page) == size_of_page:
                    flat[targets[number] : targets[number] + size_of_page] = page
                    success[number] = True
        return success

    def find_unwritten(self) -> str:
        """
        Look at the end of the page data, and say what is missing.

        A header that tells where the erase info lies, even if there is none,
        tells where the data ends. Without it data lies in the order of the
        frames, except for shared pages of zeroes: the last descriptor that
        does not go back tells where it ends.
        """
        count = self.descriptor_count
        end = self.header.descriptors_offset + count * DESCRIPTOR_BYTES
        if end > self.source.size_bytes:
            return "the file ends before its page descriptors do"
        last = self.header.eraseinfo
        if last.offset >= end:
            cut = last.offset + last.size_bytes > self.source.size_bytes
            return "the file ends before its pages do" if cut else ""
        for stop in range(count, max(count - 64 * 4096, 0), -4096):
            first = max(stop - 4096, 0)
            table = self.read_descriptors_at(np.arange(first, stop, dtype=np.int64))
            if np.any(table["offset"] == 0):
                return "page descriptors at the end were never written"
            offsets, sizes = table["offset"], table["size"].astype(np.uint64)
            if np.any(offsets > np.uint64(self.source.size_bytes)):
                return "the file ends before its pages do"
            if np.any(offsets + sizes > np.uint64(self.source.size_bytes)):
                return "the file ends within a page"
            if len(np.unique(offsets)) > 1:
                return ""
        return ""

    def _are_readable(self, descriptors: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether descriptors point at something that can be a page."""
        size = descriptors["size"].astype(np.uint64)
        limit = np.uint64(self.source.size_bytes)
        offset = descriptors["offset"].astype(np.uint64)
        raw = (descriptors["flags"] & COMPRESSION_MASK) == 0
        return np.asarray(
            (offset > 0)
            & (offset < limit)
            & (size > 0)
            & (size <= self._page_size)
            & (size <= limit - np.minimum(offset, limit))
            & (~raw | (size == self._page_size))
        )

    def _read_descriptor_bytes(self, index: int, count: int) -> bytes:
        """
        Read descriptors of this file only: bits may promise more than the table can have.

        In a stream that was cut, descriptors are missing in the midst of others: they are zero.
        """
        count = min(count, self.descriptor_count - index)
        start = self.header.descriptors_offset + index * DESCRIPTOR_BYTES
        raw = self.source.read(start, count * DESCRIPTOR_BYTES)
        end = start + count * DESCRIPTOR_BYTES
        place = self.source.find_data(start + len(raw)) if start + len(raw) < end else end
        if place >= end or place <= start + len(raw):
            return raw
        table = bytearray(raw)
        while place < end:
            table.extend(bytes(place - start - len(table)))
            part = self.source.read(place, end - place)
            if not part:
                break
            table.extend(part)
            place = self.source.find_data(start + len(table)) if start + len(table) < end else end
        return bytes(table)

    def _decoder(self, compression: int) -> Decoder:
        """Look a decoder up; what is no compression at all decodes to nothing."""
        decoder = self._decoders.get(compression)
        if decoder is None:
            try:
                decoder = find_decoder(compression)
            except CorruptError:
                decoder = _decode_nothing
            self._decoders[compression] = decoder
        return decoder


def _group(starts: NDArray[np.int64], ends: NDArray[np.int64], *, gap: int, window: int) -> Iterator[tuple[int, int]]:
    """Divide sorted spans into groups of neighbours that are worth one read each."""
    if len(starts) == 0:
        return
    breaks = np.flatnonzero(starts[1:] - ends[:-1] > gap) + 1
    edges = [0, *breaks.tolist(), len(starts)]
    for first, last in pairwise(edges):
        while first < last:
            stop = int(np.searchsorted(starts[first:last], starts[first] + window, side="left")) + first
            yield first, stop
            first = stop


def _decode_raw(data: bytes, _page_size_bytes: int) -> bytes:
    return data


def _decode_nothing(_data: bytes, _page_size_bytes: int) -> bytes:
    return b""
