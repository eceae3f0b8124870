"""
Parse a C expression.

What a parser of C cannot know from the text alone is whether a name is a type:
``(a) * b`` is a cast or a product. The caller says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from postpanic.analysis.expressions.errors import ExpressionError
from postpanic.analysis.expressions.lexer import Token, TokenKind, tokenize
from postpanic.analysis.expressions.tree import (
    PRECEDENCE,
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

__all__ = ["DEPTH_LIMIT", "parse_expression"]

DEPTH_LIMIT = 40
"""Parentheses, casts and other operators before an operand that may stand inside each other."""

_TYPE_WORDS = frozenset(
    [
        "struct",
        "union",
        "enum",
        "class",
        "const",
        "volatile",
        "signed",
        "unsigned",
        "char",
        "short",
        "int",
        "long",
        "float",
        "double",
        "void",
        "_Bool",
        "bool",
    ]
)
_TAGS = frozenset({"struct", "union", "enum", "class"})
_UNARY = frozenset("+-~!*&")
_CPU = re.compile(r"\d{1,7}\Z")


def parse_expression(text: str, is_type: Callable[[str], bool] = lambda _: False) -> Node:
    """
    Parse an expression.

    Parameters
    ----------
    text : str
        C, and of gdb ``value@count`` and ``{type}address``; ``name:cpu`` is a
        per-CPU variable on one CPU, where no ``?`` wants the colon.
    is_type : callable
        Tells whether a name is that of a type.

    Raises
    ------
    ExpressionError
        If it is none, is too long or nests too deeply.
    """
    return _Parser(text, is_type).parse()


class _Parser:
    def __init__(self, text: str, is_type: Callable[[str], bool]) -> None:
        self._tokens = tokenize(text)
        self._position = 0
        self._is_type = is_type
        self._depth = 0
        self._choices = 0
        """``?`` that wait for their ``:``."""

    def parse(self) -> Node:
        node = self._conditional()
        token = self._peek()
        if token.kind is not TokenKind.END:
            raise self._unexpected(token)
        return node

    def _unexpected(self, token: Token) -> ExpressionError:
        if token.kind is TokenKind.END:
            return ExpressionError("the expression ends here, an operand is missing", token.column)
        if token.text == "=":
            return ExpressionError("nothing is assigned in an expression", token.column, hint="wr changes memory")
        if token.text == "(":
            return ExpressionError("functions of the kernel cannot be called", token.column)
        return ExpressionError(f"{token.text!r} does not fit here", token.column)

    def _peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._position + ahead, len(self._tokens) - 1)]

    def _next(self) -> Token:
        token = self._peek()
        self._position += 1
        return token

    def _take(self, text: str) -> bool:
        token = self._peek()
        if token.kind is TokenKind.OPERATOR and token.text == text:
            self._position += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        token = self._peek()
        if not self._take(text):
            found = repr(token.text) if token.kind is not TokenKind.END else "the end"
            raise ExpressionError(f"{text!r} is missing, found {found}", token.column)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise ExpressionError(f"more than {DEPTH_LIMIT} operators inside each other", self._peek().column)

    def _conditional(self) -> Node:
        self._enter()
        condition = self._binary(1)
        column = self._peek().column
        if self._take("?"):
            self._choices += 1
            then = self._conditional()
            self._choices -= 1
            self._expect(":")
            condition = Conditional(condition, then, self._conditional(), column=column)
        self._depth -= 1
        return condition

    def _binary(self, level: int) -> Node:
        left = self._unary()
        while True:
            token = self._peek()
            own = PRECEDENCE.get(token.text, 0) if token.kind is TokenKind.OPERATOR else 0
            if own < level:
                return left
            self._next()
            left = Binary(token.text, left, self._binary(own + 1), column=token.column)

    def _unary(self) -> Node:
        token = self._peek()
        if token.kind is TokenKind.NAME and token.text == "sizeof":
            return self._sizeof()
        if token.kind is TokenKind.OPERATOR and token.text == "&&":
            raise ExpressionError("'&&' does not fit here", token.column)
        if token.kind is TokenKind.OPERATOR and token.text in _UNARY:
            self._next()
            return Unary(token.text, self._nested(), column=token.column)
        if token.kind is TokenKind.OPERATOR and token.text in "({" and self._starts_type(1):
            self._next()
            type_name = self._type_name(")" if token.text == "(" else "}")
            make = Cast if token.text == "(" else TypeAt
            return make(type_name, self._nested(), column=token.column)
        return self._postfix()

    def _nested(self) -> Node:
        self._enter()
        node = self._unary()
        self._depth -= 1
        return node

    def _sizeof(self) -> Node:
        column = self._next().column
        token = self._peek()
        if token.text == "(" and token.kind is TokenKind.OPERATOR and self._starts_type(1):
            self._next()
            return SizeOfType(self._type_name(")"), column=column)
        return SizeOf(self._nested(), column=column)

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            token = self._peek()
            if token.kind is not TokenKind.OPERATOR or token.text not in {".", "->", "["}:
                return node
            self._next()
            if token.text == "[":
                choices, self._choices = self._choices, 0
                node = Index(node, self._conditional(), column=token.column)
                self._choices = choices
                self._expect("]")
                continue
            name = self._next()
            if name.kind is not TokenKind.NAME:
                raise ExpressionError(f"a member's name is missing behind {token.text!r}", name.column)
            node = Member(node, name.text, token.text == "->", column=name.column)

    def _primary(self) -> Node:
        token = self._next()
        match token.kind:
            case TokenKind.NUMBER:
                return Number(token.text, column=token.column)
            case TokenKind.REAL:
                return Real(token.text, column=token.column)
            case TokenKind.CHARACTER:
                return Character(token.text, column=token.column)
            case TokenKind.NAME:
                return self._name(token)
        if token.text == "(" and token.kind is TokenKind.OPERATOR:
            choices, self._choices = self._choices, 0
            node = self._conditional()
            self._choices = choices
            self._expect(")")
            return node
        self._position -= 1
        raise self._unexpected(token)

    def _name(self, token: Token) -> Node:
        if token.text == "offsetof" and self._peek().text == "(":
            return self._offsetof(token)
        if token.text in _TAGS:
            raise ExpressionError("a type stands where a value must", token.column, hint="(struct name *)address")
        colon, cpu = self._peek(), self._peek(1)
        is_cpu = cpu.kind is TokenKind.NUMBER and cpu.glued and _CPU.match(cpu.text) is not None
        if self._choices == 0 and colon.text == ":" and colon.glued and is_cpu:
            self._position += 2
            return PerCpu(token.text, int(cpu.text), column=token.column)
        return Name(token.text, column=token.column)

    def _offsetof(self, token: Token) -> Node:
        self._expect("(")
        if self._peek().kind is not TokenKind.NAME:
            raise ExpressionError("offsetof needs a type", self._peek().column, hint="offsetof(struct page, lru)")
        type_name = self._type_name(",")
        member = ""
        while not self._take(")"):
            part = self._next()
            if part.kind is TokenKind.END:
                raise ExpressionError("')' is missing, found the end", part.column)
            member += part.text
        return OffsetOf(type_name, member, column=token.column)

    def _starts_type(self, ahead: int) -> bool:
        token = self._peek(ahead)
        if token.kind is not TokenKind.NAME:
            return False
        return token.text in _TYPE_WORDS or self._is_type(token.text)

    def _type_name(self, end: str) -> str:
        """Take the words of a type up to the bracket that ends it; drgn parses them."""
        words: list[str] = []
        depth = 0
        while True:
            token = self._next()
            if token.kind is TokenKind.END:
                raise ExpressionError(f"{end!r} is missing, found the end", token.column)
            if token.kind is TokenKind.OPERATOR:
                if token.text == end and depth == 0:
                    return " ".join(words)
                if token.text not in {"*", "[", "]", "(", ")", ","}:
                    raise ExpressionError(f"{token.text!r} does not belong into a type", token.column)
                depth += (token.text in "([") - (token.text in ")]")
                if depth < 0:
                    raise ExpressionError(f"{token.text!r} does not fit here", token.column)
            words.append(token.text)
