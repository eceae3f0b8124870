"""
The value of an object as rows, which together read as gdb prints a structure.

Each row is a member. Its text begins with a line of its own and carries what
closes behind it, so that the rows of a table, one below the other, are the
whole picture.
"""

from __future__ import annotations

import struct

from drgn import Program, Type, TypeKind

from postpanic.analysis.objects.contents import Contents, size_of
from postpanic.analysis.objects.declarations import COMPOUND, declare
from postpanic.analysis.objects.style import Speller, Style, is_character, spell_string, strip
from postpanic.findings.absent import Absent
from postpanic.findings.table import Cell, Column, Kind, Layout, Shape

__all__ = ["ELEMENTS", "MEMBERS", "ValueWriter"]

_DEPTH_LIMIT = 48
_ROW_LIMIT = 1_000_000

ELEMENTS = Shape(
    "elements",
    (
        Column("index", Kind.NUMBER, help="From 0."),
        Column("value", help="As it is shown."),
        Column("number", Kind.HEX, help="The number itself."),
    ),
)
MEMBERS = Shape(
    "members",
    (
        Column("name", help="Path of the member from the object; the object itself has its type's name or none."),
        Column("type", help="Its type in C."),
        Column("offset", Kind.NUMBER, help="Bytes from the start of the object."),
        Column("address", Kind.ADDRESS, help="Where it lies."),
        Column("size", Kind.NUMBER, help="Bytes."),
        Column("bit_offset", Kind.NUMBER, help="Of a bit field: its first bit, from the start of the object."),
        Column("bit_size", Kind.NUMBER, help="Of a bit field: bits."),
        Column("depth", Kind.NUMBER, help="Structures, unions and arrays around it."),
        Column("value", help="As it is shown; empty: a structure or union, its members follow."),
        Column("number", Kind.HEX, help="Of an integer, pointer, enumerator or boolean: the number itself."),
        Column("elements", Kind.ROWS, shape=ELEMENTS, hidden=True, help="Of an array of numbers: its elements."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)
_TEXT = MEMBERS.index["text"]


class _Place:
    """What is being written: its name, and where it lies in the contents."""

    __slots__ = ("bit_offset", "bit_size", "depth", "indent", "name")

    def __init__(self, name: str, bit_offset: int, bit_size: int | None, depth: int, indent: int) -> None:
        self.name = name
        self.bit_offset = bit_offset
        self.bit_size = bit_size
        self.depth = depth
        self.indent = indent


class ValueWriter:
    """
    Makes rows of objects.

    Parameters
    ----------
    prog : Program
    style : Style
    """

    def __init__(self, prog: Program, style: Style) -> None:
        self._prog = prog
        self._style = style
        self.speller = Speller(prog, style)
        self.rows: list[list[Cell]] = []
        self._contents = Contents(b"")
        self._vaddr: int | None = None
        self._origin = 0

    def write(
        self,
        type_: Type,
        contents: Contents,
        *,
        vaddr: int | None,
        origin: int = 0,
        bit_offset: int = 0,
        bit_size: int | None = None,
        name: str = "",
        lead: str = "",
        tail: str = "",
        indent: int = 0,
        depth: int = 0,
    ) -> None:
        """
        Add the rows of one object.

        Parameters
        ----------
        type_ : Type
        contents : Contents
            Bytes of the object that it lies in.
        vaddr : int, optional
            Address of the contents.
        origin : int
            Where the contents begin in the object, bytes.
        bit_offset, bit_size : int
            Where it lies in the contents; the size only of a bit field.
        lead, tail : str
            Text before and behind it.
        indent : int
            Spaces before the closing brace.
        """
        self._contents, self._vaddr, self._origin = contents, vaddr, origin
        self._value(type_, _Place(name, bit_offset, bit_size, depth, indent), lead)
        self.append(tail)

    def table_rows(self) -> list[tuple[Cell, ...]]:
        """Return the rows that were made, and begin anew."""
        rows = [tuple(row) for row in self.rows]
        self.rows = []
        return rows

    def append(self, text: str) -> None:
        """Add text behind the last row."""
        if text and self.rows:
            self.rows[-1][_TEXT] = f"{self.rows[-1][_TEXT]}{text}"

    def _row(
        self,
        type_: Type,
        place: _Place,
        text: str,
        *,
        value: Cell = None,
        number: int | None = None,
        elements: Cell = None,
    ) -> None:
        if len(self.rows) >= _ROW_LIMIT:
            raise ValueError(f"more than {_ROW_LIMIT} members")
        offset = place.bit_offset // 8
        is_field = place.bit_size is not None
        self.rows.append(
            [
                place.name,
                declare(type_),
                offset + self._origin,
                None if self._vaddr is None else self._vaddr + offset,
                size_of(type_),
                place.bit_offset + self._origin * 8 if is_field else None,
                place.bit_size,
                place.depth,
                value,
                number,
                elements,
                text,
            ]
        )

    def _value(self, type_: Type, place: _Place, lead: str) -> None:
        bare = strip(type_)
        if place.depth > _DEPTH_LIMIT:
            self._row(type_, place, f"{lead}{{...}}")
        elif bare.kind in COMPOUND:
            self._open(type_, bare, place, lead)
            if bare.members:
                self.append(f"\n{' ' * place.indent}}}")
        elif bare.kind is TypeKind.ARRAY:
            self._array(type_, bare, place, lead)
        elif bare.kind is TypeKind.FUNCTION:
            address = (self._vaddr or 0) + place.bit_offset // 8
            value = " ".join(filter(None, (f"{address:#x}", self.speller.symbol(address))))
            self._row(type_, place, f"{lead}{{{declare(bare)}}} {value}", value=value, number=address)
        elif bare.kind is TypeKind.VOID:
            self._row(type_, place, f"{lead}void", value="void")
        else:
            self._leaf(type_, bare, place, lead)

    def _open(self, type_: Type, bare: Type, place: _Place, lead: str) -> None:
        """Write a structure without the brace that closes it."""
        if not bare.members:
            empty = "<incomplete type>" if bare.members is None else "<No data fields>"
            self._row(type_, place, f"{lead}{{{empty}}}", value=empty)
            return
        self._row(type_, place, f"{lead}{{")
        indent = place.indent + 2
        for number, member in enumerate(bare.members):
            if number:
                self.append(",")
            name = member.name or ""
            path = ".".join(filter(None, (place.name if place.depth else "", name)))
            inner = _Place(path, place.bit_offset + member.bit_offset, member.bit_field_size, place.depth + 1, indent)
            self._value(member.type, inner, f"{' ' * indent}{f'{name} = ' if name else ''}")

    def _array(self, type_: Type, bare: Type, place: _Place, lead: str) -> None:
        length = bare.length or 0
        offset = place.bit_offset // 8
        if not length or not size_of(bare.type):
            address = (self._vaddr or 0) + offset
            self._row(type_, place, f"{lead}{self.speller.pointer(bare, address)}", value=f"{address:#x}")
            return
        if is_character(bare.type) and self._style.letter in {"", "s"}:
            self._string(type_, place, length, lead)
            return
        base = bare
        while base.kind is TypeKind.ARRAY:
            base = strip(base.type)
        if base.kind in COMPOUND:
            self.append(f"\n{self._structures(bare, place, f'{lead}{{')}}}")
            return
        self._numbers(type_, bare, place, lead)

    def _string(self, type_: Type, place: _Place, length: int, lead: str) -> None:
        offset = place.bit_offset // 8
        missing = self._contents.missing(offset, length)
        value = missing or spell_string(self._contents.data[offset : offset + length], self._style)
        text = value.mark if isinstance(value, Absent) else value
        self._row(type_, place, f"{lead}{text}", value=value)

    def _structures(self, bare: Type, place: _Place, lead: str) -> str:
        """Write an array of structures, one row each; return what closes the last one, which is not written yet."""
        element = strip(bare.type)
        step = size_of(element) * 8
        length = bare.length or 0
        indent = place.indent + 2
        closing = ""
        for number in range(min(length, self._style.print_max)):
            name = f"{place.name}[{number}]"
            inner = _Place(name, place.bit_offset + number * step, None, place.depth + 1, indent)
            head = f"{closing}, " if number else lead
            if element.kind is TypeKind.ARRAY:
                closing = f"{self._structures(element, inner, f'{head}{{')}}}"
            else:
                self._open(bare.type, element, inner, head)
                closing = f"{' ' * indent}}}"
        return f"{closing}..." if length > self._style.print_max else closing

    def _numbers(self, type_: Type, bare: Type, place: _Place, lead: str) -> None:
        """Write an array of scalars on one line, or one line each (``set print_array on``)."""
        gap = f",\n{' ' * (place.indent + 2)}" if self._style.print_array else ", "
        found: list[tuple[Cell, ...]] = []
        value = self._spell_numbers(bare, place.bit_offset, gap, found)
        if self._style.print_array:
            value = f"{{\n{' ' * (place.indent + 2)}{value[1:]}"
        self._row(type_, place, f"{lead}{value}", value=value, elements=ELEMENTS.table(found) if found else None)

    def _spell_numbers(self, bare: Type, bit_offset: int, gap: str, found: list[tuple[Cell, ...]]) -> str:
        element = strip(bare.type)
        step = size_of(element) * 8
        length = bare.length or 0
        shown = min(length, self._style.print_max)
        words = []
        for number in range(shown):
            place = bit_offset + number * step
            if element.kind is TypeKind.ARRAY:
                words.append(self._spell_numbers(element, place, gap, []))
                continue
            text, value = self._scalar(element, place, None)
            words.append(text.mark if isinstance(text, Absent) else text)
            found.append((number, text, value))
        return f"{{{gap.join(words)}{'...' if shown < length else ''}}}"

    def _leaf(self, type_: Type, bare: Type, place: _Place, lead: str) -> None:
        value, number = self._scalar(bare, place.bit_offset, place.bit_size)
        text = value.mark if isinstance(value, Absent) else value
        self._row(type_, place, f"{lead}{text}", value=value, number=number)

    def _scalar(self, bare: Type, bit_offset: int, bit_size: int | None) -> tuple[str | Absent, int | None]:
        """Spell a scalar, and give its number."""
        size = (bit_offset % 8 + bit_size + 7) // 8 if bit_size is not None else size_of(bare)
        offset = bit_offset // 8
        missing = self._contents.missing(offset, size)
        if missing is not None:
            return missing, None
        data = self._contents.data[offset : offset + size]
        if bare.kind is TypeKind.FLOAT:
            code = {4: "<f", 8: "<d"}.get(size)
            return (self.speller.scalar(bare, struct.unpack(code, data)[0]) if code else f"0x{data[::-1].hex()}"), None
        number = int.from_bytes(data, "little")
        bits = size * 8
        if bit_size is not None:
            number, bits = number >> bit_offset % 8 & ((1 << bit_size) - 1), bit_size
        if _is_signed(bare) and bits and number >> (bits - 1):
            number -= 1 << bits
        return self.speller.scalar(bare, number), number


def _is_signed(bare: Type) -> bool:
    if bare.kind is TypeKind.INT:
        return bool(bare.is_signed)
    if bare.kind is TypeKind.ENUM and bare.type is not None:
        return bool(strip(bare.type).is_signed)
    return False
