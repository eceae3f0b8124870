"""What lies on a stack, word by word: digits, symbols, and the slab caches of objects."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from drgn import Program, SymbolKind
from drgn.helpers.linux.slab import find_containing_slab_cache

from postpanic.analysis.cells import decode
from postpanic.analysis.commands.backtrace.shapes import CONTENTS, RAW, SYMBOLIC, SYMBOLIC_RAW
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.engine import Stacks
from postpanic.analysis.stacks.frames import Frame
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Cell, Table

__all__ = ["ContentReader", "WordNames"]

_MISSING = Absent(Reason.EXCLUDED, "not in the dump")
_MOST_BYTES = 64 << 10
_DATA = frozenset({SymbolKind.OBJECT, SymbolKind.UNKNOWN, SymbolKind.FUNC, SymbolKind.IFUNC})


class WordNames:
    """
    Names for words: ``symbol+offset``, ``[slab cache]``.

    Parameters
    ----------
    verbose : bool
        Whether the address stands before the name of the slab cache.
    """

    def __init__(self, stacks: Stacks, *, verbose: bool = False) -> None:
        self._stacks = stacks
        self._verbose = verbose
        self._caches: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._starts: list[int] | None = None
        self._symbols: list[tuple[int, int, str]] = []

    def name(self, word: int) -> str:
        """Say what a word is; its digits where nothing is known of it."""
        found = self._names.get(word)
        if found is None:
            found = self._names[word] = self._find(word)
        return found

    def _find(self, word: int) -> str:
        digits = f"{word:016x}"
        if word < 1 << 63 or word >= (1 << 64) - 4096:
            return digits
        return self._find_symbol(word) or self._find_cache(word, digits) or digits

    def _find_symbol(self, word: int) -> str:
        place = self._stacks.code.find(word)
        if place is not None:
            return f"{place.function}+{place.offset}" if place.offset else place.function
        if self._starts is None:
            self._symbols = _data_symbols(self._stacks.prog)
            self._starts = [start for start, _, _ in self._symbols]
        position = bisect.bisect_right(self._starts, word) - 1
        if position < 0:
            return ""
        start, end, name = self._symbols[position]
        if word >= end:
            return ""
        return f"{name}+{word - start}" if word > start else name

    def _find_cache(self, word: int, digits: str) -> str:
        page = word >> 12
        if page not in self._caches:
            try:
                cache = find_containing_slab_cache(self._stacks.prog, word)
                self._caches[page] = decode(cache.name.string_()) if cache else ""
            except UNREADABLE:
                self._caches[page] = ""
        name = self._caches[page]
        if not name:
            return ""
        return f"[{digits}:{name}]" if self._verbose else f"[{name}]"


def _data_symbols(prog: Program) -> list[tuple[int, int, str]]:
    """List the symbols that have a size, by address."""
    found = [
        (symbol.address, symbol.address + symbol.size, symbol.name)
        for symbol in prog.symbols()
        if symbol.size and symbol.address >> 63 and symbol.kind in _DATA
    ]
    found.sort()
    return found


class ContentReader:
    """
    Reads what lies on stacks.

    Parameters
    ----------
    names : WordNames, optional
        Makes symbols of words.
    """

    def __init__(self, stacks: Stacks, names: WordNames | None = None) -> None:
        self._stacks = stacks
        self._names = names

    def frame_table(self, frame: Frame, following: Frame | None) -> Table | None:
        """Lay out what lies between a frame and the next, whose return address is the last word."""
        start = frame.sp
        if following is not None and following.area == frame.area:
            end = following.slot + (0 if following.interrupted else following.return_bytes)
        elif following is not None and frame.area is not None:
            end = frame.area.end
        else:
            # Behind the outermost frame is nothing but the registers of user code, which stand above.
            return None
        if not start < end <= start + _MOST_BYTES:
            return None
        return Table(SYMBOLIC if self._names is not None else CONTENTS, tuple(self._rows(start, end)))

    def raw_table(self, start: int, end: int) -> Table:
        """Lay out a whole stack."""
        return Table(SYMBOLIC_RAW if self._names is not None else RAW, tuple(self._rows(start, end)))

    def _rows(self, start: int, end: int) -> Iterator[tuple[Cell, ...]]:
        start, end = (start + 7) & ~7, end & ~7
        words, present = self._stacks.words.read_range(start, end)
        values: list[Cell] = [
            word if there else _MISSING for word, there in zip(words.tolist(), present.tolist(), strict=True)
        ]
        texts: list[Cell] = [None] * len(values)
        if self._names is not None:
            texts = [self._names.name(value) if isinstance(value, int) else value for value in values]
        for place in range(0, len(values), 2):
            second = place + 1 < len(values)
            yield (
                start + 8 * place,
                values[place],
                values[place + 1] if second else None,
                texts[place],
                texts[place + 1] if second else None,
            )
