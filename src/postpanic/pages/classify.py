"""
Decide for every page frame whether a dump keeps it: ``struct page`` in, verdicts out.

The order of the decisions is makedumpfile's. One pass over the struct pages,
a unit of :data:`~postpanic.pages.selection.SECTION_FRAMES` at a time: the few
columns that tell are lifted out of the array, boolean arithmetic decides the
bulk, and only compound heads and free blocks are looked at one by one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import Dump, PageState
from postpanic.errors import PostpanicError, UnsupportedError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import NOT_MAPPED
from postpanic.pages.layout import PageLayout, find_page_layout
from postpanic.pages.mem_map import MemMap, find_mem_map
from postpanic.pages.selection import SECTION_FRAMES, Selection, SelectionBuilder
from postpanic.pages.verdict import FIRST_DROPPED, DumpLevel, Verdict
from postpanic.units import MIB, VirtAddr, format_size

__all__ = ["select_pages"]

DEFAULT_MEMORY_BYTES = 64 * MIB
_MAX_ORDER = 40
"""Larger compounds and free blocks than 2^40 pages are none."""
_UNIT_ORDER = SECTION_FRAMES.bit_length() - 1
_CODES = {verdict: np.uint8(verdict) for verdict in Verdict}

Progress = Callable[[int, int], None]
"""Called with the frames that are done, and with all of them."""


def select_pages(
    dump: Dump,
    kernel: KernelMemory | None,
    level: int,
    *,
    threads: int = 1,
    memory_limit_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Progress | None = None,
) -> Selection:
    """
    Decide for every page of a dump whether it is kept.

    Where the struct pages cannot be found at all, every page is kept and a note
    of the selection says why.

    Parameters
    ----------
    kernel : KernelMemory or None
        The kernel in the dump; None keeps all pages.
    level : int
        makedumpfile's ``-d`` number, see :class:`~postpanic.pages.verdict.DumpLevel`.
        Zero pages, its lowest bit, are not looked for here.
    threads : int
        How many threads scan.
    memory_limit_bytes : int
        What the selection itself (two bits and half a byte for a frame, at most) and
        the buffers of the threads may take; fewer threads are used where it is small.

    Raises
    ------
    UnsupportedError
        If the dump describes more memory than bitmaps of that size can.
    """
    ram = _find_ram(dump, memory_limit_bytes)
    builder = SelectionBuilder(level, ram)
    notes: list[str] = []
    scanner = _make_scanner(dump, kernel, level, ram, notes)
    done = 0
    pending = _Pending()
    tally = _Tally()
    for unit, found in _scan(scanner, _busy_units(ram), threads, memory_limit_bytes):
        pending.apply(unit, found)
        tally.add(found)
        builder.add(unit, found.verdicts)
        done += SECTION_FRAMES
        if progress is not None:
            progress(min(done, ram.count), ram.count)
    notes.extend(tally.describe())
    return builder.finish(tuple(notes))


def _find_ram(dump: Dump, memory_limit_bytes: int) -> FrameSet:
    """Make the set of frames that are RAM; a frame of which the dump describes a part is one."""
    shift = dump.page_size_bytes.bit_length() - 1
    ranges = dump.ram_ranges
    first = (ranges[:, 0] >> np.uint64(shift)).astype(np.int64)
    last = ((ranges[:, 1] + np.uint64(dump.page_size_bytes - 1)) >> np.uint64(shift)).astype(np.int64)
    limit = int(last.max()) if len(last) else 0
    if limit // 8 > max(memory_limit_bytes, DEFAULT_MEMORY_BYTES) * 4:
        raise UnsupportedError(
            f"memory at physical address {limit << shift:#x}: its bitmap would take {format_size(limit // 8)}",
            where=", ".join(dump.description.paths[:1]),
        )
    return FrameSet.from_runs(np.column_stack([first, last]), limit)


def _busy_units(ram: FrameSet) -> list[int]:
    """List the units that have any RAM."""
    step = SECTION_FRAMES // 8
    bits = ram.bits
    whole = len(bits) // step
    busy = np.flatnonzero(bits[: whole * step].reshape(whole, step).any(axis=1)).tolist()
    if bits[whole * step :].any():
        busy.append(whole)
    return busy


@dataclass
class _Unit:
    """What a scan found of the frames of one unit."""

    verdicts: NDArray[np.uint8]
    overflows: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that go on in later units: the end, and the verdict."""
    odd_orders: int = 0
    """Compounds and free blocks whose order cannot be right."""
    unreadable: int = 0
    """Frames with a struct page that the dump does not hold."""
    unmapped: int = 0
    """Frames without a struct page."""


