"""
Walk page tables that lie in a dump's physical memory.

An architecture says how many levels there are and what an entry means
(:class:`PageTables`); the walk itself, for one address or for a range in bulk,
is the same everywhere: a tree of tables of 8-byte entries.
"""

from __future__ import annotations

import abc
import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PhysicalMemory
from postpanic.errors import AbsentError, TranslationError
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["NOT_MAPPED", "EntryKind", "Level", "PageTables", "Step", "Walk"]

NOT_MAPPED = (1 << 64) - 1
"""In an array of physical addresses: this page has none."""

_CACHED_TABLES = 512


class EntryKind(enum.Enum):
    """What an entry of a page table is."""

    NONE = "not present"
    """Empty, or for the kernel's own use: a swap or migration entry, say."""
    TABLE = "table"
    LEAF = "page"


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the tree."""

    name: str
    """In the kernel's words: ``PGD P4D PUD PMD PTE``."""
    shift: int
    """An entry covers ``1 << shift`` bytes."""
    index_bits: int


@dataclass(frozen=True, slots=True)
class Step:
    """One entry on the way to an address."""

    level: str
    entry_paddr: PhysAddr
    """Where the entry lies."""
    entry: int
    """The entry as it stands, 64 bits."""
    kind: EntryKind
    paddr: PhysAddr
    """Of the next table or of the page; 0 where there is neither."""
    size_bytes: int
    """How much address space the entry covers."""


@dataclass(frozen=True, slots=True)
class Walk:
    """All entries that were met on the way to an address."""

    vaddr: VirtAddr
    steps: tuple[Step, ...]
    paddr: PhysAddr | None
    """Of the byte at ``vaddr``; None when it is not mapped."""
    reason: str = ""
    """Why it is not mapped, as one phrase; empty when it is."""


