"""Split a C expression into tokens."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

from postpanic.analysis.expressions.errors import ExpressionError

__all__ = ["TOKEN_LIMIT", "Token", "TokenKind", "tokenize"]

TOKEN_LIMIT = 256
"""An expression that somebody types is shorter; a chain of operators nests as deep as it is long."""


class TokenKind(Enum):
    """Kinds of tokens."""

    NAME = auto()
    NUMBER = auto()
    REAL = auto()
    CHARACTER = auto()
    OPERATOR = auto()
    END = auto()


class Token(NamedTuple):
    """One token; ``column`` counts from 1, and ``glued`` says that no space stands before it."""

    kind: TokenKind
    text: str
    column: int
    glued: bool


# Names of symbols may end as compilers end them: x.4, f.isra.0.
# A number is taken as the preprocessor takes it: whatever letters and digits follow, so that 8b79cf is one word.
_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<real>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?[fFlL]?(?![\w.]))
  | (?P<number>\d\w*)
  | (?P<name>[A-Za-z_$][\w$]*(?:(?:\.(?:isra|part|constprop|lto_priv|llvm))?\.\d+\b)*)
  | (?P<character>'(?:\\(?:[0-7]{1,3}|x[0-9a-fA-F]{1,2}|[abefnrtv'"\\?])|[^'\\])')
  | (?P<operator><<|>>|<=|>=|==|!=|&&|\|\||->|[-+*/%&|^~!<>()\[\].?:@,{}=])
    """,
    re.VERBOSE,
)
_KINDS = {
    "name": TokenKind.NAME,
    "number": TokenKind.NUMBER,
    "real": TokenKind.REAL,
    "character": TokenKind.CHARACTER,
    "operator": TokenKind.OPERATOR,
}


def tokenize(text: str) -> list[Token]:
    """
    Split an expression into tokens; the last one is the end.

    Raises
    ------
    ExpressionError
        At a character that no expression holds, and behind :data:`TOKEN_LIMIT` tokens.
    """
    tokens: list[Token] = []
    position = 0
    glued = False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ExpressionError(f"{text[position]!r} does not belong into an expression", position + 1)
        if match.lastgroup != "space":
            tokens.append(Token(_KINDS[match.lastgroup], match.group(), position + 1, glued))
        glued = match.lastgroup != "space"
        position = match.end()
        if len(tokens) > TOKEN_LIMIT:
            raise ExpressionError(f"more than {TOKEN_LIMIT} words", tokens[-1].column)
    tokens.append(Token(TokenKind.END, "", len(text) + 1, glued))
    return tokens
