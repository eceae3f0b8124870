"""
Evaluate a C expression on a kernel.

The rules are C's, with gdb's liberties: ``.`` and ``->`` both do on a pointer, a
function or an array stands for its address, a symbol without a type may be
cast to the type that it was declared with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from drgn import FaultError, Object, Program, Type, TypeKind, cast, offsetof, sizeof

from postpanic.analysis.expressions.errors import ExpressionError
from postpanic.analysis.expressions.numbers import make_character, make_number, parse_hexadecimal
from postpanic.analysis.expressions.operators import ARITHMETIC, COMPARISONS, SIGNS, is_arithmetic, placed
from postpanic.analysis.expressions.parser import parse_expression
from postpanic.analysis.expressions.per_cpu import find_per_cpu_vaddr, is_per_cpu
from postpanic.analysis.expressions.tree import (
    Binary,
    Cast,
    Character,
    Conditional,
    Index,
    Member,
    Name,
    Node,
    Number,
    OffsetOf,
    PerCpu,
    Real,
    SizeOf,
    SizeOfType,
    TypeAt,
    Unary,
)
from postpanic.analysis.expressions.types import find_type, is_type_name, strip
from postpanic.errors import FactAbsentError, PostpanicError

__all__ = ["evaluate", "evaluate_number"]

_WORD = (1 << 64) - 1
_ELEMENT_LIMIT = 1 << 20
_HISTORY = re.compile(r"\$(\$?)(\d*)\Z")
_AGGREGATES = frozenset({TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS, TypeKind.ARRAY, TypeKind.FUNCTION})


def evaluate(prog: Program, text: str, *, history: Sequence[Object] = (), addresses: bool = False) -> Object:
    """
    Evaluate an expression.

    Parameters
    ----------
    prog : Program
    text : str
        As :func:`parse_expression` takes it. A word of hexadecimal digits that
        is no symbol is a number.
    history : sequence of Object
        What ``$1``, ``$2`` ... are, and ``$``, the last one.
    addresses : bool
        A symbol that stands for itself is its address, as in crash's
        ``(symbol+offset)``; members, indexes, ``*`` and ``&`` are C's.

    Returns
    -------
    Object
        A variable, or what is found in one, is a reference: its memory was
        not read, and need not be in the dump.

    Raises
    ------
    ExpressionError
        If it is no expression, or its operators do not suit its operands.
    FactAbsentError
        If a name or a type is unknown, or a symbol's type.
    FaultError
        If memory on the way cannot be read.
    """
    node = parse_expression(text, lambda name: is_type_name(prog, name))
    result = _Evaluator(prog, history, addresses=addresses).value(node)
    if isinstance(result, _Symbol):
        raise result.no_type()
    return result


def evaluate_number(prog: Program, text: str, *, addresses: bool = True) -> int:
    """
    Evaluate an expression to an address or another number, 0 to 2**64-1.

    A structure, array or function is its address. The parameters, and what is
    raised, are those of :func:`evaluate`.
    """
    result = evaluate(prog, text, addresses=addresses)
    kind = strip(result.type_).kind
    if kind in _AGGREGATES:
        if result.address_ is None:
            raise ExpressionError("a value without an address is not a number", 1)
        return int(result.address_)
    value = result.value_()
    if isinstance(value, float):
        raise ExpressionError("a floating-point number is not an address", 1)
    return int(value) & _WORD


@dataclass(frozen=True, slots=True)
class _Symbol:
    """A symbol whose type nothing tells."""

    prog: Program
    name: str
    vaddr: int

    def no_type(self) -> FactAbsentError:
        return FactAbsentError(
            f"the type of {self.name} is not known, only its address {self.vaddr:#x}",
            hint=f"&{self.name} is the address, (type){self.name} reads it, *(type *)&{self.name} too",
        )

    def pointer(self) -> Object:
        return Object(self.prog, "void *", self.vaddr)

    def reference(self, type_: Type) -> Object:
        return Object(self.prog, type_, address=self.vaddr)


class _Evaluator:
    def __init__(self, prog: Program, history: Sequence[Object], *, addresses: bool) -> None:
        self._prog = prog
        self._history = history
        self._addresses = addresses

    def value(self, node: Node, *, plain: bool = True) -> Object | _Symbol:
        """Evaluate a part; *plain*: a name may be taken for its address where the caller wants that."""
        match node:
            case Number(text):
                return make_number(self._prog, text, node.column)
            case Real(text):
                return Object(self._prog, self._prog.float_type("double", 8), float(text.rstrip("fFlL")))
            case Character(text):
                return make_character(self._prog, text)
            case Name(name):
                found = self._name(name, node.column)
                return self._address_of_name(found) if self._addresses and plain else found
            case PerCpu(name, cpu):
                self._check_cpu(cpu, node.column)
                return self._per_cpu(self._name(name, node.column), cpu)
            case Member() | Index() | Unary():
                return self._access(node)
            case SizeOf() | SizeOfType() | OffsetOf():
                return self._measure(node)
            case _:
                return self._operation(node)

    def _operation(self, node: Node) -> Object | _Symbol:
        match node:
            case Binary("&&" | "||" as sign, left, right):
                first = self._is_true(left)
                decided = first if sign == "||" else not first
                return self._int(first if decided else self._is_true(right))
            case Binary("@", left, right):
                return self._array(self._object(left, plain=False), self._scalar(right), node.column)
            case Binary(sign, left, right):
                return self._binary(sign, self._scalar(left), self._scalar(right), node.column)
            case Conditional(condition, then, otherwise):
                is_true = self._is_true(condition)
                return self._choice(self.value(then if is_true else otherwise), otherwise if is_true else then)
            case Cast(type_name, operand):
                return self._cast(find_type(self._prog, type_name, node.column), self.value(operand), node.column)
            case TypeAt(type_name, operand):
                type_ = find_type(self._prog, type_name, node.column)
                return Object(self._prog, type_, address=self._integer(self._scalar(operand), node.column) & _WORD)
            case _:
                raise ExpressionError("this cannot be evaluated", node.column)

    def _choice(self, chosen: Object | _Symbol, other: Node) -> Object | _Symbol:
        """Give what was chosen the type that C gives to both sides; the other one need not make sense here."""
        if isinstance(chosen, _Symbol) or not is_arithmetic(chosen):
            return chosen
        with suppress(FaultError, PostpanicError, TypeError, ValueError):
            side = self.value(other)
            if isinstance(side, Object) and is_arithmetic(side) and strip(side.type_) != strip(chosen.type_):
                return chosen + cast(side.type_, Object(self._prog, "int", 0))
        return chosen

    def _object(self, node: Node, *, plain: bool = True) -> Object:
        found = self.value(node, plain=plain)
        if isinstance(found, _Symbol):
            raise found.no_type()
        return found

    def _scalar(self, node: Node) -> Object:
        """Evaluate an operand of an operator: an array or function becomes a pointer."""
        return self._decay(self._object(node), node.column)

    def _decay(self, value: Object, column: int) -> Object:
        bare = strip(value.type_)
        if bare.kind is TypeKind.ARRAY:
            address = value.address_
            if address is None:
                raise ExpressionError("an array that lies nowhere has no address", column)
            return Object(self._prog, self._prog.pointer_type(bare.type), address)
        if bare.kind is TypeKind.FUNCTION:
            return value.address_of_()
        return value

    def _name(self, name: str, column: int) -> Object | _Symbol:
        if name.startswith("$"):
            return self._shown_before(name, column)
        try:
            return self._prog[name]
        except LookupError:
            pass
        try:
            return _Symbol(self._prog, name, int(self._prog.symbol(name).address))
        except LookupError:
            pass
        number = parse_hexadecimal(self._prog, name)
        if number is None:
            raise FactAbsentError(f"column {column}: no symbol {name}", hint=f"sym -q {name} finds names that hold it")
        return number

    def _shown_before(self, name: str, column: int) -> Object:
        match = _HISTORY.match(name)
        if match is None:
            raise ExpressionError(f"{name} is no value that was shown", column)
        place = int(match[2]) if match[2] else int(bool(match[1]))
        index = place - 1 if match[2] and not match[1] else len(self._history) - 1 - place
        if not 0 <= index < len(self._history):
            raise ExpressionError(f"{name} is no value that was shown, there are {len(self._history)}", column)
        return self._history[index]

    def _address_of_name(self, found: Object | _Symbol) -> Object:
        if isinstance(found, _Symbol):
            return Object(self._prog, "unsigned long", found.vaddr)
        # An enumerator, a number, or a value shown before lies nowhere.
        return found if found.address_ is None else Object(self._prog, "unsigned long", found.address_)

    def _check_cpu(self, cpu: int, column: int) -> None:
        with suppress(LookupError, FaultError):
            count = int(self._prog["nr_cpu_ids"].value_())
            if cpu >= count:
                raise ExpressionError(f"no CPU {cpu}, there are 0 to {count - 1}", column)

    def _per_cpu(self, found: Object | _Symbol, cpu: int) -> Object | _Symbol:
        address = found.vaddr if isinstance(found, _Symbol) else found.address_
        if address is None:
            address = self._integer(self._decay(found, 1), 1) if isinstance(found, Object) else 0
        elif isinstance(found, Object) and not is_per_cpu(self._prog, address):
            if strip(found.type_).kind is not TypeKind.POINTER:
                raise FactAbsentError("not a per-CPU variable, nor a pointer to one")
            # A __percpu pointer: what it points to is on each CPU.
            return Object(self._prog, found.type_, find_per_cpu_vaddr(self._prog, int(found.value_()), cpu))
        vaddr = find_per_cpu_vaddr(self._prog, address, cpu)
        if isinstance(found, _Symbol):
            return _Symbol(self._prog, f"{found.name}:{cpu}", vaddr)
        return Object(self._prog, found.type_, address=vaddr)

    def _access(self, node: Member | Index | Unary) -> Object | _Symbol:
        match node:
            case Member(operand, name, _):
                return self._member(operand, name, node.column)
            case Index(operand, index):
                return self._index(self._object(operand, plain=False), self._scalar(index), node.column)
            case Unary("&", operand):
                found = self.value(operand, plain=False)
                if isinstance(found, _Symbol):
                    return found.pointer()
                with placed(node.column, "this has no address"):
                    return found.address_of_()
            case Unary("*", operand):
                return self._target(self._object(operand, plain=False), node.column)
            case Unary("!", operand):
                return self._int(not self._is_true(operand))
            case Unary(sign, operand):
                value = self._scalar(operand)
                with placed(node.column, f"{sign} does not suit {value.type_.type_name()}"):
                    return SIGNS[sign](value)

    def _member(self, operand: Node, name: str, column: int) -> Object | _Symbol:
        found = self.value(operand, plain=False)
        bare = strip(found.type_) if isinstance(found, Object) else None
        if isinstance(operand, Name) and (bare is None or bare.kind is TypeKind.FUNCTION):
            # What stands behind the dot may belong to the symbol: schedule.cold
            with suppress(LookupError):
                symbol = f"{operand.name}.{name}"
                return _Symbol(self._prog, symbol, int(self._prog.symbol(symbol).address))
        if isinstance(found, _Symbol):
            raise found.no_type()
        try:
            return found.member_(name)
        except LookupError:
            raise FactAbsentError(f"column {column}: {found.type_.type_name()} has no member {name}") from None
        except TypeError:
            raise ExpressionError(f"{found.type_.type_name()} has no members", column) from None

    def _index(self, found: Object, index: Object, column: int) -> Object:
        number = self._integer(index, column)
        with placed(column, f"{found.type_.type_name()} has no elements"):
            return found[number]

    def _target(self, found: Object, column: int) -> Object:
        bare = strip(found.type_)
        if bare.kind is TypeKind.FUNCTION:
            return found
        if bare.kind not in {TypeKind.POINTER, TypeKind.ARRAY}:
            raise ExpressionError(f"{found.type_.type_name()} is no pointer", column, hint="*(struct name *)address")
        if strip(bare.type).kind is TypeKind.VOID:
            raise ExpressionError("a void pointer points to nothing that has a type", column, hint="*(type *)address")
        with placed(column, "this pointer cannot be followed"):
            return found[0]

    def _measure(self, node: SizeOf | SizeOfType | OffsetOf) -> Object:
        with placed(node.column, "this has no size"):
            match node:
                case SizeOfType(type_name):
                    number = sizeof(find_type(self._prog, type_name, node.column))
                case OffsetOf(type_name, member):
                    number = offsetof(find_type(self._prog, type_name, node.column), member)
                case SizeOf(Name(name)) if is_type_name(self._prog, name):
                    number = sizeof(find_type(self._prog, name, node.column))
                case SizeOf(operand):
                    number = sizeof(self._object(operand, plain=False))
        return Object(self._prog, "unsigned long", number)

    def _int(self, value: bool) -> Object:
        return Object(self._prog, "int", int(value))

    def _is_true(self, node: Node) -> bool:
        value = self._scalar(node)
        with placed(node.column, f"{value.type_.type_name()} is neither true nor false"):
            return bool(value)

    def _integer(self, value: Object, column: int) -> int:
        number = value.value_()
        if not isinstance(number, int):
            raise ExpressionError(f"{value.type_.type_name()} is no integer", column)
        return number

    def _array(self, first: Object, count: Object, column: int) -> Object:
        number = self._integer(count, column)
        if not 0 < number <= _ELEMENT_LIMIT:
            raise ExpressionError(f"{number} elements, 1 to {_ELEMENT_LIMIT} are possible", column)
        if first.address_ is None:
            raise ExpressionError("only what lies in memory has others behind it", column)
        return Object(self._prog, self._prog.array_type(first.type_, number), address=first.address_)

    def _cast(self, type_: Type, found: Object | _Symbol, column: int) -> Object:
        if isinstance(found, _Symbol):
            return found.reference(type_)
        value = self._decay(found, column)
        with placed(column, f"{value.type_.type_name()} cannot become {type_.type_name()}"):
            return cast(type_, value)

    def _binary(self, sign: str, left: Object, right: Object, column: int) -> Object:
        pointers = [strip(side.type_).kind is TypeKind.POINTER for side in (left, right)]
        if any(pointers) and (sign not in "+-" or (sign == "+" and all(pointers))) and left.type_ != right.type_:
            # C forbids most of these; at a prompt an address is a number.
            left, right = (
                cast("unsigned long", side) if pointer else side
                for side, pointer in zip((left, right), pointers, strict=True)
            )
        names = f"{left.type_.type_name()} {sign} {right.type_.type_name()}"
        with placed(column, f"{names} makes no sense"):
            if sign in COMPARISONS:
                return self._int(COMPARISONS[sign](left, right))
            if sign in "+-" and any(pointers) and (voids := self._void_arithmetic(sign, left, right)) is not None:
                return voids
            return ARITHMETIC[sign](left, right)

    def _void_arithmetic(self, sign: str, left: Object, right: Object) -> Object | None:
        """Add to a pointer whose target has no size by bytes, as gcc does."""
        for pointer, number in ((left, right), (right, left)):
            bare = strip(pointer.type_)
            if bare.kind is not TypeKind.POINTER or strip(number.type_).kind is TypeKind.POINTER:
                continue
            if strip(bare.type).kind in {TypeKind.VOID, TypeKind.FUNCTION}:
                step = int(number.value_())
                moved = int(pointer.value_()) + (step if sign == "+" else -step)
                return Object(self._prog, pointer.type_, moved & _WORD)
        return None
