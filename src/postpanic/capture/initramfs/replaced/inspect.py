"""What ``dataclasses``, ``typing`` and numpy ask of ``inspect``, without the parser and the disassembler."""

from __future__ import annotations

import types
from typing import Any

__all__ = ["Parameter", "Signature", "get_annotations", "isclass", "isfunction", "signature", "unwrap"]


class Parameter:
    """Only to be named."""

    POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD, VAR_POSITIONAL, KEYWORD_ONLY, VAR_KEYWORD = range(5)
    empty = object


class Signature:
    """Of nothing."""

    empty = object

    def __str__(self) -> str:
        return "(...)"


def signature(_function: object, **_options: object) -> Signature:
    """Return a text that says nothing: it goes into the docstrings of data classes."""
    return Signature()


def get_annotations(thing: Any, **_options: object) -> dict[str, Any]:
    """Return a copy of an object's own annotations."""
    own = vars(thing) if isinstance(thing, type) else {"__annotations__": thing.__annotations__}
    return dict(own.get("__annotations__", {}))


def isclass(thing: object) -> bool:
    """Tell whether it is a class."""
    return isinstance(thing, type)


def isfunction(thing: object) -> bool:
    """Tell whether it is a function written in Python."""
    return isinstance(thing, types.FunctionType)


def unwrap(function: Any, **_options: object) -> Any:
    """Return what decorators wrapped."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
