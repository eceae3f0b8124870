"""
Where the kernel keeps the ``struct page`` of a page frame.

The kernel's memory models (``include/asm-generic/memory_model.h``) told apart
by what VMCOREINFO has: sections with a table of pointers to them (sparsemem
extreme), without one (sparsemem), one array for each node (discontiguous) or
one in all (flat). A vmemmap is nothing special here: its sections point into it,
and the page tables say where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, CorruptError, FactAbsentError
from postpanic.kernel.memory import KernelMemory
from postpanic.units import VirtAddr

__all__ = ["MemMap", "find_mem_map"]

_HAS_MEM_MAP = 1 << 1
"""``SECTION_HAS_MEM_MAP`` (``include/linux/mmzone.h``)."""
_KERNEL_HALF = np.uint64(1 << 63)
_MAX_SECTION_BITS, _MAX_PHYSMEM_BITS = 40, 58
_MAX_SECTION_BYTES = 4096
_MAX_NODES = 1 << 16
_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class MemMap:
    """
    The arrays of ``struct page``, as runs of frames.

    Attributes
    ----------
    model : str
        ``sparsemem extreme``, ``sparsemem``, ``discontiguous`` or ``flat``.
    starts, ends : ndarray of int64, shape (n,)
        Frames ``[start, end)`` of each run; sorted, disjoint.
    vaddrs : ndarray of uint64, shape (n,)
        Kernel address of the ``struct page`` of each run's first frame.
    page_bytes : int
        ``sizeof(struct page)``.
    notes : tuple of str
        What could not be read, one phrase each.
    """

    model: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    vaddrs: NDArray[np.uint64]
    page_bytes: int
    notes: tuple[str, ...] = ()

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int, VirtAddr]]:
        """Give the runs within ``[start, end)``: first frame, end, and address of the first one's ``struct page``."""
        index = int(np.searchsorted(self.ends, start, side="right"))
        while index < len(self.starts) and self.starts[index] < end:
            first = max(int(self.starts[index]), start)
            inside = (first - int(self.starts[index])) * self.page_bytes
            yield first, min(int(self.ends[index]), end), VirtAddr(int(self.vaddrs[index]) + inside)
            index += 1


def find_mem_map(kernel: KernelMemory, page_bytes: int, frame_limit: int) -> MemMap:
    """
    Find the arrays of ``struct page`` for all frames below a limit.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO has nothing of any memory model, or lacks what it needs.
    CorruptError
        If a size in VMCOREINFO is impossible.
    AbsentError
        If what leads to all of the arrays cannot be read.
    """
    info = kernel.vmcoreinfo
    if info.get_symbol("mem_section") is not None:
        return _find_sparse(kernel, page_bytes, frame_limit)
    if info.get_offset("pglist_data.node_mem_map") is not None and (
        info.get_symbol("node_data") is not None or info.get_symbol("contig_page_data") is not None
    ):
        return _find_nodes(kernel, page_bytes, frame_limit)
    mem_map = info.get_symbol("mem_map")
    if mem_map is None:
        raise FactAbsentError("VMCOREINFO has none of SYMBOL(mem_section), SYMBOL(node_data) and SYMBOL(mem_map)")
    return _from_runs("flat", [(0, frame_limit, kernel.read_u64(mem_map))], page_bytes, frame_limit)


@dataclass(frozen=True)
class _Sections:
    """What VMCOREINFO says of ``struct mem_section``."""

    kernel: KernelMemory
    struct_bytes: int
    map_offset: int
    frames: int
    """Of one section."""
    count: int
    """Sections up to the frame limit."""
    page_bytes: int


