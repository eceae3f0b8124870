"""
Answers as JSON values, and the JSON Schema that describes them.

An answer is an object with ``command``, ``tables`` and ``problems``. A table
has its ``name`` and ``rows``; a row is an object whose keys are the columns'
names. Numbers above 2**53 are rounded by many readers, so addresses and masks
are strings (``"0xffff888003a1c000"``). A cell that is missing is an object with
``absent`` (the reason) and ``detail``; a cell that is rightly empty is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Kind, Shape, Table

__all__ = ["SCHEMA_VERSION", "answer_schema", "answer_value", "table_schema", "table_value"]

SCHEMA_VERSION = 1
"""Raised when a reader of older answers could be misled."""

_HEX = frozenset({Kind.HEX, Kind.ADDRESS})


def answer_value(answer: Answer) -> dict[str, Any]:
    """Turn an answer into dictionaries, lists, strings and numbers."""
    return {
        "version": SCHEMA_VERSION,
        "command": answer.command,
        "tables": [{"name": table.shape.name, **_titled(table), "rows": table_value(table)} for table in answer.tables],
        "problems": [{"what": problem.what, "reason": problem.reason.value} for problem in answer.problems],
    }


def _titled(table: Table) -> dict[str, str]:
    return {"title": table.title} if table.title else {}


def table_value(table: Table) -> list[dict[str, Any]]:
    """Turn the rows of a table into dictionaries by column."""
    columns = [(column.name, column.kind in _HEX) for column in table.shape.columns]
    return [
        {name: _cell_value(cell, is_hex=is_hex) for (name, is_hex), cell in zip(columns, row, strict=True)}
        for row in table.rows
    ]


def _cell_value(cell: Cell, *, is_hex: bool) -> object:
    if isinstance(cell, Absent):
        return {"absent": cell.reason.value, "detail": cell.detail}
    if isinstance(cell, Table):
        return table_value(cell)
    if is_hex and isinstance(cell, int):
        return f"{cell:#x}"
    return cell


def answer_schema(command: str, shapes: Sequence[Shape]) -> dict[str, Any]:
    """
    Build the JSON Schema (draft 2020-12) of the answers of one command.

    Parameters
    ----------
    shapes : sequence of Shape
        Of all tables that the command may return.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"The answer of {command}",
        "type": "object",
        "required": ["version", "command", "tables", "problems"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": SCHEMA_VERSION},
            "command": {"const": command},
            "tables": {"type": "array", "items": {"anyOf": [_named_table_schema(shape) for shape in shapes]}},
            "problems": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["what", "reason"],
                    "additionalProperties": False,
                    "properties": {"what": {"type": "string"}, "reason": {"enum": _REASONS}},
                },
            },
        },
        "$defs": {"absent": _ABSENT, **_nested_definitions(shapes)},
    }


_REASONS = [reason.value for reason in Reason]
_ABSENT = {
    "type": "object",
    "required": ["absent", "detail"],
    "additionalProperties": False,
    "properties": {"absent": {"enum": _REASONS}, "detail": {"type": "string"}},
}
_KIND_SCHEMAS: dict[Kind, dict[str, Any]] = {
    Kind.TEXT: {"type": "string"},
    Kind.NUMBER: {"type": "integer"},
    Kind.REAL: {"type": "number"},
    Kind.HEX: {"type": "string", "pattern": "^-?0x[0-9a-f]+$"},
    Kind.ADDRESS: {"type": "string", "pattern": "^0x[0-9a-f]+$"},
    Kind.BOOL: {"type": "boolean"},
}


def _named_table_schema(shape: Shape) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "rows"],
        "additionalProperties": False,
        "properties": {"name": {"const": shape.name}, "title": {"type": "string"}, "rows": table_schema(shape)},
    }


def table_schema(shape: Shape) -> dict[str, Any]:
    """Build the schema of the rows of one shape; nested shapes are references into ``$defs``."""
    properties: dict[str, Any] = {}
    for column in shape.columns:
        value = _rows_reference(column.shape) if column.kind is Kind.ROWS else _KIND_SCHEMAS[column.kind]
        cell: dict[str, Any] = {"anyOf": [value, {"type": "null"}, {"$ref": "#/$defs/absent"}]}
        if column.help:
            cell["description"] = column.help
        properties[column.name] = cell
    return {
        "type": "array",
        "items": {
            "type": "object",
            "required": [column.name for column in shape.columns],
            "additionalProperties": False,
            "properties": properties,
        },
    }


def _rows_reference(shape: Shape | None) -> dict[str, Any]:
    # Without a shape of its own the column holds tables of several shapes, each row with keys of its own.
    return {"$ref": f"#/$defs/{shape.name}"} if shape is not None else {"type": "array", "items": {"type": "object"}}


def _nested_definitions(shapes: Sequence[Shape]) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    pending = [column.shape for shape in shapes for column in shape.columns if column.shape is not None]
    while pending:
        shape = pending.pop()
        if shape.name not in definitions:
            definitions[shape.name] = table_schema(shape)
            pending += [column.shape for column in shape.columns if column.shape is not None]
    return definitions
