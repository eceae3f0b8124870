"""What is wrong with an expression, and where."""

from __future__ import annotations

from postpanic.errors import UsageError

__all__ = ["ExpressionError"]


class ExpressionError(UsageError):
    """
    An expression that cannot be parsed, or whose operators do not suit its operands.

    Attributes
    ----------
    column : int
        Where, counted from 1.
    """

    code = "expression"

    def __init__(self, message: str, column: int, *, hint: str = "") -> None:
        super().__init__(f"column {column}: {message}", hint=hint)
        self.column = column
