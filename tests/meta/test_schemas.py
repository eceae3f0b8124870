"""The published schemas are those of the commands, and none of them is weaker than it looks."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
from scripts.generate_schemas import make_schemas

from postpanic.analysis.commands.catalog import load_commands
from postpanic.findings.schema import answer_schema

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def test_published_schemas_are_current() -> None:
    published = {path.name: path.read_text() for path in SCHEMAS.glob("*.json")}
    assert published == make_schemas(), "run scripts/generate_schemas.py docs/schemas"


@pytest.mark.parametrize("name", sorted(load_commands()))
def test_schema_is_one(name: str) -> None:
    command = load_commands()[name]
    schema = answer_schema(name, command.shapes)
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(msgspec.json.decode(b'{"version":1,"command":"x","tables":[],"problems":[]}'), schema)


@pytest.mark.parametrize("name", sorted(load_commands()))
def test_columns_have_names_and_nested_ones_are_told_apart(name: str) -> None:
    pending = list(load_commands()[name].shapes)
    seen: dict[str, object] = {}
    while pending:
        shape = pending.pop()
        assert seen.setdefault(shape.name, shape) == shape, f"two shapes are called {shape.name}"
        names = [column.name for column in shape.columns]
        assert len(names) == len(set(names))
        assert all(column.isidentifier() and column == column.lower() for column in names), names
        nested = [column.shape for column in shape.columns if column.shape is not None]
        pending += [shape for shape in nested if seen.get(shape.name) != shape]
