"""
Read thousands of small structures that lie anywhere in kernel memory.

One structure at a time costs a page walk and the decompression of a page each.
Here the pages under all of them are found first, and read in batches, each once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from postpanic.dumps.memory import PageState
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import NOT_MAPPED
from postpanic.units import VirtAddr

__all__ = ["read_scattered"]

_BATCH_PAGES = 4096
"""16 MiB of pages of 4 KiB are held at a time."""
_REGION_PAGES = 512
_WORTH_A_REGION = 4
"""So many pages of a region are dearer one by one than the whole region at once."""


def read_scattered(memory: KernelMemory, vaddrs: Sequence[int], size_bytes: int) -> list[bytes | None]:
    """
    Read *size_bytes* at each kernel address.

    Returns
    -------
    list of bytes or None
        In the order of the addresses; None where a part is not mapped or not in the dump.
    """
    page_bytes = memory.page_size_bytes
    found: list[bytes | None] = [None] * len(vaddrs)
    for places in _batches(vaddrs, size_bytes, page_bytes):
        pages = _read_pages(
            memory, sorted({page for place in places for page in _span(vaddrs[place], size_bytes, page_bytes)})
        )
        for place in places:
            found[place] = _cut(pages, vaddrs[place], size_bytes, page_bytes)
    return found


def _span(vaddr: int, size_bytes: int, page_bytes: int) -> range:
    return range(vaddr // page_bytes, (vaddr + max(size_bytes, 1) - 1) // page_bytes + 1)


def _batches(vaddrs: Sequence[int], size_bytes: int, page_bytes: int) -> Iterator[list[int]]:
    # Neighbours share pages, so the batches follow the addresses.
    order = sorted(range(len(vaddrs)), key=vaddrs.__getitem__)
    step = max(1, _BATCH_PAGES // (size_bytes // page_bytes + 2))
    for start in range(0, len(order), step):
        yield order[start : start + step]


def _read_pages(memory: KernelMemory, pages: Sequence[int]) -> dict[int, bytes]:
    """Read pages by their virtual page number; those that cannot be had are not in the result."""
    frame_bytes = memory.physical.page_size_bytes
    page_bytes = memory.page_size_bytes
    places = _translate(memory, pages)
    mapped = list(places)
    if not mapped:
        return {}
    if frame_bytes != page_bytes:
        return _read_one_by_one(memory, mapped)
    contents, states = memory.physical.read_pages(
        np.array(list(places.values()), dtype=np.uint64) // np.uint64(frame_bytes)
    )
    present = states == PageState.PRESENT
    return {page: contents[row].tobytes() for row, page in enumerate(mapped) if present[row]}


def _translate(memory: KernelMemory, pages: Sequence[int]) -> dict[int, int]:
    """Translate virtual page numbers; where many are near each other, in one go."""
    found: dict[int, int] = {}
    page_bytes = memory.page_size_bytes
    for region, near in groupby(pages, key=lambda page: page // _REGION_PAGES):
        group = list(near)
        table = None
        if len(group) >= _WORTH_A_REGION:
            table = memory.tables.translate_pages(VirtAddr(region * _REGION_PAGES * page_bytes), _REGION_PAGES)
        for page in group:
            paddr = NOT_MAPPED if table is None else int(table[page % _REGION_PAGES])
            if paddr == NOT_MAPPED:
                try:
                    paddr = memory.translate(VirtAddr(page * page_bytes))
                except PostpanicError:
                    continue
            found[page] = paddr
    return found


def _read_one_by_one(memory: KernelMemory, pages: Sequence[int]) -> dict[int, bytes]:
    found = {}
    for page in pages:
        try:
            found[page] = memory.read(page * memory.page_size_bytes, memory.page_size_bytes)
        except PostpanicError:
            continue
    return found


def _cut(pages: dict[int, bytes], vaddr: int, size_bytes: int, page_bytes: int) -> bytes | None:
    parts = []
    for page in _span(vaddr, size_bytes, page_bytes):
        if page not in pages:
            return None
        parts.append(pages[page])
    start = vaddr % page_bytes
    return b"".join(parts)[start : start + size_bytes]
