"""The language of the prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.cli.session import split_commands


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("bt; ps | head", ["bt", "ps | head"]),
        ("ps | grep 'a;b'; bt", ["ps | grep 'a;b'", "bt"]),
        ('ps | awk "{a; b}"', ['ps | awk "{a; b}"']),
        (r"ps | grep a\;b", [r"ps | grep a\;b"]),
        ("!for i in a b; do echo $i; done", ["!for i in a b; do echo $i; done"]),
        ("bt; !a; b", ["bt", "!a; b"]),
        ("drgn x = 1; print(x)", ["drgn x = 1; print(x)"]),
        ("drgnx; bt", ["drgnx", "bt"]),
        ("bt # a comment; ps", ["bt"]),
        ("# all of it", []),
        ("ps | grep a#b", ["ps | grep a#b"]),
        (";;  ; bt;", ["bt"]),
        ("bt\nps", ["bt", "ps"]),
        ("", []),
        ("eval 'unbalanced; bt", ["eval 'unbalanced", "bt"]),
    ],
)
def test_semicolons_separate_commands_outside_quotes(line: str, commands: list[str]) -> None:
    assert split_commands(line) == commands


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet="ab;'\"\\#!| \n", max_size=40))
def test_splitting_always_ends_and_invents_nothing(line: str) -> None:
    remaining = line
    for command in split_commands(line):
        assert command.strip() == command != ""
        at = remaining.find(command[0])
        assert at >= 0
        remaining = remaining[at + 1 :]
