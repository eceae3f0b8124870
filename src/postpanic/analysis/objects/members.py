"""Structures as tables of their members, laid out as crash prints them."""

from __future__ import annotations

from collections.abc import Iterable

from drgn import Object

from postpanic.analysis.objects.braces import MEMBERS, ValueWriter
from postpanic.analysis.objects.contents import object_contents
from postpanic.analysis.objects.style import Style
from postpanic.findings.table import Table

__all__ = ["members_table"]


def members_table(structures: Iterable[Object], style: Style) -> Table:
    """
    Make one table of all members of structures in memory.

    Parameters
    ----------
    structures : iterable of Object
        References; what of them cannot be read is said in its members.

    Returns
    -------
    Table
        Of the shape :data:`postpanic.analysis.objects.braces.MEMBERS`.
    """
    rows = []
    for structure in structures:
        name = structure.type_.type_name()
        writer = ValueWriter(structure.prog_, style)
        contents = object_contents(structure.prog_, structure)
        writer.write(structure.type_, contents, vaddr=structure.address_, name=name, lead=f"{name} ")
        rows += writer.table_rows()
    return MEMBERS.table(rows)
