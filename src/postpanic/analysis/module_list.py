"""The modules that a kernel has loaded."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program
from drgn.helpers.linux.module import for_each_module

__all__ = ["each_module"]


def each_module(prog: Program) -> Iterator[Object]:
    """
    Yield each ``struct module *``, as the list has them; none where the kernel has no modules at all.

    Without ``CONFIG_MODULES`` there is neither a list nor, but for its name, the structure.

    Raises
    ------
    LookupError, FaultError
        When asked for the first: if nothing tells where the list is, though there may be one.
    """
    try:
        found = for_each_module(prog)
    except LookupError:
        if not _has_modules(prog):
            return
        raise
    yield from found


def _has_modules(prog: Program) -> bool:
    try:
        return bool(prog.type("struct module").is_complete())
    except LookupError:
        return False