class PageTables(abc.ABC):
    """
    A tree of page tables.

    Parameters
    ----------
    memory : PhysicalMemory
        Where the tables lie.
    root_paddr : int
        Physical address of the uppermost table (``pgd_t *``).
    levels : tuple of Level
        From the root down; the last one's entries are pages of the base size.
    """

    level_names: ClassVar[dict[int, tuple[str, ...]]] = {
        2: ("PGD", "PTE"),
        3: ("PGD", "PMD", "PTE"),
        4: ("PGD", "PUD", "PMD", "PTE"),
        5: ("PGD", "P4D", "PUD", "PMD", "PTE"),
    }

    def __init__(self, memory: PhysicalMemory, root_paddr: PhysAddr, levels: tuple[Level, ...]) -> None:
        self.memory = memory
        self.root_paddr = root_paddr
        self.levels = levels
        self._tables: OrderedDict[tuple[int, int], NDArray[np.uint64]] = OrderedDict()

    def forget(self) -> None:
        """Forget the tables that were read: memory has changed."""
        self._tables.clear()

    @property
    def page_shift(self) -> int:
        """Binary logarithm of the base page size."""
        return self.levels[-1].shift

    @property
    @abc.abstractmethod
    def va_bits(self) -> int:
        """How many low bits of an address the tables translate."""

    @abc.abstractmethod
    def with_root(self, root_paddr: PhysAddr) -> Self:
        """Give the same kind of tables with another root: those of a process."""

    @abc.abstractmethod
    def decode_entry(self, level_index: int, entry: int) -> tuple[EntryKind, PhysAddr]:
        """Say what an entry is, and the physical address it holds."""

    @abc.abstractmethod
    def decode_entries(
        self, level_index: int, entries: NDArray[np.uint64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint64]]:
        """
        Say what entries of a level above the last are, of those that the hardware would follow.

        Returns
        -------
        is_table, is_leaf : ndarray of bool
        paddrs : ndarray of uint64
            Of the next table or of the page; without meaning where there is neither.
        """

    @abc.abstractmethod
    def decode_pages(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Give the physical addresses of last-level entries, :data:`NOT_MAPPED` for those that are none."""

    @abc.abstractmethod
    def is_canonical(self, vaddr: int) -> bool:
        """Tell whether the hardware would translate the address at all."""

    def walk(self, vaddr: VirtAddr) -> Walk:
        """
        Follow one address down the tables.

        Never raises for what the dump lacks: the result holds the entries that
        were met, and the reason for stopping early.
        """
        if not self.is_canonical(vaddr):
            return Walk(vaddr, (), None, f"not an address of {self.va_bits} bits")
        steps: list[Step] = []
        table_paddr = self.root_paddr
        for index, level in enumerate(self.levels):
            slot = (vaddr >> level.shift) & ((1 << level.index_bits) - 1)
            try:
                entry = int(self._read_table(table_paddr, level.index_bits)[slot])
            except AbsentError as error:
                return Walk(vaddr, tuple(steps), None, f"its {level.name} table cannot be read: {error.message}")
            kind, paddr = self.decode_entry(index, entry)
            steps.append(Step(level.name, PhysAddr(table_paddr + slot * 8), entry, kind, paddr, 1 << level.shift))
            if kind is EntryKind.LEAF:
                return Walk(vaddr, tuple(steps), PhysAddr(paddr + (vaddr & ((1 << level.shift) - 1))))
            if kind is EntryKind.NONE:
                break
            table_paddr = paddr
        last = steps[-1]
        return Walk(vaddr, tuple(steps), None, f"its {last.level} entry is not present ({last.entry:#x})")

    def translate(self, vaddr: VirtAddr) -> PhysAddr:
        """
        Translate one address.

        Raises
        ------
        TranslationError
            If it is not mapped, or a table on the way is not in the dump.
        """
        walk = self.walk(vaddr)
        if walk.paddr is None:
            raise TranslationError(f"virtual address {vaddr:#x} is not mapped: {walk.reason}", vaddr=vaddr)
        return walk.paddr

    def translate_pages(self, vaddr: VirtAddr, count: int) -> NDArray[np.uint64]:
        """
        Translate *count* pages of the base size, from the one that holds *vaddr* on.

        Returns
        -------
        ndarray of uint64, shape (count,)
            Physical address of each page; :data:`NOT_MAPPED` where there is none.
            :meth:`walk` tells the reason.
        """
        paddrs = np.full(count, NOT_MAPPED, dtype=np.uint64)
        first = vaddr >> self.page_shift
        last_vaddr = ((first + count) << self.page_shift) - 1
        if count and self.is_canonical(vaddr) and last_vaddr < 1 << 64 and self.is_canonical(last_vaddr):
            self._fill(paddrs, first, 0, self.root_paddr)
        return paddrs

    def _fill(self, paddrs: NDArray[np.uint64], first: int, level_index: int, table_paddr: PhysAddr) -> None:
        """Translate ``len(paddrs)`` pages from page number *first* on, which all lie under one table."""
        level = self.levels[level_index]
        try:
            table = self._read_table(table_paddr, level.index_bits)
        except AbsentError:
            return
        mask = len(table) - 1
        if level_index == len(self.levels) - 1:
            slot = first & mask
            paddrs[:] = self.decode_pages(table[slot : slot + len(paddrs)])
            return
        span_shift = level.shift - self.page_shift
        span = 1 << span_shift
        done = 0
        while done < len(paddrs):
            page = first + done
            inside = page & (span - 1)
            part = paddrs[done : done + span - inside]
            kind, paddr = self.decode_entry(level_index, int(table[(page >> span_shift) & mask]))
            if kind is EntryKind.LEAF:
                start = paddr + (inside << self.page_shift)
                part[:] = np.uint64(start) + (np.arange(len(part), dtype=np.uint64) << np.uint64(self.page_shift))
            elif kind is EntryKind.TABLE:
                self._fill(part, page, level_index + 1, paddr)
            done += len(part)

    def _read_table(self, paddr: PhysAddr, index_bits: int) -> NDArray[np.uint64]:
        """Read a whole table; the most recent ones are kept."""
        key = (paddr, index_bits)
        table = self._tables.get(key)
        if table is None:
            table = np.frombuffer(self.memory.read(paddr, 8 << index_bits), dtype="<u8")
            self._tables[key] = table
            if len(self._tables) > _CACHED_TABLES:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(key)
        return table