class _Pending:
    """Ranges that reach beyond the unit they began in."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def apply(self, unit: int, found: _Unit) -> None:
        """Extend earlier ranges into this unit, and keep its own for later ones."""
        first = unit * SECTION_FRAMES
        if self._ranges:
            self._ranges = [(end, verdict) for end, verdict in self._ranges if end > first]
            for end, verdict in self._ranges:
                part = found.verdicts[: end - first]
                if verdict >= FIRST_DROPPED:
                    part[part != Verdict.NOT_IN_SOURCE] = verdict
                else:
                    part[part == Verdict.KERNEL] = verdict
        self._ranges.extend(found.overflows)


@dataclass
class _Tally:
    """Counts what the notes tell."""

    odd_orders: int = 0
    unreadable: int = 0
    unmapped: int = 0

    def add(self, found: _Unit) -> None:
        self.odd_orders += found.odd_orders
        self.unreadable += found.unreadable
        self.unmapped += found.unmapped

    def describe(self) -> list[str]:
        """Give one phrase for each thing that was met."""
        phrases = (
            (self.odd_orders, "compounds or free blocks have an impossible order: their pages are kept"),
            (self.unreadable, "pages are kept, their struct pages cannot be read"),
            (self.unmapped, "pages are kept, no struct page describes them"),
        )
        return [f"{count} {phrase}" for count, phrase in phrases if count]


def _scan(scanner: _Scanner, units: list[int], threads: int, memory_limit_bytes: int) -> Iterator[tuple[int, _Unit]]:
    """Scan the units, in order, on as many threads as there is memory for."""
    threads = max(1, min(threads, memory_limit_bytes // (2 * scanner.buffer_bytes), len(units)))
    if threads == 1:
        for unit in units:
            yield unit, scanner.scan(unit)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="classify") as pool:
        waiting: deque[tuple[int, Future[_Unit]]] = deque()
        try:
            for unit in units:
                waiting.append((unit, pool.submit(scanner.scan, unit)))
                if len(waiting) > 2 * threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class _Scanner:
    """Makes the verdicts of a unit when nothing but the dump itself is known."""

    buffer_bytes = MIB

    def __init__(self, dump: Dump, ram: FrameSet) -> None:
        self._dump = dump
        self._ram = ram
        self._may_lack = dump.description.has_holes or dump.description.is_paged

    def scan(self, unit: int) -> _Unit:
        found = self._decide(unit)
        if self._may_lack:
            pfns = self._ram.members(unit * SECTION_FRAMES, (unit + 1) * SECTION_FRAMES)
            states = self._dump.page_states(pfns)
            left_out = (states == PageState.EXCLUDED) | (states == PageState.HOLE)
            found.verdicts[(pfns[left_out] - np.uint64(unit * SECTION_FRAMES)).astype(np.int64)] = Verdict.NOT_IN_SOURCE
        return found

    def _decide(self, unit: int) -> _Unit:
        del unit
        return _Unit(np.full(SECTION_FRAMES, Verdict.UNKNOWN, dtype=np.uint8))


def _make_scanner(dump: Dump, kernel: KernelMemory | None, level: int, ram: FrameSet, notes: list[str]) -> _Scanner:
    """Prepare the scan of the struct pages, or say why there is none."""
    if kernel is None:
        notes.append("all pages are kept: the kernel in the dump is not known")
        return _Scanner(dump, ram)
    try:
        if kernel.page_size_bytes != dump.page_size_bytes:
            raise UnsupportedError(
                f"the kernel's pages are of {kernel.page_size_bytes} bytes, the dump's of {dump.page_size_bytes}"
            )
        layout = find_page_layout(kernel.vmcoreinfo)
        mem_map = find_mem_map(kernel, layout.size_bytes, ram.limit)
    except PostpanicError as error:
        notes.append(f"all pages are kept: {error.message}")
        return _Scanner(dump, ram)
    applied, limits = layout.limit_level(level)
    notes.extend(limits)
    notes.extend(mem_map.notes)
    return _StructPageScanner(dump, kernel, layout, mem_map, applied, ram)


@dataclass
class _Range:
    """Compounds or free blocks of one unit: where they begin in it, their orders and verdicts."""

    starts: NDArray[np.int64]
    orders: NDArray[np.int64]
    verdicts: NDArray[np.uint8]


@dataclass
class _Columns:
    """What is lifted out of the struct pages of one run of frames."""

    flags: NDArray[np.uint64] | NDArray[np.uint32]
    mapcounts: NDArray[np.uint32]
    is_odd_mapping: NDArray[np.bool_]
    """Bit 0 of ``mapping``."""
    is_tail: NDArray[np.bool_]
    is_known: NDArray[np.bool_] | None
    """None when all can be read."""


class _StructPageScanner(_Scanner):
    """Makes verdicts of struct pages."""

    def __init__(
        self,
        dump: Dump,
        kernel: KernelMemory,
        layout: PageLayout,
        mem_map: MemMap,
        level: DumpLevel,
        ram: FrameSet,
    ) -> None:
        super().__init__(dump, ram)
        self._tables = kernel.tables
        self._layout = layout
        self._mem_map = mem_map
        self._level = level
        self._page_size = dump.page_size_bytes
        self._shift = self._page_size.bit_length() - 1
        self.buffer_bytes = SECTION_FRAMES * layout.size_bytes + 2 * self._page_size
        self._local = threading.local()
        self._translating = threading.Lock()

    def _decide(self, unit: int) -> _Unit:
        first = unit * SECTION_FRAMES
        verdicts = np.full(SECTION_FRAMES, Verdict.UNKNOWN, dtype=np.uint8)
        found = _Unit(verdicts)
        is_ram = self._ram_mask(unit)
        blocks: list[_Range] = []
        poisoned: list[NDArray[np.int64]] = []
        covered = 0
        for start, end, vaddr in self._mem_map.extents(first, first + SECTION_FRAMES):
            inside = slice(start - first, end - first)
            columns, data = self._read_columns(vaddr, end - start)
            if columns is None:
                found.unreadable += int(np.count_nonzero(is_ram[inside])) if is_ram is not None else end - start
                covered += int(np.count_nonzero(is_ram[inside])) if is_ram is not None else end - start
                continue
            part_ram = None if is_ram is None else is_ram[inside]
            self._judge(columns, data, part_ram, start - first, verdicts[inside], found, blocks, poisoned)
            covered += end - start if part_ram is None else int(np.count_nonzero(part_ram))
        all_ram = SECTION_FRAMES if is_ram is None else int(np.count_nonzero(is_ram))
        found.unmapped = all_ram - covered
        _fill_blocks(found, blocks, first)
        for rows in poisoned:
            kept = rows[verdicts[rows] < FIRST_DROPPED]
            verdicts[kept] = Verdict.HWPOISON
        return found

    def _ram_mask(self, unit: int) -> NDArray[np.bool_] | None:
        """Tell which frames of the unit are RAM; None for all."""
        step = SECTION_FRAMES // 8
        bits = self._ram.bits[unit * step : (unit + 1) * step]
        if len(bits) == step and (bits == 0xFF).all():
            return None
        mask = np.zeros(SECTION_FRAMES, dtype=np.bool_)
        unpacked = np.unpackbits(bits, bitorder="little")
        mask[: len(unpacked)] = unpacked.view(np.bool_)
        return mask

    def _read_columns(self, vaddr: VirtAddr, count: int) -> tuple[_Columns | None, NDArray[np.uint8]]:
        """Read struct pages, and lift out what tells of all of them."""
        layout = self._layout
        size = layout.size_bytes
        skip = vaddr & (self._page_size - 1)
        page_count = -(-(skip + count * size) // self._page_size)
        buffer = self._buffer()[:page_count]
        with self._translating:
            paddrs = self._tables.translate_pages(VirtAddr(vaddr - skip), page_count)
        pfns = paddrs >> np.uint64(self._shift)
        is_mapped = paddrs != np.uint64(NOT_MAPPED)
        if is_mapped.all():
            states = self._dump.read_pages_into(pfns, buffer)
        else:
            states = np.full(page_count, PageState.ABSENT, dtype=np.uint8)
            pages, states[is_mapped] = self._dump.read_pages(pfns[is_mapped])
            buffer[is_mapped] = pages
        data = buffer.reshape(-1)[skip : skip + count * size]
        known = None
        if states.any():
            bad = states != PageState.PRESENT
            if bad.all():
                return None, data
            begins = skip + np.arange(count) * size
            known = ~(bad[begins >> self._shift] | bad[(begins + size - 1) >> self._shift])
        # All flags that matter are in the lower half, in every kernel there is.
        narrow = self._all_flags() < 1 << 32
        flags = _column(data, layout.flags, "<u4" if narrow else "<u8", size, count)
        if layout.mapcount is None:
            mapcounts = np.full(count, 0xFFFFFFFF, dtype=np.uint32)
        else:
            mapcounts = _column(data, layout.mapcount, "<u4", size, count)
        return _Columns(
            flags,
            mapcounts,
            _low_bits(data, layout.mapping, size, count),
            _low_bits(data, layout.head, size, count),
            known,
        ), data

    def _all_flags(self) -> int:
        layout = self._layout
        return (
            layout.lru_mask
            | layout.private_mask
            | layout.swapcache_mask
            | layout.swapbacked_mask
            | layout.slab_mask
            | layout.hwpoison_mask
            | layout.head_mask
            | layout.hugetlb_tail_mask
        )

    def _buffer(self) -> NDArray[np.uint8]:
        buffer: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = np.empty((self.buffer_bytes // self._page_size, self._page_size), dtype=np.uint8)
            self._local.buffer = buffer
        return buffer

    def _judge(  # noqa: PLR0913
        self,
        columns: _Columns,
        data: NDArray[np.uint8],
        is_ram: NDArray[np.bool_] | None,
        offset: int,
        verdicts: NDArray[np.uint8],
        found: _Unit,
        blocks: list[_Range],
        poisoned: list[NDArray[np.int64]],
    ) -> None:
        """Decide on the frames of one run."""
        layout, level = self._layout, self._level
        flags, is_tail = columns.flags, columns.is_tail
        is_one = ~is_tail
        if columns.is_known is not None:
            is_one &= columns.is_known
        if is_ram is not None:
            is_one &= is_ram

        def flag(mask: int) -> NDArray[np.bool_]:
            return np.asarray(flags & flags.dtype.type(mask) != 0)

        none = np.zeros(len(flags), dtype=np.bool_)

        slab = (
            layout.slab.matches(columns.mapcounts)
            if layout.slab
            else flag(layout.slab_mask)
            if layout.slab_mask
            else none
        )
        not_slab = ~slab
        buddy = layout.buddy.matches(columns.mapcounts) & is_one if layout.buddy else none
        if layout.slab is None:
            buddy &= not_slab
        cache = flag(layout.lru_mask)
        if layout.swapcache_mask and layout.swapbacked_mask:
            swap = layout.swapcache_mask | layout.swapbacked_mask
            cache |= flags & flags.dtype.type(swap) == swap
        anon = columns.is_odd_mapping & not_slab
        anon &= is_one
        file = cache & ~anon
        file &= is_one
        # --- heads
        heads = np.flatnonzero(flag(layout.head_mask) & is_one) if layout.head_mask else np.empty(0, np.int64)
        orders, trusted, huge = self._read_heads(columns, data, heads, offset)
        # default
        verdicts[:] = Verdict.KERNEL
        np.copyto(verdicts, _CODES[Verdict.SLAB], where=slab & is_one)
        if layout.table:
            np.copyto(verdicts, _CODES[Verdict.TABLE], where=layout.table.matches(columns.mapcounts) & is_one)
        np.copyto(verdicts, _CODES[Verdict.USER_KEPT], where=file | anon | buddy)
        if len(huge):
            verdicts[heads[huge]] = Verdict.USER_KEPT
        if layout.hwpoison_mask:
            sick = flag(layout.hwpoison_mask)
            if columns.is_known is not None:
                sick &= columns.is_known
            if sick.any():
                rows = np.flatnonzero(sick)
                verdicts[rows[is_one[rows]]] = Verdict.HWPOISON
                poisoned.append(rows + offset)
        if layout.offline:
            off = layout.offline.matches(columns.mapcounts) & is_one & not_slab
            if off.any():
                verdicts[off & (verdicts != Verdict.HWPOISON)] = Verdict.OFFLINE
        if level & DumpLevel.USER:
            np.copyto(verdicts, _CODES[Verdict.USER], where=anon)
            verdicts[heads[huge]] = Verdict.USER
        if level & (DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE):
            private = flag(layout.private_mask)
            np.copyto(verdicts, _CODES[Verdict.CACHE], where=file & ~private)
            if level & DumpLevel.CACHE_PRIVATE:
                np.copyto(verdicts, _CODES[Verdict.CACHE_PRIVATE], where=file & private)
        if level & DumpLevel.FREE and layout.unaccepted is not None and layout.free_orders:
            rows = np.flatnonzero(layout.unaccepted.matches(columns.mapcounts) & is_one)
            if len(rows):
                verdicts[rows] = Verdict.UNACCEPTED
                order = layout.free_orders - 1
                ok = (rows + offset) & ((1 << order) - 1) == 0
                verdicts[rows[~ok]] = Verdict.UNKNOWN
                found.odd_orders += int(np.count_nonzero(~ok))
                blocks.append(_Range(rows[ok] + offset, np.full(int(ok.sum()), order), verdicts[rows[ok]]))
        if level & DumpLevel.FREE:
            np.copyto(verdicts, _CODES[Verdict.FREE], where=buddy)
        # free blocks
        rows = np.flatnonzero(buddy)
        if len(rows) and layout.private is not None:
            words = data.reshape(-1, layout.size_bytes)[rows, layout.private : layout.private + 8]
            order = np.ascontiguousarray(words).view("<u8")[:, 0]
            ok = order < np.uint64(layout.free_orders or _MAX_ORDER)
            order = np.where(ok, order, 0).astype(np.int64)
            ok &= (rows + offset) & ((1 << np.minimum(order, _UNIT_ORDER)) - 1) == 0
            if not ok.all():
                verdicts[rows[~ok]] = Verdict.UNKNOWN
                found.odd_orders += int(np.count_nonzero(~ok))
            big = ok & (order > 0)
            blocks.append(_Range(rows[big] + offset, order[big], verdicts[rows[big]]))
        if len(heads):
            wrong = ~trusted & (verdicts[heads] >= FIRST_DROPPED)
            if wrong.any():
                verdicts[heads[wrong]] = Verdict.UNKNOWN
                found.odd_orders += int(np.count_nonzero(wrong))
            big = trusted & (orders > 0) & ~buddy[heads]
            blocks.append(_Range(heads[big] + offset, orders[big], verdicts[heads[big]]))
        if columns.is_known is not None:
            verdicts[~columns.is_known] = Verdict.UNKNOWN
            lost = ~columns.is_known if is_ram is None else ~columns.is_known & is_ram
            found.unreadable += int(np.count_nonzero(lost))

    def _read_heads(
        self, columns: _Columns, data: NDArray[np.uint8], heads: NDArray[np.int64], offset: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Read of compound heads the order, whether it can be right, and whether they are hugetlb pages."""
        layout = self._layout
        count = len(columns.flags)
        second = np.minimum(heads + 1, count - 1)
        pages = data.reshape(-1, layout.size_bytes)
        orders = pages[second, layout.order].astype(np.int64)
        has_second = columns.is_tail[second]
        if columns.is_known is not None:
            has_second &= columns.is_known[second]
        possible = orders <= _MAX_ORDER
        spans = 1 << np.minimum(orders, _MAX_ORDER)
        # A unit is aligned to its size; what is larger begins with it.
        aligned = (heads + offset) & (np.minimum(spans, SECTION_FRAMES) - 1) == 0
        last = np.minimum(heads + spans - 1, count - 1)
        trusted = possible & aligned & has_second & (columns.is_tail[last] | (orders == 0))
        if layout.hugetlb is not None:
            huge = layout.hugetlb.matches(columns.mapcounts[heads])
        elif layout.hugetlb_tail_mask:
            huge = columns.flags[second] & columns.flags.dtype.type(layout.hugetlb_tail_mask) != 0
        elif layout.hugetlb_dtor is not None:
            huge = pages[second, layout.hugetlb_dtor[0]] == layout.hugetlb_dtor[1]
        else:
            huge = np.zeros(len(heads), dtype=np.bool_)
        return orders, trusted, np.asarray(huge & has_second)


