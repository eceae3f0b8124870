"""Numbers and characters, with the types that C gives them."""

from __future__ import annotations

import re

from drgn import Object, Program

from postpanic.analysis.expressions.errors import ExpressionError

__all__ = ["make_character", "make_number", "parse_hexadecimal"]

_INTEGER = re.compile(
    r"(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<binary>[01]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9]\d*))"
    r"(?P<suffix>[uU]?[lL]{0,2}|[lL]{1,2}[uU])\Z"
)
_BARE = re.compile(r"[0-9a-fA-F]+\Z")
_BASES = {"hex": 16, "binary": 2, "octal": 8, "decimal": 10}
_TYPES = (("int", 31), ("unsigned int", 32), ("long", 63), ("unsigned long", 64))
_ESCAPES = {"a": 7, "b": 8, "e": 27, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


def make_number(prog: Program, text: str, column: int) -> Object:
    """
    Make an integer of C's spelling, or of bare hexadecimal digits that are no number in C.

    Its type is the first one that holds it (C11 6.4.4.1), ``unsigned long`` at last.

    Raises
    ------
    ExpressionError
        If it is none, or is wider than 64 bits.
    """
    match = _INTEGER.match(text)
    if match is None:
        number = parse_hexadecimal(prog, text)
        if number is None:
            raise ExpressionError(f"{text!r} is not a number", column)
        return number
    base = next(name for name in _BASES if match[name])
    value = int(match[base], _BASES[base])
    suffix = match["suffix"].lower()
    for name, bits in _TYPES:
        is_unsigned = name.startswith("unsigned")
        if "l" in suffix and "long" not in name:
            continue
        if ("u" in suffix and not is_unsigned) or (base == "decimal" and name == "unsigned int" and "u" not in suffix):
            continue
        if value < 1 << bits:
            return Object(prog, name, value)
    raise ExpressionError(f"{text} is wider than 64 bits", column)


def parse_hexadecimal(prog: Program, text: str) -> Object | None:
    """Make an address of hexadecimal digits without ``0x``, as crash takes them; None if it is something else."""
    if not _BARE.match(text) or len(text) > 16:
        return None
    return Object(prog, "unsigned long", int(text, 16))


def make_character(prog: Program, text: str) -> Object:
    """Make a ``char`` of a character in its quotes."""
    inner = text[1:-1]
    if not inner.startswith("\\"):
        code = ord(inner)
    elif inner[1] in "01234567":
        code = int(inner[1:], 8)
    elif inner[1] == "x":
        code = int(f"0{inner[1:]}", 0)
    else:
        code = _ESCAPES.get(inner[1], ord(inner[1]))
    kind = "char" if code < 1 << 7 else "unsigned char" if code < 1 << 8 else "int"
    return Object(prog, kind, code)
