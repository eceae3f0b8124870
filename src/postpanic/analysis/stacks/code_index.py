"""Which function, of which module, an address of code belongs to: looked up many times, so indexed once."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from drgn import MainModule, Program, Symbol, SymbolBinding, SymbolKind
from numpy.typing import NDArray

__all__ = ["CodeIndex", "Place"]

_CODE = frozenset({SymbolKind.FUNC, SymbolKind.UNKNOWN, SymbolKind.IFUNC})
_RANK = {SymbolBinding.GLOBAL: 0, SymbolBinding.WEAK: 1}
_LARGEST_GAP_BYTES = 1 << 20
"""A symbol without a size reaches to the next one, but not further than this."""
_SECTIONS = (("_stext", "_etext"), ("_sinittext", "_einittext"))
"""Where the kernel's code lies (``include/asm-generic/vmlinux.lds.h``)."""


@dataclass(frozen=True, slots=True)
class Place:
    """
    A place in code.

    Parameters
    ----------
    function : str
        Name of the symbol; empty where none covers the address.
    offset : int
        Bytes from the symbol.
    module : str
        Name of the module; empty: the kernel itself.
    start, size_bytes : int
        Of the function; 0 where there is no symbol.
    """

    function: str
    offset: int
    module: str = ""
    start: int = 0
    size_bytes: int = 0


class CodeIndex:
    """
    All functions of a program, by address.

    Parameters
    ----------
    prog : Program
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._places: dict[int, Place | None] = {}
        self._callers: dict[int, Place | None] = {}
        symbols = _read_code_symbols(prog)
        self._starts = [address for address, _ in symbols]
        self._names = [symbol.name for _, symbol in symbols]
        starts = np.array(self._starts, dtype=np.uint64)
        sizes = np.array([symbol.size for _, symbol in symbols], dtype=np.uint64)
        self._ends_array = _find_ends(starts, sizes)
        self._ends: list[int] = self._ends_array.tolist()
        self._starts_array = starts
        self.ranges = tuple(_text_ranges(prog))
        """``[start, end)`` of the kernel's own code."""

    def find(self, pc: int) -> Place | None:
        """Find the place of an address; None: it is not in code."""
        try:
            return self._places[pc]
        except KeyError:
            place = self._places[pc] = self._find(pc)
            return place

    def find_caller(self, pc: int) -> Place | None:
        """Find the place of a return address: of the function that called, which may end right there."""
        try:
            return self._callers[pc]
        except KeyError:
            place = self.find(pc - 1) if pc else None
            if place is not None:
                place = Place(place.function, place.offset + 1, place.module, place.start, place.size_bytes)
            self._callers[pc] = place
            return place

    def is_text(self, pc: int) -> bool:
        """Tell whether an address is in code."""
        return self.find(pc) is not None

    def text_mask(self, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell for each word whether it is an address in code, in bulk."""
        mask = np.zeros(len(words), dtype=np.bool_)
        for start, end in self.ranges:
            mask |= (words >= np.uint64(start)) & (words < np.uint64(end))
        if len(self._starts_array):
            places = np.searchsorted(self._starts_array, words, side="right") - 1
            mask |= (places >= 0) & (words < self._ends_array[places])
        return mask

    def vaddr(self, name: str) -> int | None:
        """Give the address of a function, the lowest of that name; None where there is none."""
        try:
            return int(self._starts[self._names.index(name)])
        except ValueError:
            return None

    def starts_between(self, start: int, end: int) -> list[int]:
        """Give where the functions begin that begin in ``[start, end)``, each once."""
        first, last = bisect.bisect_left(self._starts, start), bisect.bisect_left(self._starts, end)
        return sorted(set(self._starts[first:last]))

    def _find(self, pc: int) -> Place | None:
        position = bisect.bisect_right(self._starts, pc) - 1
        is_own = any(start <= pc < end for start, end in self.ranges)
        if position < 0 or pc >= self._ends[position]:
            return Place("", 0) if is_own else None
        start = self._starts[position]
        first = bisect.bisect_left(self._starts, start)
        return Place(
            self._names[first], pc - start, "" if is_own else self._module(pc), start, self._ends[first] - start
        )

    def _module(self, pc: int) -> str:
        try:
            module = self._prog.module(pc)
        except LookupError:
            return ""
        return "" if isinstance(module, MainModule) else module.name


def _read_code_symbols(prog: Program) -> list[tuple[int, Symbol]]:
    """Read the symbols of code with their addresses, rising; of one address the one first that names the function."""
    # A symbol's address costs little to ask for, its kind and binding much.
    addressed = [(symbol.address, symbol) for symbol in prog.symbols()]
    found = [each for each in addressed if each[0] >> 63 and each[1].kind in _CODE]
    found.sort(key=itemgetter(0))
    for start, end in _find_runs([address for address, _ in found]):
        found[start:end] = sorted(found[start:end], key=lambda each: _rank(each[1]))
    return found


def _find_runs(addresses: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Find where the same address stands more than once in a row: ``[start, end)`` of each such run."""
    if not addresses:
        return iter(())
    array = np.array(addresses, dtype=np.uint64)
    begins = np.flatnonzero(np.diff(array, prepend=~array[:1]) != 0)
    ends = np.append(begins[1:], len(array))
    is_long = ends - begins > 1
    return zip(begins[is_long].tolist(), ends[is_long].tolist(), strict=True)


def _rank(symbol: Symbol) -> int:
    """Tell which of the symbols at one address names the function: not that of a system call of 32 bits."""
    return _RANK.get(symbol.binding, 2) + (4 if symbol.name.startswith("__ia32_") else 0)


def _find_ends(starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Find where each symbol ends: by its size, or where the next begins."""
    if not len(starts):
        return starts
    distinct, inverse = np.unique(starts, return_inverse=True)
    following = np.append(distinct[1:], distinct[-1:] + np.uint64(1))
    gaps = np.minimum(following - distinct, np.uint64(_LARGEST_GAP_BYTES))[inverse.reshape(-1)]
    ends: NDArray[np.uint64] = starts + np.where(sizes > 0, np.minimum(sizes, np.uint64(_LARGEST_GAP_BYTES)), gaps)
    return ends


def _text_ranges(prog: Program) -> list[tuple[int, int]]:
    found = []
    for first, last in _SECTIONS:
        try:
            start, end = prog.symbol(first).address, prog.symbol(last).address
        except LookupError:
            continue
        if start < end:
            found.append((start, end))
    return found
