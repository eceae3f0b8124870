"""BTF types as DWARF entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.btf import Btf, IntEncoding, Kind
from postpanic.kernel.btf.decode import MAX_DEPTH
from postpanic.kernel.debuginfo.dwarf import Abbreviations, At, Ate, Form, Shape, Tag, sleb128
from postpanic.kernel.debuginfo.tables import VOID, Forest

__all__ = ["StringOffsets", "TypeTable", "named_typed", "parameter_choices", "prototypes_in_use"]

StringOffsets = Callable[[Btf, NDArray[np.uint32]], NDArray[np.uint32]]
"""Turns offsets of a BTF object's strings into offsets of ``.debug_str``; 0 stays 0, which means no name."""

_Columns = Mapping[At, NDArray[np.generic]]

_NEVER = (Kind.VOID, Kind.FUNC, Kind.VAR, Kind.DATASEC, Kind.DECL_TAG, Kind.TYPE_TAG)
_QUALIFIER_TAGS = {
    Kind.CONST: Tag.CONST_TYPE,
    Kind.VOLATILE: Tag.VOLATILE_TYPE,
    Kind.RESTRICT: Tag.RESTRICT_TYPE,
}
_UNDERLYING = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "short unsigned int",
    (2, True): "short int",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "long unsigned int",
    (8, True): "long int",
}
SIGN_BIT = 1 << 31


