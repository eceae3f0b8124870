"""
The sums of ``kmem -i``: what memory is used for, all in pages.

Sources: ``mm/show_mem.c`` (``si_meminfo``), ``fs/proc/meminfo.c``, ``mm/util.c``
(``vm_commit_limit``), ``mm/swapfile.c`` (``si_swapinfo``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drgn import Program
from drgn.helpers.linux.hugetlb import hugetlb_total_usage
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import totalram_pages, vm_commit_limit, vm_memory_committed
from drgn.helpers.linux.swap import swap_total_usage, total_swapcache_pages
from drgn.helpers.linux.vmstat import global_node_page_state, nr_free_pages

from postpanic.analysis.cells import guarded
from postpanic.analysis.memory.page_structs import PageStructs
from postpanic.findings.table import Problem

__all__ = [
    "Pool",
    "buffer_pages",
    "cached_pages",
    "commit_pages",
    "free_pages",
    "huge_pages",
    "shared_pages",
    "slab_pages",
    "swap_pages",
    "total_pages",
]


@dataclass(frozen=True)
class Pool:
    """Pages that are set aside: how many, and how many of them are free."""

    total: int
    free: int


def total_pages(prog: Program) -> int:
    """RAM that the kernel manages (``totalram_pages``)."""
    return int(totalram_pages(prog))


def free_pages(prog: Program) -> int:
    """Free pages (``NR_FREE_PAGES``)."""
    return int(nr_free_pages(prog))


def buffer_pages(prog: Program, problems: list[Problem]) -> int:
    """Pages that cache block devices (``nr_blockdev_pages``)."""
    superblock = prog["blockdev_superblock"].read_()
    inodes = list_for_each_entry("struct inode", superblock.s_inodes.address_of_(), "i_sb_list")
    return sum(int(inode.i_mapping.nrpages.value_()) for inode in guarded(inodes, "block device inodes", problems))


def cached_pages(prog: Program, buffers: int) -> int:
    """Pages of the page cache, without buffers and the swap cache (``Cached`` of /proc/meminfo)."""
    files = int(global_node_page_state(prog, prog["NR_FILE_PAGES"]))
    return max(0, files - int(total_swapcache_pages(prog)) - buffers)


def slab_pages(prog: Program) -> int:
    """
    Pages of slabs.

    The counters became those of nodes in 4.13 (385386cff4c6), and bytes by name
    in 5.9 (d42f3245c7e2); what is kept globally are pages all the same.
    """
    total = 0
    for names in (
        ("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_RECLAIMABLE"),
        ("NR_SLAB_UNRECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE"),
    ):
        item = next((prog[name] for name in names if _has(prog, name)), None)
        if item is None:
            raise LookupError(f"no counter {names[0]}")
        total += int(global_node_page_state(prog, item))
    return total


def _has(prog: Program, name: str) -> bool:
    try:
        prog[name]
    except LookupError:
        return False
    return True


def huge_pages(prog: Program) -> Pool:
    """Pages of hugetlb pools, in base pages."""
    usage = hugetlb_total_usage(prog)
    return Pool(int(usage.pages), int(usage.free_pages))


def swap_pages(prog: Program) -> Pool:
    """Pages of swap devices."""
    usage = swap_total_usage(prog)
    return Pool(int(usage.pages), int(usage.free_pages))


def commit_pages(prog: Program) -> tuple[int, int]:
    """Limit of committed address space, and what is committed."""
    return int(vm_commit_limit(prog)), int(vm_memory_committed(prog))


def shared_pages(structs: PageStructs) -> int:
    """Pages with more than one user: ``_refcount`` above 1, reserved ones and slabs left out."""
    reserved = next((1 << bit for name, bit in structs.flag_bits if name == "PG_reserved"), 0)
    total = 0
    for block in structs.blocks():
        counts = block.u32(structs.refcount_offset).view("<i4")
        flags = block.u64(structs.flags_offset)
        shared = (counts > 1) & (flags & np.uint64(reserved) == 0) & block.present & ~structs.are_slabs(block)
        total += int(np.count_nonzero(shared))
    return total
