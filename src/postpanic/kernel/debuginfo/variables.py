"""
Global variables: which symbols are typed, and how.

Per-CPU variables have their type in BTF (all variables do, where the kernel was
built with ``pahole --btf_features=global_var``). The rest are typed by the table
of globals, each offer checked against the dump: the type must be in the BTF and
must fit between the symbol and the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, Kind, TypeResolver
from postpanic.kernel.debuginfo.dwarf import Abbreviations, At, Form, Shape, Tag
from postpanic.kernel.debuginfo.globals import GlobalsTable
from postpanic.kernel.debuginfo.symbols import Symbols
from postpanic.kernel.debuginfo.tables import VOID, Forest
from postpanic.kernel.debuginfo.types import TypeTable

__all__ = ["VariableTable", "type_variables", "variable_forest"]

_HEAD_CHARACTERS = 4
_BTF_TRACE = b"btf_trace_"
_PAGE_BYTES = 4096
_SLACK_BYTES = 64
"""The compiler aligns objects to at most 64 bytes (a cache line) unless told otherwise."""


@dataclass(slots=True)
class VariableTable:
    """Typed variables: the symbol's row, and the identifier of the type."""

    rows: list[int] = field(default_factory=list)
    type_ids: list[int] = field(default_factory=list)
    from_btf: int = 0
    from_table: int = 0
    type_absent: int = 0
    """Offered by the table, but none of the types is in the BTF."""
    does_not_fit: int = 0
    """Offered by the table, but larger than the room up to the next symbol."""
    length_unknown: int = 0
    """Arrays whose length the dump does not tell: typed without one."""
    ambiguous: int = 0
    """In the table, but several symbols have the name."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, type_id: int) -> None:
        """Add one variable."""
        self.rows.append(row)
        self.type_ids.append(type_id)


def type_variables(btf: Btf, symbols: Symbols, table: GlobalsTable | None, resolver: TypeResolver) -> VariableTable:
    """
    Type the variables among the symbols.

    Types that the BTF lacks, such as an array of another length, are built by
    *resolver*. Offers are tried in the table's order: rank it for the kernel
    first.
    """
    result = VariableTable()
    taken: set[int] = set()
    unique = symbols.is_unique
    for name, type_id in _btf_variables(btf):
        row = symbols.row_of.get(name)
        if row is not None and unique[row]:
            result.add(row, type_id)
            taken.add(row)
    result.from_btf = len(result)
    if table is None:
        return result
    chooser = _Chooser(symbols, resolver, result, table)
    is_function = symbols.is_function()
    for row, type_id in _trace_point_maps(btf, symbols):
        if row not in taken and unique[row]:
            result.add(row, type_id)
            taken.add(row)
    for row, offers in chain(_by_name(symbols, table), _by_prefix(symbols, table)):
        if row in taken or is_function[row]:
            continue
        taken.add(row)
        if unique[row]:
            chooser.choose(row, offers)
        else:
            result.ambiguous += 1
    result.from_table = len(result) - result.from_btf
    return result


def _trace_point_maps(btf: Btf, symbols: Symbols) -> Iterator[tuple[int, int]]:
    """
    Symbols of the trace points' links to BPF, and their types.

    ``__DEFINE_EVENT`` of ``include/trace/bpf_probe.h`` defines for each trace
    point an anonymous union that only its member of type ``btf_trace_CALL``
    tells from the others: ``union { struct bpf_raw_event_map event;
    btf_trace_CALL handler; } __bpf_trace_tp_map_CALL``.
    """
    typedefs = btf.positions(Kind.TYPEDEF)
    calls = {
        position + btf.start_id: name[len(_BTF_TRACE) :]
        for position, name in zip(typedefs.tolist(), btf.names_at(typedefs), strict=True)
        if name.startswith(_BTF_TRACE)
    }
    if not calls:
        return
    items = btf.items(Kind.UNION)
    is_call = np.zeros(btf.end_id, dtype=np.bool_)
    is_call[list(calls)] = True
    for index in np.flatnonzero(is_call[items.words[1]] & (btf.name_off[items.owner] == 0)).tolist():
        row = symbols.row_of.get(b"__bpf_trace_tp_map_" + calls[int(items.words[1][index])])
        if row is not None:
            yield row, int(items.owner[index]) + btf.start_id


def _by_name(symbols: Symbols, table: GlobalsTable) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Symbols whose names the table has, and its offers."""
    if len(symbols.names) > len(table.names):
        for name, offers in table.offers.items():
            row = symbols.row_of.get(name)
            if row is not None:
                yield row, offers
    else:
        for row, name in enumerate(symbols.names):
            known = table.offers.get(name)
            if known is not None:
                yield row, known


