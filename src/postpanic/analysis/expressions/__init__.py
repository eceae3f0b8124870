"""C expressions about a kernel: a parser, and an evaluator on drgn objects."""

from postpanic.analysis.expressions.errors import ExpressionError
from postpanic.analysis.expressions.evaluate import evaluate, evaluate_number
from postpanic.analysis.expressions.parser import parse_expression
from postpanic.analysis.expressions.tree import format_expression

__all__ = ["ExpressionError", "evaluate", "evaluate_number", "format_expression", "parse_expression"]
