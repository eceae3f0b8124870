"""
Symbols by name and size: which of a kernel's functions a log means.

A log names a place as ``function+0xoffset/0xsize``. Names are not unique (a
kernel has hundreds of static functions of the same name), so the size decides;
where it does not, all that fit are given, never the first.

The size that a kernel prints is the distance to the next symbol of its table
(kernel/kallsyms.c ``get_symbol_pos``), padding included; the size in a symbol
table of ELF is that of the code. Both are accepted.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Match", "Symbol", "SymbolTable", "plain_name"]

_UNLISTED = re.compile(r"\.L|\$|L0\x01|__crc_|__kstrtab|__kcfi_typeid_|__pi_\.L|\.str|\.LC")
"""What scripts/mksysmap leaves out of a kernel's own table."""
_PREFIXES = ("__pfx_", "__cfi_")
"""Symbols of the padding before a function: some kernels list them, others do not."""
_PADDING_BYTES = 64
"""Functions are aligned to at most this many bytes (``CONFIG_FUNCTION_ALIGNMENT_64B``)."""
_LARGEST_BYTES = 1 << 26
"""What lies farther behind a symbol than this is not of it, though no other symbol is between."""
_SMALLEST_BYTES = 1 << 12
"""What is taken for the last symbol's where it has no size."""
_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm|lto_priv|localalias)(?:\.\d+)?(?=\.|$)|\.\d+(?=$)")
"""What compilers put behind the name of a function that they have changed or moved."""


class Symbol(NamedTuple):
    """
    A function, or what else a symbol table names.

    Parameters
    ----------
    vaddr : int
        Address it was linked to; of a module's: where the module was put for this.
    size : int
        Bytes of code, 0 where the table has no sizes.
    """

    vaddr: int
    name: str
    size: int = 0


class Fit(StrEnum):
    """How well a symbol fits a name with a size."""

    EXACT = "exact"
    """Name and size."""
    ALIAS = "alias"
    """The size, and the name but for what a compiler appended to it."""
    PADDED = "padded"
    """The name, and the size but for the padding between two functions."""
    NAME = "name"
    """The name only: another size was printed."""


class Match(NamedTuple):
    """The symbols that fit a name, the best first where one is better."""

    fit: Fit
    symbols: tuple[Symbol, ...]


def plain_name(name: str) -> str:
    """
    Take off what compilers append to the name of a function.

    >>> plain_name("foo.isra.3.cold"), plain_name("bar.llvm.1234567"), plain_name("__x64_sys_read")
    ('foo', 'bar', '__x64_sys_read')
    """
    return _SUFFIX.sub("", name) if "." in name[1:] else name


class SymbolTable:
    """
    The symbols of a kernel, or of one module.

    Parameters
    ----------
    symbols : iterable of Symbol
        In any order.
    ends : sequence of int
        Addresses where something ends that symbols lie in: sections.
    """

    def __init__(self, symbols: Iterable[Symbol], ends: Sequence[int] = ()) -> None:
        self._symbols = sorted(symbol for symbol in symbols if not _UNLISTED.match(symbol.name))
        self._vaddrs = [symbol.vaddr for symbol in self._symbols]
        self._ends = sorted(ends)
        self._by_name: dict[str, Symbol | list[Symbol]] = {}
        for symbol in self._symbols:
            # Most names are those of one symbol: a list for each would take longer than reading them.
            if (known := self._by_name.setdefault(symbol.name, symbol)) is not symbol:
                if isinstance(known, list):
                    known.append(symbol)
                else:
                    self._by_name[symbol.name] = [known, symbol]
        self._by_plain_name: dict[str, list[Symbol]] | None = None

    def __len__(self) -> int:
        return len(self._symbols)

    def named(self, name: str) -> list[Symbol]:
        """Give all symbols of a name, by rising address."""
        found = self._by_name.get(name, [])
        return found if isinstance(found, list) else [found]

    def find(self, name: str, size: int | None = None, offset: int = 0) -> Match | None:
        """
        Find what a log means by ``name+offset/size``; None if there is nothing of the name.

        Parameters
        ----------
        size, offset : int
            Bytes. Without a size all of the name fit that the offset lies in.
        """
        named = _unique(self.named(name))
        if size is None:
            within = tuple(symbol for symbol in named if not symbol.size or offset <= symbol.size) or tuple(named)
            return Match(Fit.EXACT if len(within) == 1 else Fit.NAME, within) if within else None
        if fitting := tuple(symbol for symbol in named if size in self._extents(symbol)):
            return Match(Fit.EXACT, fitting)
        if padded := tuple(symbol for symbol in named if 0 < symbol.size <= size < symbol.size + _PADDING_BYTES):
            return Match(Fit.PADDED, padded)
        aliases = (symbol for symbol in self._alike(name) if size in self._extents(symbol))
        if alike := tuple(_unique(aliases)):
            return Match(Fit.ALIAS, alike)
        return Match(Fit.NAME, tuple(named)) if named else None

    def at(self, vaddr: int) -> Symbol | None:
        """Find the symbol that an address lies in; None: there is none."""
        place = bisect.bisect_right(self._vaddrs, vaddr) - 1
        if place < 0:
            return None
        first = bisect.bisect_left(self._vaddrs, self._vaddrs[place])
        # Of several names of one place that with a size is the function.
        symbol = max(self._symbols[first : place + 1], key=lambda one: (one.size > 0, -len(one.name)))
        size = min(max(self._extents(symbol), default=_SMALLEST_BYTES), _LARGEST_BYTES)
        return symbol if vaddr - symbol.vaddr < size else None

    def size_of(self, symbol: Symbol) -> int:
        """Give the size that a kernel would print for a symbol, bytes; 0: nothing tells."""
        return max(self._extents(symbol), default=symbol.size)

    def _extents(self, symbol: Symbol) -> set[int]:
        """Give every size that may be printed for a symbol: to the next one, and its own."""
        extents = {symbol.size} if symbol.size else set()
        place = bisect.bisect_right(self._vaddrs, symbol.vaddr)
        end = bisect.bisect_right(self._ends, symbol.vaddr)
        limit = self._ends[end] if end < len(self._ends) else None
        if limit is not None:
            extents.add(limit - symbol.vaddr) if place >= len(self._vaddrs) or self._vaddrs[place] >= limit else None
        while place < len(self._symbols):
            extents.add(self._vaddrs[place] - symbol.vaddr)
            if not self._symbols[place].name.startswith(_PREFIXES):
                break
            place = bisect.bisect_right(self._vaddrs, self._vaddrs[place])
        return extents

    def _alike(self, name: str) -> list[Symbol]:
        if self._by_plain_name is None:
            self._by_plain_name = {}
            for symbol in self._symbols:
                plain = plain_name(symbol.name)
                self._by_plain_name.setdefault(plain, []).append(symbol)
        return self._by_plain_name.get(plain_name(name), [])


def _unique(symbols: Iterable[Symbol]) -> list[Symbol]:
    """Keep one symbol of each address: a name may be listed twice."""
    return list({symbol.vaddr: symbol for symbol in symbols}.values())
