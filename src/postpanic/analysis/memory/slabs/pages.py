"""All slabs, found by their ``struct page``: those that are on no list, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.memory.page_structs import PageBlock, PageStructs
from postpanic.analysis.memory.slabs.allocator import SlabAllocator
from postpanic.analysis.memory.slabs.layout import BitField
from postpanic.analysis.workspace import Workspace

__all__ = ["FoundSlabs", "find_all_slabs"]


@dataclass(frozen=True)
class FoundSlabs:
    """The slabs of one cache: first frame, number of objects and objects in use of each, by rising frame."""

    pfns: NDArray[np.int64]
    objects: NDArray[np.int64]
    inuse: NDArray[np.int64]


def find_all_slabs(workspace: Workspace, structs: PageStructs, allocator: SlabAllocator) -> dict[int, FoundSlabs]:
    """Find the slabs of all caches, by the address of the cache; remembered for the session."""
    return workspace.once("slabs by struct page", lambda: _find(structs, allocator))


def _find(structs: PageStructs, allocator: SlabAllocator) -> dict[int, FoundSlabs]:
    layout = allocator.layout.slab
    parts: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    for block in structs.blocks():
        rows = np.flatnonzero(structs.are_slabs(block))
        if not len(rows):
            continue
        slabs = PageBlock(block.first_pfn, block.rows[rows], block.present[rows])
        pfns = rows.astype(np.int64) + block.first_pfn
        parts.append((slabs.u64(layout.cache), pfns, _field(slabs, layout.objects), _field(slabs, layout.inuse)))
    if not parts:
        return {}
    caches, pfns, objects, inuse = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(caches, kind="stable")
    caches, pfns, objects, inuse = caches[order], pfns[order], objects[order], inuse[order]
    owners, starts = np.unique(caches, return_index=True)
    ends = np.append(starts[1:], len(caches))
    return {
        int(owner): FoundSlabs(pfns[start:end], objects[start:end], inuse[start:end])
        for owner, start, end in zip(owners, starts, ends, strict=True)
    }


def _field(block: PageBlock, field: BitField) -> NDArray[np.int64]:
    words = block.u32(field.offset) >> np.uint32(field.shift)
    return (words & np.uint32(field.mask & 0xFFFF_FFFF)).astype(np.int64)
