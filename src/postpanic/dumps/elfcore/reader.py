"""
Read ELF vmcores: /proc/vmcore, ``makedumpfile -E``, QEMU's dump-guest-memory.

Physical memory is what PT_LOAD segments say by ``p_paddr``; what lies between
``p_filesz`` and ``p_memsz`` was left out, without a word whether it was
excluded or all zero. Segments may overlap: kexec describes the kernel's text
twice, QEMU's paging mode a frame as often as it is mapped.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Self

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.elfcore.layout import (
    MAX_PROGRAM_HEADERS,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    decode_elf_header,
    decode_program_headers,
    machine_name,
)
from postpanic.dumps.extents import resolve_overlaps
from postpanic.dumps.memory import DumpDescription, PageState, VirtualSegment, ranges_from_pairs
from postpanic.dumps.notes import MAX_NOTES_BYTES, detect_user_core, detect_vmcoreinfo
from postpanic.dumps.paged import PagedMemory
from postpanic.dumps.source import ByteSource
from postpanic.errors import CorruptError, NotADumpError, TruncatedError, UnsupportedError
from postpanic.units import PhysAddr, VirtAddr, format_size

__all__ = ["ElfCoreReader"]

_PADDR_LIMIT = 1 << 62
"""No architecture has physical addresses of more than 56 bits; sums below this cannot overflow an int64."""

_MAX_SEGMENTS_DESCRIBED = 1 << 16
_PRESENT = np.uint8(PageState.PRESENT)
_PAGESIZE_LINE = re.compile(rb"^PAGESIZE=(\d{1,9})$", re.MULTILINE)
_PAGE_SIZES = frozenset(1 << shift for shift in range(12, 21))
_DEFAULT_PAGE_SIZES = {"ppc64": 65536, "sparc64": 8192, "alpha": 8192, "ia64": 16384, "loongarch64": 16384}


class ElfCoreReader(PagedMemory):
    """
    An open ELF vmcore.

    A frame of which the file describes only a part is ``PRESENT`` when the
    file holds all of that part; the rest of the frame, which is not RAM, is
    zero in :meth:`read_pages` and an error in :meth:`read`.

    Raises
    ------
    TruncatedError
        If the ELF header or the program headers are cut.
    NotADumpError
        If it is another ELF file, or the core of a process.
    CorruptError
        If the headers make no sense.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        name = source.name
        header = decode_elf_header(source.read(0, 64), where=name)
        self._warnings: list[str] = []
        self._faults: list[str] = [source.incomplete] if source.incomplete else []
        table = _read_program_headers(source, header)
        notes = self._read_notes(table)
        machine = machine_name(header.machine, is_64bit=header.is_64bit)
        vmcoreinfo = detect_vmcoreinfo(notes, byte_order=header.byte_order)
        loads = table[table["type"] == PT_LOAD]
        _refuse_user_core(loads, notes, header, name)
        super().__init__(self._choose_page_size(vmcoreinfo, machine), name)
        self._map_memory(loads)
        if header.is_incomplete:
            self._faults.append("marked incomplete by its writer")
        segments = self._virtual_segments(loads)
        container = f"{source.container} " if source.container else ""
        self.description = DumpDescription(
            format=f"{container}ELF vmcore",
            paths=(name,),
            machine=machine,
            byte_order=header.byte_order,
            page_size_bytes=self._page_size,
            file_size_bytes=source.file_size_bytes,
            incomplete="; ".join(self._faults),
            has_holes=bool((loads["filesz"] < loads["memsz"]).any()),
            is_stream=bool(source.container),
            warnings=tuple(self._warnings),
            vmcoreinfo=vmcoreinfo,
            notes=notes,
            segments=segments,
        )

    @property
    def ram_ranges(self) -> NDArray[np.uint64]:
        """All RAM the program headers describe, saved or not."""
        return self._ram_ranges

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def page_states(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """State of each frame; a frame with a part missing counts as missing."""
        return self._locate(pfns)[0]

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """
        Read whole pages into a buffer; safe to call from several threads, as nothing is cached.

        Returns
        -------
        states : ndarray of uint8, shape (len(pfns),)
        """
        offset = self._locate_run(pfns)
        if offset >= 0:
            states = np.full(len(pfns), _PRESENT)
            self._read_run(offset, pages, states)
            return states
        states, offsets = self._locate(pfns)
        if np.any(offsets < 0):
            pages[offsets < 0] = 0
        rows = np.flatnonzero(offsets >= 0)
        if len(rows):
            wanted = offsets[rows]
            order = np.argsort(wanted, kind="stable")
            rows, wanted = rows[order], wanted[order]
            breaks = np.flatnonzero((wanted[1:] - wanted[:-1] != self._page_size) | (rows[1:] - rows[:-1] != 1)) + 1
            firsts = np.concatenate([[0], breaks])
            counts = np.concatenate([breaks, [len(rows)]]) - firsts
            self._read_runs(rows[firsts].tolist(), counts.tolist(), wanted[firsts].tolist(), pages, states)
        for row in np.flatnonzero((offsets < 0) & (states == PageState.PRESENT)).tolist():
            if not self._read_ragged(int(pfns[row]), pages[row]):
                states[row] = PageState.LOST
                pages[row] = 0
        return states

    def _read_runs(
        self,
        rows: list[int],
        counts: list[int],
        offsets: list[int],
        pages: NDArray[np.uint8],
        states: NDArray[np.uint8],
    ) -> None:
        """Read runs of adjacent pages; where they are short, more goes into finding one's way than into reading."""
        size = self._page_size
        read_into, everything = self._source.read_into, pages.reshape(-1).data
        for row, count, offset in zip(rows, counts, offsets, strict=True):
            if read_into(offset, everything[row * size : (row + count) * size]) != count * size:
                self._read_run(offset, pages[row : row + count], states[row : row + count])

    def _read_run(self, offset: int, pages: NDArray[np.uint8], states: NDArray[np.uint8]) -> None:
        """Read pages that are adjacent in the file; a page that cannot be read costs no other."""
        done = 0
        while done < len(pages):
            start = offset + done * self._page_size
            done += self._source.read_into(start, pages[done:].reshape(-1).data) // self._page_size
            if done == len(pages):
                return
            is_end = offset + (done + 1) * self._page_size > self._source.size_bytes
            bad = slice(done, None if is_end else done + 1)
            pages[bad] = 0
            states[bad] = PageState.LOST
            done = len(pages) if is_end else done + 1

    def _read_ragged(self, pfn: int, page: NDArray[np.uint8]) -> bool:
        """Put together a frame that more than one piece, or less than a page, describes."""
        base = pfn << self._shift
        index = max(bisect_right(self._starts_view, base) - 1, 0)
        while index < len(self._starts_view) and self._starts_view[index] < base + self._page_size:
            start = max(self._starts_view[index], base)
            end = min(self._ends_view[index], base + self._page_size)
            if start < end:
                data = self._source.read(self._offsets_view[index] + start - self._starts_view[index], end - start)
                if len(data) < end - start:
                    return False
                page[start - base : end - base] = np.frombuffer(data, dtype=np.uint8)
            index += 1
        return True

    def _load_page(self, pfn: int) -> bytes | PageState:
        pages, states = self.read_pages(np.array([pfn], dtype=np.uint64))
        return PageState(int(states[0])) if states[0] else pages[0].tobytes()

    def _read_uncached(self, paddr: int, size_bytes: int) -> bytes:
        """Read exactly the bytes that segments describe, across pieces; keep whole pages of small reads."""
        self._check_range(paddr, size_bytes)
        parts: list[bytes] = []
        end = paddr + size_bytes
        while paddr < end:
            index = bisect_right(self._starts_view, paddr) - 1
            if index < 0 or paddr >= self._ends_view[index]:
                raise self._absent(paddr, PageState.ABSENT)
            state = self._states_view[index]
            if state != PageState.PRESENT:
                raise self._absent(paddr, state)
            start, stop = self._starts_view[index], self._ends_view[index]
            offset = self._offsets_view[index] - start
            base = paddr & ~self._mask
            if end <= base + self._page_size and start <= base and base + self._page_size <= stop:
                page = self._source.read(offset + base, self._page_size)
                if len(page) == self._page_size:
                    self._keep(base >> self._shift, page)
                    parts.append(page[paddr - base : end - base])
                    break
            wanted = min(end, stop) - paddr
            data = self._source.read(offset + paddr, wanted)
            parts.append(data)
            paddr += len(data)
            if len(data) < wanted:
                raise self._absent(paddr, PageState.LOST)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _locate_run(self, pfns: NDArray[np.uint64]) -> int:
        """File offset of frames that follow each other in one piece of contents, as most do; -1 for others."""
        count = len(pfns)
        if not count or int(pfns[-1]) - int(pfns[0]) != count - 1 or int(pfns[0]) >= (_PADDR_LIMIT >> self._shift):
            return -1
        if not (pfns[1:] - pfns[:-1] == 1).all():
            return -1
        base = int(pfns[0]) << self._shift
        index = bisect_right(self._starts_view, base) - 1
        if index < 0 or self._states_view[index] != PageState.PRESENT:
            return -1
        if base + count * self._page_size > self._ends_view[index]:
            return -1
        return int(self._offsets_view[index]) + base - int(self._starts_view[index])

    def _locate(self, pfns: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """State of each frame, and its file offset; -1 unless it is present in one piece."""
        states = np.full(len(pfns), PageState.ABSENT, dtype=np.uint8)
        offsets = np.full(len(pfns), -1, dtype=np.int64)
        if not len(self._starts) or not len(pfns):
            return states, offsets
        possible = np.flatnonzero(pfns < (_PADDR_LIMIT >> self._shift))
        bases = pfns[possible].astype(np.int64) << self._shift
        index = np.searchsorted(self._starts, bases, side="right") - 1
        safe = np.maximum(index, 0)
        inside = (index >= 0) & (bases + self._page_size <= self._ends[safe])
        kinds = self._states[safe]
        states[possible[inside]] = kinds[inside]
        whole = inside & (kinds == PageState.PRESENT)
        offsets[possible[whole]] = (self._offsets[safe] + bases - self._starts[safe])[whole]
        # The others have no piece at all, or several, or less than a page.
        touched = np.searchsorted(self._starts, bases + self._page_size, side="left") - 1
        partly = ~inside & (touched >= 0) & (self._ends[np.maximum(touched, 0)] > bases)
        for row in np.flatnonzero(partly).tolist():
            states[possible[row]] = self._ragged_state(int(bases[row]))
        return states, offsets

    def _ragged_state(self, base: int) -> PageState:
        """State of a frame that several pieces share: the worst of them."""
        found = {PageState.PRESENT}
        index = max(bisect_right(self._starts_view, base) - 1, 0)
        while index < len(self._starts_view) and self._starts_view[index] < base + self._page_size:
            if self._ends_view[index] > base:
                found.add(PageState(self._states_view[index]))
            index += 1
        return max(found)

    def _map_memory(self, loads: NDArray[np.void]) -> None:
        """Turn program headers into disjoint pieces of physical memory."""
        paddr, memsz, filesz, offset = (loads[name] for name in ("paddr", "memsz", "filesz", "offset"))
        # /proc/kcore and some tools write -1 where a segment has no physical address.
        unplaced = paddr == np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        limit = np.uint64(_PADDR_LIMIT)
        sane = (paddr < limit) & (memsz < limit) & (filesz < limit) & (offset < limit) & ~unplaced
        broken = int(np.count_nonzero(~sane & ~unplaced & (memsz > 0)))
        if broken:
            self._warnings.append(f"{broken} of {len(loads)} PT_LOAD segments have impossible addresses or sizes")
            self._faults.append(f"{broken} PT_LOAD segments cannot be read")
        start, size, file_size, file_offset = (
            column[sane].astype(np.int64) for column in (paddr, memsz, filesz, offset)
        )
        if np.any(file_size > size):
            self._warnings.append("segments larger in the file than in memory: the excess is ignored")
            file_size = np.minimum(file_size, size)
        there = np.clip(self._source.size_bytes - file_offset, 0, file_size)
        missing = int((file_size - there).sum())
        if missing > 0:
            self._faults.append(f"the file ends early: {format_size(missing)} of memory are missing")
        # Rising precedence: holes, what was cut, contents; among contents the first program header wins.
        starts = np.concatenate([start + file_size, start + there, start[::-1]])
        ends = np.concatenate([start + size, start + file_size, (start + there)[::-1]])
        states = np.repeat(np.array([PageState.HOLE, PageState.LOST, PageState.PRESENT], dtype=np.uint8), len(start))
        shifts = np.concatenate([np.zeros(2 * len(start), dtype=np.int64), (file_offset - start)[::-1]])
        piece_starts, piece_ends, owners = resolve_overlaps(starts, ends, where=self._name)
        self._set_pieces(piece_starts, piece_ends, states[owners], shifts[owners])
        self._ram_ranges = ranges_from_pairs(list(zip(self._starts.tolist(), self._ends.tolist(), strict=True)))

    def _set_pieces(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64], states: NDArray[np.uint8], shifts: NDArray[np.int64]
    ) -> None:
        """Keep pieces, joined where one goes on in the next."""
        if len(starts):
            joins = (starts[1:] == ends[:-1]) & (states[1:] == states[:-1])
            joins &= (shifts[1:] == shifts[:-1]) | (states[1:] != PageState.PRESENT)
            first = np.concatenate([[True], ~joins])
            last = np.concatenate([~joins, [True]])
            starts, ends, states, shifts = starts[first], ends[last], states[first], shifts[first]
        self._starts, self._ends, self._states, self._offsets = starts, ends, states, starts + shifts
        # bisect on a memoryview makes plain integers: faster than numpy for a single address.
        self._starts_view, self._ends_view = starts.data, ends.data
        self._states_view, self._offsets_view = states.data, self._offsets.data

    def _read_notes(self, table: NDArray[np.void]) -> bytes:
        """Read all notes, each PT_NOTE padded to 4 bytes."""
        parts: list[bytes] = []
        room = MAX_NOTES_BYTES
        for entry in table[table["type"] == PT_NOTE][:MAX_PROGRAM_HEADERS]:
            size = int(entry["filesz"])
            if size > room:
                self._warnings.append(f"notes of {format_size(size)}, only {format_size(room)} are read")
            data = self._source.read(int(entry["offset"]), min(size, room))
            if len(data) < min(size, room):
                self._faults.append("the notes are cut")
            parts.append(data + bytes(-len(data) % 4))
            room -= len(parts[-1])
            if room <= 0:
                break
        return b"".join(parts)

    def _choose_page_size(self, vmcoreinfo: bytes, machine: str) -> int:
        """Take the page size of VMCOREINFO, else the usual one of the machine."""
        line = _PAGESIZE_LINE.search(vmcoreinfo)
        if line and int(line[1]) in _PAGE_SIZES:
            return int(line[1])
        if line:
            self._warnings.append(f"VMCOREINFO has PAGESIZE={int(line[1])}, which no kernel has")
        usual = _DEFAULT_PAGE_SIZES.get(machine, 4096)
        if machine in _DEFAULT_PAGE_SIZES or machine in ("aarch64", "mips64"):
            self._warnings.append(f"no page size in the file, {usual} is assumed")
        return usual

    def _virtual_segments(self, loads: NDArray[np.void]) -> tuple[VirtualSegment, ...]:
        """Segments with a virtual address; QEMU leaves all of them 0."""
        mapped = loads[(loads["vaddr"] != 0) & (loads["memsz"] > 0) & (loads["paddr"] < np.uint64(_PADDR_LIMIT))]
        if len(mapped) > _MAX_SEGMENTS_DESCRIBED:
            self._warnings.append(f"{len(mapped)} virtual segments, the first {_MAX_SEGMENTS_DESCRIBED} are kept")
        return tuple(
            VirtualSegment(VirtAddr(int(entry["vaddr"])), PhysAddr(int(entry["paddr"])), int(entry["memsz"]))
            for entry in mapped[:_MAX_SEGMENTS_DESCRIBED]
        )


def _read_program_headers(source: ByteSource, header: ElfHeader) -> NDArray[np.void]:
    """Read the program header table, its length checked against the file."""
    name = source.name
    count = header.program_header_count
    if header.has_extended_count:
        place, form = header.section_info_place
        raw = source.read(place, form.size)
        if len(raw) < form.size:
            raise TruncatedError("the section header with the number of segments is cut", where=f"{name}+{place:#x}")
        count = form.unpack(raw)[0]
    if count == 0:
        raise CorruptError("no program headers: a core file without memory", where=name)
    if count > MAX_PROGRAM_HEADERS:
        raise UnsupportedError(
            f"{count} program headers, at most {MAX_PROGRAM_HEADERS} can be read",
            where=name,
            hint="with QEMU, dump without paging (-p)",
        )
    offset, size = header.program_header_offset, count * header.program_header_size
    raw = source.read(offset, size)
    if len(raw) < size:
        raise TruncatedError(
            f"the program header table is cut: {len(raw)} of {size} bytes", where=f"{name}+{offset:#x}"
        )
    return decode_program_headers(raw, header)


def _refuse_user_core(loads: NDArray[np.void], notes: bytes, header: ElfHeader, name: str) -> None:
    if detect_user_core(notes, byte_order=header.byte_order):
        raise NotADumpError(
            "the core of a process, not of a kernel",
            where=name,
            hint="open it with gdb or coredumpctl",
        )
    if len(loads) == 0:
        raise CorruptError("no PT_LOAD segment: a core file without memory", where=name)
    if len(loads) > 1 and not loads["paddr"].any() and loads["vaddr"].all():
        raise NotADumpError(
            f"none of {len(loads)} segments has a physical address: the core of a process?",
            where=name,
            hint="open it with gdb or coredumpctl",
        )
