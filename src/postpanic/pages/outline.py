"""What the headers of a written dump say, taken from the dump that is read and the kernel in it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from postpanic.dumps.memory import Dump, VirtualSegment
from postpanic.dumps.notes import count_cpus
from postpanic.dumps.writing import DumpOutline
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.x86_64 import START_KERNEL_MAP
from postpanic.kernel.uts import read_utsname
from postpanic.pages.selection import Selection
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["make_outline"]

_WORD = (1 << 64) - 1
_DIRECT_MAP_LIMIT = 1 << 63
_HUGE_PAGE_MASK = (2 << 20) - 1


def make_outline(
    dump: Dump, kernel: KernelMemory | None, selection: Selection, *, pfn_range: tuple[int, int] | None = None
) -> DumpOutline:
    """
    Collect what a writer needs before the first page.

    Parameters
    ----------
    kernel : KernelMemory, optional
        Where the names of the machine are read that the source's headers lack.
    pfn_range : tuple of int, optional
        ``[start, end)`` of one part of a split set.
    """
    description = dump.description
    names = dict(description.utsname)
    if kernel is not None and not names:
        with contextlib.suppress(PostpanicError):
            names = asdict(read_utsname(kernel))
    if description.machine:
        names.setdefault("machine", description.machine)
    crash_time_s = kernel.vmcoreinfo.crash_time_s if kernel is not None else None
    phys_base = description.phys_base
    if kernel is not None:
        phys_base = kernel.vmcoreinfo.get_number("phys_base") if phys_base is None else phys_base
    return DumpOutline(
        machine=description.machine or names.get("machine", ""),
        page_size_bytes=dump.page_size_bytes,
        ram=selection.ram,
        kept=selection.kept,
        dump_level=selection.level | (description.dump_level or 0),
        vmcoreinfo=description.vmcoreinfo,
        notes=description.notes,
        utsname=names,
        timestamp_s=description.timestamp_s or crash_time_s or 0,
        cpu_count=max(count_cpus(description.notes, byte_order=description.byte_order), 1),
        phys_base=phys_base or 0,
        segments=description.segments or _find_segments(dump, kernel),
        pfn_range=pfn_range,
    )


def _find_segments(dump: Dump, kernel: KernelMemory | None) -> tuple[VirtualSegment, ...]:
    """
    Find the virtual ranges that ``/proc/vmcore`` would describe: the kernel image and the direct map.

    A kdump-compressed file has none. The kernel's ``mem_section`` lies in the
    direct map (``memblock_alloc()``, ``mm/sparse.c``), so the difference of its
    two addresses is that of the whole map.
    """
    if kernel is None or kernel.machine != "x86_64":
        return ()
    segments: list[VirtualSegment] = []
    with contextlib.suppress(PostpanicError):
        root = kernel.vmcoreinfo.get_symbol("mem_section")
        if root is not None:
            pointer = root if root < START_KERNEL_MAP else VirtAddr(kernel.read_u64(root))
            offset = pointer - kernel.tables.translate(pointer)
            if offset >= _DIRECT_MAP_LIMIT and not offset & _HUGE_PAGE_MASK:
                segments.extend(
                    VirtualSegment(VirtAddr(offset + start), PhysAddr(start), end - start)
                    for start, end in dump.ram_ranges.tolist()
                    if offset + end <= _WORD
                )
    start, end = kernel.layout.image_range
    segments.append(VirtualSegment(start, PhysAddr((start - kernel.layout.image_voffset) & _WORD), end - start))
    return tuple(segments)
