"""
Read kdump-compressed dumps: one file, or the parts of a split set.

Written by makedumpfile (``-c -l -p -z``, ``--split``), by QEMU's
``dump-guest-memory -z``, and by the older diskdump.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.bitmap import Bitmap
from postpanic.dumps.kdump.layout import (
    HEADER_BYTES,
    SUB_HEADER_BYTES,
    BlobPlace,
    KdumpHeader,
    Status,
    decode_header,
    decode_sub_header,
)
from postpanic.dumps.kdump.pages import PageFile
from postpanic.dumps.kdump.parts import check_parts, describe_missing_parts
from postpanic.dumps.memory import DumpDescription, PageState
from postpanic.dumps.notes import MAX_NOTES_BYTES, MAX_VMCOREINFO_BYTES, detect_vmcoreinfo
from postpanic.dumps.paged import PagedMemory
from postpanic.dumps.source import ByteSource
from postpanic.errors import CorruptError
from postpanic.units import format_size

__all__ = ["KdumpReader"]

_PHYS_BASE_LINE = re.compile(rb"^NUMBER\(phys_base\)=(-?\d{1,20})$", re.MULTILINE)


class KdumpReader(PagedMemory):
    """
    An open kdump-compressed dump.

    Parameters
    ----------
    sources : sequence of ByteSource
        One file, or the files of a split set in any order.

    Raises
    ------
    TruncatedError
        If the headers are cut.
    CorruptError
        If the headers make no sense.
    MismatchError
        If the files are not parts of one set.
    """

    def __init__(self, sources: Sequence[ByteSource]) -> None:
        headers = [_read_header(source) for source in sources]
        check_parts(sources, headers)
        order = sorted(range(len(sources)), key=lambda index: headers[index].start_pfn)
        self._sources = [sources[index] for index in order]
        headers = [headers[index] for index in order]
        header = headers[0]
        self._lock = threading.Lock()
        super().__init__(header.block_size, self._sources[0].name)
        self._max_mapnr = header.max_mapnr
        first = self._sources[0]
        self._ram = Bitmap(first.read, header.bitmap_offset, header.max_mapnr)
        self._files = [
            PageFile(source, part, Bitmap(source.read, part.dumped_bitmap_offset, part.max_mapnr))
            for source, part in zip(self._sources, headers, strict=True)
        ]
        self._known = min(self._ram.known_bits, *(part.bitmap.known_bits for part in self._files))
        self._file_starts = [part.start_pfn for part in headers]
        self._file_ends = [part.end_pfn for part in headers]
        self._ram_ranges: NDArray[np.uint64] | None = None
        self.description = self._describe(headers)

    @property
    def ram_ranges(self) -> NDArray[np.uint64]:
        """
        All RAM that the first bitmap has.

        Raises
        ------
        CorruptError
            If the bitmap is torn to shreds.
        """
        if self._ram_ranges is None:
            self._ram_ranges = self._ram.runs().astype(np.uint64) * np.uint64(self._page_size)
        return self._ram_ranges

    def close(self) -> None:
        """Close all files."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def page_states(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """State of each frame, as bitmaps and page descriptors have it."""
        frames, states, dumped = self._classify(pfns)
        for number, rows in self._by_file(frames, dumped):
            readable = self._files[number].read_descriptors(frames[rows])["offset"] != 0
            states[rows[readable]] = PageState.PRESENT
        return states

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """
        Read whole pages into a buffer, in the order of the file; several threads wait for each other.

        Returns
        -------
        states : ndarray of uint8, shape (len(pfns),)

        Raises
        ------
        UnsupportedError
            If the codec of the pages is not installed.
        """
        # The bitmaps and the descriptors keep what they read last.
        with self._lock:
            frames, states, dumped = self._classify(pfns)
            pages[:] = 0
            for number, rows in self._by_file(frames, dumped):
                done = self._files[number].read_into(frames[rows], pages, rows)
                states[rows[done]] = PageState.PRESENT
        return states

    def _classify(self, pfns: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """
        Ask the bitmaps about each frame.

        Returns
        -------
        frames : ndarray of int64
            Frame numbers; -1 where beyond all RAM.
        states : ndarray of uint8
            ``LOST`` for what the dump should hold: to be improved on by reading it.
        dumped : ndarray of int64
            Indices of the frames that the dump should hold.
        """
        frames = np.where(pfns < np.uint64(self._max_mapnr), pfns, 0).astype(np.int64)
        frames[pfns >= np.uint64(self._max_mapnr)] = -1
        states = np.full(len(frames), PageState.ABSENT, dtype=np.uint8)
        states[self._ram.test_many(frames)] = PageState.EXCLUDED
        held = self._files[0].bitmap.test_many(frames)
        states[held | (frames >= self._known)] = PageState.LOST
        return frames, states, np.flatnonzero(held)

    def _by_file(self, frames: NDArray[np.int64], rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """Divide frames among the files of the set; those in no file are left out."""
        wanted = frames[rows]
        if len(self._files) == 1 and self._file_starts[0] == 0 and self._file_ends[0] >= self._max_mapnr:
            return [(0, rows)] if len(rows) else []
        numbers = np.searchsorted(np.array(self._file_starts), wanted, side="right") - 1
        inside = (numbers >= 0) & (wanted < np.array(self._file_ends)[numbers])
        return [(int(number), rows[inside & (numbers == number)]) for number in np.unique(numbers[inside])]

    def _load_page(self, pfn: int) -> bytes | PageState:
        if pfn >= self._max_mapnr:
            return PageState.ABSENT
        if not self._files[0].bitmap.test(pfn):
            if pfn >= self._known:
                return PageState.LOST
            return PageState.EXCLUDED if self._ram.test(pfn) else PageState.ABSENT
        number = bisect_right(self._file_starts, pfn) - 1
        if number < 0 or pfn >= self._file_ends[number]:
            return PageState.LOST
        return self._files[number].load_page(pfn)

    def _describe(self, headers: list[KdumpHeader]) -> DumpDescription:
        header = headers[0]
        warnings = list(dict.fromkeys(text for part in headers for text in part.warnings))
        faults = self._find_faults(headers)
        notes, vmcoreinfo, eraseinfo = (
            self._read_blob(name, place, limit, warnings)
            for name, place, limit in (
                ("notes", header.notes, MAX_NOTES_BYTES),
                ("VMCOREINFO", header.vmcoreinfo, MAX_VMCOREINFO_BYTES),
                ("erase info", header.eraseinfo, MAX_VMCOREINFO_BYTES),
            )
        )
        vmcoreinfo = vmcoreinfo.rstrip(b"\0") or detect_vmcoreinfo(notes, byte_order=header.byte_order)
        phys_base = _choose_phys_base(header, vmcoreinfo, warnings)
        if header.status & Status.EXCLUDED_VMEMMAP:
            warnings.append("struct pages of excluded pages were left out (makedumpfile -e)")
        if eraseinfo:
            warnings.append("data was erased when the dump was filtered")
        split = "split " if header.is_split else ""
        container = f"{self._sources[0].container} " if self._sources[0].container else ""
        name = "kdump-compressed" if header.signature == b"KDUMP   " else "diskdump"
        return DumpDescription(
            format=f"{split}{container}{name} v{header.version}",
            paths=tuple(source.name for source in self._sources),
            machine=header.utsname["machine"],
            byte_order=header.byte_order,
            page_size_bytes=header.block_size,
            file_size_bytes=sum(source.file_size_bytes for source in self._sources),
            compression=header.compression,
            dump_level=header.dump_level,
            incomplete="; ".join(faults),
            is_paged=True,
            is_stream=bool(self._sources[0].container),
            warnings=tuple(warnings),
            vmcoreinfo=vmcoreinfo,
            notes=notes,
            utsname=header.utsname if any(header.utsname.values()) else {},
            timestamp_s=header.timestamp_s or None,
            phys_base=phys_base,
        )

    def _find_faults(self, headers: list[KdumpHeader]) -> list[str]:
        """Say in one phrase each what is missing from the dump."""
        faults: list[str] = []
        for source, part, file in zip(self._sources, headers, self._files, strict=True):
            prefix = f"{source.name}: " if len(headers) > 1 else ""
            if source.incomplete:
                faults.append(prefix + source.incomplete)
            if part.status & Status.INCOMPLETE:
                faults.append(f"{prefix}marked incomplete by its writer")
            if min(self._ram.known_bits, file.bitmap.known_bits) < part.max_mapnr:
                faults.append(f"{prefix}the file ends within its bitmaps")
            elif unwritten := file.find_unwritten():
                faults.append(prefix + unwritten)
        faults.extend(describe_missing_parts(headers))
        return faults

    def _read_blob(self, name: str, place: BlobPlace, limit: int, warnings: list[str]) -> bytes:
        """Read a text or the notes; an impossible place is worth a warning only."""
        if place.size_bytes == 0 or place.offset == 0:
            return b""
        if place.size_bytes > limit:
            warnings.append(f"{name} of {place.size_bytes} bytes, at most {format_size(limit)} are read")
        size = min(place.size_bytes, limit)
        data = self._sources[0].read(place.offset, size)
        if len(data) < size:
            warnings.append(f"{name}: {len(data)} of {size} bytes are in the file")
        return data


def _choose_phys_base(header: KdumpHeader, vmcoreinfo: bytes, warnings: list[str]) -> int | None:
    """
    Take ``phys_base`` from VMCOREINFO where it has one, else from the sub header.

    QEMU (7.2) takes the decimal number of VMCOREINFO for hexadecimal.
    """
    if header.phys_base is None:
        return None
    size = 8 * header.word_bytes
    stored = header.phys_base - (1 << size if header.phys_base >> (size - 1) else 0)
    line = _PHYS_BASE_LINE.search(vmcoreinfo)
    if line is None or int(line[1]) == stored:
        return stored
    warnings.append(f"phys_base is {stored:#x} in the header and {int(line[1]):#x} in VMCOREINFO, which is taken")
    return int(line[1])


def _read_header(source: ByteSource) -> KdumpHeader:
    header = decode_header(source.read(0, HEADER_BYTES), where=source.name)
    raw = source.read(header.block_size, SUB_HEADER_BYTES)
    header = decode_sub_header(raw, header, file_size=source.size_bytes, where=source.name)
    if header.bitmap_offset >= 1 << 62:
        raise CorruptError(f"bitmaps at {header.bitmap_offset:#x}, beyond any file", where=source.name)
    return header
