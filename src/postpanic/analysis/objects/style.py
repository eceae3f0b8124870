"""How numbers, pointers and strings of a kernel are spelt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from drgn import FaultError, Program, Type, TypeKind

from postpanic.analysis.cells import absent
from postpanic.analysis.objects.contents import size_of

__all__ = ["LETTERS", "Speller", "Style", "is_character", "spell_character", "spell_string", "strip"]

LETTERS = frozenset("xdutoczasf")
"""Formats of ``p/x``: hexadecimal, decimal, unsigned, binary, octal, character, zero-padded, address, string, float."""

_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 92: "\\\\"}
_LOWEST_SYMBOL = 1 << 47


@dataclass(frozen=True, slots=True)
class Style:
    """
    How values are shown.

    Parameters
    ----------
    radix : int
        10 or 16.
    letter : str
        One of :data:`LETTERS`, for every number; empty: by the type.
    print_max : int
        Elements of an array or characters of a string that are shown.
    null_stop : bool
        Whether the text in an array of characters ends at the first NUL.
    print_array : bool
        Whether every element of an array has a line of its own.
    """

    radix: int = 10
    letter: str = ""
    print_max: int = 256
    null_stop: bool = False
    print_array: bool = False


def strip(type_: Type) -> Type:
    """Return what the typedefs of a type end in."""
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def spell_character(code: int, quote: str = "'") -> str:
    r"""Spell one byte as in C: printable ASCII, ``\n`` and its like, else three octal digits."""
    code &= 0xFF
    if code in _ESCAPES:
        return _ESCAPES[code]
    if 32 <= code < 127:
        return f"\\{quote}" if chr(code) == quote else chr(code)
    return f"\\{code:03o}"


def spell_string(data: bytes, style: Style) -> str:
    r"""
    Spell an array of characters as gdb does.

    Of the bytes behind the text the last NUL is left out; more than
    ``print_max`` bytes end in dots.

    >>> spell_string(b"init\0\0\0", Style())
    '"init\\000\\000"'
    """
    if style.null_stop:
        data = data.partition(b"\0")[0]
    elif len(data) <= style.print_max and data.endswith(b"\0"):
        data = data[:-1]
    shown = data[: style.print_max]
    return f'"{"".join(spell_character(code, chr(34)) for code in shown)}"{"..." if len(data) > len(shown) else ""}'


class Speller:
    """
    Spells scalar values of one kernel.

    Parameters
    ----------
    prog : Program
        For symbols, and for the strings that pointers lead to.
    """

    def __init__(self, prog: Program, style: Style) -> None:
        self.style = style
        self._prog = prog
        self.symbol = lru_cache(maxsize=4096)(self._symbol)

    def _symbol(self, vaddr: int) -> str:
        """Name the symbol that holds an address: ``<name+offset>``; empty: none does."""
        if vaddr < _LOWEST_SYMBOL:
            return ""
        try:
            symbol = self._prog.symbol(vaddr)
        except LookupError:
            return ""
        offset = vaddr - symbol.address
        return f"<{symbol.name}+{offset}>" if offset else f"<{symbol.name}>"

    def scalar(self, type_: Type, value: int | float) -> str:  # noqa: PYI041 - mypy tells the two apart only so
        """
        Spell a number, boolean, enumerator or pointer.

        Parameters
        ----------
        type_ : Type
            Without typedefs.
        value : int or float
            Signed where the type is.
        """
        kind = type_.kind
        letter = self.style.letter
        if isinstance(value, float):
            return f"{value:g}"
        if kind is TypeKind.POINTER:
            return self.pointer(type_, value)
        if kind is TypeKind.ENUM and not letter:
            return _spell_enum(type_, value)
        size = size_of(type_) or 8
        if letter:
            return self._formatted(value, size)
        if self.style.radix == 16:
            return f"{value & _mask(size):#x}"
        if kind is TypeKind.BOOL:
            return {0: "false", 1: "true"}.get(value, str(value))
        if size == 1:
            return f"{value} '{spell_character(value)}'"
        return str(value)

    def pointer(self, type_: Type, value: int) -> str:
        """Spell a pointer with its symbol, and the text where it points to characters."""
        letter = self.style.letter
        if letter and letter not in "as":
            return self._formatted(value, type_.size or 8)
        parts = [f"{value:#x}", self.symbol(value)]
        if value and letter != "a" and is_character(type_.type):
            parts.append(self._string_at(value))
        return " ".join(filter(None, parts))

    def _string_at(self, vaddr: int) -> str:
        try:
            data = self._prog.read_c_string(vaddr, max_size=self.style.print_max)
        except FaultError as exc:
            return absent(exc).mark
        dots = "..." if len(data) >= self.style.print_max else ""
        return f'"{"".join(spell_character(code, chr(34)) for code in data)}"{dots}'

    def _formatted(self, value: int, size: int) -> str:
        plain = value & _mask(size)
        match self.style.letter:
            case "x":
                return f"{plain:#x}"
            case "o":
                return f"0{plain:o}" if plain else "0"
            case "t":
                return f"{plain:b}"
            case "z":
                return f"0x{plain:0{size * 2}x}"
            case "u":
                return str(plain)
            case "c":
                code = plain & 0xFF
                return f"{code - 256 if code > 127 else code} '{spell_character(code)}'"
            case "a":
                return " ".join(filter(None, (f"{plain:#x}", self.symbol(plain))))
            case "d":
                return str(plain - (1 << size * 8) if plain >> (size * 8 - 1) else plain)
            case _:
                return str(value)


def is_character(type_: Type) -> bool:
    """Tell whether a type is ``char``, signed or not, behind its typedefs."""
    bare = strip(type_)
    return bare.kind is TypeKind.INT and bare.size == 1


def _mask(size: int) -> int:
    return (1 << size * 8) - 1


def _spell_enum(type_: Type, value: int) -> str:
    enumerators = type_.enumerators or ()
    for name, number in enumerators:
        if number == value:
            return str(name)
    numbers = [number for _, number in enumerators]
    if not value or not numbers or not all(number >= 0 and number.bit_count() <= 1 for number in numbers):
        return str(value)
    names = [name for name, number in enumerators if number and value & number]
    rest = value & ~sum(set(numbers))
    return f"({' | '.join([*names, *([f'unknown: {rest:#x}'] if rest else [])])})"
