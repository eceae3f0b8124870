"""Types of values that are followed through code: what a pointer points to, and which member a load takes from it."""

from __future__ import annotations

from dataclasses import dataclass

import drgn
from drgn import Program, Type, TypeKind

from postpanic.analysis.context import UNREADABLE

__all__ = ["Member", "Pointee", "member_of", "parameter_pointee", "result_pointee", "variable_pointee"]

_COMPOUND = frozenset({TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS})
_DEPTH_LIMIT = 12


@dataclass(frozen=True, slots=True)
class Pointee:
    """
    What a value points to.

    Attributes
    ----------
    type : Type
        Without qualifiers and typedefs.
    offset : int
        Bytes into it.
    """

    type: Type
    offset: int = 0

    @property
    def name(self) -> str:
        """``struct inode``."""
        return str(self.type.type_name())

    def moved(self, by: int) -> Pointee | None:
        """Point further on; None: outside of the type."""
        offset = self.offset + by
        size = _size(self.type)
        return Pointee(self.type, offset) if size is not None and 0 <= offset < size else None


@dataclass(frozen=True, slots=True)
class Member:
    """
    A member.

    Attributes
    ----------
    path : str
        ``d_inode``, ``f_path.dentry``; empty: the offset is in no member.
    pointee : Pointee, optional
        What it points to, if it is a pointer to a type that is known.
    is_function : bool
        Whether it points to a function.
    """

    path: str
    pointee: Pointee | None = None
    is_function: bool = False


def _plain(type_: Type) -> Type:
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _size(type_: Type) -> int | None:
    try:
        return int(drgn.sizeof(type_))
    except TypeError:
        return None


def pointee_of(type_: Type) -> Pointee | None:
    """Say what a pointer type points to; None: it is no pointer to a complete type."""
    plain = _plain(type_)
    if plain.kind is not TypeKind.POINTER:
        return None
    target = _plain(plain.type)
    if target.kind is TypeKind.POINTER or target.kind in _COMPOUND:
        return Pointee(target) if _size(target) else None
    return None


def member_of(pointee: Pointee, size_bytes: int = 8) -> Member | None:
    """Find the member that an access at a place in a type is to; None: there is none, or it is a hole."""
    type_ = pointee.type
    if type_.kind is TypeKind.POINTER:
        # An array of pointers, or a single one.
        return Member("", pointee_of(type_), _is_function(type_))
    return _descend(type_, pointee.offset, size_bytes, 0)


def _is_function(type_: Type) -> bool:
    plain = _plain(type_)
    return plain.kind is TypeKind.POINTER and _plain(plain.type).kind is TypeKind.FUNCTION


def _descend(type_: Type, offset: int, size_bytes: int, depth: int) -> Member | None:
    type_ = _plain(type_)
    if type_.kind is TypeKind.ARRAY:
        step = _size(type_.type)
        if not step:
            return None
        if step <= 1:
            return Member("")
        inner = _descend(type_.type, offset % step, size_bytes, depth + 1)
        if inner is None:
            return None
        return Member(_join(f"[{offset // step}]", inner.path), inner.pointee, inner.is_function)
    if type_.kind not in _COMPOUND or depth > _DEPTH_LIMIT:
        return Member("", pointee_of(type_), _is_function(type_)) if offset == 0 else None
    fallback: Member | None = None
    for member in type_.members or ():
        start, size = member.bit_offset // 8, _size(member.type)
        if not size or not start <= offset < start + size:
            continue
        inner = _descend(member.type, offset - start, size_bytes, depth + 1)
        found = Member(
            _join(member.name or "", inner.path if inner is not None else ""),
            inner.pointee if inner is not None else None,
            inner is not None and inner.is_function,
        )
        # Of the members of a union, the one that is as large as the access is meant.
        if type_.kind is not TypeKind.UNION or size == size_bytes:
            return found
        fallback = fallback or found
    return fallback


def _join(name: str, path: str) -> str:
    return f"{name}{'' if not name or not path or path.startswith('[') else '.'}{path}"


def _prototype(prog: Program, function: str) -> Type | None:
    try:
        type_ = prog.function(function).type_
    except UNREADABLE:
        return None
    return type_ if type_.kind is TypeKind.FUNCTION else None


def parameter_pointee(prog: Program, function: str, number: int) -> tuple[str, Pointee | None]:
    """Give the name of a function's parameter, and what it points to; an empty name: not known."""
    type_ = _prototype(prog, function)
    if type_ is None or number >= len(type_.parameters):
        return "", None
    parameter = type_.parameters[number]
    return parameter.name or "", pointee_of(parameter.type)


def result_pointee(prog: Program, function: str) -> Pointee | None:
    """Say what a function's result points to."""
    type_ = _prototype(prog, function)
    return pointee_of(type_.type) if type_ is not None else None


def variable_pointee(prog: Program, name: str, offset: int) -> tuple[str, Pointee | None]:
    """Give the member of a variable at an offset, and what it points to."""
    try:
        type_ = prog[name].type_
    except UNREADABLE:
        return "", None
    member = _descend(type_, offset, 8, 0)
    return (member.path, member.pointee) if member is not None else ("", None)
