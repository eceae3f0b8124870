"""
The table of global variables' types, which BTF does not carry.

``globals.tsv.gz`` beside this module is written by
``scripts/generate_globals.py`` from the DWARF of several kernels. It is
gzip-compressed text: a line ``TYPES PATTERNS NAMES`` with three counts, that
many lines of C type spellings, then ``prefix<TAB>type`` and
``name<TAB>type type…`` lines whose types are numbers of spellings, the newest
kernel's first. An anonymous structure is spelled by its members,
``struct {a, b}``, an anonymous enumeration by its enumerators.

A candidate is an offer, not a fact: it holds for a dump only if it resolves
against the dump's own BTF and fits the symbol.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["GlobalsTable", "load_globals_table", "parse_globals_table"]


@dataclass(frozen=True, slots=True)
class GlobalsTable:
    """
    Candidate C types of global variables, by name.

    ``names`` maps a variable to indexes into ``spellings``, newest kernel
    first; ``prefixes`` types the names that macros generate
    (``__tracepoint_…``), for names that no known kernel had.
    """

    spellings: tuple[str, ...]
    names: Mapping[str, tuple[int, ...]]
    prefixes: Mapping[str, int]

    def candidates(self, name: str) -> tuple[str, ...]:
        """List the C types that *name* may have, the likeliest first; empty when nothing is known."""
        known = self.names.get(name)
        if known is not None:
            return tuple(self.spellings[index] for index in known)
        if name.startswith(tuple(self.prefixes)):
            return tuple(self.spellings[index] for prefix, index in self.prefixes.items() if name.startswith(prefix))
        return ()


def parse_globals_table(text: str) -> GlobalsTable:
    """Parse the text of a table; a table of ours, so a wrong one is a ValueError."""
    lines = text.splitlines()
    types, patterns, names = (int(count) for count in lines[0].split())
    if len(lines) != 1 + types + patterns + names:
        raise ValueError(f"{len(lines)} lines where {1 + types + patterns + names} are announced")
    spellings = tuple(lines[1 : 1 + types])
    prefixes = dict(line.split("\t") for line in lines[1 + types : 1 + types + patterns])
    rows = (line.split("\t") for line in lines[1 + types + patterns :])
    return GlobalsTable(
        spellings,
        {name: tuple(map(int, indexes.split(" "))) for name, indexes in rows},
        {prefix: int(index) for prefix, index in prefixes.items()},
    )


def load_globals_table() -> GlobalsTable:
    """Load the table that the package carries."""
    packed = files(__package__).joinpath("globals.tsv.gz").read_bytes()
    return parse_globals_table(gzip.decompress(packed).decode())
