"""Compile units: forests of entries become ``.debug_info`` and its companions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import UnsupportedError
from postpanic.kernel.debuginfo.dwarf import (
    ARANGES,
    UNIT_HEADER,
    Abbreviations,
    Addresses,
    At,
    Form,
    Shape,
    Tag,
    place,
    scatter,
)
from postpanic.kernel.debuginfo.tables import Forest

__all__ = ["DwarfSections", "UnitPlan", "assemble"]

_LANG_C99 = 0x0C
_ARANGES_VADDR_AT = 16
_UNIT = Shape(
    Tag.COMPILE_UNIT,
    ((At.PRODUCER, Form.STRP), (At.LANGUAGE, Form.DATA1), (At.NAME, Form.STRP)),
    children=True,
)
_CODE_UNIT = Shape(
    Tag.COMPILE_UNIT,
    (*_UNIT.attributes, (At.LOW_PC, Form.ADDR), (At.HIGH_PC, Form.DATA8)),
    children=True,
)


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """
    How one forest is cut into units.

    ``unit_of`` numbers the unit of each entry from 0, rising. Units of code
    have the range of addresses they cover; the others have none.
    """

    forest: Forest
    unit_of: NDArray[np.int64]
    name: int
    """Offset of the unit's name in ``.debug_str``."""
    low: NDArray[np.uint64] | None = None
    high: NDArray[np.uint64] | None = None

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.unit_of[-1]) + 1 if len(self.unit_of) else 0

    @property
    def head(self) -> Shape:
        """Shape of the unit's own entry."""
        return _UNIT if self.low is None else _CODE_UNIT


@dataclass(frozen=True, slots=True)
class DwarfSections:
    """The sections that go into the file."""

    info: NDArray[np.uint8]
    abbrev: bytes
    aranges: NDArray[np.void]
    info_addresses: Addresses
    """Of a relocatable file: the addresses in ``.debug_info``."""
    aranges_addresses: Addresses


def assemble(
    plans: list[UnitPlan], types: int, abbreviations: Abbreviations, producer: int, *, relocatable: bool = False
) -> DwarfSections:
    """
    Lay out all units, one after the other, and write them.

    Parameters
    ----------
    types : int
        Which of the plans has the types; its entries are what references mean.
    producer : int
        Offset of the producer's name in ``.debug_str``.

    Raises
    ------
    UnsupportedError
        If the section would not fit the 32-bit DWARF format.
    """
    start = 0
    offsets: list[NDArray[np.int64]] = []
    unit_starts: list[NDArray[np.int64]] = []
    for plan in plans:
        sizes = plan.forest.sizes()
        heading = UNIT_HEADER.itemsize + plan.head.size_bytes
        before = np.cumsum(sizes) - sizes
        # A zero byte ends each unit.
        offset = start + before + (plan.unit_of + 1) * heading + plan.unit_of
        first = np.flatnonzero(np.diff(plan.unit_of, prepend=-1))
        offsets.append(offset)
        unit_starts.append(offset[first] - heading)
        start += int(sizes.sum()) + plan.units * (heading + 1)
    if start >= 0xFFFFFFF0:
        raise UnsupportedError(f"{start} bytes of debug information, at most 4 GiB")
    info = np.zeros(start, dtype=np.uint8)
    aranges: list[NDArray[np.void]] = [np.zeros(0, dtype=ARANGES)]
    addresses: Addresses | None = [] if relocatable else None
    type_offsets = offsets[types]
    bounds = np.concatenate([*unit_starts, np.array([start])])
    done = 0
    for plan, offset, units in zip(plans, offsets, unit_starts, strict=True):
        if plan.units:
            plan.forest.write(info, offset, units[plan.unit_of], type_offsets, addresses)
            lengths = bounds[done + 1 : done + 1 + plan.units] - units
            _write_heads(info, plan, units, lengths, abbreviations, producer, addresses)
            if plan.low is not None and plan.high is not None:
                aranges.append(_aranges(units, plan.low, plan.high))
            done += plan.units
    sets = np.concatenate(aranges)
    set_addresses: Addresses = []
    if relocatable:
        starts = np.arange(len(sets), dtype=np.int64) * ARANGES.itemsize + _ARANGES_VADDR_AT
        set_addresses.append((starts, sets["vaddr"].copy()))
        sets["vaddr"] = 0
    return DwarfSections(info, abbreviations.encode(), sets, addresses or [], set_addresses)


def _write_heads(
    info: NDArray[np.uint8],
    plan: UnitPlan,
    units: NDArray[np.int64],
    lengths: NDArray[np.int64],
    abbreviations: Abbreviations,
    producer: int,
    addresses: Addresses | None,
) -> None:
    heads: NDArray[np.void] = np.zeros(len(units), dtype=UNIT_HEADER)
    heads["length"] = lengths - 4
    heads["version"] = 4
    heads["address_size"] = 8
    scatter(info, units, heads)
    columns: dict[At, NDArray[np.generic] | int] = {
        At.PRODUCER: producer,
        At.LANGUAGE: _LANG_C99,
        At.NAME: plan.name,
    }
    if plan.low is not None and plan.high is not None:
        columns[At.LOW_PC] = plan.low
        columns[At.HIGH_PC] = plan.high - plan.low
    place(info, units + UNIT_HEADER.itemsize, plan.head, abbreviations.code(plan.head), columns, addresses)


def _aranges(units: NDArray[np.int64], low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.void]:
    """Tell debuggers which unit covers an address, so that they need not open all."""
    sets: NDArray[np.void] = np.zeros(len(units), dtype=ARANGES)
    sets["length"] = ARANGES.itemsize - 4
    sets["version"] = 2
    sets["info_off"] = units
    sets["address_size"] = 8
    sets["vaddr"] = low
    sets["size"] = high - low
    return sets
