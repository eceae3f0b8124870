"""
Decode BTF in bulk: the type section becomes flat numpy tables.

BTF is a sequence of records of varying length, so finding where each begins is
the only step that goes one by one; everything else is array arithmetic. Nothing
of the input is trusted: lengths, identifiers, string offsets and reference
chains are checked here once, so that users of the tables need not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError, FactAbsentError, TruncatedError, UnsupportedError
from postpanic.kernel.btf.layout import (
    BTF_MAGIC,
    EXTRA_WORDS,
    HEADER_SIZE_BYTES,
    MAX_DATA_BYTES,
    MAX_TYPES,
    WORDS_PER_ITEM,
    Kind,
)
from postpanic.kernel.btf.struct import Member, StructLayout

__all__ = ["Btf", "Items", "decode_btf"]

_COMPOSITE = (Kind.STRUCT, Kind.UNION)
_MODIFIERS = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_REFERENCES = (*_MODIFIERS, Kind.PTR, Kind.FUNC, Kind.FUNC_PROTO, Kind.VAR, Kind.DECL_TAG)
_POINTER_BYTES = 8
_LARGEST_SIZE_BYTES = 1 << 52
MAX_DEPTH = 64
"""Longest chain of typedefs, qualifiers and arrays; the kernel itself refuses more than 32."""


@dataclass(frozen=True, slots=True)
class Items:
    """
    The members, enumerators, parameters or section entries of many types, in one table.

    ``owner`` holds positions in the tables of the :class:`Btf` that owns the
    items (identifier minus ``start_id``), in ascending order; ``words`` are the
    columns of the record as they stand.
    """

    owner: NDArray[np.int64]
    words: NDArray[np.uint32]
    """Shape (columns, items)."""


class Btf:
    """
    One BTF object, decoded: vmlinux's, or a module's on top of vmlinux's.

    The tables are indexed by position: the type identifier minus ``start_id``.
    Position 0 of a base object is ``void``.

    Attributes
    ----------
    base : Btf or None
        What a split object stands on.
    start_id, end_id : int
        First identifier of this object, and one past the last.
    kind, vlen, kind_flag, name_off, size_or_type, start : ndarray
        ``struct btf_type`` by columns; ``start`` is the index of its first word.
    words : ndarray of uint32
        The type section.
    strings : bytes
        The string section; ``start_str_off`` is the offset of its first byte.
    """

    def __init__(self, words: NDArray[np.uint32], strings: bytes, base: Btf | None, where: str) -> None:
        self.base: Btf | None = base
        self.where = where
        self.words = words
        self.strings = strings
        self.start_id: int = base.end_id if base else 0
        self.start_str_off: int = base.start_str_off + len(base.strings) if base else 0
        start = _find_records(words, where)
        if base is None:
            start = np.concatenate((np.zeros(1, dtype=np.int64), start))
        if self.start_id + len(start) > MAX_TYPES:
            raise CorruptError(f"{len(start)} BTF types, at most {MAX_TYPES}", where=where)
        info = words[start + 1] if len(words) else np.zeros(len(start), dtype=np.uint32)
        self.start = start
        self.kind: NDArray[np.uint8] = ((info >> 24) & 0x1F).astype(np.uint8)
        self.vlen: NDArray[np.int64] = (info & 0xFFFF).astype(np.int64)
        self.kind_flag: NDArray[np.bool_] = (info >> 31).astype(np.bool_)
        self.name_off: NDArray[np.uint32] = words[start] if len(words) else info.copy()
        self.size_or_type: NDArray[np.uint32] = words[start + 2] if len(words) else info.copy()
        if base is None:
            for column in (self.kind, self.vlen, self.kind_flag, self.name_off, self.size_or_type):
                column[0] = 0
        self.end_id: int = self.start_id + len(start)
        self._positions: dict[tuple[Kind, ...], NDArray[np.int64]] = {}
        self._cache_items: dict[tuple[int, ...], Items] = {}
        self._index: dict[Kind, dict[bytes, int]] = {}
        _check(self)

    def __len__(self) -> int:
        return self.end_id - self.start_id

    def positions(self, *kinds: Kind) -> NDArray[np.int64]:
        """Positions of all types of these kinds in this object's tables, ascending; not to be written to."""
        found = self._positions.get(kinds)
        if found is None:
            wanted = np.zeros(256, dtype=np.bool_)
            wanted[list(kinds)] = True
            found = self._positions[kinds] = np.flatnonzero(wanted[self.kind])
        return found

    def items(self, *kinds: Kind) -> Items:
        """Give the items behind all types of these kinds; the kinds must have records of one length."""
        key = tuple(kinds)
        if key not in self._cache_items:
            owners, words = self.gather(self.positions(*kinds), int(WORDS_PER_ITEM[kinds[0]]))
            self._cache_items[key] = Items(owners, words)
        return self._cache_items[key]

    def gather(self, positions: NDArray[np.int64], words_per_item: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Give the items behind these positions: the owner of each, and their words by columns."""
        lengths = self.vlen[positions]
        owners = np.repeat(positions, lengths)
        index = self.start[owners] + 3 + words_per_item * _count_within(lengths)
        return owners, np.stack([self.words[index + column] for column in range(words_per_item)])

    def extra_words(self, positions: NDArray[np.int64], word: int = 0) -> NDArray[np.uint32]:
        """Word number *word* behind ``struct btf_type`` of these positions."""
        return self.words[self.start[positions] + 3 + word]

    def owner_of(self, type_id: int) -> tuple[Btf, int]:
        """
        Find the object and the position of a type identifier.

        Raises
        ------
        CorruptError
            If there is no such type.
        """
        if not 0 <= type_id < self.end_id:
            raise CorruptError(f"BTF type {type_id}, at most {self.end_id - 1}", where=self.where)
        owner: Btf = self
        while type_id < owner.start_id and owner.base is not None:
            owner = owner.base
        return owner, type_id - owner.start_id

    def kind_of(self, type_id: int) -> Kind:
        """Kind of one type."""
        owner, position = self.owner_of(type_id)
        return Kind(int(owner.kind[position]))

    def name_of(self, type_id: int) -> str:
        """Name of one type; empty for an anonymous one."""
        owner, position = self.owner_of(type_id)
        return self.string(int(owner.name_off[position]))

    def target_of(self, type_id: int) -> int:
        """Find the identifier of the type that a pointer, typedef, qualifier, function or variable refers to."""
        owner, position = self.owner_of(type_id)
        if int(owner.kind[position]) not in _REFERENCES:
            return 0
        return int(owner.size_or_type[position])

    def string(self, offset: int) -> str:
        """Give the string at an offset of the string section, the base's included."""
        owner: Btf | None = self
        while owner is not None and offset < owner.start_str_off:
            owner = owner.base
        if owner is None:
            return ""
        start = offset - owner.start_str_off
        end = owner.strings.find(b"\0", start)
        return owner.strings[start : end if end >= 0 else None].decode("utf-8", "replace")

    def members_of(self, type_id: int) -> list[Member]:
        """Members of one structure or union in the order of its declaration, anonymous ones included."""
        owner, position = self.owner_of(type_id)
        at = int(owner.start[position]) + 3
        count = int(owner.vlen[position]) if owner.kind[position] in _COMPOSITE else 0
        bit_fields = bool(owner.kind_flag[position])
        members: list[Member] = []
        for name_off, member_type, offset in owner.words[at : at + 3 * count].reshape(-1, 3).tolist():
            size_bits = offset >> 24 if bit_fields else 0
            offset_bits = offset & 0xFFFFFF if bit_fields else offset
            members.append(Member(self.string(name_off), member_type, offset_bits, size_bits))
        return members

    def skip_modifiers(self, type_id: int) -> int:
        """Find the identifier below typedefs, qualifiers and type tags."""
        for _ in range(MAX_DEPTH):
            if self.kind_of(type_id) not in _MODIFIERS:
                break
            type_id = self.target_of(type_id)
        return type_id

    def size_of(self, type_id: int) -> int:
        """``sizeof`` in bytes; 0 for void, functions and incomplete types."""
        owner, position = self.owner_of(type_id)
        return owner._sizes[position]  # noqa: SLF001 - another object of this class

    @cached_property
    def _sizes(self) -> list[int]:
        """Size of every type of this object."""
        sizes = np.zeros(len(self), dtype=np.float64)
        sized = self.positions(Kind.INT, Kind.FLOAT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64)
        sizes[sized] = self.size_or_type[sized]
        sizes[self.positions(Kind.PTR)] = _POINTER_BYTES
        modifiers, arrays = self.positions(*_MODIFIERS), self.positions(Kind.ARRAY)
        positions = np.concatenate((modifiers, arrays))
        targets = np.concatenate((self.size_or_type[modifiers], self.extra_words(arrays))).astype(np.int64)
        counts: NDArray[np.float64] = np.concatenate(
            (np.ones(len(modifiers)), self.extra_words(arrays, 2).astype(np.float64))
        )
        inside = targets >= self.start_id
        for at in np.flatnonzero(~inside).tolist():
            sizes[positions[at]] = self.size_of(int(targets[at])) * counts[at]
        positions, targets, counts = positions[inside], targets[inside] - self.start_id, counts[inside]
        # Each pass goes one reference further; chains are short, as was checked.
        for _ in range(MAX_DEPTH):
            found = np.minimum(sizes[targets] * counts, _LARGEST_SIZE_BYTES)
            if (found == sizes[positions]).all():
                break
            sizes[positions] = found
        return list(map(int, sizes.tolist()))

    @property
    def chain(self) -> list[Btf]:
        """Give the object and what it stands on, the lowest first."""
        return [*(self.base.chain if self.base else ()), self]

    def names_at(self, positions: NDArray[np.int64]) -> list[bytes]:
        """Names of many types of this object at once."""
        return self.strings_at(self.name_off[positions])

    def strings_at(self, string_offsets: NDArray[np.uint32]) -> list[bytes]:
        """Strings at many offsets at once."""
        offsets = string_offsets.astype(np.int64)
        if self.base is not None and (offsets < self.start_str_off).any():
            return [self.string(offset).encode() for offset in offsets.tolist()]
        return split_at(self._string_table, self._string_ends, offsets - self.start_str_off)

    @cached_property
    def _string_table(self) -> list[bytes]:
        return self.strings.split(b"\0")

    @cached_property
    def _string_ends(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.frombuffer(self.strings, dtype=np.uint8) == 0)

    def index_of(self, kind: Kind) -> dict[bytes, int]:
        """First identifier of each name of this object alone, of one kind."""
        if kind not in self._index:
            positions = self.positions(kind)[::-1]
            ids = (positions + self.start_id).tolist()
            self._index[kind] = dict(zip(self.names_at(positions), ids, strict=True))
        return self._index[kind]

    @cached_property
    def reference_index(self) -> dict[tuple[int, int], int]:
        """First identifier of each pointer and qualified type of this object alone, by kind and target."""
        positions = self.positions(Kind.PTR, Kind.CONST, Kind.VOLATILE, Kind.RESTRICT)[::-1]
        keys = zip(self.kind[positions].tolist(), self.size_or_type[positions].tolist(), strict=True)
        return dict(zip(keys, (positions + self.start_id).tolist(), strict=True))

    def detect(self, name: str, *kinds: Kind) -> int | None:
        """Find the identifier of the first type of these kinds with this name, else None."""
        key = name.encode()
        if not key:
            return None
        owner: Btf | None = self
        while owner is not None:
            for kind in kinds:
                found = owner.index_of(kind).get(key)
                if found is not None:
                    return found
            owner = owner.base
        return None

    def find(self, name: str, *kinds: Kind) -> int:
        """
        Find a type by its kinds and its name.

        Raises
        ------
        FactAbsentError
            If there is none.
        """
        found = self.detect(name, *kinds)
        if found is None:
            words = " or ".join(kind.name.lower() for kind in kinds)
            raise FactAbsentError(f"no {words} {name} in the kernel's BTF", where=self.where)
        return found

    @cached_property
    def enumerators(self) -> dict[str, int]:
        """Values of the 32-bit enumerators by name, signed; of the base, too; none of a name with several values."""
        found = dict(self.base.enumerators) if self.base is not None else {}
        names, values = self.items(Kind.ENUM).words[:2]
        clashing = set()
        for name, value in zip(map(self.string, names.tolist()), values.view(np.int32).tolist(), strict=True):
            if found.setdefault(name, value) != value:
                clashing.add(name)
        return {name: value for name, value in found.items() if name not in clashing}

    def find_struct(self, name: str) -> StructLayout:
        """
        Find the layout of ``struct name`` (or ``union name``).

        Raises
        ------
        FactAbsentError
            If the BTF has no such structure.
        """
        return StructLayout(self, self.find(name, *_COMPOSITE))


def split_at(table: list[bytes], ends: NDArray[np.int64], offsets: NDArray[np.int64]) -> list[bytes]:
    """
    Take strings at many offsets of NUL-terminated strings.

    Parameters
    ----------
    table : list of bytes
        The strings, in the order of their section.
    ends : ndarray of int64
        Where each ends.
    offsets : ndarray of int64
        Where to begin; within a string, too, as the linker's tail merging does.
    """
    slots = np.searchsorted(ends, offsets)
    taken = list(map(table.__getitem__, slots.tolist()))
    begins = np.concatenate((np.zeros(1, dtype=np.int64), ends + 1))[slots]
    for odd in np.flatnonzero(begins != offsets).tolist():
        taken[odd] = taken[odd][int(offsets[odd] - begins[odd]) :]
    return taken


def decode_btf(data: bytes, *, base: Btf | None = None, where: str = "BTF") -> Btf:
    """
    Decode a BTF object: header, type section, string section.

    Parameters
    ----------
    data : bytes
        From the header's magic on; bytes behind the last section are ignored.
    base : Btf, optional
        What split BTF (a module's) stands on.

    Raises
    ------
    TruncatedError
        If a section ends behind the data.
    CorruptError
        If a field holds what it must not.
    """
    if len(data) < HEADER_SIZE_BYTES:
        raise TruncatedError(f"{len(data)} bytes, a BTF header has {HEADER_SIZE_BYTES}", where=where)
    if len(data) > MAX_DATA_BYTES:
        raise CorruptError(f"{len(data)} bytes of BTF, at most {MAX_DATA_BYTES}", where=where)
    order = "<" if data[:2] == BTF_MAGIC.to_bytes(2, "little") else ">"
    magic, version, flags, header, type_off, type_len, str_off, str_len = struct.unpack_from(order + "HBBIIIII", data)
    if magic != BTF_MAGIC:
        raise CorruptError(f"BTF magic {data[:2].hex()}, expected 9feb", where=where)
    if version != 1 or flags != 0:
        raise UnsupportedError(f"BTF version {version} with flags {flags:#x}, known is version 1", where=where)
    if header < HEADER_SIZE_BYTES or header % 4 or type_off % 4 or type_len % 4:
        raise CorruptError(f"BTF header of {header} bytes, types at {type_off}+{type_len}", where=where)
    if header + type_off + type_len > len(data) or header + str_off + str_len > len(data):
        raise TruncatedError(
            f"BTF types end at {header + type_off + type_len}, strings at {header + str_off + str_len}, "
            f"the data at {len(data)}",
            where=where,
        )
    strings = bytes(data[header + str_off : header + str_off + str_len])
    if (strings or base is None) and strings[-1:] != b"\0":
        raise CorruptError("the BTF string section does not end in a zero byte", where=where)
    if base is None and strings[:1] != b"\0":
        raise CorruptError("the BTF string section does not begin with the empty string", where=where)
    words = np.frombuffer(data, dtype=order + "u4", count=type_len // 4, offset=header + type_off)
    return Btf(words.astype(np.uint32, copy=False), strings, base, where)


def _find_records(words: NDArray[np.uint32], where: str) -> NDArray[np.int64]:
    """Find the indices of the first word of each record, by following the lengths."""
    count = len(words)
    if not count:
        return np.zeros(0, dtype=np.int64)
    kind = (words >> 24) & 0x1F
    known = (kind != 0) & (kind < len(Kind))
    kind = np.where(known, kind, 0)
    length = 3 + EXTRA_WORDS[kind] + WORDS_PER_ITEM[kind] * (words & 0xFFFF).astype(np.int32)
    # An unknown kind has no length: leap behind the end, which the check below finds.
    length = np.where(known, length, count + 4)
    # The second word of a record tells; the last word of the section cannot be one's first.
    steps: NDArray[np.int32] = np.append(length[1:], count + 4).astype(np.int32)
    step: memoryview[int] = memoryview(steps.data).cast("B").cast("i")
    starts: list[int] = []
    at = 0
    while at < count:
        starts.append(at)
        at += step[at]
    if at != count:
        last = starts[-1]
        info = int(words[last + 1]) if last + 1 < count else 0
        raise CorruptError(
            f"BTF type number {len(starts)} of kind {(info >> 24) & 0x1F} with {info & 0xFFFF} items "
            "does not fit into the type section",
            where=f"{where}+{last * 4:#x}",
        )
    return np.array(starts, dtype=np.int64)


def _count_within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the items of each owner from 0: lengths 2, 3 give 0 1 0 1 2."""
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    return np.arange(total, dtype=np.int64) - np.repeat(starts, lengths)


def _check(btf: Btf) -> None:
    """Check every identifier, string offset, size and chain of references."""
    str_end = btf.start_str_off + len(btf.strings)
    _refuse(btf, btf.name_off >= max(str_end, 1), btf.name_off, f"name offset, at most {str_end - 1}")
    sized = btf.positions(Kind.INT, Kind.FLOAT, Kind.ENUM, Kind.ENUM64)
    sizes = btf.size_or_type[sized]
    _refuse(btf, (sizes == 0) | (sizes > 16), sizes, "size of a base type, 1 to 16 bytes", sized)
    references = btf.positions(*_REFERENCES)
    targets = btf.size_or_type[references]
    _refuse(btf, targets >= btf.end_id, targets, f"type identifier, at most {btf.end_id - 1}", references)
    for kinds, columns in (
        ((Kind.STRUCT, Kind.UNION), (0, 1)),
        ((Kind.ENUM,), (0,)),
        ((Kind.ENUM64,), (0,)),
        ((Kind.FUNC_PROTO,), (0, 1)),
        ((Kind.DATASEC,), (None, 0)),
    ):
        items = btf.items(*kinds)
        for column, limit, what in zip(
            columns, (str_end, btf.end_id), ("name offset", "type identifier"), strict=False
        ):
            if column is not None:
                values = items.words[column]
                _refuse(btf, values >= limit, values, f"{what} of an item, at most {limit - 1}", items.owner)
    arrays = btf.positions(Kind.ARRAY)
    elements = btf.extra_words(arrays)
    _refuse(btf, elements >= btf.end_id, elements, f"element type, at most {btf.end_id - 1}", arrays)
    functions = btf.positions(Kind.FUNC)
    _check_kind(btf, functions, btf.size_or_type[functions], Kind.FUNC_PROTO)
    sections = btf.items(Kind.DATASEC)
    _check_kind(btf, sections.owner, sections.words[0], Kind.VAR)
    _check_chains(btf)


def _refuse(
    btf: Btf, bad: NDArray[np.bool_], values: NDArray[np.uint32], what: str, positions: NDArray[np.int64] | None = None
) -> None:
    """Raise for the first value that is marked bad."""
    if not bad.any():
        return
    at = int(np.flatnonzero(bad)[0])
    type_id = (int(positions[at]) if positions is not None else at) + btf.start_id
    raise CorruptError(f"BTF type {type_id}: {int(values[at])} is no {what}", where=btf.where)


def _check_kind(btf: Btf, positions: NDArray[np.int64], targets: NDArray[np.uint32], kind: Kind) -> None:
    """Check that references which may lead to one kind only do."""
    own = targets >= btf.start_id
    wrong = np.zeros(len(targets), dtype=np.bool_)
    wrong[own] = btf.kind[targets[own].astype(np.int64) - btf.start_id] != kind
    if btf.base is not None:
        for at in np.flatnonzero(~own).tolist():
            wrong[at] = btf.kind_of(int(targets[at])) != kind
    _refuse(btf, wrong, targets, f"type of kind {kind.name}", positions)


def _check_chains(btf: Btf) -> None:
    """Refuse typedefs, qualifiers and arrays that lead back to themselves."""
    count = len(btf)
    target = np.full(count, -1, dtype=np.int64)
    modifiers = btf.positions(*_MODIFIERS)
    target[modifiers] = btf.size_or_type[modifiers].astype(np.int64) - btf.start_id
    arrays = btf.positions(Kind.ARRAY)
    target[arrays] = btf.extra_words(arrays).astype(np.int64) - btf.start_id
    current = np.concatenate((modifiers, arrays))
    for _ in range(MAX_DEPTH):
        current = target[current]
        # What leads into the base (below 0) was checked there.
        current = current[current >= 0]
        if not len(current):
            return
    raise CorruptError(f"BTF type {int(current[0]) + btf.start_id}: refers to itself", where=btf.where)
