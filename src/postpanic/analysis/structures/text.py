"""
A structure member by member, as crash prints it.

What cannot be read spoils the members that lie there, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, PrimitiveType, Program, Type, TypeKind, TypeMember, sizeof

from postpanic.analysis.cells import absent, decode
from postpanic.analysis.context import UNREADABLE
from postpanic.findings.table import Column, Layout, Shape, Table

__all__ = ["STRUCTURE", "structure_lines", "structure_table", "value_lines"]

_MAX_ELEMENTS = 200
"""Of an array, after which ``...`` follows, as in gdb's ``print elements``."""
_MAX_DEPTH = 32
_INDENT = "  "
_COMPOUND = frozenset({TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS})
_INTEGERS = frozenset({TypeKind.INT, TypeKind.BOOL, TypeKind.ENUM, TypeKind.FLOAT})

STRUCTURE = Shape("structure", (Column("line", help="One line of the structure."),), Layout.LINES, "{line}")


def structure_table(structure: Object, radix: int, *, title: str | None = None) -> Table:
    """Make a table of the lines of a structure, of type :data:`STRUCTURE`."""
    return STRUCTURE.table([(line,) for line in structure_lines(structure, radix)], title=title)


def structure_lines(structure: Object, radix: int) -> Iterator[str]:
    """
    Make the lines of a structure in memory.

    Parameters
    ----------
    structure : Object
        Reference to a structure or union.
    radix : int
        10 or 16, of integers; pointers are hexadecimal always.
    """
    yield f"{structure.type_.type_name()} {{"
    yield from _members(structure, radix, _INDENT, 0)
    yield "}"


def value_lines(part: Object, radix: int) -> Iterator[str]:
    """Make the lines of one value: what stands behind ``name = ``; *radix* as for :func:`structure_lines`."""
    yield from _value(part, "", radix, "", "", 1)


def _members(structure: Object, radix: int, indent: str, depth: int) -> Iterator[str]:
    members = _underlying(structure.type_).members or ()
    for number, member in enumerate(members):
        tail = "" if number + 1 == len(members) else ","
        name = f"{member.name} = " if member.name else ""
        part = _part(structure, member)
        yield from _value(part, name, radix, indent, tail, depth + 1)


def _part(structure: Object, member: TypeMember) -> Object:
    address = structure.address_
    if address is None:
        raise ValueError("only a structure in memory has members with addresses")
    width = member.bit_field_size
    if width is None:
        return Object(structure.prog_, member.type, address=address + member.offset)
    place = member.bit_offset
    return Object(
        structure.prog_, member.type, address=address + place // 8, bit_offset=place % 8, bit_field_size=width
    )


def _value(part: Object, name: str, radix: int, indent: str, tail: str, depth: int) -> Iterator[str]:
    type_ = _underlying(part.type_)
    if type_.kind in _COMPOUND and type_.members is not None and depth < _MAX_DEPTH:
        yield f"{indent}{name}{{"
        yield from _members(part, radix, indent + _INDENT, depth)
        yield f"{indent}}}{tail}"
    elif type_.kind is TypeKind.ARRAY and _underlying(type_.type).kind in _COMPOUND:
        yield from _compound_array(part, type_, name, radix, indent, tail, depth)
    else:
        yield f"{indent}{name}{_spell(part, type_, radix)}{tail}"


def _compound_array(
    part: Object, type_: Type, name: str, radix: int, indent: str, tail: str, depth: int
) -> Iterator[str]:
    length = type_.length or 0
    if not length:
        yield f"{indent}{name}0x{part.address_ or 0:x}{tail}"
        return
    yield f"{indent}{name}{{"
    for number in range(min(length, _MAX_ELEMENTS)):
        last = number + 1 == length
        yield from _value(part[number], "", radix, indent + _INDENT, "" if last else ",", depth + 1)
    if length > _MAX_ELEMENTS:
        yield f"{indent}{_INDENT}..."
    yield f"{indent}}}{tail}"


def _spell(part: Object, type_: Type, radix: int) -> str:
    try:
        if type_.kind is TypeKind.ARRAY:
            return _spell_array(part, type_, radix)
        if type_.kind is TypeKind.POINTER:
            return _spell_pointer(part.prog_, int(part.value_()))
        if type_.kind in _INTEGERS:
            return _spell_number(type_, part.value_(), radix)
    except UNREADABLE as exc:
        return absent(exc).mark
    return f"0x{part.address_ or 0:x}"


def _spell_number(type_: Type, value: float, radix: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if type_.kind is TypeKind.ENUM:
        for enumerator in type_.enumerators or ():
            if enumerator.value == value:
                return str(enumerator.name)
    if radix == 16 and isinstance(value, int):
        return f"{value & ((1 << 8 * sizeof(type_)) - 1):#x}"
    return str(value)


def _spell_pointer(prog: Program, value: int) -> str:
    if value >> 47 == 0:
        return f"{value:#x}"
    try:
        symbol = prog.symbol(value)
    except LookupError:
        return f"{value:#x}"
    return f"{value:#x} <{symbol.name}>" if symbol.address == value else f"{value:#x}"


def _spell_array(part: Object, type_: Type, radix: int) -> str:
    element = _underlying(type_.type)
    length = type_.length or 0
    if not length:
        return f"0x{part.address_ or 0:x}"
    if element.kind is TypeKind.INT and element.primitive in {PrimitiveType.C_CHAR, PrimitiveType.C_SIGNED_CHAR}:
        text = bytes(part.prog_.read(part.address_ or 0, length)).split(b"\0", 1)[0]
        return f'"{decode(text)}"'
    parts = [_spell(part[number], element, radix) for number in range(min(length, _MAX_ELEMENTS))]
    more = ["..."] if length > _MAX_ELEMENTS else []
    return f"{{{', '.join([*_merge(parts), *more])}}}"


def _merge(parts: list[str]) -> Iterator[str]:
    """Say ten and more equal elements once, as gdb does."""
    start = 0
    while start < len(parts):
        end = start
        while end < len(parts) and parts[end] == parts[start]:
            end += 1
        if end - start >= 10:
            yield f"{parts[start]} <repeats {end - start} times>"
        else:
            yield from parts[start:end]
        start = end


def _underlying(type_: Type) -> Type:
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    return type_
