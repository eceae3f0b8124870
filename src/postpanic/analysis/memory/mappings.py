"""
All that a tree of page tables maps, as runs of virtual addresses that are contiguous in physical memory.

The walk takes all tables of a level at a time. From the result, every address of
a physical page can be told: its place in the direct mapping, in the image, in
areas of vmalloc.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PageState, PhysicalMemory
from postpanic.errors import AbsentError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem
from postpanic.kernel.paging.tables import NOT_MAPPED, PageTables

__all__ = ["Mappings", "read_mappings"]

_TABLES_LIMIT = 1 << 21
"""Of one level: enough for 4 TiB of pages that are mapped one by one."""
_REPEATS_LIMIT = 16
"""A table that is used oftener than that maps one page everywhere (KASAN's early shadow)."""
_TABLES_PER_READ = 2048


@dataclass(frozen=True)
class Mappings:
    """
    Runs ``[vaddr, vaddr + size)`` at ``[paddr, paddr + size)``, by rising virtual address.

    Attributes
    ----------
    vaddrs, paddrs, sizes : ndarray of uint64, shape (n,)
    """

    vaddrs: NDArray[np.uint64]
    paddrs: NDArray[np.uint64]
    sizes: NDArray[np.uint64]

    def clip(self, start: int, end: int) -> Mappings:
        """Give what lies within ``[start, end)``, *end* up to ``1 << 64``."""
        last = np.uint64(min(end - 1, (1 << 64) - 1))
        first = np.uint64(start)
        lasts = self.vaddrs + (self.sizes - np.uint64(1))
        chosen = (lasts >= first) & (self.vaddrs <= last) if end > start else np.zeros(len(self.vaddrs), dtype=bool)
        begin = np.maximum(self.vaddrs[chosen], first)
        shift = begin - self.vaddrs[chosen]
        sizes = np.minimum(lasts[chosen], last) - begin + np.uint64(1)
        return Mappings(begin, self.paddrs[chosen] + shift, sizes)

    def select(self, chosen: NDArray[np.bool_]) -> Mappings:
        """Give some of the runs."""
        return Mappings(self.vaddrs[chosen], self.paddrs[chosen], self.sizes[chosen])

    @property
    def size_bytes(self) -> int:
        """Virtual memory in all runs."""
        return int(self.sizes.sum()) if len(self.sizes) else 0


def read_mappings(tables: PageTables, memory: PhysicalMemory, problems: list[Problem], *, kernel: bool) -> Mappings:
    """
    Walk a tree of page tables.

    Parameters
    ----------
    kernel : bool
        Whether the upper half of the addresses is wanted, or the lower one.
    """
    walk = _Walk(tables, memory, problems)
    walk.run(kernel=kernel)
    return walk.merge()


class _Walk:
    def __init__(self, tables: PageTables, memory: PhysicalMemory, problems: list[Problem]) -> None:
        self._tables = tables
        self._memory = memory
        self._problems = problems
        self._leaves: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int]] = []
        self._missing = 0

    def run(self, *, kernel: bool) -> None:
        root = self._tables.levels[0]
        try:
            words = self._tables.memory.read(self._tables.root_paddr, 8 << root.index_bits)
        except AbsentError as exc:
            self._problems.append(Problem(f"the uppermost page table: {exc.message}", Reason.EXCLUDED))
            return
        entries = np.frombuffer(words, dtype="<u8").reshape(1, -1)
        vaddrs = np.zeros(1, dtype=np.uint64)
        below, paddrs = self._take(0, vaddrs, entries)
        # Addresses above the middle are sign-extended; with tables for the kernel alone (arm64) all of them are its.
        upper = ((1 << 64) - (1 << self._tables.va_bits)) & ((1 << 64) - 1)
        if self._tables.is_canonical((1 << 64) - 1 if kernel else 0):
            below, paddrs = self._half(below, paddrs, upper, kernel=kernel)
        for index in range(1, len(self._tables.levels)):
            below, paddrs = self._level(index, below, paddrs)
        if self._missing:
            text = f"{self._missing} page tables are not in the dump, what they map is left out"
            self._problems.append(Problem(text, Reason.EXCLUDED))

    def _half(
        self, vaddrs: NDArray[np.uint64], paddrs: NDArray[np.uint64], upper: int, *, kernel: bool
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Keep one half of the root's entries, and make addresses of the kernel's."""
        full = np.uint64(upper)
        signed = self._is_split()
        is_kernel = vaddrs >> np.uint64(self._tables.va_bits - 1) != 0 if signed else np.full(len(vaddrs), kernel)
        chosen = is_kernel if kernel else ~is_kernel
        self._leaves = [
            (leaf | full if kernel else leaf, where, size)
            for leaf, where, size in (
                self._choose(leaf, where, size, kernel=kernel, split=signed) for leaf, where, size in self._leaves
            )
        ]
        return (vaddrs[chosen] | full if kernel else vaddrs[chosen]), paddrs[chosen]

    def _choose(
        self, vaddrs: NDArray[np.uint64], paddrs: NDArray[np.uint64], size: int, *, kernel: bool, split: bool
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
        if not split:
            return vaddrs, paddrs, size
        is_kernel = vaddrs >> np.uint64(self._tables.va_bits - 1) != 0
        chosen = is_kernel if kernel else ~is_kernel
        return vaddrs[chosen], paddrs[chosen], size

    def _is_split(self) -> bool:
        """Tell whether one tree has both halves (x86-64), or each its own (arm64)."""
        return not self._tables.is_canonical((1 << self._tables.va_bits) - 1)

    def _take(
        self, index: int, vaddrs: NDArray[np.uint64], entries: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Note the pages among the entries of tables, and give the tables below, and what they map."""
        level = self._tables.levels[index]
        steps = np.arange(entries.shape[1], dtype=np.uint64) << np.uint64(level.shift)
        places = (vaddrs[:, None] + steps[None, :]).reshape(-1)
        flat = entries.reshape(-1)
        if index == len(self._tables.levels) - 1:
            paddrs = self._tables.decode_pages(flat)
            mapped = paddrs != np.uint64(NOT_MAPPED)
            self._leaves.append((places[mapped], paddrs[mapped], 1 << level.shift))
            return places[:0], paddrs[:0]
        is_table, is_leaf, paddrs = self._tables.decode_entries(index, flat)
        if is_leaf.any():
            self._leaves.append((places[is_leaf], paddrs[is_leaf], 1 << level.shift))
        return places[is_table], paddrs[is_table]

    def _level(
        self, index: int, vaddrs: NDArray[np.uint64], paddrs: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        level = self._tables.levels[index]
        _, inverse, counts = np.unique(paddrs, return_inverse=True, return_counts=True)
        often = counts[inverse] > _REPEATS_LIMIT if len(paddrs) else np.empty(0, dtype=bool)
        vaddrs, paddrs = vaddrs[~often], paddrs[~often]
        if len(paddrs) > _TABLES_LIMIT:
            text = f"more than {_TABLES_LIMIT} page tables of level {level.name}, the rest is left out"
            self._problems.append(Problem(text, Reason.DAMAGED))
            vaddrs, paddrs = vaddrs[:_TABLES_LIMIT], paddrs[:_TABLES_LIMIT]
        below: list[NDArray[np.uint64]] = []
        where: list[NDArray[np.uint64]] = []
        size = np.uint64(self._memory.page_size_bytes)
        for start in range(0, len(paddrs), _TABLES_PER_READ):
            part = slice(start, start + _TABLES_PER_READ)
            pages, states = self._memory.read_pages(paddrs[part] // size)
            present = states == PageState.PRESENT
            self._missing += int((~present).sum())
            entries = np.ascontiguousarray(pages[present]).view("<u8")[:, : 1 << level.index_bits]
            next_vaddrs, next_paddrs = self._take(index, vaddrs[part][present], entries)
            below.append(next_vaddrs)
            where.append(next_paddrs)
        if not below:
            return vaddrs[:0], paddrs[:0]
        return np.concatenate(below), np.concatenate(where)

    def merge(self) -> Mappings:
        """Put all pages into order, and join those that go on in the next."""
        empty = np.empty(0, dtype=np.uint64)
        if not self._leaves:
            return Mappings(empty, empty, empty)
        vaddrs = np.concatenate([leaf[0] for leaf in self._leaves])
        paddrs = np.concatenate([leaf[1] for leaf in self._leaves])
        sizes = np.concatenate([np.full(len(leaf[0]), leaf[2], dtype=np.uint64) for leaf in self._leaves])
        order = np.argsort(vaddrs, kind="stable")
        vaddrs, paddrs, sizes = vaddrs[order], paddrs[order], sizes[order]
        if not len(vaddrs):
            return Mappings(empty, empty, empty)
        joins = (vaddrs[1:] == vaddrs[:-1] + sizes[:-1]) & (paddrs[1:] == paddrs[:-1] + sizes[:-1])
        firsts = np.flatnonzero(np.concatenate([[True], ~joins]))
        totals = np.add.reduceat(sizes, firsts)
        return Mappings(vaddrs[firsts], paddrs[firsts], totals)
