"""Whether answers are what the JSON Schema of their command says, asked of an independent validator."""

from __future__ import annotations

import json
from functools import cache

from jsonschema import Draft202012Validator

from postpanic.analysis.commands.catalog import load_commands
from postpanic.findings.schema import answer_schema
from postpanic.findings.table import Answer, Cell, Table
from postpanic.report.json import encode_json

__all__ = ["find_schema_faults"]

ROWS = 50
"""Of each table so many are looked at: a page table has a quarter of a million, all alike."""


def find_schema_faults(answer: Answer) -> list[str]:
    """Return what the validator finds in the JSON of an answer: empty, if it is as published."""
    short = Answer(answer.command, tuple(_shorten(table) for table in answer.tables), answer.problems)
    value = json.loads(encode_json(short))
    return [f"{fault.json_path}: {fault.message[:200]}" for fault in _validator(answer.command).iter_errors(value)][:3]


@cache
def _validator(command: str) -> Draft202012Validator:
    schema = answer_schema(command, load_commands()[command].shapes)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _shorten(table: Table) -> Table:
    rows = tuple(tuple(_shorten_cell(cell) for cell in row) for row in table.rows[:ROWS])
    return Table(table.shape, rows, table.title)


def _shorten_cell(cell: Cell) -> Cell:
    return _shorten(cell) if isinstance(cell, Table) else cell
