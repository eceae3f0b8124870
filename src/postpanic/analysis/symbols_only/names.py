"""Symbols as ``sym`` of crash shows them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from postpanic.analysis.symbols_only.kernel import SymbolsOnly, parse_address
from postpanic.kernel.kallsyms import Symbol, SymbolTable

__all__ = ["format_symbol", "read_all_lines", "read_matching_lines", "read_symbol_lines"]

_NONE = "(none found)"


def format_symbol(symbol: Symbol) -> str:
    """Write address and name."""
    return f"{symbol.vaddr:x} {symbol.name}"


def read_all_lines(kernel: SymbolsOnly) -> Iterator[str]:
    """List all symbols by rising address."""
    table = kernel.symbols
    return (f"{vaddr:x} {table.name(index)}" for index, vaddr in enumerate(table.vaddrs.tolist()))


def read_matching_lines(kernel: SymbolsOnly, part: str) -> list[str]:
    """List the symbols whose names contain *part*."""
    return [line for line in read_all_lines(kernel) if part in line.partition(" ")[2]] or [_NONE]


def read_symbol_lines(kernel: SymbolsOnly, word: str, *, before: bool = False, after: bool = False) -> list[str]:
    """
    Look a name or an address up.

    Parameters
    ----------
    word : str
        A name, or else a hexadecimal address: the symbol it lies in is shown.
    before, after : bool
        Whether the symbol next to it on that side is shown as well.
    """
    symbol = None
    if word in kernel.symbols:
        symbol = kernel.find_symbol(word)
    elif (vaddr := parse_address(word)) is not None:
        found = kernel.symbol_at(vaddr)
        symbol = found[0] if found is not None else None
    if symbol is None:
        near = (f"  {line}" for line in read_matching_lines(kernel, word))
        return [f"symbol not found: {word}", "possible alternatives:", *near]
    index = _index_of(kernel.symbols, symbol)
    first = max(index - before, 0)
    last = min(index + after, len(kernel.symbols) - 1)
    return [format_symbol(kernel.symbols[row]) for row in range(first, last + 1)]


def _index_of(table: SymbolTable, symbol: Symbol) -> int:
    index = int(np.searchsorted(table.vaddrs, np.uint64(symbol.vaddr), side="left"))
    while table.name(index) != symbol.name:
        index += 1
    return index
