"""
Global variables: which symbols are typed, and how.

Per-CPU variables have their type in BTF (all variables do, where the kernel was
built with ``pahole --btf_features=global_var``). The rest are typed by the table
of globals, each offer checked against the dump: the type must be in the BTF and
must fit between the symbol and the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, Kind, TypeResolver
from postpanic.kernel.debuginfo.array_length import ArrayOffer, ElementKind, decide_length
from postpanic.kernel.debuginfo.dwarf import Abbreviations, At, Form, Shape, Tag
from postpanic.kernel.debuginfo.globals import GlobalsTable
from postpanic.kernel.debuginfo.symbols import Symbols
from postpanic.kernel.debuginfo.tables import VOID, Forest
from postpanic.kernel.debuginfo.types import TypeTable

__all__ = ["VariableTable", "type_variables", "variable_forest"]

_HEAD_CHARACTERS = 4
_BTF_TRACE = b"btf_trace_"
_POINTERS = re.compile(r"\*(?: ?const)? ?\[")
_CHARACTERS = re.compile(r"(?:const )?char \[\w*\]$")


@dataclass(slots=True)
class VariableTable:
    """Typed variables: the symbol's row, and the identifier of the type."""

    rows: list[int] = field(default_factory=list)
    type_ids: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """``sizeof`` each, in bytes; 0 where the type does not tell."""
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


def type_variables(
    btf: Btf,
    symbols: Symbols,
    table: GlobalsTable | None,
    resolver: TypeResolver,
    read: Callable[[int, int], bytes | None] = lambda _vaddr, _size: None,
) -> VariableTable:
    """
    Type the variables among the symbols.

    Types that the BTF lacks, such as an array of another length, are built by
    *resolver*. Offers are tried in the table's order: rank it for the kernel
    first. *read* gives the contents of a variable at its link-time address, or
    None; they help to tell how long an array is.
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
    if table is not None:
        _type_by_table(btf, symbols, table, resolver, read, result, taken)
    size_of = {type_id: resolver.size_of(type_id) for type_id in set(result.type_ids)}
    result.sizes = [size_of[type_id] for type_id in result.type_ids]
    return result


def _type_by_table(
    btf: Btf,
    symbols: Symbols,
    table: GlobalsTable,
    resolver: TypeResolver,
    read: Callable[[int, int], bytes | None],
    result: VariableTable,
    taken: set[int],
) -> None:
    """Type what the BTF does not; *taken* are the symbols that it does."""
    unique = symbols.is_unique
    chooser = _Chooser(symbols, resolver, result, table, read)
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
    kind: ElementKind


class _Chooser:
    """Chooses among the types that the table offers for one symbol."""

    def __init__(
        self,
        symbols: Symbols,
        resolver: TypeResolver,
        result: VariableTable,
        table: GlobalsTable,
        read: Callable[[int, int], bytes | None],
    ) -> None:
        self.resolver = resolver
        self.result = result
        self.spellings = table.spellings
        self.witnesses = table.witnesses
        self.names = symbols.names
        self.read = read
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
                # A macro that makes many variables is a witness for each of them.
                witnesses = self.witnesses.get(self.names[row], len(self.names))
                told = ArrayOffer(offer.element_bytes, offer.kind, known, witnesses)
                length = decide_length(told, self.vaddrs[row], room, self.read)
                if length and length not in known:
                    known[length] = self.resolver.array_of(offer.element, length)
                self.result.add(row, known[length] if length else self.resolver.array_of(offer.element, 0))
                self.result.length_unknown += not length
                return
        if resolved:
            self.result.does_not_fit += 1
        else:
            self.result.type_absent += 1

    def _resolve(self, indexes: tuple[int, ...]) -> list[_Offer]:
        spellings = [self.spellings[index] for index in indexes]
        types = [(self.resolver.detect_c_type(spelling), spelling) for spelling in spellings]
        return [self._measure(type_id, spelling) for type_id, spelling in types if type_id is not None]

    def _measure(self, type_id: int, spelling: str) -> _Offer:
        size = self.resolver.size_of(type_id)
        element, length = self.resolver.array_parts(type_id)
        element_bytes = self.resolver.size_of(element) if element else 0
        return _Offer(type_id, size, element, element_bytes, length, _element_kind(spelling))


def _element_kind(spelling: str) -> ElementKind:
    if _POINTERS.search(spelling):
        return ElementKind.POINTER
    return ElementKind.CHARACTER if _CHARACTERS.match(spelling) else ElementKind.OTHER


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
