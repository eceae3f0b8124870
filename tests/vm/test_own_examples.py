"""The examples in every native command's help, on a real dump: each answers by its schema, or says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

from postpanic import open_dump
from postpanic.analysis.commands.catalog import load_commands
from postpanic.analysis.commands.language import split_line
from postpanic.analysis.open_dump import OpenDump
from postpanic.errors import AbsentError, UsageError
from postpanic.findings.schema import answer_schema, answer_value
from postpanic.findings.table import Answer
from tests.vm.lab import Crash

# Their examples name what this dump does not have: a file, a program, a device dump.
ELSEWHERE = {"extend"}
ROWS = 400


@pytest.fixture(scope="module")
def dump(crashed: Callable[..., Crash]) -> Iterator[OpenDump]:
    with open_dump(crashed("6.12").filtered, debuginfo="synth", cache_directory=None) as opened:
        yield opened


def short(answer: Answer) -> Answer:
    """Leave out rows, which are all alike, from answers that would take a minute to judge."""
    tables = tuple(table.shape.table(table.rows[:ROWS]) for table in answer.tables)
    return Answer(answer.command, tables, answer.problems)


def test_every_command_answers_an_example_by_its_schema(
    dump: OpenDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = load_commands()
    answered: set[str] = set()
    lines = [example.line for command in commands.values() for example in command.examples]
    for line in lines:
        split = split_line(line)
        plain = f"{split.name} {split.source}".strip()
        try:
            answer = dump.run(plain)
        except (UsageError, AbsentError):
            continue
        answered.add(answer.command)
        jsonschema.validate(answer_value(short(answer)), answer_schema(answer.command, commands[answer.command].shapes))
    assert len(lines) > 150
    assert {name for name, command in commands.items() if command.examples} - answered <= ELSEWHERE
