"""
What the places of a log are in the source: functions matched by name and size, addresses by where the kernel lay.

One :class:`Locator` serves all logs of one kernel; what it has found once it knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from postpanic.analysis.decode.kernel import KernelSymbols, Place
from postpanic.analysis.decode.spots import Spot
from postpanic.analysis.decode.symbols import Fit

__all__ = ["Found", "Locator", "Notes"]

_MOST_CANDIDATES = 8
_MOST_NOTES = 16


class Found(msgspec.Struct, frozen=True):
    """
    What a place of a log may be.

    Parameters
    ----------
    places : tuple of Place
        More than one: nothing tells them apart.
    fit : Fit, optional
        None: it was found by its address.
    reason : str
        Why there is no place; empty: there is one.
    """

    places: tuple[Place, ...] = ()
    fit: Fit | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """The locations, the innermost inlined function first; candidates are separated by ``|``."""
        texts = [" ".join(str(line) for line in place.lines) for place in self.places if place.lines]
        return " | ".join(dict.fromkeys(texts))

    @property
    def place(self) -> Place | None:
        """The only place; None where there is none or several."""
        return self.places[0] if len(self.places) == 1 else None


class Notes:
    """What the user should know of symbols that are missing or do not fit: each once, with the number of places."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Take one in; an empty text is none."""
        if text:
            self._counts[text] += 1

    def __iter__(self) -> Iterator[str]:
        for text, count in islice(self._counts.items(), _MOST_NOTES):
            yield text if count == 1 else f"{text} ({count} times)"
        if len(self._counts) > _MOST_NOTES:
            yield f"and {len(self._counts) - _MOST_NOTES} more of that kind"


_NO_SYMBOLS = Found(reason="no symbols of the kernel")


@dataclass
class Locator:
    """
    Finds the places of one kernel's logs.

    Parameters
    ----------
    scratch : Path
        Where packed modules are unpacked.
    """

    kernel: KernelSymbols
    scratch: Path
    _known: dict[tuple[object, ...], Found] = field(default_factory=dict, repr=False)

    def locate(self, spot: Spot, slide: int | None = None) -> Found:
        """
        Find a place.

        Parameters
        ----------
        slide : int, optional
            How far the kernel was moved when it started, bytes; None: not known, bare addresses are not looked up.
        """
        key = (*spot[:5], spot.is_exact, None if spot.function else (spot.address, slide))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._find(spot, slide)
        return found

    def slide_of(self, spot: Spot) -> int | None:
        """Tell how far the kernel was moved from an address that stands beside its symbol; None: it does not tell."""
        if spot.address is None or not spot.function or spot.module:
            return None
        match = self.kernel.find(spot.function, spot.size, spot.offset, "", "", self.scratch)
        if match is None or len(match.symbols) != 1 or match.fit not in {Fit.EXACT, Fit.PADDED}:
            return None
        return spot.address - match.symbols[0].vaddr - spot.offset

    def _find(self, spot: Spot, slide: int | None) -> Found:
        if not spot.function:
            return self._find_raw(spot, slide)
        if not self.kernel.has_kernel and not spot.module:
            return _NO_SYMBOLS
        match = self.kernel.find(spot.function, spot.size, spot.offset, spot.module, spot.module_build_id, self.scratch)
        if match is None:
            if spot.module and not self.kernel.has_module(spot.module, spot.module_build_id, self.scratch):
                return Found(
                    reason=f"module {spot.module}: {dict(self.kernel.missing()).get(spot.module, 'not found')}"
                )
            return Found(reason=f"{spot.function}: no such symbol")
        if match.fit is Fit.NAME and spot.size is not None:
            sizes = sorted({self.kernel.size_of(symbol) for symbol in match.symbols})
            spelt = ", ".join(f"{size:#x}" for size in sizes)
            return Found(reason=f"{spot.function}: {spot.size:#x} bytes in the log, {spelt} in the symbols")
        places = []
        for symbol in match.symbols[:_MOST_CANDIDATES]:
            vaddr = symbol.vaddr + spot.offset
            places.append(Place(symbol, vaddr, self.kernel.lines_at(_looked_up(vaddr, spot), symbol.name)))
        return Found(tuple(places), match.fit)

    def _find_raw(self, spot: Spot, slide: int | None) -> Found:
        if slide is None or spot.address is None:
            return Found(reason="bare addresses: where the kernel lay is not known")
        vaddr = spot.address - slide
        symbol = self.kernel.symbol_at(_looked_up(vaddr, spot))
        if symbol is None:
            return Found(reason="bare addresses: not in the kernel")
        return Found((Place(symbol, vaddr, self.kernel.lines_at(_looked_up(vaddr, spot), symbol.name)),))


def _looked_up(vaddr: int, spot: Spot) -> int:
    return vaddr if spot.is_exact else vaddr - 1
