"""Members of drgn objects as cells."""

from __future__ import annotations

from drgn import Object

from postpanic.analysis.cells import cell
from postpanic.findings.table import Cell

__all__ = ["integer_cell", "read_integer"]


def read_integer(thing: Object, path: str) -> int:
    """Read a number or pointer at a path of members (``dev.id``); raises what reading objects raises."""
    for name in path.split("."):
        thing = thing.member_(name)
    return int(thing.value_())


def integer_cell(thing: Object, path: str) -> Cell:
    """Read a number or pointer as a cell."""
    return cell(lambda: read_integer(thing, path))
