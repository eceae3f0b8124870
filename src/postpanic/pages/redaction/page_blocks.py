"""All of ``struct page``, block by block, for the search for slabs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.memory import KernelMemory
from postpanic.pages.mem_map import find_mem_map
from postpanic.units import MIB

__all__ = ["StructPageBlock", "read_page_blocks"]

_BLOCK_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class StructPageBlock:
    """``struct page`` of frames that follow one another; rows that cannot be read are zeroes."""

    first_pfn: int
    rows: NDArray[np.uint8]


def read_page_blocks(kernel: KernelMemory, gaps: list[str], page_bytes: int) -> Iterator[StructPageBlock]:
    """
    Read ``struct page`` of all RAM, by rising frames.

    Parameters
    ----------
    gaps : list of str
        At the end gets a phrase if ``struct page`` of RAM could not be read.
    page_bytes : int
        ``sizeof(struct page)``.

    Raises
    ------
    AbsentError
        If what leads to the arrays is not to be had.
    CorruptError
        If the sizes that VMCOREINFO has are impossible.
    """
    frame_bytes = kernel.page_size_bytes
    ram = kernel.physical.ram_ranges.astype(np.int64).reshape(-1, 2)
    starts, ends = ram[:, 0] // frame_bytes, -(-ram[:, 1] // frame_bytes)
    limit = int(ends.max(initial=0))
    mem_map = find_mem_map(kernel, page_bytes, limit)
    covered = lost = 0
    per_block = max(_BLOCK_BYTES // page_bytes, 1)
    for extent_start, extent_end, vaddr in mem_map.extents(0, limit):
        for first in range(extent_start, extent_end, per_block):
            count = min(per_block, extent_end - first)
            pfns = np.arange(first, first + count, dtype=np.int64)
            place = np.searchsorted(starts, pfns, side="right") - 1
            is_ram = (place >= 0) & (pfns < ends[np.maximum(place, 0)])
            if not is_ram.any():
                continue
            data, present = kernel.read_available(vaddr + (first - extent_start) * page_bytes, count * page_bytes)
            readable = present.reshape(count, page_bytes).all(axis=1)
            covered += int(np.count_nonzero(is_ram))
            lost += int(np.count_nonzero(is_ram & ~readable))
            yield StructPageBlock(first, data.reshape(count, page_bytes))
    lost += int((ends - starts).sum()) - covered
    if lost:
        gaps.append(f"{lost} frames have no readable struct page: objects in them are not found")
