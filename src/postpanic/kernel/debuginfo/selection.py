"""Which types go into a file: all of a kernel's, or those that a module needs."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, Kind
from postpanic.kernel.debuginfo.functions import FunctionTable
from postpanic.kernel.debuginfo.types import StringOffsets, prototypes_in_use
from postpanic.kernel.debuginfo.variables import VariableTable

__all__ = ["AllTypes", "ModuleTypes", "Selection", "declarable_types"]

_ENUM_TYPES = (
    "unsigned char",
    "signed char",
    "short unsigned int",
    "short int",
    "unsigned int",
    "int",
    "long unsigned int",
    "long int",
)


class Strings(Protocol):
    """Where strings are appended."""

    def append(self, blob: bytes) -> int:
        """Append NUL-terminated strings; gives the offset of the first."""


class Selection(Protocol):
    """Decides which types of a BTF object become entries."""

    def first_strings(self, btf: Btf | None) -> bytes:
        """Give what ``.debug_str`` begins with; at least one zero byte."""

    def choose(
        self, btf: Btf, functions: FunctionTable, variables: VariableTable
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """By identifier: which types become entries, and which of those declarations only."""

    def numbering(
        self, btf: Btf, chosen: NDArray[np.bool_], functions: FunctionTable, strings: Strings
    ) -> StringOffsets:
        """How offsets of the BTF's strings become offsets of ``.debug_str``."""