def _by_prefix(symbols: Symbols, table: GlobalsTable) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Symbols whose names macros made, and the type that each macro declares."""
    prefixes = table.prefixes
    if not prefixes:
        return
    # A look at the beginning spares most names the comparison with every prefix.
    head = min(_HEAD_CHARACTERS, *map(len, prefixes))
    by_head: dict[bytes, list[bytes]] = {}
    for prefix in sorted(prefixes, key=len, reverse=True):
        by_head.setdefault(prefix[:head], []).append(prefix)
    for row, name in enumerate(symbols.names):
        for prefix in by_head.get(name[:head], ()):
            if name.startswith(prefix):
                yield row, (prefixes[prefix],)
                break


def _btf_variables(btf: Btf) -> list[tuple[bytes, int]]:
    """Names and types of the variables that the BTF itself has (of a module, the module's)."""
    positions = btf.positions(Kind.VAR)
    return list(zip(btf.names_at(positions), btf.size_or_type[positions].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Offer:
    """One spelling of the table, resolved."""

    type_id: int
    size_bytes: int
    element: int
    """Of an array, else 0."""
    element_bytes: int
    length: int


class _Chooser:
    """Chooses among the types that the table offers for one symbol."""

    def __init__(self, symbols: Symbols, resolver: TypeResolver, result: VariableTable, table: GlobalsTable) -> None:
        self.resolver = resolver
        self.result = result
        self.spellings = table.spellings
        self.vaddrs = symbols.vaddrs.tolist()
        self.sizes = symbols.sizes.tolist()
        self.offers: dict[tuple[int, ...], list[_Offer]] = {}

    def choose(self, row: int, indexes: tuple[int, ...]) -> None:
        """Type one symbol with the first offer that fits, or count why none does."""
        room = self.sizes[row]
        resolved = self.offers.get(indexes)
        if resolved is None:
            resolved = self.offers[indexes] = self._resolve(indexes)
        for offer in resolved:
            if not offer.element:
                if 0 < offer.size_bytes <= room:
                    self.result.add(row, offer.type_id)
                    return
            elif 0 < offer.element_bytes <= room:
                known = {other.length: other.type_id for other in resolved if other.element == offer.element}
                length = _array_length(offer.element_bytes, known, self.vaddrs[row], room)
                self.result.add(row, known[length] if length else self.resolver.array_of(offer.element, 0))
                self.result.length_unknown += not length
                return
        if resolved:
            self.result.does_not_fit += 1
        else:
            self.result.type_absent += 1

    def _resolve(self, indexes: tuple[int, ...]) -> list[_Offer]:
        types = [self.resolver.detect_c_type(self.spellings[index]) for index in indexes]
        return [self._measure(type_id) for type_id in types if type_id is not None]

    def _measure(self, type_id: int) -> _Offer:
        size = self.resolver.size_of(type_id)
        element, length = self.resolver.array_parts(type_id)
        return _Offer(type_id, size, element, self.resolver.size_of(element) if element else 0, length)


def _array_length(element_bytes: int, known: Collection[int], vaddr: int, room: int) -> int:
    """
    Length of an array by what kernels have and by the room there is, 0 where that is not sure.

    Behind an object there is padding up to the next symbol's alignment, or data
    that no symbol names (string literals, compound literals). So the room alone
    proves nothing, and a length of other kernels may have changed. A length
    counts when both say it: the kernels that have the variable agree, or the
    room leaves one possibility and a kernel has it.
    """
    end = vaddr + room
    alignment = end & -end
    slack = alignment if alignment >= _PAGE_BYTES else min(alignment, _SLACK_BYTES)
    longest = room // element_bytes
    shortest = max((room - slack) // element_bytes + 1, 1)
    possible = [length for length in known if shortest <= length <= longest]
    if len(possible) == 1 and (len(known) == 1 or shortest == longest):
        return possible[0]
    return 0


def variable_forest(
    variables: VariableTable,
    symbols: Symbols,
    types: TypeTable,
    names: NDArray[np.uint32],
    abbreviations: Abbreviations,
) -> Forest:
    """Lay variables into a forest of ``DW_TAG_variable``; *names* are offsets in ``.debug_str``."""
    forest = Forest(len(variables), abbreviations)
    rows = np.array(variables.rows, dtype=np.int64)
    kinds = types.index[np.array(variables.type_ids, dtype=np.int64)]
    letters = symbols.letters[rows]
    # A type without an entry (void) would be no variable of C.
    for external in (True, False):
        linkage = ((At.EXTERNAL, Form.FLAG_PRESENT),) if external else ()
        for typed in (True, False):
            chosen = np.flatnonzero(
                (((letters >= ord("A")) & (letters <= ord("Z"))) == external) & ((kinds != VOID) == typed)
            )
            attributes = ((At.NAME, Form.STRP), *linkage) + (((At.TYPE, Form.REF_ADDR),) if typed else ())
            columns: dict[At, NDArray[np.generic] | int] = {
                At.NAME: names[chosen],
                At.LOCATION: symbols.vaddrs[rows[chosen]],
            }
            if typed:
                columns[At.TYPE] = kinds[chosen]
            forest.add(Shape(Tag.VARIABLE, (*attributes, (At.LOCATION, Form.EXPRLOC_ADDR))), chosen, columns)
    return forest
