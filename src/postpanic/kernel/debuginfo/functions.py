"""
Functions: which symbols are functions, and which prototype each has.

BTF has functions by name without addresses, kallsyms has addresses without
types. Names join them where both sides are unambiguous.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import repeat
from operator import eq

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, Kind
from postpanic.kernel.debuginfo.dwarf import Abbreviations, At, Form, Shape, Tag
from postpanic.kernel.debuginfo.symbols import Symbols
from postpanic.kernel.debuginfo.tables import VOID, Forest
from postpanic.kernel.debuginfo.types import TypeTable, parameter_choices

__all__ = ["FunctionTable", "function_forest", "match_functions"]

_MARKER = re.compile(rb"_(s|e|sinit|einit)?text|__[a-z_]+_(start|end|begin)")
"""Names that the linker script made: bounds, not functions."""
_SECOND_NAME = re.compile(rb"__(pfx|cfi|pi)_.*")
"""Names that the build made for what has a name of its own."""
_FUNCTION_ALIGNMENT = 16
_MOST = 0.999
_NOT_A_FUNCTION = (b"__pfx_", b"__cfi_")
"""Padding before a function that carries a symbol of its own (objtool --prefix, kCFI)."""
_COLD = b".cold"
"""The unlikely end of a function, which the compiler moved away."""
_PART = b".part"
"""What of a function was not inlined."""


@dataclass(frozen=True, slots=True)
class FunctionTable:
    """
    Functions by rising address.

    ``prototype`` is the identifier of a BTF ``FUNC_PROTO``, 0 where none is
    known; ``origin`` the row of the function that a row is a piece or a copy
    of, -1 for a function of its own.
    """

    rows: NDArray[np.int64]
    """Rows of the symbols."""
    vaddr: NDArray[np.uint64]
    size: NDArray[np.uint64]
    names: list[bytes]
    prototype: NDArray[np.int64]
    external: NDArray[np.bool_]
    origin: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Rows of the symbols that are labels inside functions."""
    ambiguous: int
    """Functions with a BTF prototype that could not be told apart by name."""

    def __len__(self) -> int:
        return len(self.vaddr)


def match_functions(btf: Btf | None, symbols: Symbols) -> FunctionTable:
    """
    Find the functions among the symbols, one for each address.

    Names with a suffix (``foo.isra.0``, ``foo.cold``) are spelled without it,
    as in DWARF. A prototype is given where the name has one function in BTF and
    one address in the symbol table.
    """
    prototypes, several = _prototypes(btf)
    rows = _one_per_address(symbols, np.flatnonzero(symbols.is_function()), prototypes)
    rows, sizes, labels = _absorb_labels(symbols, rows, prototypes)
    full = list(map(symbols.names.__getitem__, rows.tolist()))
    names = [name.partition(b".")[0] or name for name in full]
    row_of = dict(zip(names[::-1], range(len(names) - 1, -1, -1), strict=True))
    first = np.fromiter(map(row_of.__getitem__, names), dtype=np.int64, count=len(names))
    prototype = np.fromiter(map(prototypes.get, names, repeat(0)), dtype=np.int64, count=len(names))
    whole = np.fromiter(map(eq, names, full), dtype=np.bool_, count=len(names))
    origin = np.full(len(names), -1, dtype=np.int64)
    # Whole names that occur once need no further thought; the rest is a few thousand.
    alone = np.bincount(first, minlength=len(names))[first] == 1
    groups: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(~alone | ~whole).tolist():
        groups.setdefault(names[row], []).append(row)
    ambiguous = 0
    for name, members in groups.items():
        main = _main_row(members, full, name)
        exact = sum(full[row] == name for row in members)
        ambiguous += exact > 1 and (name in prototypes or name in several)
        for row in members:
            if row != main or exact > 1:
                prototype[row] = 0
            if row != main and full[row] != name:
                origin[row] = main
    letters = symbols.letters[rows]
    external = (letters >= ord("A")) & (letters <= ord("Z"))
    return FunctionTable(rows, symbols.vaddrs[rows], sizes, names, prototype, external, origin, labels, ambiguous)


def _main_row(rows: list[int], full: list[bytes], name: bytes) -> int:
    """Choose the function itself among those that share a name but for the suffix; -1: only cold ends are there."""
    whole = [row for row in rows if full[row] == name]
    copies = [row for row in rows if not full[row].startswith((_COLD, _PART), len(name))]
    parts = [row for row in rows if full[row].startswith(_PART, len(name))]
    return (whole or copies or parts or [-1])[0]


def _prototypes(btf: Btf | None) -> tuple[dict[bytes, int], set[bytes]]:
    """Prototypes by name of function, and the names that have several; of a module, its own."""
    if btf is None:
        return {}, set()
    positions = btf.positions(Kind.FUNC)
    names = btf.names_at(positions)
    found = dict(zip(names, btf.size_or_type[positions].tolist(), strict=True))
    several: set[bytes] = set()
    if len(found) < len(names):
        several.update(name for name, count in Counter(names).items() if count > 1)
    for name in several:
        del found[name]
    return found, several


