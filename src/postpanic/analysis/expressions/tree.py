"""The parts of a parsed expression, and how they are spelt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "PRECEDENCE",
    "Binary",
    "Cast",
    "Character",
    "Conditional",
    "Index",
    "Member",
    "Name",
    "Node",
    "Number",
    "OffsetOf",
    "PerCpu",
    "Real",
    "SizeOf",
    "SizeOfType",
    "TypeAt",
    "Unary",
    "format_expression",
]

PRECEDENCE = {
    "||": 1,
    "&&": 2,
    "|": 3,
    "^": 4,
    "&": 5,
    "==": 6,
    "!=": 6,
    "<": 7,
    ">": 7,
    "<=": 7,
    ">=": 7,
    "<<": 8,
    ">>": 8,
    "@": 9,
    "+": 10,
    "-": 10,
    "*": 11,
    "/": 11,
    "%": 11,
}
"""Binary operators, the loosest first; ``@`` (``value@count``, an array) is gdb's, and stands where gdb has it."""

_CONDITIONAL = 0
_UNARY = 12
_POSTFIX = 13


@dataclass(frozen=True, slots=True)
class _Placed:
    column: int = field(default=0, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Number(_Placed):
    """An integer as it is spelt, suffix and all."""

    text: str


@dataclass(frozen=True, slots=True)
class Real(_Placed):
    """A floating-point number as it is spelt."""

    text: str


@dataclass(frozen=True, slots=True)
class Character(_Placed):
    """A character as it is spelt, in its quotes."""

    text: str


@dataclass(frozen=True, slots=True)
class Name(_Placed):
    """A variable, function, enumerator or symbol; ``$``, ``$$`` and ``$3`` are values shown before."""

    name: str


@dataclass(frozen=True, slots=True)
class PerCpu(_Placed):
    """``name:cpu``: a per-CPU variable on one CPU."""

    name: str
    cpu: int


@dataclass(frozen=True, slots=True)
class Unary(_Placed):
    """``+ - ~ ! * &`` before an operand."""

    operator: str
    operand: Node


@dataclass(frozen=True, slots=True)
class Binary(_Placed):
    """An operator of :data:`PRECEDENCE` between two operands."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Conditional(_Placed):
    """``condition ? then : otherwise``."""

    condition: Node
    then: Node
    otherwise: Node


@dataclass(frozen=True, slots=True)
class Cast(_Placed):
    """``(type)operand``."""

    type_name: str
    operand: Node


@dataclass(frozen=True, slots=True)
class TypeAt(_Placed):
    """``{type}address``: gdb's short form of ``*(type *)address``."""

    type_name: str
    operand: Node


@dataclass(frozen=True, slots=True)
class SizeOf(_Placed):
    """``sizeof operand``."""

    operand: Node


@dataclass(frozen=True, slots=True)
class SizeOfType(_Placed):
    """``sizeof(type)``."""

    type_name: str


@dataclass(frozen=True, slots=True)
class OffsetOf(_Placed):
    """``offsetof(type, member)``."""

    type_name: str
    member: str


@dataclass(frozen=True, slots=True)
class Member(_Placed):
    """``operand.name`` or ``operand->name``; both do on a pointer, as in gdb."""

    operand: Node
    name: str
    arrow: bool


@dataclass(frozen=True, slots=True)
class Index(_Placed):
    """``operand[index]``."""

    operand: Node
    index: Node


Node: TypeAlias = (
    Number
    | Real
    | Character
    | Name
    | PerCpu
    | Unary
    | Binary
    | Conditional
    | Cast
    | TypeAt
    | SizeOf
    | SizeOfType
    | OffsetOf
    | Member
    | Index
)


def format_expression(node: Node) -> str:
    """
    Spell an expression, with the parentheses that it needs and no others.

    >>> format_expression(Binary("*", Binary("+", Name("a"), Number("1")), Name("b")))
    '(a + 1) * b'
    """
    return _spell(node)[0]


def _spell(node: Node) -> tuple[str, int]:
    """Spell a part, and tell how tightly it holds together."""
    match node:
        case Number(text) | Real(text) | Character(text) | Name(text):
            return text, _POSTFIX
        case PerCpu(name, cpu):
            return f"{name}:{cpu}", _POSTFIX
        case SizeOfType(type_name):
            return f"sizeof({type_name})", _UNARY
        case OffsetOf(type_name, member):
            return f"offsetof({type_name}, {member})", _POSTFIX
        case Member(operand, name, arrow):
            # The dot behind a number would be a decimal point.
            holder = f"({operand.text})" if isinstance(operand, (Number, Real)) else _inside(operand, _POSTFIX)
            return f"{holder}{'->' if arrow else '.'}{name}", _POSTFIX
        case Index(operand, index):
            return f"{_inside(operand, _POSTFIX)}[{_spell(index)[0]}]", _POSTFIX
        case _:
            return _spell_operator(node)


def _spell_operator(node: Node) -> tuple[str, int]:
    match node:
        case Binary(operator, left, right):
            level = PRECEDENCE[operator]
            return f"{_inside(left, level)} {operator} {_inside(right, level + 1)}", level
        case Conditional(condition, then, otherwise):
            # Without parentheses the colon behind a name would not be that of a CPU.
            middle = _inside(then, _POSTFIX) if isinstance(then, (Number, Name)) else f"({_spell(then)[0]})"
            return f"{_inside(condition, 1)} ? {middle} : {_inside(otherwise, _CONDITIONAL)}", _CONDITIONAL
        case Cast(type_name, operand):
            return f"({type_name}){_inside(operand, _UNARY)}", _UNARY
        case TypeAt(type_name, operand):
            return f"{{{type_name}}}{_inside(operand, _UNARY)}", _UNARY
        case SizeOf(operand):
            # Otherwise the type of a cast would be all that is measured.
            inner = f"({_spell(operand)[0]})" if isinstance(operand, Cast) else _inside(operand, _UNARY)
            return f"sizeof {inner}", _UNARY
        case Unary(operator, operand):
            text = _inside(operand, _UNARY)
            # "--a" and "&&a" are other operators than two of one kind.
            return f"{operator}{' ' if text.startswith(operator) else ''}{text}", _UNARY
        case _:
            raise TypeError(f"{type(node).__name__} is no part of an expression")


def _inside(node: Node, level: int) -> str:
    text, own = _spell(node)
    return f"({text})" if own < level else text
