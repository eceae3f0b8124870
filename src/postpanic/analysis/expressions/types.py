"""Types that an expression names."""

from __future__ import annotations

import re

from drgn import Program, Type, TypeKind

from postpanic.analysis.expressions.errors import ExpressionError
from postpanic.errors import FactAbsentError

__all__ = ["find_type", "is_type_name", "strip"]

_FUNCTION_POINTER = re.compile(r"(?P<result>[^()]+)\( \* \) \( .*\)\Z")
_TAGS = ("struct", "union", "enum")


def strip(type_: Type) -> Type:
    """Return what the typedefs of a type end in; qualifiers stay behind."""
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def is_type_name(prog: Program, name: str) -> bool:
    """Tell whether a name is a typedef, or the tag of a structure, union or enumeration and no variable."""
    if _has_type(prog, name):
        return True
    if not any(_has_type(prog, f"{tag} {name}") for tag in _TAGS):
        return False
    try:
        prog.symbol(name)
    except LookupError:
        return name not in prog
    return False


def _has_type(prog: Program, name: str) -> bool:
    try:
        prog.type(name)
    except (LookupError, SyntaxError, ValueError):
        return False
    return True


def find_type(prog: Program, text: str, column: int = 1) -> Type:
    """
    Find a type by its name in C; a structure's tag may stand alone.

    Raises
    ------
    ExpressionError
        If it is not how a type is written.
    FactAbsentError
        If there is no such type.
    """
    try:
        return prog.type(text)
    except LookupError:
        for tag in _TAGS:
            try:
                return prog.type(f"{tag} {text}")
            except (LookupError, SyntaxError, ValueError):
                continue
        raise FactAbsentError(f"column {column}: no type {text}") from None
    except (SyntaxError, ValueError) as exc:
        if match := _FUNCTION_POINTER.match(text):
            result = find_type(prog, match["result"].strip(), column)
            return prog.pointer_type(prog.function_type(result, (), is_variadic=True))
        raise ExpressionError(f"{text!r} is no type ({exc})", column) from None