def _one_per_address(symbols: Symbols, rows: NDArray[np.int64], prototypes: dict[bytes, int]) -> NDArray[np.int64]:
    """Choose one symbol for each address; *rows* and the result rise by address."""
    vaddrs = symbols.vaddrs[rows]
    first = np.concatenate(([True], vaddrs[1:] != vaddrs[:-1])) if len(rows) else np.zeros(0, dtype=np.bool_)
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(rows)))
    chosen = rows[starts]
    for group in np.flatnonzero(counts > 1).tolist():
        members = rows[starts[group] : starts[group] + counts[group]].tolist()
        chosen[group] = max(members, key=lambda row: _rank(symbols.names[row], int(symbols.letters[row]), prototypes))
    keep = [
        name[:6] not in _NOT_A_FUNCTION and (name in prototypes or not _MARKER.fullmatch(name))
        for name in map(symbols.names.__getitem__, chosen.tolist())
    ]
    return chosen[np.array(keep, dtype=np.bool_)]


def _absorb_labels(
    symbols: Symbols, rows: NDArray[np.int64], prototypes: dict[bytes, int]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """
    Count labels inside assembler functions to the function.

    ``entry_SYSCALL_64_after_hwframe`` is one in ``entry_SYSCALL_64``,
    ``common_startup_64`` one in ``secondary_startup_64``; DWARF knows only the
    functions. A label follows a function without a gap, neither has a prototype,
    and it does not have the alignment that functions have in this kernel.
    """
    vaddrs = symbols.vaddrs[rows]
    sizes = symbols.sizes[rows].copy()
    keep = np.ones(len(rows), dtype=np.bool_)
    aligned = vaddrs % np.uint64(_FUNCTION_ALIGNMENT) == 0
    names = list(map(symbols.names.__getitem__, rows.tolist()))
    typed = np.fromiter(map(prototypes.__contains__, names), dtype=np.bool_, count=len(names))
    if not typed.any() or aligned[typed].mean() < _MOST:
        return rows, sizes, rows[:0]
    dotted = np.fromiter((b"." in name for name in names), dtype=np.bool_, count=len(names))
    touching = np.append(False, vaddrs[:-1] + sizes[:-1] == vaddrs[1:])
    candidates = ~aligned & ~typed & ~dotted & touching
    for at in np.flatnonzero(candidates[1:]).tolist():
        main = at
        while not keep[main]:
            main -= 1
        if not typed[main] and not dotted[main]:
            keep[at + 1] = False
            sizes[main] += sizes[at + 1]
    return rows[keep], sizes[keep], rows[~keep]


def _rank(name: bytes, letter: int, prototypes: dict[bytes, int]) -> tuple[bool, bool, bool]:
    made = _MARKER.fullmatch(name) or _SECOND_NAME.fullmatch(name)
    return name in prototypes, not made, letter < ord("a")


def function_forest(
    table: FunctionTable,
    types: TypeTable | None,
    names: NDArray[np.uint32],
    abbreviations: Abbreviations,
) -> Forest:
    """
    Lay functions into a forest of ``DW_TAG_subprogram``.

    Parameters
    ----------
    names : ndarray of uint32
        Offset in ``.debug_str`` of each function's name.
    """
    forest = Forest(len(table), abbreviations)
    own = table.origin < 0
    place = ((At.LOW_PC, Form.ADDR), (At.HIGH_PC, Form.DATA4))
    columns: dict[At, NDArray[np.generic]] = {
        At.NAME: names,
        At.LOW_PC: table.vaddr,
        At.HIGH_PC: np.minimum(table.size, np.uint64(0xFFFFFFFF)),
        At.ABSTRACT_ORIGIN: table.origin,
    }

    def add(shape: Shape, mask: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(mask)
        wanted = {at for at, _ in shape.attributes}
        forest.add(shape, rows, {at: column[rows] for at, column in columns.items() if at in wanted})

    add(Shape(Tag.SUBPROGRAM, ((At.ABSTRACT_ORIGIN, Form.REF_ADDR), *place)), ~own)
    plain = own & (table.prototype == 0)
    if types is not None:
        columns[At.TYPE] = _result_types(types, table.prototype)
    for external in (True, False):
        linkage = ((At.EXTERNAL, Form.FLAG_PRESENT),) if external else ()
        mask = own & (table.external == external)
        add(Shape(Tag.SUBPROGRAM, ((At.NAME, Form.STRP), *linkage, *place)), mask & plain)
        if types is None:
            continue
        head = ((At.NAME, Form.STRP), *linkage, (At.PROTOTYPED, Form.FLAG_PRESENT))
        returns = columns[At.TYPE] != VOID
        for typed in (True, False):
            result = ((At.TYPE, Form.REF_ADDR),) if typed else ()
            shape = Shape(Tag.SUBPROGRAM, (*head, *result, *place, (At.SIBLING, Form.REF4)), children=True)
            add(shape, mask & ~plain & (returns == typed))
    if types is not None:
        _add_parameters(forest, table, types)
    return forest


def _result_types(types: TypeTable, prototypes: NDArray[np.int64]) -> NDArray[np.int64]:
    results = np.zeros(len(prototypes), dtype=np.int64)
    for owner in types.chain:
        mine = (prototypes >= max(owner.start_id, 1)) & (prototypes < owner.end_id)
        results[mine] = owner.size_or_type[prototypes[mine] - owner.start_id]
    return types.index[results]


def _add_parameters(forest: Forest, table: FunctionTable, types: TypeTable) -> None:
    for owner in types.chain:
        rows = np.flatnonzero((table.prototype >= max(owner.start_id, 1)) & (table.prototype < owner.end_id))
        positions = table.prototype[rows] - owner.start_id
        _, words = owner.gather(positions, 2)
        owners = np.repeat(rows, owner.vlen[positions])
        choices = parameter_choices(words[1], types.strings(owner, words[0]), types.index)
        forest.add_children(owners, choices)
