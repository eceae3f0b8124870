"""Put a page into HTML."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from postpanic.findings.absent import Absent, Reason
from postpanic.findings.page import Line, Output, Page
from postpanic.findings.table import Column, Kind, Layout, Table
from postpanic.findings.verdict import Evidence
from postpanic.report.html.pictures import describe_picture, draw_picture
from postpanic.report.html.redaction import Redactor
from postpanic.report.text import cell_text, render_table, render_text
from postpanic.version import __version__

__all__ = ["render_page"]

_MOST_LINES = 400
_AROUND = 12
_BLANKS = re.compile(r"\s+")
_RIGHT = frozenset({Kind.NUMBER, Kind.REAL, Kind.HEX, Kind.ADDRESS})


@dataclass(frozen=True)
class _Piece:
    """Lines of an output that are shown together; *left_out* came before them."""

    left_out: int
    lines: tuple[Line, ...]


def render_page(page: Page, redactor: Redactor | None = None) -> str:
    """
    Render a page as one HTML file.

    Parameters
    ----------
    redactor : Redactor, optional
        Is given every text.
    """
    redact = redactor or Redactor()

    def finalize(value: object) -> object:
        # The parts that are HTML already were made of texts that came through here.
        if isinstance(value, Markup):
            return value
        return redact(str(value)) if value is not None else ""

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    numbers = itertools.count(1)
    anchors = {output.command: f"evidence-{number}" for number, output in enumerate(page.evidence, 1)}
    environment.filters.update(
        # matplotlib escapes what it draws.
        svg=lambda picture: Markup(draw_picture(picture, redact, f"picture-{next(numbers)}")),  # noqa: S704
        alt=describe_picture,
        text=_plain,
        cell=_cell,
        pieces=_pieces,
    )
    environment.tests.update(
        absent=lambda value: isinstance(value, Absent), not_applicable=_is_not_applicable, grid=_is_grid
    )
    environment.globals.update(
        anchor=lambda evidence: _anchor(evidence, anchors),
        is_right=_is_right,
        shown_columns=_shown_columns,
        nested=_nested,
    )
    template = environment.from_string(_read("page.html.j2"))
    return template.render(
        page=page,
        verdict=page.verdict,
        version=__version__,
        redacted=redact.what,
        style=Markup(_read("page.css")),  # noqa: S704 - a file of ours
        script=Markup(_read("page.js")),  # noqa: S704
    )


def _read(name: str) -> str:
    return files("postpanic.report.html").joinpath(name).read_text(encoding="utf-8")


def _anchor(evidence: Evidence, anchors: dict[str, str]) -> str:
    return anchors.get(evidence.command, "")


def _is_not_applicable(value: object) -> bool:
    return isinstance(value, Absent) and value.reason is Reason.NOT_APPLICABLE


def _is_grid(table: Table) -> bool:
    return table.shape.layout is Layout.GRID


def _shown_columns(table: Table) -> list[tuple[int, Column]]:
    return [
        (place, column)
        for place, column in enumerate(table.shape.columns)
        if not column.hidden and column.kind is not Kind.ROWS
    ]


def _is_right(column: Column) -> bool:
    return column.kind in _RIGHT


def _cell(value: object, column: Column) -> str:
    return cell_text(column, value).strip()  # type: ignore[arg-type]


def _nested(row: Sequence[object]) -> Iterator[str]:
    """Give the text of the tables inside a row."""
    for cell in row:
        if isinstance(cell, Table) and cell.rows:
            yield "\n".join(render_table(cell))


def _plain(table: Table) -> str:
    return "\n".join(render_table(table))


def _pieces(output: Output) -> list[_Piece]:
    """Mark the lines that findings point to; of a long output keep what is around them."""
    if output.answer is not None:
        lines = [Line(text) for text in render_text(output.answer)]
    else:
        lines = list(output.lines)
    wanted = [_BLANKS.sub(" ", text).strip() for shows in output.shows for text in shows.splitlines() if text.strip()]
    marked = [
        Line(line.text, is_marked=_holds(line.text, wanted) or line.is_marked, level=line.level) for line in lines
    ]
    if len(marked) <= _MOST_LINES:
        return [_Piece(0, tuple(marked))]
    return _cut(marked)


def _holds(text: str, wanted: Sequence[str]) -> bool:
    flat = _BLANKS.sub(" ", text)
    return any(each in flat for each in wanted)


def _cut(lines: Sequence[Line]) -> list[_Piece]:
    near: set[int] = set()
    for number, line in enumerate(lines):
        if line.is_marked and len(near) < _MOST_LINES:
            near.update(range(max(0, number - _AROUND), min(len(lines), number + _AROUND + 1)))
    if not near:
        near.update(range(_MOST_LINES))
    pieces: list[_Piece] = []
    last = -1
    current: list[Line] = []
    left_out = 0
    for number in sorted(near):
        if number != last + 1:
            if current:
                pieces.append(_Piece(left_out, tuple(current)))
            current, left_out = [], number - last - 1
        current.append(lines[number])
        last = number
    pieces.append(_Piece(left_out, tuple(current)))
    if last + 1 < len(lines):
        pieces.append(_Piece(len(lines) - last - 1, ()))
    return pieces
