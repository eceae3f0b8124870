"""
The table of global variables' types, which BTF does not carry.

``globals.tsv.gz`` beside this module is written by
``scripts/generate_globals.py`` from the DWARF of several kernels. It is
gzip-compressed text: a line ``TYPES PATTERNS NAMES KERNELS`` with four counts,
that many lines of C type spellings, then ``prefix<TAB>type`` lines, one line
of all names, one line with the series of each kernel (``6.12``), and for each
kernel one line with the type of each name: the number of a spelling, -1 where
the kernel has no such variable. An anonymous structure is spelled by its
members, ``struct {a, b}``, an anonymous enumeration by its enumerators; the
length of an array is a number or an enumerator.

A candidate is an offer, not a fact: it holds for a dump only if it resolves
against the dump's own BTF and fits the symbol. Where kernels disagree, the
kernel that is most like the dump's is asked first; alike is who has the same
variables, whatever its version.
"""

from __future__ import annotations

import gzip
from bisect import bisect
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

__all__ = ["GlobalsTable", "load_globals_table", "parse_globals_table"]


MIN_TWIN_LIKENESS = 0.995
"""
Stable updates of one kernel and one configuration are 0.997 alike, neighbouring
releases 0.984, the same release in two configurations 0.84.
"""


@dataclass(frozen=True)
class GlobalsTable:
    """
    Candidate C types of global variables, by name.

    Attributes
    ----------
    spellings : tuple of str
        C types; the table refers to them by index.
    names : tuple of bytes
        Variables, sorted.
    types : ndarray of int32, shape (kernels, names)
        The type of each variable in each kernel, the kernel to believe first
        in the first row; -1 where a kernel has no such variable.
    series : tuple of str
        The kernel of each row; kernels of one series say the same thing twice.
    prefixes : mapping of bytes to int
        Types of names that macros generate (``__tracepoint_…``), for names
        that no known kernel had; the longest prefix decides.
    """

    spellings: tuple[str, ...]
    names: tuple[bytes, ...]
    types: NDArray[np.int32]
    series: tuple[str, ...]
    prefixes: Mapping[bytes, int]
    has_twin: bool = False
    """Whether the first kernel is the dump's but for its last fixes: it is believed alone."""

    def ranked_for(self, symbols: Container[bytes]) -> GlobalsTable:
        """
        Put the kernels that are most like a dump's first.

        Parameters
        ----------
        symbols : container of bytes
            Names of the dump's symbols. Likeness is the share of variables
            that both have among those that either has.
        """
        present = np.fromiter((name in symbols for name in self.names), dtype=np.bool_, count=len(self.names))
        having = self.types >= 0
        likeness = (having & present).sum(axis=1) / np.maximum((having | present).sum(axis=1), 1)
        # A stable sort: equally alike kernels keep the order of the table.
        order = np.argsort(-likeness, kind="stable")
        return replace(
            self,
            types=self.types[order],
            series=tuple(self.series[row] for row in order.tolist()),
            has_twin=bool(likeness.max(initial=0) >= MIN_TWIN_LIKENESS),
        )

    def only_prefixes(self) -> GlobalsTable:
        """Leave out the names: what a module calls so is another variable."""
        return replace(self, names=(), types=self.types[:, :0])

    @cached_property
    def witnesses(self) -> dict[bytes, int]:
        """How many kernel series have each variable."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        for name in set(self.series):
            rows = [row for row, series in enumerate(self.series) if series == name]
            counts += (self.types[rows] >= 0).any(axis=0)
        if self.has_twin:
            counts[self.types[0] >= 0] = len(self.names)
        return dict(zip(self.names, counts.tolist(), strict=True))

    @cached_property
    def offers(self) -> dict[bytes, tuple[int, ...]]:
        """The types that the table has for each name, as indexes of ``spellings``, likeliest first."""
        if not self.names:
            return {}
        columns = self.types.T
        highest = columns.max(axis=1)
        agreed = ((columns == highest[:, None]) | (columns < 0)).all(axis=1)
        offers: dict[bytes, tuple[int, ...]] = {
            name: (index,) for name, index in zip(self.names, highest.tolist(), strict=True)
        }
        for row in np.flatnonzero(~agreed).tolist():
            known = tuple(dict.fromkeys(index for index in columns[row].tolist() if index >= 0))
            offers[self.names[row]] = known[:1] if self.has_twin and columns[row, 0] >= 0 else known
        return offers

    def candidates(self, name: str) -> tuple[str, ...]:
        """List the C types that *name* may have, the likeliest first; empty when nothing is known."""
        word = name.encode()
        known = self.offers.get(word, ())
        if not known:
            prefix = max((prefix for prefix in self.prefixes if word.startswith(prefix)), key=len, default=None)
            known = () if prefix is None else (self.prefixes[prefix],)
        return tuple(self.spellings[index] for index in known)


OF_OTHER_CONFIGURATIONS: Mapping[bytes, str] = {
    # Without CONFIG_NUMA (``mm/memblock.c``).
    b"contig_page_data": "struct pglist_data",
}
"""Variables that none of the kernels has which took part in the table, with their types."""


def parse_globals_table(text: str) -> GlobalsTable:
    """
    Parse the text of a table.

    Raises
    ------
    ValueError
        If it is not such a text: the table is ours, so this is a defect of ours.
    """
    lines = text.splitlines()
    types, patterns, names, kernels = (int(count) for count in lines[0].split())
    if len(lines) != 3 + types + patterns + kernels:
        raise ValueError(f"{len(lines)} lines where {3 + types + patterns + kernels} are announced")
    prefixes = (line.split("\t") for line in lines[1 + types : 1 + types + patterns])
    rows = lines[3 + types + patterns :]
    table = GlobalsTable(
        tuple(lines[1 : 1 + types]),
        tuple(lines[1 + types + patterns].encode().split(b" ")),
        np.array([np.fromstring(row, dtype=np.int32, sep=" ") for row in rows]),
        tuple(lines[2 + types + patterns].split(" ")),
        {prefix.encode(): int(index) for prefix, index in prefixes},
    )
    if len(table.names) != names or table.types.shape != (kernels, names) or len(table.series) != kernels:
        raise ValueError(f"{len(table.names)} names and types of {table.types.shape} where {names} are announced")
    return table


def load_globals_table() -> GlobalsTable:
    """Load the table that the package carries, and add what none of its kernels was built with."""
    packed = files(__package__).joinpath("globals.tsv.gz").read_bytes()
    table = parse_globals_table(gzip.decompress(packed).decode())
    for name, spelling in OF_OTHER_CONFIGURATIONS.items():
        table = _add(table, name, spelling)
    return table


def _add(table: GlobalsTable, name: bytes, spelling: str) -> GlobalsTable:
    spellings = table.spellings if spelling in table.spellings else (*table.spellings, spelling)
    place = bisect(table.names, name)
    types = np.insert(table.types, place, spellings.index(spelling), axis=1)
    return replace(table, spellings=spellings, names=(*table.names[:place], name, *table.names[place:]), types=types)
