"""C's operators on drgn objects, and how their failures are told."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drgn import FaultError, Object, TypeKind

from postpanic.analysis.expressions.errors import ExpressionError
from postpanic.analysis.expressions.types import strip
from postpanic.errors import FactAbsentError

__all__ = ["ARITHMETIC", "COMPARISONS", "SIGNS", "is_arithmetic", "placed"]

COMPARISONS: dict[str, Callable[[Object, Object], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
ARITHMETIC: dict[str, Callable[[Object, Object], Object]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}
SIGNS: dict[str, Callable[[Object], Object]] = {"-": operator.neg, "+": operator.pos, "~": operator.invert}


def is_arithmetic(value: Object) -> bool:
    """Tell whether a value is a number: an integer, boolean, enumerator or floating-point number."""
    return strip(value.type_).kind in {TypeKind.INT, TypeKind.BOOL, TypeKind.ENUM, TypeKind.FLOAT}


@contextmanager
def placed(column: int, message: str) -> Iterator[None]:
    """Say at which column an operator failed."""
    try:
        yield
    except FaultError:
        raise
    except ZeroDivisionError:
        raise ExpressionError("division by zero", column) from None
    except (TypeError, ValueError, OverflowError) as exc:
        raise ExpressionError(f"{message} ({exc})", column) from None
    except LookupError as exc:
        raise FactAbsentError(f"column {column}: {exc.args[0] if exc.args else message}") from None