class AllTypes:
    """Every type, with the BTF's string section as it stands."""

    def first_strings(self, btf: Btf | None) -> bytes:
        """Give the string section."""
        return btf.strings if btf is not None else b"\0"

    def choose(
        self, btf: Btf, functions: FunctionTable, variables: VariableTable
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Choose all but the prototypes that only functions have."""
        del functions, variables
        return prototypes_in_use(btf, btf.chain), np.zeros(btf.end_id, dtype=np.bool_)

    def numbering(
        self, btf: Btf, chosen: NDArray[np.bool_], functions: FunctionTable, strings: Strings
    ) -> StringOffsets:
        """Leave offsets as they are."""
        del btf, chosen, functions, strings
        return lambda _, offsets: offsets


class ModuleTypes:
    """
    A module's own types, and of vmlinux's those they refer to.

    Structures, unions and enumerations of vmlinux that have a name of their own
    are declared only: a debugger that also has vmlinux completes them by name,
    and every module would otherwise carry a large part of the kernel.

    Parameters
    ----------
    declarable : ndarray of bool
        By identifier of vmlinux's types: see :func:`declarable_types`.
    """

    def __init__(self, declarable: NDArray[np.bool_]) -> None:
        self.declarable = declarable

    def first_strings(self, btf: Btf | None) -> bytes:
        """Begin with the empty string."""
        del btf
        return b"\0"

    def choose(
        self, btf: Btf, functions: FunctionTable, variables: VariableTable
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Choose what is reachable from the module's types, functions and variables."""
        chosen = np.zeros(btf.end_id, dtype=np.bool_)
        declared = np.zeros(btf.end_id, dtype=np.bool_)
        declared[: len(self.declarable)] = self.declarable
        chosen |= prototypes_in_use(btf, [owner for owner in btf.chain if owner.start_id >= len(self.declarable)])
        for name in _ENUM_TYPES:
            chosen[btf.detect(name, Kind.INT) or 0] = True
        frontier = np.flatnonzero(chosen)
        roots = np.concatenate(
            (
                _targets(btf, functions.prototype[functions.prototype > 0]),
                np.array(variables.type_ids, dtype=np.int64),
            )
        )
        frontier = np.union1d(frontier, roots)
        chosen[roots] = True
        while len(frontier):
            found = _targets(btf, frontier[~declared[frontier]])
            frontier = np.unique(found[~chosen[found]])
            chosen[frontier] = True
        chosen[0] = False
        return chosen, declared

    def numbering(
        self, btf: Btf, chosen: NDArray[np.bool_], functions: FunctionTable, strings: Strings
    ) -> StringOffsets:
        """Append the module's strings, and of vmlinux's those that are used."""
        starts = {owner.start_id: strings.append(owner.strings) for owner in btf.chain if owner.base and owner.strings}
        base = btf.chain[0]
        used = _base_string_offsets(btf, chosen, functions)
        texts = [base.string(offset).encode() + b"\0" for offset in used.tolist()]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        first = strings.append(b"".join(texts))
        places = (first + np.cumsum(lengths) - lengths).astype(np.uint32)

        def translate(owner: Btf, offsets: NDArray[np.uint32]) -> NDArray[np.uint32]:
            result = np.zeros(len(offsets), dtype=np.uint32)
            inside = (offsets > 0) & (offsets < len(base.strings))
            result[inside] = places[np.searchsorted(used, offsets[inside])] if len(used) else 0
            for split in btf.chain[1:]:
                mine = (offsets >= split.start_str_off) & (offsets < split.start_str_off + len(split.strings))
                result[mine] = offsets[mine] - split.start_str_off + starts.get(split.start_id, 0)
            del owner
            return result

        return translate


def declarable_types(btf: Btf, others: list[Btf]) -> NDArray[np.bool_]:
    """
    Mark the types of vmlinux that a declaration means without doubt.

    They have a name, no other type of their kind has it, and no module (*others*)
    defines another type of that name.
    """
    result = np.zeros(btf.end_id, dtype=np.bool_)
    for kinds in ((Kind.STRUCT,), (Kind.UNION,), (Kind.ENUM, Kind.ENUM64)):
        positions = btf.positions(*kinds)
        names = btf.names_at(positions)
        counts = Counter(names)
        for other in others:
            counts.update(other.names_at(other.positions(*kinds)))
        alone = np.fromiter((name != b"" and counts[name] == 1 for name in names), dtype=np.bool_, count=len(names))
        result[positions[alone]] = True
    # An enumeration without enumerators is itself a declaration.
    return result


def _targets(btf: Btf, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Collect everything that these types refer to."""
    found: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    for owner in btf.chain:
        positions = ids[(ids >= owner.start_id) & (ids < owner.end_id)] - owner.start_id
        kinds = owner.kind[positions]
        simple = np.isin(
            kinds,
            (
                Kind.PTR,
                Kind.TYPEDEF,
                Kind.CONST,
                Kind.VOLATILE,
                Kind.RESTRICT,
                Kind.TYPE_TAG,
                Kind.FUNC_PROTO,
                Kind.VAR,
            ),
        )
        found.append(owner.size_or_type[positions[simple]].astype(np.int64))
        found.append(owner.extra_words(positions[kinds == Kind.ARRAY]).astype(np.int64))
        composite = positions[(kinds == Kind.STRUCT) | (kinds == Kind.UNION)]
        found.append(owner.gather(composite, 3)[1][1].astype(np.int64))
        found.append(owner.gather(positions[kinds == Kind.FUNC_PROTO], 2)[1][1].astype(np.int64))
    return np.unique(np.concatenate(found))


def _base_string_offsets(btf: Btf, chosen: NDArray[np.bool_], functions: FunctionTable) -> NDArray[np.uint32]:
    """Offsets of vmlinux's strings that the chosen types and the functions' parameters use, ascending."""
    found: list[NDArray[np.uint32]] = []
    prototypes = functions.prototype[functions.prototype > 0]
    for owner in btf.chain:
        ids = np.flatnonzero(chosen[owner.start_id : owner.end_id])
        found.append(owner.name_off[ids])
        kinds = owner.kind[ids]
        mine = prototypes[(prototypes >= owner.start_id) & (prototypes < owner.end_id)] - owner.start_id
        for wanted, width in (
            (ids[(kinds == Kind.STRUCT) | (kinds == Kind.UNION)], 3),
            (ids[kinds == Kind.ENUM], 2),
            (ids[kinds == Kind.ENUM64], 3),
            (mine, 2),
        ):
            found.append(owner.gather(wanted, width)[1][0])
    offsets = np.unique(np.concatenate(found))
    limit = len(btf.chain[0].strings)
    return offsets[(offsets > 0) & (offsets < limit)]