def _find_sparse(kernel: KernelMemory, page_bytes: int, frame_limit: int) -> MemMap:
    info = kernel.vmcoreinfo
    page_shift = kernel.page_size_bytes.bit_length() - 1
    bits, physical_bits = info.number("SECTION_SIZE_BITS"), info.number("MAX_PHYSMEM_BITS")
    if not page_shift <= bits <= _MAX_SECTION_BITS or not bits <= physical_bits <= _MAX_PHYSMEM_BITS:
        raise CorruptError(f"sections of {bits} bits in {physical_bits} bits of memory: no kernel has them")
    size, offset = info.size("mem_section"), info.get_offset("mem_section.section_mem_map") or 0
    if not 8 <= size <= _MAX_SECTION_BYTES or not 0 <= offset <= size - 8:
        raise CorruptError(f"struct mem_section of {size} bytes with section_mem_map at {offset}: no kernel has it")
    frames = 1 << bits - page_shift
    all_count = 1 << physical_bits - bits
    sections = _Sections(kernel, size, offset, frames, min(-(-frame_limit // frames), all_count), page_bytes)
    per_root = kernel.page_size_bytes // size
    length = info.get_length("mem_section")
    symbol = info.symbol("mem_section")
    if per_root and (length is None or length == -(-all_count // per_root)) and length != all_count:
        model, maps, unreadable = "sparsemem extreme", *_read_extreme(sections, symbol, per_root)
    else:
        model, (maps, unreadable) = "sparsemem", _read_sections(sections, symbol, 0, sections.count)
    return _from_sections(model, sections, maps, unreadable, frame_limit)


def _read_extreme(sections: _Sections, symbol: VirtAddr, per_root: int) -> tuple[NDArray[np.uint64], int]:
    """
    Read the sections through the table of roots.

    The symbol is the table's address in VMCOREINFO; in a kernel where the table
    is allocated (83e3c48729d9, "mm/sparsemem: Allocate mem_section at runtime")
    some wrote the address of the pointer to it, which a0b1280368d1 ("kdump: write
    correct address of mem_section into vmcoreinfo") set right. What makes more
    sense of the two is taken.
    """
    best, best_unreadable = _read_roots(sections, symbol, per_root)
    if not (best & np.uint64(_HAS_MEM_MAP)).any():
        try:
            table = sections.kernel.read_u64(symbol)
        except AbsentError:
            return best, best_unreadable
        if table >> 63:
            other, other_unreadable = _read_roots(sections, VirtAddr(table), per_root)
            if (other & np.uint64(_HAS_MEM_MAP)).any():
                return other, other_unreadable
    return best, best_unreadable


def _read_roots(sections: _Sections, table: VirtAddr, per_root: int) -> tuple[NDArray[np.uint64], int]:
    count = -(-sections.count // per_root)
    roots, known = _read_words(sections.kernel, table, count)
    maps = np.zeros(count * per_root, dtype=np.uint64)
    unreadable = int(np.count_nonzero(~known)) * per_root
    for number in np.flatnonzero(roots).tolist():
        root = int(roots[number])
        part = maps[number * per_root : (number + 1) * per_root]
        if not root >> 63 or root % 8:
            unreadable += per_root
            continue
        part[:], lost = _read_sections(sections, VirtAddr(root), 0, per_root)
        unreadable += lost
    return maps[: sections.count], unreadable


def _read_sections(sections: _Sections, array: VirtAddr, first: int, count: int) -> tuple[NDArray[np.uint64], int]:
    """Read ``section_mem_map`` of sections that lie one after the other; 0 and counted where it cannot be."""
    size = sections.struct_bytes
    maps = np.zeros(count, dtype=np.uint64)
    unreadable = 0
    per_read = max(_READ_BYTES // size, 1)
    for start in range(first, first + count, per_read):
        part = min(per_read, first + count - start)
        data, present = _read_available(sections.kernel, array + start * size, part * size)
        columns = slice(sections.map_offset, sections.map_offset + 8)
        whole = present.reshape(part, size)[:, columns].all(axis=1)
        words = np.ascontiguousarray(data.reshape(part, size)[:, columns]).view("<u8")[:, 0]
        maps[start - first : start - first + part] = np.where(whole, words, 0)
        unreadable += int(np.count_nonzero(~whole))
    return maps, unreadable


def _from_sections(
    model: str, sections: _Sections, maps: NDArray[np.uint64], unreadable: int, frame_limit: int
) -> MemMap:
    """
    Decode ``section_mem_map``: a biased address, with flags in its low bits.

    The kernel has made the flags more over time (``SECTION_MAP_LAST_BIT``); the
    address is that of whole pages of struct pages, so all bits below are none of it.
    """
    numbers = np.flatnonzero(maps & np.uint64(_HAS_MEM_MAP))
    flags = np.uint64(sections.kernel.page_size_bytes - 1)
    starts = numbers.astype(np.int64) * sections.frames
    with np.errstate(over="ignore"):
        vaddrs = (maps[numbers] & ~flags) + starts.astype(np.uint64) * np.uint64(sections.page_bytes)
    is_address = vaddrs & _KERNEL_HALF != 0
    unreadable += int(np.count_nonzero(~is_address))
    notes = (f"{unreadable} sections of memory have no readable struct mem_section",) if unreadable else ()
    runs = [
        (start, start + sections.frames, vaddr)
        for start, vaddr in zip(starts[is_address].tolist(), vaddrs[is_address].tolist(), strict=True)
    ]
    return _from_runs(model, runs, sections.page_bytes, frame_limit, notes)


def _find_nodes(kernel: KernelMemory, page_bytes: int, frame_limit: int) -> MemMap:
    """Read ``pglist_data`` of all nodes: discontiguous memory, or flat with a single node."""
    info = kernel.vmcoreinfo
    members = [info.offset(f"pglist_data.{name}") for name in ("node_mem_map", "node_start_pfn", "node_spanned_pages")]
    node_data = info.get_symbol("node_data")
    if node_data is None:
        model, nodes, known = "flat", np.array([info.symbol("contig_page_data")], dtype=np.uint64), np.array([True])
    else:
        length = info.get_length("node_data") or 1
        if not 0 < length <= _MAX_NODES:
            raise CorruptError(f"VMCOREINFO entry LENGTH(node_data) is {length}, must be 1 to {_MAX_NODES}")
        model, (nodes, known) = "discontiguous", _read_words(kernel, node_data, length)
    runs = []
    bad = int(np.count_nonzero(~known))
    for node in nodes[nodes != 0].tolist():
        try:
            mem_map, start, spanned = (kernel.read_u64(node + member) for member in members)
        except (AbsentError, CorruptError):
            bad += 1
            continue
        if mem_map >> 63 and start < frame_limit and spanned:
            runs.append((start, min(start + spanned, frame_limit), mem_map))
        else:
            bad += bool(mem_map)
    notes = (f"{bad} nodes have no readable pglist_data",) if bad else ()
    return _from_runs(model, runs, page_bytes, frame_limit, notes)


def _from_runs(
    model: str, runs: list[tuple[int, int, int]], page_bytes: int, frame_limit: int, notes: tuple[str, ...] = ()
) -> MemMap:
    """Join the runs that go on in the next one; of those that overlap, the part that comes first counts."""
    joined: list[list[int]] = []
    for start, end, vaddr in sorted(runs):
        if joined and start < joined[-1][1]:
            vaddr += (joined[-1][1] - start) * page_bytes
            start = joined[-1][1]
        if vaddr + (min(end, frame_limit) - start) * page_bytes > 1 << 64:
            continue
        end = min(end, frame_limit)
        if start >= end:
            continue
        if joined and joined[-1][1] == start and joined[-1][2] + (start - joined[-1][0]) * page_bytes == vaddr:
            joined[-1][1] = end
        else:
            joined.append([start, end, vaddr])
    columns = list(zip(*joined, strict=True)) or [(), (), ()]
    return MemMap(
        model,
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.int64),
        np.array(columns[2], dtype=np.uint64),
        page_bytes,
        notes,
    )


def _read_words(kernel: KernelMemory, vaddr: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Read ``unsigned long`` values as far as they are there: 0, and False, where not."""
    words = np.zeros(count, dtype=np.uint64)
    known = np.zeros(count, dtype=np.bool_)
    per_read = _READ_BYTES // 8
    for start in range(0, count, per_read):
        part = min(per_read, count - start)
        data, present = _read_available(kernel, vaddr + start * 8, part * 8)
        known[start : start + part] = present.reshape(part, 8).all(axis=1)
        words[start : start + part] = np.where(known[start : start + part], data.view("<u8"), 0)
    return words, known


def _read_available(kernel: KernelMemory, vaddr: int, size_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read what there is; nothing is there beyond 64 bits."""
    if vaddr + size_bytes > 1 << 64:
        return np.zeros(size_bytes, dtype=np.uint8), np.zeros(size_bytes, dtype=np.bool_)
    data, present = kernel.read_available(vaddr, size_bytes)
    return np.ascontiguousarray(data), present
