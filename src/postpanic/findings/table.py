"""
Tables of typed cells, and the answer of a command, which is made of tables.

A :class:`Shape` is declared once, next to the command that fills it: names,
kinds and titles of the columns, and how a row is laid out as text. A
:class:`Table` is a shape and its rows. A cell may be a table itself (the
frames of a task, the registers of a frame), so that one answer about many tasks
is one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

import msgspec

from postpanic.findings.absent import Absent, Reason

__all__ = ["Answer", "Cell", "Column", "Kind", "Layout", "Problem", "Shape", "Table"]


class Kind(StrEnum):
    """What the cells of a column are; it settles how they look as text and in JSON."""

    TEXT = "text"
    """``str``."""
    NUMBER = "number"
    """``int``; decimal."""
    REAL = "real"
    """``float``; its format is in the column."""
    HEX = "hex"
    """``int``; hexadecimal without ``0x`` as text, a string with ``0x`` in JSON (readers round numbers above 2**53)."""
    ADDRESS = "address"
    """``int``; a 64-bit address: 16 hexadecimal digits as text, a string with ``0x`` in JSON."""
    BOOL = "bool"
    """``bool``."""
    ROWS = "rows"
    """A :class:`Table` of the column's own shape, shown below the row."""


class Layout(StrEnum):
    """How the rows of a table become text."""

    GRID = "grid"
    """A heading and aligned columns."""
    LINES = "lines"
    """Each row as the shape's ``line`` says."""
    FIELDS = "fields"
    """Each row as a block of ``TITLE: value`` lines, titles aligned to the right; an empty line separates rows."""


class Column(msgspec.Struct, frozen=True):
    """
    One column.

    Parameters
    ----------
    name : str
        Key in JSON and in Python: lower case, words joined by ``_``.
    kind : Kind
    title : str
        Heading in text; crash's, where crash has the column.
    help : str
        What it is: C type and member, unit.
    width : int
        Least width in a grid, characters.
    align : str
        ``<``, ``>`` or ``^`` in a grid; empty: by the kind.
    format : str
        Format specification of the value, as :func:`format` takes it; empty: by the kind.
    prefix, suffix : str
        Put around a value in text; an empty cell (None or "") shows neither.
    shape : Shape, optional
        Of the tables in a column of rows.
    hidden : bool
        Only for JSON and Python: a grid does not show it.
    """

    name: str
    kind: Kind = Kind.TEXT
    title: str = ""
    help: str = ""
    width: int = 0
    align: str = ""
    format: str = ""
    prefix: str = ""
    suffix: str = ""
    shape: Shape | None = None
    hidden: bool = False


class Shape(msgspec.Struct, frozen=True, dict=True):
    """
    What a table looks like.

    Parameters
    ----------
    name : str
        Names the table in JSON; unique within a command.
    columns : tuple of Column
    layout : Layout
    line : str
        For lines: literal text with ``{column}`` or ``{column:specification}``,
        where the specification pads the cell's text (``<8``). ``{{`` is a brace.
    title : str
        A line above the table; empty: none.
    indent : int
        Columns by which the table is moved to the right, when it is inside another.
    gap : bool
        Whether an empty line separates the rows (lines).
    heading : bool
        Whether a grid has its line of titles.
    """

    name: str
    columns: tuple[Column, ...]
    layout: Layout = Layout.GRID
    line: str = ""
    title: str = ""
    indent: int = 0
    gap: bool = False
    heading: bool = True

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each column by its name."""
        return {column.name: position for position, column in enumerate(self.columns)}

    def table(self, rows: Sequence[tuple[Cell, ...]] = (), *, title: str | None = None) -> Table:
        """Make a table of this shape; *title* stands in place of the shape's."""
        return Table(self, tuple(rows), title)


class Table(msgspec.Struct, frozen=True):
    """
    A shape and its rows; the cells of a row are in the order of the columns.

    >>> shape = Shape("ps", (Column("pid", Kind.NUMBER), Column("comm")))
    >>> shape.table([(1, "init")]).records()
    [{'pid': 1, 'comm': 'init'}]
    """

    shape: Shape
    rows: tuple[tuple[Cell, ...], ...] = ()
    title: str | None = None

    def column(self, name: str) -> list[Any]:
        """Return the cells of one column, in the order of the rows; each is a :data:`Cell` of the column's kind."""
        position = self.shape.index[name]
        return [row[position] for row in self.rows]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries by the columns' names; each value is a :data:`Cell` of its column's kind."""
        names = [column.name for column in self.shape.columns]
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)


Cell: TypeAlias = "str | int | float | bool | Absent | Table | None"
"""
What a cell may hold; None is a cell that is rightly empty.

Text is ``str``: bytes from the kernel are decoded on the way in, with
``backslashreplace`` for what is not UTF-8.
"""


class Problem(msgspec.Struct, frozen=True):
    """
    Something that kept an answer from being whole.

    Parameters
    ----------
    what : str
        One line: what was being read, and where it stopped.
    reason : Reason
    """

    what: str
    reason: Reason


class Answer(msgspec.Struct, frozen=True):
    """
    The answer of one command.

    Parameters
    ----------
    command : str
        Its name.
    tables : tuple of Table
        In the order in which they are shown.
    problems : tuple of Problem
        What is missing from them, beyond what cells say themselves; empty: nothing.
    is_missing : bool
        Whether all rows only repeat what was asked for, and nothing of it could be read.
    """

    command: str
    tables: tuple[Table, ...]
    problems: tuple[Problem, ...] = ()
    is_missing: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether the dump told nothing of what was asked for; as a command it fails then."""
        return self.is_missing or bool(self.problems and not any(table.rows for table in self.tables))

    @property
    def table(self) -> Table:
        """The first table; most answers have one."""
        return self.tables[0]

    def __getitem__(self, name: str) -> Table:
        """Return the first table of this name; KeyError if there is none."""
        for table in self.tables:
            if table.shape.name == name:
                return table
        raise KeyError(name)
