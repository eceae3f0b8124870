"""
Find, or build, the BTF type that a C type's spelling means.

The spellings are those of :func:`~postpanic.kernel.btf.ctype.format_c_type` and
of drgn's ``Type.type_name()``. What the BTF lacks, a pointer to a structure
that is never pointed at, an array of another length, is built as split BTF on
top of it, so that users of the tables see one kind of thing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from postpanic.errors import FactAbsentError
from postpanic.kernel.btf.decode import MAX_DEPTH, Btf
from postpanic.kernel.btf.layout import Kind

__all__ = ["TypeResolver"]

_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*|0x[0-9a-fA-F]+|\d+|[*()\[\],{}])")
_SIMPLE = re.compile(r"(const )?(?:(struct|union|enum) )?(\w+(?: \w+)*)(?: (\*+))?(?: ?\[(\d{1,9})\])?")
"""Most spellings are no more than this."""
_QUALIFIERS = {"const": Kind.CONST, "volatile": Kind.VOLATILE, "restrict": Kind.RESTRICT}
_INTEGER_WORDS = frozenset({"unsigned", "signed", "short", "long", "int", "char"})
_TAGS = {
    "struct": (Kind.STRUCT, Kind.FWD),
    "union": (Kind.UNION, Kind.FWD),
    "enum": (Kind.ENUM, Kind.ENUM64),
}
MAX_SPELLING_CHARACTERS = 4096


class TypeResolver:
    """
    Resolves C type spellings against one BTF object and what it stands on.

    Identifiers from ``btf.end_id`` on are types that were built;
    :meth:`constructed` hands them over.
    """

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._next_id = btf.end_id
        self._records: list[int] = []
        self._made: list[tuple[int, ...]] = []
        self._built: dict[tuple[int, ...], int] = {}
        self._memo: dict[str, int | None] = {}
        self._integers = _integer_spellings(btf)
        self._array_index = btf.detect("__ARRAY_SIZE_TYPE__", Kind.INT) or self._integers.get("unsigned int", 0)
        self._anonymous: dict[tuple[str, ...], int] | None = None

    def resolve_c_type(self, text: str) -> int:
        """
        Find or build the type that *text* spells.

        Raises
        ------
        FactAbsentError
            If the text is no C type, or names a type that the BTF does not have.
        """
        type_id = self.detect_c_type(text)
        if type_id is None:
            raise FactAbsentError(f"no type {text!r} in the kernel's BTF", where=self.btf.where)
        return type_id

    def detect_c_type(self, text: str) -> int | None:
        """Find the identifier of the type that *text* spells, else None."""
        if text not in self._memo:
            try:
                simple = _SIMPLE.fullmatch(text)
                found = self._resolve_simple(simple) if simple else None
                self._memo[text] = _Parser(self, text).parse() if found is None else found
            except _UnresolvedError:
                self._memo[text] = None
        return self._memo[text]

    def _resolve_simple(self, match: re.Match[str]) -> int | None:
        const, keyword, name, pointers, length = match.groups()
        type_id = self.tagged(keyword, name) if keyword else self.plain(name.split(" "))
        if type_id is None:
            return None
        if const:
            type_id = self.qualify(type_id, Kind.CONST)
        for _ in pointers or "":
            type_id = self.pointer_to(type_id)
        return type_id if length is None else self.array_of(type_id, int(length))

    def plain(self, words: list[str]) -> int | None:
        """Find the identifier of ``void``, an integer, a floating-point type or a typedef."""
        if words == ["void"]:
            return 0
        found = self.integer(words) if words[:1] and words[0] in _INTEGER_WORDS else None
        if found is None and len(words) == 1:
            found = self.named(words[0], Kind.TYPEDEF, Kind.INT, Kind.FLOAT)
        return found

    def pointer_to(self, type_id: int) -> int:
        """Type ``T *``."""
        return self._reference(Kind.PTR, type_id)

    def qualify(self, type_id: int, qualifier: Kind) -> int:
        """Type ``const T``, ``volatile T`` or ``restrict T``."""
        return self._reference(qualifier, type_id)

    def array_of(self, type_id: int, count: int) -> int:
        """Type ``T [count]``."""
        return self._build((Kind.ARRAY, 0, 0, 0, type_id, self._array_index, count))

    def function(self, result: int, parameters: list[int]) -> int:
        """Type of a function; 0 as the last parameter stands for ``...``."""
        items = [word for parameter in parameters for word in (0, parameter)]
        return self._build((Kind.FUNC_PROTO, len(parameters), 0, result, *items))

    def constructed(self) -> Btf:
        """Give the object with everything: the types that were built, split from the BTF they stand on."""
        return Btf(np.array(self._records, dtype=np.uint32), b"", self.btf, f"{self.btf.where} (constructed)")

    def size_of(self, type_id: int) -> int:
        """``sizeof`` of a type, built ones included, in bytes; 0 for void, functions and incomplete types."""
        if type_id < self.btf.end_id:
            return self.btf.size_of(type_id)
        kind, _, *words = self._made[type_id - self.btf.end_id]
        if kind == Kind.PTR:
            return 8
        if kind == Kind.ARRAY:
            return self.size_of(words[2]) * words[4]
        return 0 if kind == Kind.FUNC_PROTO else self.size_of(words[1])

    def array_parts(self, type_id: int) -> tuple[int, int]:
        """Element type and length of an array type (below qualifiers' reach); 0, 0 for other types."""
        if type_id >= self.btf.end_id:
            kind, _, *words = self._made[type_id - self.btf.end_id]
            return (words[2], words[4]) if kind == Kind.ARRAY else (0, 0)
        owner, position = self.btf.owner_of(type_id)
        if owner.kind[position] != Kind.ARRAY:
            return 0, 0
        at = int(owner.start[position])
        return int(owner.words[at + 3]), int(owner.words[at + 5])

    def named(self, name: str, *kinds: Kind) -> int | None:
        """Find the identifier of a named type, else None."""
        return self.btf.detect(name, *kinds)

    def tagged(self, keyword: str, name: str) -> int | None:
        """Find the identifier of a structure, union or enumeration, a declared one where there is no other."""
        found = self.named(name, *_TAGS[keyword])
        if found is None or self.btf.kind_of(found) != Kind.FWD:
            return found
        owner, position = self.btf.owner_of(found)
        return found if bool(owner.kind_flag[position]) == (keyword == "union") else None

    def integer(self, words: list[str]) -> int | None:
        """Find the identifier of the integer type that these words spell in any order, else None."""
        repeated = any(words.count(word) > 1 + (word == "long") for word in words)
        return None if repeated else self._integers.get(_canonical_integer(words))

    def anonymous(self, keyword: str, names: list[str]) -> int | None:
        """Find the identifier of the one anonymous type with exactly these members or enumerators, else None."""
        if self._anonymous is None:
            self._anonymous = _anonymous_types(self.btf)
        return self._anonymous.get((keyword, *names)) or None

    def _reference(self, kind: Kind, type_id: int) -> int:
        key = (int(kind), type_id)
        for owner in self.btf.chain:
            found = owner.reference_index.get(key)
            if found is not None:
                return found
        return self._build((kind, 0, 0, type_id))

    def _build(self, record: tuple[int, ...]) -> int:
        """Append a record (kind, vlen, name offset, size or type, words ...) unless it exists."""
        found = self._built.get(record)
        if found is None:
            kind, vlen, *words = record
            self._made.append(record)
            self._records += [words[0], (kind << 24) | vlen, *words[1:]]
            found = self._built[record] = self._next_id
            self._next_id += 1
        return found


class _UnresolvedError(Exception):
    """The spelling is no C type, or a part of it is not in the BTF."""


@dataclass(slots=True)
class _Declarator:
    """What stands around the name: pointers, arrays, parameter lists, from the outside in."""

    pointers: list[list[Kind]] = field(default_factory=list)
    inner: _Declarator | None = None
    suffixes: list[int | list[int]] = field(default_factory=list)


class _Parser:
    """A recursive-descent parser of one abstract declaration."""

    def __init__(self, resolver: TypeResolver, text: str) -> None:
        if len(text) > MAX_SPELLING_CHARACTERS:
            raise _UnresolvedError
        self.resolver = resolver
        self.tokens = _TOKEN.findall(text)
        if sum(map(len, self.tokens)) != len("".join(text.split())):
            raise _UnresolvedError
        self.at = 0

    def parse(self) -> int:
        type_id = self._type(0)
        if self.at != len(self.tokens):
            raise _UnresolvedError
        return type_id

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _accept(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self.at += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise _UnresolvedError

    def _type(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise _UnresolvedError
        base = self._specifiers()
        return self._apply(base, self._declarator(depth + 1))

    def _specifiers(self) -> int:
        qualifiers: list[Kind] = []
        words: list[str] = []
        type_id: int | None = None
        while token := self._peek():
            if token in _QUALIFIERS:
                qualifiers.append(_QUALIFIERS[token])
            elif token in _TAGS and not words:
                self.at += 1
                type_id = self._tagged(token)
                words.append(token)
                continue
            elif (token.isidentifier()) and (not words or (token in _INTEGER_WORDS and words[0] in _INTEGER_WORDS)):
                words.append(token)
            else:
                break
            self.at += 1
        if type_id is None:
            found = self.resolver.plain(words)
            if found is None:
                raise _UnresolvedError
            type_id = found
        return self._qualified(type_id, qualifiers)

    def _tagged(self, keyword: str) -> int:
        found: int | None
        if self._accept("{"):
            names: list[str] = []
            while not self._accept("}"):
                names.append(self._peek())
                self.at += 1
                if self._peek() != "}":
                    self._expect(",")
            found = self.resolver.anonymous(keyword, names)
        else:
            found = self.resolver.tagged(keyword, self._peek())
            self.at += 1
        if found is None:
            raise _UnresolvedError
        return found

    def _declarator(self, depth: int) -> _Declarator:
        if depth > MAX_DEPTH:
            raise _UnresolvedError
        result = _Declarator()
        while self._accept("*"):
            qualifiers: list[Kind] = []
            while self._peek() in _QUALIFIERS:
                qualifiers.append(_QUALIFIERS[self._peek()])
                self.at += 1
            result.pointers.append(qualifiers)
        if self._peek() == "(" and self.tokens[self.at + 1 : self.at + 2] == ["*"]:
            self.at += 1
            result.inner = self._declarator(depth + 1)
            self._expect(")")
        while self._peek() in ("[", "("):
            result.suffixes.append(self._length() if self._peek() == "[" else self._parameters(depth))
        return result

    def _length(self) -> int:
        self._expect("[")
        if self._accept("]"):
            return 0
        count = self._count(self._peek())
        self.at += 1
        self._expect("]")
        if count >= 1 << 32:
            raise _UnresolvedError
        return count

    def _count(self, token: str) -> int:
        """Value of a length: a number, or an enumerator of this kernel."""
        if token.isidentifier():
            value = self.resolver.btf.enumerators.get(token)
            if value is None or value <= 0:
                raise _UnresolvedError
            return value
        try:
            return int(token, 0)
        except ValueError:
            raise _UnresolvedError from None

    def _parameters(self, depth: int) -> list[int]:
        self._expect("(")
        found: list[int] = []
        while not self._accept(")"):
            if self._accept("..."):
                found.append(0)
            else:
                found.append(self._type(depth + 1))
                # A parameter may carry its name; the type does not need it.
                if self._peek().isidentifier():
                    self.at += 1
            if self._peek() != ")":
                self._expect(",")
        return [] if found == [0] and self.tokens[self.at - 2] == "void" else found

    def _qualified(self, type_id: int, qualifiers: list[Kind]) -> int:
        # DWARF nests const outside volatile; any order means the same.
        for kind in (Kind.RESTRICT, Kind.VOLATILE, Kind.CONST):
            if kind in qualifiers:
                type_id = self.resolver.qualify(type_id, kind)
        return type_id

    def _apply(self, type_id: int, declarator: _Declarator) -> int:
        for qualifiers in declarator.pointers:
            type_id = self._qualified(self.resolver.pointer_to(type_id), qualifiers)
        for suffix in reversed(declarator.suffixes):
            if isinstance(suffix, int):
                type_id = self.resolver.array_of(type_id, suffix)
            else:
                type_id = self.resolver.function(type_id, suffix)
        return self._apply(type_id, declarator.inner) if declarator.inner else type_id


def _canonical_integer(words: list[str]) -> str:
    """Spell an integer type one way: ``long unsigned int`` and ``unsigned long`` are the same."""
    longs = "long " * words.count("long")
    sign = "unsigned " if "unsigned" in words else ""
    if "char" in words:
        return ("signed " if "signed" in words else sign) + "char"
    return sign + ("short " if "short" in words else longs) + "int"


def _integer_spellings(btf: Btf) -> dict[str, int]:
    """Collect the identifiers of the integer types of the BTF by their canonical spelling."""
    found: dict[str, int] = {}
    for owner in btf.chain:
        for position in owner.positions(Kind.INT).tolist():
            name = owner.string(int(owner.name_off[position]))
            words = name.split()
            if words and all(word in _INTEGER_WORDS for word in words):
                found.setdefault(_canonical_integer(words), position + owner.start_id)
    return found


def _anonymous_types(btf: Btf) -> dict[tuple[str, ...], int]:
    """Collect the identifiers of the anonymous types by keyword and item names; 0 where several are alike."""
    found: dict[tuple[str, ...], int] = {}
    for owner in btf.chain:
        for keyword, kind in (("struct", Kind.STRUCT), ("union", Kind.UNION), ("enum", Kind.ENUM)):
            positions = owner.positions(kind)
            positions = positions[(owner.name_off[positions] == 0) & (owner.vlen[positions] > 0)]
            _, words = owner.gather(positions, 2 if kind == Kind.ENUM else 3)
            names = [name.decode("utf-8", "replace") for name in owner.strings_at(words[0])]
            at = 0
            for position, count in zip(positions.tolist(), owner.vlen[positions].tolist(), strict=True):
                key = (keyword, *names[at : at + count])
                found[key] = 0 if key in found else position + owner.start_id
                at += count
    return found
