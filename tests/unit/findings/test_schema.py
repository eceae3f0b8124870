"""Answers as JSON values: addresses are strings, missing cells are objects, and the schema accepts nothing else."""

from __future__ import annotations

import json

import jsonschema
import pytest

from postpanic.findings.absent import Absent, Reason
from postpanic.findings.schema import answer_schema, answer_value
from postpanic.findings.table import Answer, Cell, Column, Kind, Problem, Shape
from postpanic.report.json import encode_json

INNER = Shape("inner", (Column("name"), Column("flag", Kind.BOOL)))
SHAPE = Shape(
    "rows",
    (
        Column("pid", Kind.NUMBER),
        Column("task", Kind.ADDRESS),
        Column("mask", Kind.HEX),
        Column("load", Kind.REAL),
        Column("inner", Kind.ROWS, shape=INNER),
    ),
)


def make(*row: Cell) -> Answer:
    return Answer("demo", (SHAPE.table([row]),), (Problem("stopped", Reason.DAMAGED),))


GOOD = make(1, 0xFFFF888000000000, -1, 0.5, INNER.table([("a", True), (Absent(Reason.NO_TYPE, "x"), None)]))


def test_value_has_strings_for_addresses_and_objects_for_missing_cells() -> None:
    rows = answer_value(GOOD)["tables"][0]["rows"]
    assert rows == [
        {
            "pid": 1,
            "task": "0xffff888000000000",
            "mask": "-0x1",
            "load": 0.5,
            "inner": [
                {"name": "a", "flag": True},
                {"name": {"absent": "no-type-information", "detail": "x"}, "flag": None},
            ],
        }
    ]


def test_encoded_answer_is_valid() -> None:
    schema = answer_schema("demo", [SHAPE])
    jsonschema.Draft202012Validator.check_schema(schema)
    for indent in (0, 2):
        jsonschema.validate(json.loads(encode_json(GOOD, indent=indent)), schema)


@pytest.mark.parametrize(
    "row",
    [
        ("1", 1, 1, 0.5, None),
        (1, "1", 1, 0.5, None),
        (1, 1, 1, 0.5, "text"),
        (1, 1, 1, 0.5, Shape("other", (Column("x"),)).table([("y",)])),
    ],
)
def test_schema_refuses_a_cell_of_another_kind(row: tuple[Cell, ...]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer_value(make(*row)), answer_schema("demo", [SHAPE]))


def test_schema_refuses_a_table_that_was_not_declared() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer_value(GOOD), answer_schema("demo", [INNER]))


def test_table_is_found_by_its_name() -> None:
    assert GOOD["rows"] is GOOD.table
    with pytest.raises(KeyError):
        GOOD["none"]
