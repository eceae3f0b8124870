"""Types as C declares them."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Qualifiers, Type, TypeKind, TypeMember

from postpanic.analysis.objects.contents import size_of
from postpanic.analysis.objects.style import strip
from postpanic.findings.table import Cell, Column, Kind, Layout, Shape

__all__ = [
    "COMPOUND",
    "DEFINITION",
    "ENUMERATION",
    "base_name",
    "declare",
    "definition_rows",
    "enumeration_rows",
    "member_rows",
]

COMPOUND = frozenset({TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS})
_DEPTH_LIMIT = 32

DEFINITION = Shape(
    "definition",
    (
        Column("name", help="Member; the first row is the type itself; empty: a nameless structure or union."),
        Column("type", help="Its type in C."),
        Column("offset", Kind.NUMBER, help="Bytes from the start of the type."),
        Column("address", Kind.ADDRESS, help="Where the member lies, if an address was given (-o)."),
        Column("size", Kind.NUMBER, help="Bytes."),
        Column("bit_offset", Kind.NUMBER, help="Of a bit field: its first bit, from the start of the type."),
        Column("bit_size", Kind.NUMBER, help="Of a bit field: bits."),
        Column("depth", Kind.NUMBER, help="Structures and unions around it."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)
ENUMERATION = Shape(
    "enumeration",
    (
        Column("name", help="Enumerator."),
        Column("value", Kind.NUMBER, help="Its number."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)

_KEYWORDS = {TypeKind.STRUCT: "struct", TypeKind.UNION: "union", TypeKind.CLASS: "class", TypeKind.ENUM: "enum"}
_QUALIFIERS = (
    (Qualifiers.CONST, "const"),
    (Qualifiers.VOLATILE, "volatile"),
    (Qualifiers.RESTRICT, "restrict"),
    (Qualifiers.ATOMIC, "_Atomic"),
)


def declare(type_: Type, name: str = "") -> str:
    """
    Declare something of a type, as C does; without a name, the type itself is spelt.

    >>> # declare(prog.type("char [16]"), "comm") == "char comm[16]"
    """
    depth = 0
    while depth < _DEPTH_LIMIT * 4:
        depth += 1
        match type_.kind:
            case TypeKind.POINTER:
                qualifiers = _qualifiers(type_)
                name = f"*{f' {qualifiers}' if qualifiers else ''}{' ' if qualifiers and name else ''}{name}"
                type_ = type_.type
                if type_.kind in {TypeKind.ARRAY, TypeKind.FUNCTION}:
                    name = f"({name})"
            case TypeKind.ARRAY:
                name = f"{name}[{'' if type_.length is None else type_.length}]"
                type_ = type_.type
            case TypeKind.FUNCTION:
                name = f"{name}({_parameters(type_)})"
                type_ = type_.type
            case _:
                break
    base = " ".join(filter(None, (_qualifiers(type_), base_name(type_))))
    if not name:
        return base
    # As in gdb, (void) is set apart: "int (*f)(void)" and "char [16]".
    return f"{base} {name}"


def _qualifiers(type_: Type) -> str:
    return " ".join(word for flag, word in _QUALIFIERS if type_.qualifiers & flag)


def base_name(type_: Type) -> str:
    """Name a type that is no pointer, array or function."""
    match type_.kind:
        case TypeKind.VOID:
            return "void"
        case TypeKind.TYPEDEF | TypeKind.INT | TypeKind.BOOL | TypeKind.FLOAT:
            return str(type_.name)
        case TypeKind.ENUM if type_.tag is None:
            return f"enum {{{', '.join(name for name, _ in type_.enumerators or ())}}}"
        case _:
            return f"{_KEYWORDS[type_.kind]} {type_.tag or '{...}'}"


def _parameters(type_: Type) -> str:
    words = [declare(parameter.type) for parameter in type_.parameters]
    if type_.is_variadic:
        words.append("...")
    return ", ".join(words) or "void"


def is_nameless(type_: Type) -> bool:
    """Tell whether a type is a structure or union that has no name, whose members stand where it is declared."""
    return type_.kind in COMPOUND and type_.tag is None


def _array_base(type_: Type) -> Type:
    while type_.kind is TypeKind.ARRAY:
        type_ = type_.type
    return type_


class _Definition:
    """Collects the rows of one definition."""

    def __init__(self, size: int, *, offsets: bool, vaddr: int | None, is_hex: bool) -> None:
        self.rows: list[list[Cell]] = []
        self._offsets = offsets
        self._vaddr = vaddr
        self._is_hex = is_hex
        digits = 16 if vaddr is not None else len(self._number(size))
        self._width = digits + 4

    def _number(self, value: int) -> str:
        return f"{value:#x}" if self._is_hex else str(value)

    def lead(self, offset: int | None, depth: int) -> str:
        """Make what stands before a declaration: the offset, and four spaces for each structure around it."""
        if not self._offsets:
            return "    " * depth
        inner = "    " * (depth - 1)
        if offset is None:
            return " " * (self._width + 1) + inner
        number = self._number(offset) if self._vaddr is None else f"{self._vaddr + offset:x}"
        return f"{f'[{number}]':>{self._width}} {inner}"

    def append(self, text: str) -> None:
        self.rows[-1][-1] = f"{self.rows[-1][-1]}{text}"

    def add(self, type_: Type, name: str, bits: tuple[int, int | None], depth: int, text: str) -> None:
        bit_offset, bit_size = bits
        offset = bit_offset // 8
        self.rows.append(
            [
                name,
                declare(type_),
                offset,
                None if self._vaddr is None else self._vaddr + offset,
                size_of(type_),
                bit_offset if bit_size is not None else None,
                bit_size,
                depth,
                text,
            ]
        )

    def members(self, type_: Type, start: int, depth: int) -> None:
        """Add the members of a structure that begins *start* bits into the definition."""
        members = type_.members
        if not members:
            self.append(f"\n{'    ' * depth}{'<incomplete type>' if members is None else '<no data fields>'}")
        for member in members or ():
            self.member(member, start, depth)

    def member(self, member: TypeMember, start: int, depth: int) -> None:
        type_ = member.type
        place = start + member.bit_offset
        bits = (place, member.bit_field_size)
        base = _array_base(type_)
        name = member.name or ""
        if is_nameless(base) and depth < _DEPTH_LIMIT:
            self.add(type_, name, bits, depth, f"{self.lead(None, depth)}{_KEYWORDS[base.kind]} {{")
            self.members(base, place, depth + 1)
            offset = place // 8 if name else None
            brackets = declare(type_, name).rpartition("}")[2]
            self.append(f"\n{self.lead(offset, depth)}}}{brackets.rstrip()};")
            return
        width = f" : {member.bit_field_size}" if member.bit_field_size is not None else ""
        self.add(type_, name, bits, depth, f"{self.lead(place // 8, depth)}{declare(type_, name)}{width};")


def definition_rows(
    type_: Type, *, offsets: bool = False, vaddr: int | None = None, is_hex: bool = False
) -> list[tuple[Cell, ...]]:
    """
    Make the rows of the definition of a structure or union, or of a typedef of one.

    Parameters
    ----------
    offsets : bool
        Show the offset of each member; its address where *vaddr* is given.
    is_hex : bool
        Show offsets and sizes in hexadecimal.
    """
    bare = strip(type_)
    size = size_of(bare)
    definition = _Definition(size, offsets=offsets, vaddr=vaddr, is_hex=is_hex)
    is_typedef = type_.kind is TypeKind.TYPEDEF
    head = " ".join(filter(None, ("typedef" if is_typedef else "", _KEYWORDS[bare.kind], bare.tag)))
    definition.add(type_, base_name(type_), (0, None), 0, f"{head} {{")
    definition.members(bare, 0, 1)
    definition.append(f"\n}}{f' {type_.name};' if is_typedef else ''}\nSIZE: {definition._number(size)}")  # noqa: SLF001
    return [tuple(row) for row in definition.rows]


def member_rows(
    type_: Type,
    members: Iterator[tuple[str, Type, int, int | None]],
    *,
    vaddr: int | None = None,
    is_hex: bool = False,
) -> list[tuple[Cell, ...]]:
    """
    Make the rows of some members of a structure, with their offsets.

    Parameters
    ----------
    members : iterator
        Path, type, first bit and, of a bit field, the bits of each member.
    """
    bare = strip(type_)
    definition = _Definition(0, offsets=True, vaddr=vaddr, is_hex=is_hex)
    definition.add(type_, base_name(type_), (0, None), 0, f"{base_name(type_)} {{")
    for path, member_type, bit_offset, bit_size in members:
        offset = bit_offset // 8
        number = definition._number(offset) if vaddr is None else f"{vaddr + offset:x}"  # noqa: SLF001
        width = f" : {bit_size}" if bit_size is not None else ""
        base = _array_base(member_type)
        if is_nameless(base):
            text = f"  [{number}] {_KEYWORDS[base.kind]} {{...}} {path};"
        else:
            text = f"  [{number}] {declare(member_type, path)}{width};"
        definition.add(member_type, path, (bit_offset, bit_size), 1, text)
    definition.append("\n}")
    if bare.kind not in COMPOUND:
        raise TypeError(f"{base_name(type_)} has no members")
    return [tuple(row) for row in definition.rows]


def enumeration_rows(type_: Type, name: str) -> list[tuple[Cell, ...]]:
    """Make the rows of an enumeration: each enumerator with its number."""
    enumerators = type_.enumerators or ()
    rows: list[tuple[Cell, ...]] = []
    for place, (item, number) in enumerate(enumerators):
        head = f"{name} {{\n" if not place else ""
        tail = "\n};" if place == len(enumerators) - 1 else ""
        rows.append((item, number, f"{head}  {item} = {number}{tail}"))
    return rows
