"""
Answers as text for a terminal.

The look of a table is in its shape: grids align themselves, lines follow the
shape's pattern. Nothing here knows a command. Lines are made one at a time, so
that a long answer can be piped into ``head``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from postpanic.findings.absent import Absent
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Shape, Table

__all__ = ["cell_text", "render_problems", "render_table", "render_text"]

_FIELD = re.compile(r"\{\{|\}\}|\{(\w+)(?::([^{}]*))?\}")
_RIGHT = frozenset({Kind.NUMBER, Kind.REAL, Kind.HEX, Kind.ADDRESS})
_GAP = "  "


def render_text(answer: Answer) -> Iterator[str]:
    """Make the lines of an answer; an empty line separates its tables. Problems are not among them."""
    for number, table in enumerate(answer.tables):
        if number:
            yield ""
        yield from render_table(table)


def render_problems(answer: Answer) -> Iterator[str]:
    """Make one line for each problem of an answer."""
    for problem in answer.problems:
        yield f"{answer.command}: {problem.what}"


def render_table(table: Table) -> Iterator[str]:
    """Make the lines of one table."""
    title = table.shape.title if table.title is None else table.title
    if title:
        yield from title.split("\n")
    match table.shape.layout:
        case Layout.GRID:
            yield from _render_grid(table)
        case Layout.LINES:
            yield from _render_lines(table)
        case Layout.FIELDS:
            yield from _render_fields(table)


def cell_text(column: Column, cell: Cell) -> str:
    """Spell one cell, with the prefix and suffix of its column."""
    return _formatter(column)(cell)


@cache
def _formatter(column: Column) -> Callable[[Cell], str]:
    specification = column.format or {Kind.ADDRESS: "016x", Kind.HEX: "x", Kind.REAL: ".2f"}.get(column.kind, "")
    prefix, suffix = column.prefix, column.suffix

    def spell(cell: Cell) -> str:
        if cell is None or cell == "":
            return ""
        if isinstance(cell, Absent):
            text = cell.mark
        elif isinstance(cell, bool):
            text = "yes" if cell else "no"
        elif isinstance(cell, (int, float)):
            text = format(cell, specification)
        else:
            text = str(cell)
        return f"{prefix}{text}{suffix}" if prefix or suffix else text

    return spell


def _nested(row: Sequence[Cell], places: Sequence[int]) -> Iterator[str]:
    for place in places:
        cell = row[place]
        if not isinstance(cell, Table):
            if isinstance(cell, Absent):
                yield f"  {cell.mark} {cell.detail}".rstrip()
            continue
        indent = " " * cell.shape.indent
        for line in render_table(cell):
            yield f"{indent}{line}" if line else line


def _rows_places(shape: Shape) -> list[int]:
    return [place for place, column in enumerate(shape.columns) if column.kind is Kind.ROWS and not column.hidden]


def _render_grid(table: Table) -> Iterator[str]:
    shape = table.shape
    shown = [
        (place, column)
        for place, column in enumerate(shape.columns)
        if not column.hidden and column.kind is not Kind.ROWS
    ]
    texts = [[_formatter(column)(row[place]) for place, column in shown] for row in table.rows]
    widths = [
        max([column.width, len(column.title) if shape.heading else 0, *(len(line[number]) for line in texts)])
        for number, (_, column) in enumerate(shown)
    ]
    aligns = [column.align or (">" if column.kind in _RIGHT else "<") for _, column in shown]
    if shape.heading:
        yield _join([column.title for _, column in shown], widths, aligns)
    nested = _rows_places(shape)
    for row, line in zip(table.rows, texts, strict=True):
        yield _join(line, widths, aligns)
        yield from _nested(row, nested)


def _join(texts: Sequence[str], widths: Sequence[int], aligns: Sequence[str]) -> str:
    cells = [f"{text:{align}{width}}" for text, width, align in zip(texts, widths, aligns, strict=True)]
    return _GAP.join(cells).rstrip()


@cache
def _compile_line(shape: Shape) -> tuple[tuple[str, int, str], ...]:
    """Split a shape's line into literal text, the place of the cell behind it (-1: none), and its padding."""
    parts: list[tuple[str, int, str]] = []
    literal = ""
    position = 0
    for match in _FIELD.finditer(shape.line):
        literal += shape.line[position : match.start()]
        position = match.end()
        if match[1] is None:
            literal += match[0][0]
            continue
        parts.append((literal, shape.index[match[1]], match[2] or ""))
        literal = ""
    parts.append((literal + shape.line[position:], -1, ""))
    return tuple(parts)


def _render_lines(table: Table) -> Iterator[str]:
    shape = table.shape
    parts = _compile_line(shape)
    formatters = [_formatter(column) for column in shape.columns]
    nested = _rows_places(shape)
    for number, row in enumerate(table.rows):
        if number and shape.gap:
            yield ""
        text = ""
        for literal, place, padding in parts:
            text += literal
            if place >= 0:
                cell = formatters[place](row[place])
                text += format(cell, padding) if padding else cell
        if shape.line:
            yield from text.rstrip().split("\n")
        if nested:
            yield from _nested(row, nested)


def _render_fields(table: Table) -> Iterator[str]:
    shape = table.shape
    shown = [
        (place, column)
        for place, column in enumerate(shape.columns)
        if not column.hidden and column.kind is not Kind.ROWS
    ]
    width = max((len(column.title) for _, column in shown), default=0)
    nested = _rows_places(shape)
    for number, row in enumerate(table.rows):
        if number:
            yield ""
        for place, column in shown:
            cell = row[place]
            if cell is None:
                continue
            text = _formatter(column)(cell)
            if isinstance(cell, Absent) and cell.detail:
                text = f"(unavailable: {cell.detail})"
            first, *more = text.split("\n")
            yield f"{column.title:>{width}}: {first}"
            yield from (" " * (width + 2) + line for line in more)
        yield from _nested(row, nested)
