"""
Write ELF vmcores of 64-bit little-endian machines.

The place of each page in the file follows from its rank among the pages that
are kept, so pages may come in any order. A program header claims only pages
that are in the file already: the headers are written empty at first, again
after every so many pages, and at the end; of a stream, once, as a reader of
it may find the first ones only. What was excluded, could not be read
or never came is memory without contents (``p_filesz`` < ``p_memsz``), not
zeroes; pages of zeroes are in the file, as holes that take no room on disk.

::

    ELF header | program headers, room for more | section header 0 | notes | pages in the order of frames
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.elfcore.layout import (
    ELF_HEADER_BYTES,
    PROGRAM_HEADER_BYTES,
    PT_LOAD,
    PT_NOTE,
    SECTION_HEADER_BYTES,
    encode_elf_header,
    encode_section_zero,
    machine_number,
    program_header_dtype,
)
from postpanic.dumps.elfcore.pieces import find_pieces
from postpanic.dumps.frames import FrameSet
from postpanic.dumps.writing import ByteSink, DumpOutline, EncodedBatch, Encoder, PageBatch
from postpanic.errors import UnsupportedError
from postpanic.units import MIB

__all__ = ["ElfWriter"]

_MACHINES = frozenset({"x86_64", "aarch64", "ppc64", "ppc64le", "riscv64", "loongarch64", "mips64"})

_FRAMES_OF_ROOM = 64
_MOST_ROOM = 1 << 16
"""Program headers to spare for pages that are missing in the end: one for so many frames of RAM, up to a limit."""

_REFRESH_BYTES = 256 * MIB
_ALL_ACCESS = 7
"""``p_flags`` as the kernel sets it for all of memory: read, write, execute."""


class ElfWriter:
    """
    Write one ELF vmcore.

    Parameters
    ----------
    sink : ByteSink
        Empty so far.
    outline : DumpOutline
        Frames of ``segments`` get their virtual addresses; a frame that two
        segments map is described twice, and stored once.

    Attributes
    ----------
    given_up_pages : int
        After an incomplete :meth:`finish`: pages that are in the file and that
        no program header claims, as there was no room for that many.

    Raises
    ------
    UnsupportedError
        If the machine's dumps are of another layout.
    """

    def __init__(self, sink: ByteSink, outline: DumpOutline) -> None:
        machine = machine_number(outline.machine)
        if machine is None or outline.machine not in _MACHINES or outline.byte_order != "little":
            name = outline.machine or "an unknown machine"
            what = name if outline.byte_order == "little" else f"big-endian {name}"
            raise UnsupportedError(f"ELF vmcores of {what} cannot be written")
        self._machine = machine
        self._sink = sink
        self._outline = outline
        self._page_size = outline.page_size_bytes
        self._pieces = find_pieces(outline.ram, outline.segments, outline.page_size_bytes)
        self._dtype = program_header_dtype("<")
        kept = outline.kept
        self._data_at = 0
        self._room = len(self._program_headers(kept)) + 1 + min(outline.ram.count // _FRAMES_OF_ROOM + 64, _MOST_ROOM)
        self._section_at = ELF_HEADER_BYTES + self._room * PROGRAM_HEADER_BYTES
        self._notes_at = self._section_at + SECTION_HEADER_BYTES
        self._data_at = _choose_data_offset(self._notes_at + len(outline.notes), self._page_size)
        self._held = np.zeros(len(kept.bits), dtype=np.uint8)
        self._unclaimed_bytes = 0
        self._refresh_at = _REFRESH_BYTES
        self.given_up_pages = 0

    def begin(self) -> None:
        """Write the headers, which claim nothing yet, and the notes; in a stream they claim all that will come."""
        self._sink.reserve(self._data_at)
        if self._sink.is_stream:
            self._put_headers(self._outline.kept, is_incomplete=False)
        else:
            # Room on the disk for headers, which may be needed when there is none left.
            self._sink.write_at(ELF_HEADER_BYTES, [bytes(self._notes_at - ELF_HEADER_BYTES)])
            self._put_headers(self._make_held(), is_incomplete=True)
        self._sink.write_at(self._notes_at, [self._outline.notes])

    def make_encoder(self) -> Encoder:
        """Make an encoder, which leaves pages as they are."""
        return _leave_as_is

    def write(self, batch: EncodedBatch) -> None:
        """Write the pages of a batch to their places; nothing is written for pages of zeroes."""
        stored = np.flatnonzero(batch.sizes)
        ranks = self._outline.kept.ranks(batch.pfns[stored])
        cursor = _Cursor(batch.data)
        edges = [0, *(np.flatnonzero(np.diff(ranks) != 1) + 1).tolist(), len(stored)]
        for first, last in pairwise(edges):
            if first < last:
                offset = self._data_at + int(ranks[first]) * self._page_size
                self._sink.write_at(offset, list(cursor.take((last - first) * self._page_size)))
        self._hold(batch.pfns[~batch.is_lost])
        self._unclaimed_bytes += len(stored) * self._page_size
        if self._unclaimed_bytes >= self._refresh_at and not self._sink.is_stream:
            self._refresh()

    def finish(self, *, complete: bool, eraseinfo: bytes = b"") -> None:  # noqa: ARG002 - the format has no place for it
        """
        Write the headers as they are to be.

        The format has no place for erase info; it is left out.
        """
        held = self._make_held()
        rows = self._program_headers(held)
        shortest = 2
        while len(rows) + 1 > self._room:
            held = _without_short_runs(held, shortest)
            rows = self._program_headers(held)
            shortest *= 2
        self.given_up_pages = self._make_held().count - held.count
        self._sink.extend(self._data_at + self._outline.kept.count * self._page_size)
        if complete:
            # Pages reach the disk before the word that they are there.
            self._sink.flush()
        if not (self._sink.is_stream and complete and held.count == self._outline.kept.count):
            self._put_headers(held, is_incomplete=not complete)

    def _refresh(self) -> None:
        """Claim what has been written so far, less and less often."""
        self._refresh_at += self._refresh_at // 4
        self._unclaimed_bytes = 0
        held = self._make_held()
        if len(self._program_headers(held)) + 1 <= self._room:
            self._put_headers(held, is_incomplete=True)

    def _put_headers(self, held: FrameSet, *, is_incomplete: bool) -> None:
        rows = self._program_headers(held)
        note = np.zeros(1, dtype=self._dtype)
        note["type"] = PT_NOTE
        note["offset"] = self._notes_at
        note["filesz"] = note["memsz"] = len(self._outline.notes)
        count = len(rows) + 1
        header = encode_elf_header(
            self._machine,
            program_header_count=count,
            section_header_offset=self._section_at,
            is_incomplete=is_incomplete,
        )
        self._sink.write_at(self._section_at, [encode_section_zero(count)])
        self._sink.write_at(0, [header, note.tobytes(), rows.tobytes()])

    def _program_headers(self, held: FrameSet) -> NDArray[np.void]:
        """Describe all pieces of memory, as far as *held* is in the file."""
        runs = held.runs()
        parts = [self._describe_piece(runs, *piece) for piece in self._pieces]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=self._dtype)

    def _describe_piece(self, runs: NDArray[np.int64], start: int, end: int, vaddr: int) -> NDArray[np.void]:
        """Describe the frames ``[start, end)``: each run of those held reaches in memory up to the next."""
        first = int(np.searchsorted(runs[:, 1], start, side="right"))
        last = int(np.searchsorted(runs[:, 0], end, side="left"))
        starts = np.maximum(runs[first:last, 0], start)
        ends = np.minimum(runs[first:last, 1], end)
        if not len(starts) or starts[0] > start:
            starts = np.concatenate([[start], starts])
            ends = np.concatenate([[start], ends])
        rows = np.zeros(len(starts), dtype=self._dtype)
        size = self._page_size
        rows["type"] = PT_LOAD
        rows["flags"] = _ALL_ACCESS
        rows["offset"] = self._data_at + self._outline.kept.ranks(starts.astype(np.uint64)) * size
        rows["paddr"] = starts * size
        if vaddr:
            rows["vaddr"] = (starts - start).astype(np.uint64) * np.uint64(size) + np.uint64(vaddr)
        rows["filesz"] = (ends - starts) * size
        rows["memsz"] = (np.append(starts[1:], end) - starts) * size
        return rows

    def _hold(self, pfns: NDArray[np.uint64]) -> None:
        """Remember that frames, in rising order, are in the file."""
        if not len(pfns):
            return
        places = (pfns >> np.uint64(3)).astype(np.int64)
        bits = np.left_shift(np.uint8(1), (pfns & np.uint64(7)).astype(np.uint8))
        firsts = np.concatenate([[0], np.flatnonzero(np.diff(places)) + 1])
        self._held[places[firsts]] |= np.bitwise_or.reduceat(bits, firsts)

    def _make_held(self) -> FrameSet:
        return FrameSet(self._held, self._outline.kept.limit)


def _choose_data_offset(offset: int, page_size_bytes: int) -> int:
    """
    Choose where the first page is to lie: not on a page boundary of the file.

    makedumpfile (1.7.8) maps aligned pages, and is killed by SIGSEGV where
    memory without contents follows them; it never aligns its own.
    """
    offset = -(-offset // 8) * 8
    return offset if offset % page_size_bytes else offset + 8


class _Cursor:
    """Take bytes from parts, one after the other."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = iter(parts)
        self._rest = memoryview(b"")

    def take(self, size_bytes: int) -> Iterator[memoryview]:
        while size_bytes:
            if not len(self._rest):
                self._rest = next(self._parts)
            part = self._rest[:size_bytes]
            self._rest = self._rest[len(part) :]
            size_bytes -= len(part)
            yield part


def _leave_as_is(batch: PageBatch) -> EncodedBatch:
    """Refer to the pages where they are, neighbours together."""
    count, page_size = batch.pages.shape
    is_stored = ~(batch.is_zero | batch.is_lost)
    sizes = is_stored.astype(np.uint32) * np.uint32(page_size)
    flat = batch.pages.reshape(-1).data
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_stored, [False]]))) * page_size
    data = [flat[first:last] for first, last in edges.reshape(-1, 2).tolist()]
    return EncodedBatch(batch.pfns, batch.is_zero, batch.is_lost, sizes, np.zeros(count, dtype=np.uint32), data)


def _without_short_runs(frames: FrameSet, shortest: int) -> FrameSet:
    runs = frames.runs()
    return FrameSet.from_runs(runs[runs[:, 1] - runs[:, 0] >= shortest], frames.limit)
