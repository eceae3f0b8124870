"""Members named as ``struct.member.member[index],member``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from drgn import Program, Type, TypeKind

from postpanic.analysis.names import member_names
from postpanic.analysis.objects.contents import size_of
from postpanic.analysis.objects.declarations import base_name
from postpanic.analysis.objects.style import strip
from postpanic.errors import FactAbsentError, UsageError

__all__ = ["MemberPath", "TypePath", "find_compound", "find_type_keyword", "parse_type_path", "resolve_member"]

_STEP = re.compile(r"(?:\.?([A-Za-z_$][\w$]*)|\[(0[xX][0-9a-fA-F]+|\d+)\])")
_INDEX_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class MemberPath:
    """A member, however deep: its type, and where it lies in the structure."""

    path: str
    type: Type
    bit_offset: int
    bit_size: int | None
    """Of a bit field."""

    @property
    def offset(self) -> int:
        """Bytes from the start of the structure."""
        return self.bit_offset // 8


@dataclass(frozen=True, slots=True)
class TypePath:
    """A structure, union or typedef of one, and the members that were named; none: all of it."""

    name: str
    type: Type
    members: tuple[MemberPath, ...]


def find_compound(prog: Program, name: str, keyword: str = "") -> Type:
    """
    Find a structure or union by its tag or typedef.

    Parameters
    ----------
    keyword : str
        ``struct`` or ``union``; empty: either, structures first.

    Raises
    ------
    FactAbsentError
        If there is none of this name.
    """
    for spelling in (f"{keyword} {name}",) if keyword else (f"struct {name}", f"union {name}"):
        try:
            found = prog.type(spelling)
        except (LookupError, SyntaxError, ValueError):
            continue
        if found.is_complete():
            return found
    try:
        found = prog.type(name)
    except (LookupError, SyntaxError, ValueError):
        found = None
    wanted = {"struct": {TypeKind.STRUCT, TypeKind.CLASS}, "union": {TypeKind.UNION}}.get(
        keyword, {TypeKind.STRUCT, TypeKind.CLASS, TypeKind.UNION}
    )
    if found is not None and strip(found).kind in wanted:
        return found
    raise FactAbsentError(f"no {keyword or 'structure or union'} {name}", hint="whatis names what a name stands for")


def find_type_keyword(prog: Program, name: str) -> str:
    """Tell whether a name is that of a ``struct`` or of a ``union``; empty: of neither."""
    if not re.fullmatch(r"[A-Za-z_$][\w$]*", name):
        return ""
    try:
        kind = strip(find_compound(prog, name)).kind
    except FactAbsentError:
        return ""
    return "union" if kind is TypeKind.UNION else "struct"


def parse_type_path(prog: Program, text: str, keyword: str = "") -> TypePath:
    """
    Find a structure and the members named behind it.

    Raises
    ------
    UsageError
        If it is not how members are named.
    FactAbsentError
        If there is no such structure or member.
    """
    name, dot, rest = text.partition(".")
    if not re.fullmatch(r"[A-Za-z_$][\w$]*", name):
        raise UsageError(f"{text!r} does not name a structure", hint="struct.member,member.member[index]")
    type_ = find_compound(prog, name, keyword)
    if not dot:
        return TypePath(name, type_, ())
    paths = [path for path in rest.split(",") if path]
    if not paths:
        raise UsageError(f"{text!r}: a member is missing behind the dot")
    # struct.member,struct.member is the same as struct.member,member
    return TypePath(
        name, type_, tuple(resolve_member(prog, type_, path.removeprefix(f"{name}."), name) for path in paths)
    )


def resolve_member(prog: Program, type_: Type, path: str, name: str = "") -> MemberPath:
    """
    Find a member, through nested structures and arrays.

    Parameters
    ----------
    path : str
        ``member.member[2].member``
    name : str
        Of the structure, for errors.

    Raises
    ------
    UsageError
        If it is not how a member is named.
    FactAbsentError
        If there is no such member.
    """
    found, bit_offset = type_, 0
    bit_size: int | None = None
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None or (position == 0) == (path[position] in ".["):
            raise UsageError(f"{path!r} does not name a member", hint="member.member[index]")
        bare = strip(found)
        if match[1]:
            try:
                member = bare.member(match[1])
            except LookupError:
                near = difflib.get_close_matches(match[1], member_names(prog, name), n=3) if not position else []
                hint = f"did you mean {', '.join(near)}?" if near else ""
                raise FactAbsentError(f"{base_name(bare)} has no member {match[1]}", hint=hint) from None
            except TypeError:
                raise FactAbsentError(f"{path[:position]} has no members") from None
            found, bit_offset, bit_size = member.type, bit_offset + member.bit_offset, member.bit_field_size
        else:
            if bare.kind is not TypeKind.ARRAY:
                raise FactAbsentError(f"{path[:position]} is no array")
            index = int(match[2], 0)
            if index > _INDEX_LIMIT:
                raise UsageError(f"{path}: index {index} is beyond every array")
            found = bare.type
            bit_offset += index * size_of(found) * 8
        position = match.end()
    return MemberPath(path, found, bit_offset, bit_size)
