"""Words and numbers of the commands about tasks."""

from __future__ import annotations

import pytest

from postpanic.analysis.commands.catalog import load_commands
from postpanic.analysis.commands.foreach import split_words
from postpanic.analysis.commands.ps_details import format_age, format_seconds
from postpanic.analysis.commands.taints import decode_taints, taint_letters
from postpanic.errors import UsageError
from postpanic.findings.table import Table


@pytest.fixture(autouse=True)
def _commands() -> None:
    load_commands()


def _split(line: str) -> tuple[list[str], set[str], set[str], list[tuple[list[str], list[str]]]]:
    choice, runs = split_words(line.split())
    return choice.names, choice.kinds, choice.states, [(run.names, run.words) for run in runs]


def test_tasks_then_commands() -> None:
    assert _split("1 UN user init task -R pid,comm") == (
        ["1", "init"],
        {"user"},
        {"UN"},
        [(["task"], ["-R", "pid,comm"])],
    )


def test_several_commands_with_words_of_their_own() -> None:
    assert _split("set task -R pid sig -g")[3] == [(["set", "task"], ["-R", "pid"]), (["sig"], ["-g"])]


def test_a_value_may_be_called_like_a_command() -> None:
    assert _split("task -R set ps")[3] == [(["task"], ["-R", "set"]), (["ps"], [])]
    assert _split("task -xR set")[3] == [(["task"], ["-xR", "set"])]


def test_a_backslash_makes_a_name_of_a_command() -> None:
    names, _, _, runs = _split("\\task \\user ps")
    assert names == ["\\task", "\\user"]
    assert runs == [(["ps"], [])]


def test_commands_that_work_on_no_task_are_refused() -> None:
    with pytest.raises(UsageError, match="sys does not work on a task"):
        split_words(["sys"])


def test_spans() -> None:
    assert format_seconds(16) == "00:00:16"
    assert format_seconds(25 * 3600 + 95 * 60 + 32) == "1 days, 02:35:32"
    assert format_seconds(-5) == "00:00:00"
    assert format_age(-1) == "0 00:00:00.000"
    assert format_age(93_784_005_000_000) == "1 02:03:04.005"


def test_taints() -> None:
    assert taint_letters(0x201) == "PW"
    assert taint_letters(1 << 40) == "?"
    mask, letters, meanings = decode_taints(1 << 12 | 1 << 40)
    assert (mask, letters) == (1 << 12 | 1 << 40, "O?")
    assert isinstance(meanings, Table)
    assert meanings.column("bit") == [12, 40]