def _fill_blocks(found: _Unit, blocks: list[_Range], first: int) -> None:
    """Spread the verdict of each compound and free block over its pages."""
    if not blocks:
        return
    starts = np.concatenate([block.starts for block in blocks])
    orders = np.concatenate([block.orders for block in blocks])
    heads = np.concatenate([block.verdicts for block in blocks])
    verdicts = found.verdicts
    dropped = heads >= FIRST_DROPPED
    if not dropped.all():
        kept = ~dropped
        spread = verdicts.copy()
        _fill(spread, starts[kept], orders[kept], heads[kept])
        np.copyto(verdicts, spread, where=verdicts == Verdict.KERNEL)
    _fill(verdicts, starts[dropped], orders[dropped], heads[dropped])
    for index in np.flatnonzero(orders > _UNIT_ORDER).tolist():
        found.overflows.append((first + int(starts[index]) + (1 << int(orders[index])), int(heads[index])))


def _fill(
    verdicts: NDArray[np.uint8], starts: NDArray[np.int64], orders: NDArray[np.int64], values: NDArray[np.uint8]
) -> None:
    """Fill blocks, the smallest first: aligned to their sizes, one is within the other or they are apart."""
    for order in np.flatnonzero(np.bincount(orders)).tolist():
        chosen = orders == order
        order = min(order, _UNIT_ORDER)
        verdicts.reshape(-1, 1 << order)[starts[chosen] >> order] = values[chosen, None]


def _column(data: NDArray[np.uint8], offset: int, dtype: str, stride: int, count: int) -> NDArray[np.uint32]:
    """Lift a member out of an array of structures."""
    column = np.ndarray((count,), dtype=dtype, buffer=data.data, offset=offset, strides=(stride,))
    return np.ascontiguousarray(column)


def _low_bits(data: NDArray[np.uint8], offset: int | None, stride: int, count: int) -> NDArray[np.bool_]:
    """Lift the lowest bit of a little-endian member out of an array of structures."""
    if offset is None:
        return np.zeros(count, dtype=np.bool_)
    return (data[offset::stride][:count] & np.uint8(1)).view(np.bool_)
