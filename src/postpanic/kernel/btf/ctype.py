"""C declarations out of BTF, spelled the way drgn and DWARF spell them."""

from __future__ import annotations

from postpanic.kernel.btf.decode import MAX_DEPTH, Btf
from postpanic.kernel.btf.layout import Kind

__all__ = ["format_c_type"]

_QUALIFIERS = {Kind.CONST: "const", Kind.VOLATILE: "volatile", Kind.RESTRICT: "restrict"}
_INTEGERS = {
    "long int": "long",
    "short int": "short",
    "long unsigned int": "unsigned long",
    "short unsigned int": "unsigned short",
    "long long int": "long long",
    "long long unsigned int": "unsigned long long",
}
"""Compilers spell these so in DWARF, and thus in BTF; people and drgn do not."""
_KEYWORDS = {Kind.STRUCT: "struct", Kind.UNION: "union", Kind.ENUM: "enum", Kind.ENUM64: "enum"}


def format_c_type(btf: Btf, type_id: int) -> str:
    """
    Spell a type as C does, without a variable's name: ``const char *[4]``.

    Anonymous types are spelled ``struct <anonymous>``; an array of no elements
    is spelled ``[]``, because BTF does not tell it from ``[0]``. A type nested
    too deeply ends in ``...``.
    """
    return _declare(btf, type_id, "", 0)


def _declare(btf: Btf, type_id: int, inner: str, depth: int) -> str:
    words, type_id = _qualifiers(btf, type_id)
    kind = btf.kind_of(type_id)
    if depth > MAX_DEPTH:
        return "..."
    if kind == Kind.PTR:
        return _declare_pointer(btf, type_id, words, inner, depth)
    if kind == Kind.ARRAY:
        owner, position = btf.owner_of(type_id)
        at = int(owner.start[position])
        count = int(owner.words[at + 5])
        text = _declare(btf, int(owner.words[at + 3]), f"{inner}[{count or ''}]", depth + 1)
        # A qualified array is an array of qualified elements.
        return f"{' '.join(words)} {text}" if words else text
    if kind == Kind.FUNC_PROTO:
        return _declare(btf, btf.target_of(type_id), inner + _parameters(btf, type_id, depth), depth + 1)
    base = " ".join([*words, _base_name(btf, type_id, kind)])
    return f"{base} {inner}" if inner else base


def _declare_pointer(btf: Btf, type_id: int, words: list[str], inner: str, depth: int) -> str:
    declarator = "*"
    if words:
        declarator += " " + " ".join(words) + (" " if inner else "")
    declarator += inner
    target = btf.target_of(type_id)
    if btf.kind_of(_qualifiers(btf, target)[1]) in (Kind.ARRAY, Kind.FUNC_PROTO):
        declarator = f"({declarator})"
    return _declare(btf, target, declarator, depth + 1)


def _qualifiers(btf: Btf, type_id: int) -> tuple[list[str], int]:
    """Qualifiers on top of a type in C's usual order, and the type below them."""
    found: set[Kind] = set()
    while (kind := btf.kind_of(type_id)) in _QUALIFIERS or kind == Kind.TYPE_TAG:
        found.add(kind)
        type_id = btf.target_of(type_id)
    return [word for kind, word in sorted(_QUALIFIERS.items(), key=lambda item: item[1]) if kind in found], type_id


def _parameters(btf: Btf, type_id: int, depth: int) -> str:
    owner, position = btf.owner_of(type_id)
    at = int(owner.start[position]) + 3
    texts: list[str] = []
    for name_off, parameter in owner.words[at : at + 2 * int(owner.vlen[position])].reshape(-1, 2).tolist():
        name = btf.string(name_off)
        texts.append(_declare(btf, parameter, name, depth + 1) if parameter else "...")
    return f"({', '.join(texts) or 'void'})"


def _base_name(btf: Btf, type_id: int, kind: Kind) -> str:
    if kind == Kind.VOID:
        return "void"
    name = btf.name_of(type_id)
    if kind == Kind.FWD:
        owner, position = btf.owner_of(type_id)
        return f"{'union' if owner.kind_flag[position] else 'struct'} {name or '<anonymous>'}"
    keyword = _KEYWORDS.get(kind)
    return f"{keyword} {name or '<anonymous>'}" if keyword else _INTEGERS.get(name, name)
