"""
numpy's ``overrides`` without NEP 18: every function is its implementation, no other array type is asked.

What ``NUMPY_EXPERIMENTAL_ARRAY_FUNCTION=0`` makes of numpy where that is known,
without comparing signatures and compiling wrappers for hundreds of functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__: list[str] = []

_T = TypeVar("_T")

ARRAY_FUNCTION_ENABLED = False
ARRAY_FUNCTIONS: set[object] = set()
array_function_like_doc = ""


def set_module(_module: str) -> Callable[[_T], _T]:
    """Decorate with nothing."""
    return _give_back


def array_function_dispatch(*_arguments: object, **_options: object) -> Callable[[_T], _T]:
    """Decorate with nothing."""
    return _give_back


def array_function_from_dispatcher(implementation: Any, *_arguments: object, **_options: object) -> Any:
    """Replace the dispatcher by the implementation."""
    return lambda _dispatcher: implementation


array_function_from_c_func_and_dispatcher = array_function_from_dispatcher


def set_array_function_like_doc(function: _T) -> _T:
    """Leave the function alone."""
    return function


finalize_array_function_like = set_array_function_like_doc


def get_array_function_like_doc(_function: object, template: str = "") -> str:
    """Return the text as it is."""
    return template


def verify_matching_signatures(*_arguments: object) -> None:
    """Believe it."""


def _give_back(thing: _T) -> _T:
    return thing
