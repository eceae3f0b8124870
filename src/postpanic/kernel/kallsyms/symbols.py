"""A symbol table as flat arrays, and lookups by name and by address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import FactAbsentError
from postpanic.units import VirtAddr

__all__ = ["Symbol", "SymbolTable", "make_symbol_table", "make_table_of_names"]

_LOOKUPS_BEFORE_INDEX = 24
"""One lookup searches the names; an index of all of them pays off after this many."""

_LARGEST_SYMBOL_BYTES = 1 << 31
"""A kernel image spans less, so a larger gap is between address ranges, not within a symbol."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One name at one address."""

    name: str
    vaddr: VirtAddr
    """As it was at runtime. Of a per-CPU variable on x86-64 before 6.15: its offset in the per-CPU area (type A)."""
    type: str
    """The letter of ``nm``: T and t for text, D B R for data and so on; lower case for local symbols."""
    size_bytes: int
    """Distance to the next symbol's address, an upper bound; 0 where that is not known."""


@dataclass(frozen=True)
class SymbolTable:
    """
    Symbols sorted by address.

    Attributes
    ----------
    vaddrs : ndarray of uint64
        Runtime address of each symbol, rising.
    types : ndarray of uint8
        The ``nm`` letter of each, as a character code.
    names : bytes
        NUL-terminated names.
    name_offsets : ndarray of int64
        Where in ``names`` each name starts.
    """

    vaddrs: NDArray[np.uint64]
    types: NDArray[np.uint8]
    names: bytes
    name_offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.vaddrs)

    def __iter__(self) -> Iterator[Symbol]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Symbol:
        return Symbol(
            self.name(index), VirtAddr(int(self.vaddrs[index])), chr(self.types[index]), int(self.sizes[index])
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._indices(name))

    @cached_property
    def sizes(self) -> NDArray[np.uint64]:
        """Distance of each symbol to the next higher address in the table; 0 where that is not known."""
        _, first, inverse = np.unique(self.vaddrs, return_index=True, return_inverse=True)
        distinct = self.vaddrs[first]
        gaps = np.zeros(len(distinct), dtype=np.uint64)
        gaps[:-1] = distinct[1:] - distinct[:-1]
        gaps[gaps >= _LARGEST_SYMBOL_BYTES] = 0
        sizes: NDArray[np.uint64] = gaps[inverse.reshape(-1)]
        return sizes

    def name(self, index: int) -> str:
        """Give the name of the symbol at an index of the arrays."""
        start = int(self.name_offsets[index])
        return self.names[start : self.names.index(0, start)].decode("utf-8", "backslashreplace")

    def find(self, name: str) -> Symbol:
        """
        Find a symbol by name, the one with the lowest address where there are several.

        Raises
        ------
        FactAbsentError
            If there is none.
        """
        indices = self._indices(name)
        if not indices:
            raise FactAbsentError(f"no symbol {name!r}")
        return self[indices[0]]

    def find_all(self, name: str) -> list[Symbol]:
        """Find all symbols of a name, by rising address; an empty list where there is none."""
        return [self[index] for index in self._indices(name)]

    def get(self, name: str) -> VirtAddr | None:
        """Give the address of :meth:`find`'s symbol, or None where there is none."""
        indices = self._indices(name)
        return VirtAddr(int(self.vaddrs[indices[0]])) if indices else None

    def at(self, vaddr: VirtAddr | int) -> tuple[Symbol, int]:
        """
        Find the symbol that an address lies in.

        As the kernel does (``get_symbol_pos()`` of ``kernel/kallsyms.c``): the first
        of those at the nearest address not above.

        Returns
        -------
        symbol : Symbol
        offset_bytes : int
            Distance from the symbol's address.

        Raises
        ------
        FactAbsentError
            If the address is below all symbols or too far from any.
        """
        if not 0 <= vaddr < 1 << 64:
            raise FactAbsentError(f"no symbol at {vaddr:#x}")
        above = int(np.searchsorted(self.vaddrs, np.uint64(vaddr), side="right"))
        if not above or vaddr - int(self.vaddrs[above - 1]) >= _LARGEST_SYMBOL_BYTES:
            raise FactAbsentError(f"no symbol at or below {vaddr:#x}")
        first = int(np.searchsorted(self.vaddrs, self.vaddrs[above - 1], side="left"))
        return self[first], vaddr - int(self.vaddrs[first])

    def merge(self, other: SymbolTable) -> SymbolTable:
        """Add the symbols of another table whose names this one does not have."""
        known = set(self._all_names())
        new = np.array([name not in known for name in other._all_names()], dtype=bool)
        return make_symbol_table(
            np.concatenate((self.vaddrs, other.vaddrs[new])),
            np.concatenate((self.types, other.types[new])),
            self.names + other.names,
            np.concatenate((self.name_offsets, other.name_offsets[new] + len(self.names))),
        )

    def _all_names(self) -> Iterator[bytes]:
        names = self.names
        return (names[start : names.index(0, start)] for start in self.name_offsets.tolist())

    @cached_property
    def _lookups(self) -> list[int]:
        return [0]

    @cached_property
    def _index(self) -> dict[bytes, list[int]]:
        index: dict[bytes, list[int]] = {}
        for position, name in enumerate(self._all_names()):
            index.setdefault(name, []).append(position)
        return index

    @cached_property
    def _offset_order(self) -> NDArray[np.intp]:
        return np.argsort(self.name_offsets, kind="stable")

    def _indices(self, name: str) -> list[int]:
        """Give the array indices of all symbols of a name, rising."""
        wanted = name.encode("utf-8", "surrogateescape")
        if not wanted or b"\0" in wanted:
            return []
        self._lookups[0] += 1
        if self._lookups[0] > _LOOKUPS_BEFORE_INDEX:
            return self._index.get(wanted, [])
        return self._search(wanted + b"\0")

    def _search(self, terminated: bytes) -> list[int]:
        """Look through the names for one; every occurrence that starts a symbol's name counts."""
        order = self._offset_order
        offsets = self.name_offsets[order]
        found: list[int] = []
        position = self.names.find(terminated)
        while position >= 0:
            low, high = np.searchsorted(offsets, [position, position + 1]).tolist()
            found.extend(order[low:high].tolist())
            position = self.names.find(terminated, position + 1)
        return sorted(found)


def make_symbol_table(
    vaddrs: NDArray[np.uint64], types: NDArray[np.uint8], names: bytes, name_offsets: NDArray[np.int64]
) -> SymbolTable:
    """Make a table of symbols in any order; symbols at one address stay in the order they have."""
    if len(vaddrs) > 1 and bool((vaddrs[1:] < vaddrs[:-1]).any()):
        order = np.argsort(vaddrs, kind="stable")
        vaddrs, types, name_offsets = vaddrs[order], types[order], name_offsets[order]
    return SymbolTable(vaddrs, types, names, name_offsets)


def make_table_of_names(symbols: Iterable[tuple[str, int]], type_letter: str = "D") -> SymbolTable:
    """Make a table of name and address pairs, all of one type."""
    pairs = [(name.encode(), vaddr) for name, vaddr in symbols if name and "\0" not in name]
    lengths = np.array([len(name) + 1 for name, _ in pairs], dtype=np.int64)
    return make_symbol_table(
        np.array([vaddr for _, vaddr in pairs], dtype=np.uint64),
        np.full(len(pairs), ord(type_letter), dtype=np.uint8),
        b"".join(name + b"\0" for name, _ in pairs),
        np.cumsum(lengths) - lengths,
    )