class TypeTable:
    """
    The types of one file: a selection of a BTF object and of what it stands on.

    Parameters
    ----------
    btf : Btf
        The topmost object.
    selected : ndarray of bool
        Which identifiers become entries; every reference of a selected type
        must be selected too. Functions, variables, sections and tags never do.
    declared : ndarray of bool
        Which of them become declarations, completed elsewhere by name.
    signed_char : bool
        Whether plain ``char`` is signed, which BTF does not tell.
    """

    def __init__(
        self,
        btf: Btf,
        selected: NDArray[np.bool_],
        declared: NDArray[np.bool_],
        strings: StringOffsets,
        *,
        signed_char: bool,
    ) -> None:
        self.chain = btf.chain
        self.btf = btf
        self.strings = strings
        self.signed_char = signed_char
        self.declared = declared
        self._narrow = _narrow_integers(btf)
        never = np.zeros(256, dtype=np.bool_)
        never[list(_NEVER)] = True
        self.index: NDArray[np.int64] = np.full(btf.end_id, VOID, dtype=np.int64)
        self._positions: dict[int, NDArray[np.int64]] = {}
        self._kinds: dict[int, NDArray[np.uint8]] = {}
        self.count = 0
        for owner in self.chain:
            positions = np.flatnonzero(selected[owner.start_id : owner.end_id])
            positions = positions[~never[owner.kind[positions]]]
            self.index[positions + owner.start_id] = self.count + np.arange(len(positions))
            self.count += len(positions)
            self._positions[owner.start_id] = positions
            self._kinds[owner.start_id] = owner.kind[positions]
        self._skip_tags(selected)

    def _skip_tags(self, selected: NDArray[np.bool_]) -> None:
        """Let a reference to a type tag mean what the tag stands on."""
        tags_of = [owner.positions(Kind.TYPE_TAG) for owner in self.chain]
        tags_of = [tags[selected[tags + owner.start_id]] for tags, owner in zip(tags_of, self.chain, strict=True)]
        for _ in range(MAX_DEPTH):
            changed = False
            for owner, tags in zip(self.chain, tags_of, strict=True):
                below = self.index[owner.size_or_type[tags]]
                changed |= bool((self.index[tags + owner.start_id] != below).any())
                self.index[tags + owner.start_id] = below
            if not changed:
                break

    def forest(self, abbreviations: Abbreviations) -> Forest:
        """Lay every selected type into a forest of entries."""
        forest = Forest(self.count, abbreviations)
        for owner in self.chain:
            self._add_base_types(forest, owner)
            self._add_references(forest, owner)
            self._add_arrays(forest, owner)
            self._add_composites(forest, owner)
            self._add_enumerations(forest, owner)
            self._add_prototypes(forest, owner)
        return forest

    def _pick(self, owner: Btf, *kinds: Kind) -> NDArray[np.int64]:
        """Positions of the selected types of these kinds."""
        chosen = self._kinds[owner.start_id]
        mask = chosen == kinds[0]
        for kind in kinds[1:]:
            mask |= chosen == kind
        picked: NDArray[np.int64] = self._positions[owner.start_id][mask]
        return picked

    def _entries(self, owner: Btf, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.index[positions + owner.start_id]

    def _names(self, owner: Btf, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        return self.strings(owner, owner.name_off[positions])

    def _add_base_types(self, forest: Forest, owner: Btf) -> None:
        shape = Shape(Tag.BASE_TYPE, ((At.NAME, Form.STRP), (At.BYTE_SIZE, Form.DATA1), (At.ENCODING, Form.DATA1)))
        positions = self._pick(owner, Kind.INT, Kind.FLOAT)
        is_float = owner.kind[positions] == Kind.FLOAT
        bits = (owner.words[np.minimum(owner.start[positions] + 3, len(owner.words) - 1)] >> 24) & 0xF
        encodings = np.where(bits & IntEncoding.SIGNED, Ate.SIGNED, Ate.UNSIGNED)
        encodings[(bits & IntEncoding.BOOL) != 0] = Ate.BOOLEAN
        encodings[is_float] = Ate.FLOAT
        chars = {
            b"char": Ate.SIGNED_CHAR if self.signed_char else Ate.UNSIGNED_CHAR,
            b"signed char": Ate.SIGNED_CHAR,
            b"unsigned char": Ate.UNSIGNED_CHAR,
        }
        for at, position in enumerate(positions.tolist()):
            name = owner.string(int(owner.name_off[position])).encode()
            encodings[at] = chars.get(name, encodings[at])
        forest.add(
            shape,
            self._entries(owner, positions),
            {
                At.NAME: self._names(owner, positions),
                At.BYTE_SIZE: owner.size_or_type[positions],
                At.ENCODING: encodings,
            },
        )

    def _add_references(self, forest: Forest, owner: Btf) -> None:
        for kind, tag in {Kind.PTR: Tag.POINTER_TYPE, Kind.TYPEDEF: Tag.TYPEDEF, **_QUALIFIER_TAGS}.items():
            positions = self._pick(owner, kind)
            types = self.index[owner.size_or_type[positions]]
            names = self._names(owner, positions)
            attributes: tuple[tuple[At, Form], ...] = ()
            if kind == Kind.PTR:
                attributes = ((At.BYTE_SIZE, Form.DATA1),)
            elif kind == Kind.TYPEDEF:
                attributes = ((At.NAME, Form.STRP),)
            for typed, mask in ((True, types != VOID), (False, types == VOID)):
                shape = Shape(tag, attributes + (((At.TYPE, Form.REF_ADDR),) if typed else ()))
                columns: dict[At, NDArray[np.generic] | int] = {At.NAME: names[mask], At.BYTE_SIZE: 8}
                if typed:
                    columns[At.TYPE] = types[mask]
                forest.add(shape, self._entries(owner, positions[mask]), columns)

    def _add_arrays(self, forest: Forest, owner: Btf) -> None:
        positions = self._pick(owner, Kind.ARRAY)
        elements = self.index[owner.extra_words(positions)]
        lengths = owner.extra_words(positions, 2)
        entries = self._entries(owner, positions)
        for typed, mask in ((True, elements != VOID), (False, elements == VOID)):
            shape = Shape(Tag.ARRAY_TYPE, ((At.TYPE, Form.REF_ADDR),) if typed else (), children=True)
            forest.add(shape, entries[mask], {At.TYPE: elements[mask]} if typed else {})
        forest.add_children(
            entries,
            [
                (
                    Shape(Tag.SUBRANGE_TYPE, ((At.UPPER_BOUND, Form.DATA4),)),
                    lengths != 0,
                    {At.UPPER_BOUND: lengths - np.uint32(1)},
                ),
                (Shape(Tag.SUBRANGE_TYPE, ()), lengths == 0, {}),
            ],
        )

    def _add_composites(self, forest: Forest, owner: Btf) -> None:
        for kind, tag in ((Kind.STRUCT, Tag.STRUCTURE_TYPE), (Kind.UNION, Tag.UNION_TYPE)):
            positions = self._pick(owner, kind)
            whole = ~self.declared[positions + owner.start_id]
            self._add_declarations(forest, owner, positions[~whole], tag)
            self._add_tagged(forest, owner, positions[whole], tag, {}, Form.DATA4)
            forwards = self._pick(owner, Kind.FWD)
            forwards = forwards[owner.kind_flag[forwards] == (kind == Kind.UNION)]
            self._add_declarations(forest, owner, forwards, tag)
            self._add_members(forest, owner, positions[whole])

    def _add_declarations(self, forest: Forest, owner: Btf, positions: NDArray[np.int64], tag: Tag) -> None:
        names = self._names(owner, positions)
        for named, mask in ((True, names != 0), (False, names == 0)):
            attributes = (((At.NAME, Form.STRP),) if named else ()) + ((At.DECLARATION, Form.FLAG_PRESENT),)
            forest.add(Shape(tag, attributes), self._entries(owner, positions[mask]), {At.NAME: names[mask]})

    def _add_tagged(
        self, forest: Forest, owner: Btf, positions: NDArray[np.int64], tag: Tag, more: _Columns, size_form: Form
    ) -> None:
        """Add structures, unions or enumerations: a name perhaps, a size, and children."""
        names = self._names(owner, positions)
        types = more.get(At.TYPE, np.full(len(positions), VOID))
        for named, typed, mask in named_typed(names, types):
            attributes: tuple[tuple[At, Form], ...] = ((At.NAME, Form.STRP),) if named else ()
            attributes += ((At.BYTE_SIZE, size_form),)
            attributes += ((At.TYPE, Form.REF_ADDR),) if typed else ()
            attributes += ((At.SIBLING, Form.REF4),)
            columns: dict[At, NDArray[np.generic] | int] = {
                At.NAME: names[mask],
                At.BYTE_SIZE: owner.size_or_type[positions][mask],
            }
            if typed:
                columns[At.TYPE] = types[mask]
            forest.add(Shape(tag, attributes, children=True), self._entries(owner, positions[mask]), columns)

    def _add_members(self, forest: Forest, owner: Btf, positions: NDArray[np.int64]) -> None:
        owners, words = owner.gather(positions, 3)
        names = self.strings(owner, words[0])
        types = self.index[words[1]]
        packed = owner.kind_flag[owners]
        bit_size = np.where(packed, words[2] >> 24, 0)
        bit_offset = np.where(packed, words[2] & 0xFFFFFF, words[2])
        if self._narrow is not None:
            # Before kind_flag a bit-field was a member whose integer type had fewer bits than bytes.
            width, shift = self._narrow
            bit_size = np.where(bit_size == 0, width[words[1]], bit_size)
            bit_offset = bit_offset + shift[words[1]]
        is_bits = (bit_size != 0) | (bit_offset % 8 != 0)
        columns: dict[At, NDArray[np.generic]] = {
            At.NAME: names,
            At.TYPE: types,
            At.DATA_MEMBER_LOCATION: bit_offset // 8,
            At.BIT_SIZE: bit_size,
            At.DATA_BIT_OFFSET: bit_offset,
        }
        plain = ((At.DATA_MEMBER_LOCATION, Form.DATA4),)
        narrow = ((At.BIT_SIZE, Form.DATA1), (At.DATA_BIT_OFFSET, Form.DATA4))
        choices: list[tuple[Shape, NDArray[np.bool_], _Columns]] = []
        for named, typed, mask in named_typed(names, types):
            for place, chosen in ((plain, ~is_bits), (narrow, is_bits)):
                shape = Shape(Tag.MEMBER, _named_typed_attributes(named=named, typed=typed) + place)
                choices.append((shape, mask & chosen, columns))
        forest.add_children(self._entries(owner, owners), choices)

    def _add_enumerations(self, forest: Forest, owner: Btf) -> None:
        for kind in (Kind.ENUM, Kind.ENUM64):
            positions = self._pick(owner, kind)
            whole = ~self.declared[positions + owner.start_id] & (owner.vlen[positions] != 0)
            self._add_declarations(forest, owner, positions[~whole], Tag.ENUMERATION_TYPE)
            positions = positions[whole]
            owners, words = owner.gather(positions, 3 if kind == Kind.ENUM64 else 2)
            signed = _signed_enumerations(owner, kind, owners, words[1])
            types = self._underlying(owner.size_or_type[positions], signed[positions])
            self._add_tagged(forest, owner, positions, Tag.ENUMERATION_TYPE, {At.TYPE: types}, Form.DATA1)
            values = words[1].astype(np.int64)
            if kind == Kind.ENUM64:
                values |= words[2].astype(np.int64) << 32
            else:
                values = np.where(signed[owners], words[1].astype(np.int32), values)
            names = self.strings(owner, words[0])
            choices: list[tuple[Shape, NDArray[np.bool_], _Columns]] = []
            wide = kind == Kind.ENUM64
            for form, mask in (
                (Form.SDATA10 if wide else Form.SDATA5, signed[owners]),
                (Form.DATA8 if wide else Form.DATA4, ~signed[owners]),
            ):
                sleb = form in (Form.SDATA5, Form.SDATA10)
                constants = sleb128(values, 10 if wide else 5) if sleb else values.view(np.uint64)
                shape = Shape(Tag.ENUMERATOR, ((At.NAME, Form.STRP), (At.CONST_VALUE, form)))
                choices.append((shape, mask, {At.NAME: names, At.CONST_VALUE: constants}))
            forest.add_children(self._entries(owner, owners), choices)

    def _underlying(self, sizes: NDArray[np.uint32], signed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Integer type under enumerations of these sizes, where the file has it."""
        types = np.full(len(sizes), VOID, dtype=np.int64)
        for (size, is_signed), name in _UNDERLYING.items():
            found = self.btf.detect(name, Kind.INT)
            if found is not None:
                types[(sizes == size) & (signed == is_signed)] = self.index[found]
        return types

    def _add_prototypes(self, forest: Forest, owner: Btf) -> None:
        positions = self._pick(owner, Kind.FUNC_PROTO)
        types = self.index[owner.size_or_type[positions]]
        for typed, mask in ((True, types != VOID), (False, types == VOID)):
            attributes = ((At.PROTOTYPED, Form.FLAG_PRESENT),) + (((At.TYPE, Form.REF_ADDR),) if typed else ())
            shape = Shape(Tag.SUBROUTINE_TYPE, (*attributes, (At.SIBLING, Form.REF4)), children=True)
            forest.add(shape, self._entries(owner, positions[mask]), {At.TYPE: types[mask]} if typed else {})
        owners, words = owner.gather(positions, 2)
        choices = parameter_choices(words[1], np.zeros(len(owners), dtype=np.uint32), self.index)
        forest.add_children(self._entries(owner, owners), choices)


def named_typed(
    names: NDArray[np.generic], types: NDArray[np.generic]
) -> Iterator[tuple[bool, bool, NDArray[np.bool_]]]:
    """Split entries by whether they have a name, and a type."""
    for named, typed in product((True, False), repeat=2):
        yield named, typed, ((names != 0) == named) & ((types != VOID) == typed)


def parameter_choices(
    type_ids: NDArray[np.uint32], names: NDArray[np.uint32], index: NDArray[np.int64]
) -> list[tuple[Shape, NDArray[np.bool_], _Columns]]:
    """Shapes of the parameters of prototypes; one of no type is the ellipsis, which C puts last."""
    types = index[type_ids]
    columns: dict[At, NDArray[np.generic]] = {At.NAME: names, At.TYPE: types}
    choices: list[tuple[Shape, NDArray[np.bool_], _Columns]] = [
        (Shape(Tag.UNSPECIFIED_PARAMETERS, ()), types == VOID, {})
    ]
    for named in (True, False):
        shape = Shape(Tag.FORMAL_PARAMETER, _named_typed_attributes(named=named, typed=True))
        choices.append((shape, ((names != 0) == named) & (types != VOID), columns))
    return choices


def prototypes_in_use(btf: Btf, owners: Sequence[Btf]) -> NDArray[np.bool_]:
    """
    Mark what has a place among the types: all but the prototypes that only functions have.

    DWARF, too, gives a function's parameters to the function, and a subroutine
    type only to what points to one.

    Parameters
    ----------
    owners : sequence of Btf
        Of *btf* and what it stands on those whose types are looked at and marked.
    """
    used = np.zeros(btf.end_id, dtype=np.bool_)
    for owner in owners:
        others = owner.positions(
            Kind.PTR, Kind.TYPEDEF, Kind.CONST, Kind.VOLATILE, Kind.RESTRICT, Kind.TYPE_TAG, Kind.VAR, Kind.FUNC_PROTO
        )
        used[owner.size_or_type[others]] = True
        used[owner.extra_words(owner.positions(Kind.ARRAY))] = True
        for kinds in ((Kind.STRUCT, Kind.UNION), (Kind.FUNC_PROTO,)):
            used[owner.items(*kinds).words[1]] = True
    marked = np.zeros(btf.end_id, dtype=np.bool_)
    for owner in owners:
        keep = owner.kind != Kind.FUNC_PROTO
        marked[owner.start_id : owner.end_id] = keep | used[owner.start_id : owner.end_id]
    return marked


def _named_typed_attributes(*, named: bool, typed: bool) -> tuple[tuple[At, Form], ...]:
    return (((At.NAME, Form.STRP),) if named else ()) + (((At.TYPE, Form.REF_ADDR),) if typed else ())


def _narrow_integers(btf: Btf) -> tuple[NDArray[np.uint32], NDArray[np.uint32]] | None:
    """Widths and shifts in bits, by identifier, of the integer types with odd widths; None where there are none."""
    width = np.zeros(btf.end_id, dtype=np.uint32)
    shift = np.zeros(btf.end_id, dtype=np.uint32)
    for owner in btf.chain:
        integers = owner.positions(Kind.INT)
        if len(integers):
            encoding = owner.extra_words(integers)
            bits = encoding & 0xFF
            odd = bits != owner.size_or_type[integers] * 8
            width[integers[odd] + owner.start_id] = bits[odd]
            shift[integers[odd] + owner.start_id] = (encoding[odd] >> 16) & 0xFF
    return (width, shift) if width.any() else None


def _signed_enumerations(
    owner: Btf, kind: Kind, owners: NDArray[np.int64], low: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """
    Tell by position which enumerations are signed.

    ``kind_flag`` says so since Linux 6.0 (6089fb325cf7). BTF that never sets it
    is older; there a value with the top bit set is taken for a negative one.
    """
    signed = owner.kind_flag.copy()
    if kind == Kind.ENUM and not owner.kind_flag[owner.positions(Kind.ENUM)].any():
        signed[owners[low >= SIGN_BIT]] = True
    return signed
