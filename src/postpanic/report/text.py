"""
Answers as text for a terminal.

The look of a table is in its shape: grids align themselves, lines follow the
shape's pattern. Nothing here knows a command. Lines are made one at a time, so
that a long answer can be piped into ``head``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

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


def _formatter(column: Column) -> Callable[[Cell], str]:
    specification = column.format or {Kind.ADDRESS: "016x", Kind.HEX: "x", Kind.REAL: ".2f"}.get(column.kind, "")
    prefix, suffix = column.prefix, column.suffix
    is_bare = not prefix and not suffix

    def spell(cell: Cell) -> str:
        if cell is None or cell == "":
            return ""
        if isinstance(cell, str):
            text = cell
        elif isinstance(cell, bool):
            text = "yes" if cell else "no"
        elif isinstance(cell, (int, float)):
            text = format(cell, specification)
        elif isinstance(cell, Absent):
            text = cell.mark
        else:
            text = str(cell)
        return text if is_bare else f"{prefix}{text}{suffix}"

    return spell


class _Plan:
    """What can be known of a shape before its first row: which columns are shown, how, and what its line is made of."""

    __slots__ = ("ends_in_text", "indent", "nested", "parts", "shape", "shown")

    def __init__(self, shape: Shape) -> None:
        # Kept, so that no other shape gets its place in memory while the plan is known by it.
        self.shape = shape
        self.indent = " " * shape.indent
        columns = list(enumerate(shape.columns))
        self.nested = [place for place, column in columns if column.kind is Kind.ROWS and not column.hidden]
        self.shown = [
            (place, column, _formatter(column))
            for place, column in columns
            if column.kind is not Kind.ROWS and not column.hidden
        ]
        self.parts = list(_compile_line(shape)) if shape.layout is Layout.LINES else []
        self.ends_in_text = len(self.parts) > 1 and not self.parts[-1][0] and not self.parts[-2][3]


_PLANS: dict[int, _Plan] = {}
_MOST_PLANS = 4096


def _plan(shape: Shape) -> _Plan:
    """Find the plan of a shape, by its identity: a hash of all its columns takes longer than a row."""
    plan = _PLANS.get(id(shape))
    if plan is None:
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        plan = _PLANS[id(shape)] = _Plan(shape)
    return plan


def _compile_line(shape: Shape) -> Iterator[tuple[str, int, Callable[[Cell], str], str]]:
    """Split a shape's line into literal text, the place of the cell behind it (-1: none), its spelling and padding."""
    literal = ""
    position = 0
    for match in _FIELD.finditer(shape.line):
        literal += shape.line[position : match.start()]
        position = match.end()
        if match[1] is None:
            literal += match[0][0]
            continue
        place = shape.index[match[1]]
        yield literal, place, _formatter(shape.columns[place]), match[2] or ""
        literal = ""
    yield literal + shape.line[position:], -1, str, ""


def _nested(row: Sequence[Cell], places: Sequence[int]) -> Iterator[str]:
    for place in places:
        cell = row[place]
        if isinstance(cell, Table):
            indent = _plan(cell.shape).indent
            if not indent:
                yield from render_table(cell)
                continue
            for line in render_table(cell):
                yield f"{indent}{line}" if line else line
        elif isinstance(cell, Absent):
            yield f"  {cell.mark} {cell.detail}".rstrip()


def _render_grid(table: Table) -> Iterator[str]:
    shape = table.shape
    plan = _plan(shape)
    texts = [[spell(row[place]) for place, _, spell in plan.shown] for row in table.rows]
    widths = [
        max([column.width, len(column.title) if shape.heading else 0, *(len(line[number]) for line in texts)])
        for number, (_, column, _) in enumerate(plan.shown)
    ]
    aligns = [column.align or (">" if column.kind in _RIGHT else "<") for _, column, _ in plan.shown]
    if shape.heading:
        yield _join([column.title for _, column, _ in plan.shown], widths, aligns)
    for row, line in zip(table.rows, texts, strict=True):
        yield _join(line, widths, aligns)
        yield from _nested(row, plan.nested)


def _join(texts: Sequence[str], widths: Sequence[int], aligns: Sequence[str]) -> str:
    cells = [f"{text:{align}{width}}" for text, width, align in zip(texts, widths, aligns, strict=True)]
    return _GAP.join(cells).rstrip()


def _render_lines(table: Table) -> Iterator[str]:
    shape = table.shape
    plan = _plan(shape)
    for number, row in enumerate(table.rows):
        if number and shape.gap:
            yield ""
        text = cell = ""
        for literal, place, spell, padding in plan.parts:
            text += literal
            if place >= 0:
                cell = spell(row[place])
                text += format(cell, padding) if padding else cell
        if shape.line:
            # Blanks at the end of what the kernel said are its own.
            text = text if plan.ends_in_text and cell else text.rstrip()
            if "\n" in text:
                yield from text.split("\n")
            else:
                yield text
        if plan.nested:
            yield from _nested(row, plan.nested)


def _render_fields(table: Table) -> Iterator[str]:
    plan = _plan(table.shape)
    width = max((len(column.title) for _, column, _ in plan.shown), default=0)
    for number, row in enumerate(table.rows):
        if number:
            yield ""
        for place, column, spell in plan.shown:
            cell = row[place]
            if cell is None:
                continue
            text = spell(cell)
            if isinstance(cell, Absent) and cell.detail:
                text = f"(unavailable: {cell.detail})"
            first, *more = text.split("\n")
            yield f"{column.title:>{width}}: {first}"
            yield from (" " * (width + 2) + line for line in more)
        yield from _nested(row, plan.nested)
