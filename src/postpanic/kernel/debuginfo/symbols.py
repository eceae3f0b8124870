"""Symbols as the writers of debug information need them: names split, sizes bounded by sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf.decode import split_at
from postpanic.kernel.kallsyms import SymbolTable

__all__ = ["Section", "Symbols", "split_names"]


@dataclass(frozen=True, slots=True)
class Section:
    """A range of addresses with a name: what becomes a section of the file."""

    name: str
    start: int
    end: int
    executable: bool = False
    writable: bool = False


@dataclass(frozen=True)
class Symbols:
    """
    A symbol table at link-time addresses, by rising address.

    Attributes
    ----------
    vaddrs, letters : ndarray
        Address and ``nm`` letter of each symbol.
    names : list of bytes
    name_offsets : ndarray of int64
        Where each name lies in ``blob``, which is NUL-terminated names.
    sections : sequence of Section
        Ascending and not overlapping.
    """

    vaddrs: NDArray[np.uint64]
    letters: NDArray[np.uint8]
    names: list[bytes]
    name_offsets: NDArray[np.int64]
    blob: bytes
    sections: Sequence[Section] = ()

    @classmethod
    def from_table(cls, table: SymbolTable, vaddrs: NDArray[np.uint64]) -> Symbols:
        """Take a symbol table whose addresses have become *vaddrs*; it has no sections yet."""
        order = np.argsort(vaddrs, kind="stable")
        offsets = table.name_offsets[order]
        return cls(vaddrs[order], table.types[order], split_names(table.names, offsets), offsets, table.names)

    def in_sections(self, sections: Sequence[Section]) -> Symbols:
        """Give the same symbols in these sections."""
        placed = replace(self, sections=sections)
        if "row_of" in self.__dict__:
            placed.__dict__["row_of"] = self.row_of
        return placed

    def vaddr_of(self, name: str) -> int | None:
        """Address of a symbol, else None."""
        row = self.row_of.get(name.encode())
        return None if row is None else int(self.vaddrs[row])

    @cached_property
    def section_index(self) -> NDArray[np.int64]:
        """Index of each symbol's section; -1 for none (an absolute symbol)."""
        starts = np.array([section.start for section in self.sections], dtype=np.uint64)
        ends = np.array([section.end for section in self.sections], dtype=np.uint64)
        if not len(starts):
            return np.full(len(self.vaddrs), -1, dtype=np.int64)
        index = np.searchsorted(starts, self.vaddrs, side="right").astype(np.int64) - 1
        # A marker such as _etext lies one past the section that it ends.
        outside = (index < 0) | (self.vaddrs >= ends[index])
        previous = np.searchsorted(ends, self.vaddrs, side="left").astype(np.int64)
        is_end = outside & (previous < len(ends)) & (ends[np.minimum(previous, len(ends) - 1)] == self.vaddrs)
        index[outside] = -1
        index[is_end] = previous[is_end]
        return index

    @cached_property
    def sizes(self) -> NDArray[np.uint64]:
        """Distance to the next higher address in the same section, or to its end; 0 for absolute symbols."""
        sizes = np.zeros(len(self.vaddrs), dtype=np.uint64)
        if not len(sizes):
            return sizes
        distinct, inverse = np.unique(self.vaddrs, return_inverse=True)
        following = np.append(distinct[1:], distinct[-1])[inverse.reshape(-1)]
        inside = self.section_index >= 0
        ends = np.array([section.end for section in self.sections] or [0], dtype=np.uint64)
        limit = ends[self.section_index[inside]]
        reach = np.where(following[inside] > self.vaddrs[inside], following[inside], limit)
        sizes[inside] = np.minimum(reach, limit) - self.vaddrs[inside]
        return sizes

    @cached_property
    def row_of(self) -> dict[bytes, int]:
        """Row of the last symbol of each name."""
        return dict(zip(self.names, range(len(self.names)), strict=True))

    @cached_property
    def is_unique(self) -> NDArray[np.bool_]:
        """Whether no other symbol has the name."""
        where = np.fromiter(map(self.row_of.__getitem__, self.names), dtype=np.int64, count=len(self.names))
        counts = np.bincount(where, minlength=len(self.names))
        unique: NDArray[np.bool_] = counts[where] == 1
        return unique

    def is_function(self) -> NDArray[np.bool_]:
        """Whether each symbol names code in an executable section."""
        executable = np.array([section.executable for section in self.sections] + [False], dtype=np.bool_)
        letter = np.isin(self.letters, np.frombuffer(b"tTwW", dtype=np.uint8))
        result: NDArray[np.bool_] = letter & executable[self.section_index] & (self.sizes > 0)
        return result


def split_names(blob: bytes, offsets: NDArray[np.int64]) -> list[bytes]:
    """Names at many offsets of a blob of NUL-terminated names, at once."""
    data = np.frombuffer(blob, dtype=np.uint8)
    ends = np.flatnonzero(data == 0)
    before = offsets[offsets > 0] - 1
    if (data[before] != 0).any() and np.bincount(np.searchsorted(ends, offsets)).max() == 1:
        # Something precedes each name (kallsyms has its type letter there): cut it off.
        data = data.copy()
        data[before] = 0
        blob = data.tobytes()
        ends = np.flatnonzero(data == 0)
    return split_at(blob.split(b"\0"), ends, offsets)
