"""Pipes, redirections and quotes around a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.commands.language import split_line
from postpanic.errors import UsageError


@pytest.mark.parametrize(
    ("line", "words", "source", "files", "pipeline"),
    [
        ("bt", (), "", [], None),
        ("p a->b | grep x > file", ("a->b",), "a->b", [], "grep x > file"),
        ("p (a >> 2) > file", ("(a >> 2)",), "(a >> 2)", [(1, ">", "file")], None),
        ("p (a | b) | wc", ("(a | b)",), "(a | b)", [], "wc"),
        ("ps -k 'ba.*' >> x 2> y", ("-k", "'ba.*'"), "-k 'ba.*'", [(1, ">>", "x"), (2, ">", "y")], None),
        ("ps>f", (), "", [(1, ">", "f")], None),
        ('rd "a b" 3 < x', ("a b", "3"), '"a b" 3', [(0, "<", "x")], None),
        ("bt -a # a comment | more", ("-a",), "-a", [], None),
        ("search a\\ b", ("a b",), "a\\ b", [], None),
    ],
)
def test_line_is_split(
    line: str, words: tuple[str, ...], source: str, files: list[tuple[int, str, str]], pipeline: str | None
) -> None:
    split = split_line(line)
    assert split.words == words
    assert split.source == source
    assert [tuple(entry) for entry in split.redirections] == files
    assert split.pipeline == pipeline


@pytest.mark.parametrize("line", ["ps >", "ps > > x", "ps |", "ps > | x", "", "   ", "# comment", "> file"])
def test_incomplete_line_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        split_line(line)


@given(st.text(max_size=40))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        split = split_line(text)
    except UsageError:
        return
    assert split.name
