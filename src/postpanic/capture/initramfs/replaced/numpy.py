"""
The surface of numpy in the image: its core, and what else is used of it, imported when it is used.

numpy's own ``__init__`` brings in all of it, and calls BLAS to see whether it
works.
"""

from __future__ import annotations

import sys
from typing import Any

from numpy import _globals

_CopyMode = getattr(_globals, "_CopyMode", None)
_NoValue = _globals._NoValue  # noqa: SLF001

_PLACES: dict[str, str] = {}
"""Of what is not in the core: name to module. Filled in when the image is made."""
_CORE = "numpy._core"


class matrix:  # noqa: N801 - numpy's name
    """What numpy asks whether an array is one; none is."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    value = _find(name)
    globals()[name] = value
    return value


def _find(name: str) -> Any:
    # Before 2.0 numpy.lib passes some functions of C on, and the core does not: bincount.
    for place in (_PLACES.get(name, _CORE), f"{_CORE}.multiarray"):
        __import__(place)
        module = sys.modules[place]
        if hasattr(module, name):
            return getattr(module, name)
    return _import_submodule(name)


def _import_submodule(name: str) -> Any:
    try:
        __import__(f"numpy.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"numpy.{name} is not in this image") from None
    return sys.modules[f"numpy.{name}"]


__import__(_CORE)
