from __future__ import annotations

import pytest

from postpanic.capture.bootloader.words import assign_words, edit_line, find_values, replace_words
from postpanic.errors import CorruptError


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("ro quiet\n", ["160M"], "ro quiet crashkernel=160M\n"),
        ("ro  quiet", [], "ro  quiet"),
        ("crashkernel=auto ro", [], "ro"),
        ("crashkernel=auto ro", ["1M"], "crashkernel=1M ro"),
        ("ro crashkernel=1G,high\tquiet crashkernel=72M,low\n", ["160M"], "ro crashkernel=160M\tquiet\n"),
        ('dyndbg="file a +p" crashkernel=1M', ["2M"], 'dyndbg="file a +p" crashkernel=2M'),
        ('ro dyndbg="file a +p"', ["2M"], 'ro dyndbg="file a +p" crashkernel=2M'),
        ("ro init=", ["2M"], "ro init= crashkernel=2M"),
        ("nocrashkernel=1M", ["2M"], "nocrashkernel=1M crashkernel=2M"),
        ("", ["1G,high", "72M,low"], "crashkernel=1G,high crashkernel=72M,low"),
    ],
)
def test_words_of_a_line(text: str, values: list[str], expected: str) -> None:
    assert replace_words(text, values) == expected
    assert list(find_values(expected))[: len(values)] == values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('""', '"crashkernel=1M"'),
        ("''", "'crashkernel=1M'"),
        ("quiet", '"quiet crashkernel=1M"'),
        ('"quiet "', '"quiet crashkernel=1M"'),
        ('"a \\"b c\\""', '"a \\"b c\\" crashkernel=1M"'),
        ('"$OTHER crashkernel=384M-:128M x"', '"$OTHER crashkernel=1M x"'),
        ("crashkernel=auto", "crashkernel=1M"),
        ('"two \\\n lines"', '"two \\\n lines crashkernel=1M"'),
        ("\"$(sed 's, release .*$,,g' /etc/x) quiet\"", "\"$(sed 's, release .*$,,g' /etc/x) quiet crashkernel=1M\""),
    ],
)
def test_words_of_an_assignment(value: str, expected: str) -> None:
    text = f"# A=no\nB=1\nA={value}  # why\nC=2\n"
    assert assign_words(text, "A", ["1M"]) == f"# A=no\nB=1\nA={expected}  # why\nC=2\n"


def test_the_last_assignment_counts() -> None:
    text = 'A="x crashkernel=1M"\nA="$A y"\nA+=" z"\n'
    assert assign_words(text, "A", ["2M"]) == 'A="x"\nA="$A y"\nA+=" z crashkernel=2M"\n'
    assert assign_words("B=1", "A", ["2M"]) == 'B=1\nA="crashkernel=2M"\n'
    assert assign_words("B=1", "A", []) == "B=1"


def test_an_open_quote_is_left_alone() -> None:
    with pytest.raises(CorruptError, match="a quote is not closed: A="):
        assign_words('A="quiet\nB=1\n', "A", ["1M"])


def test_lines_by_their_beginning() -> None:
    text = "LABEL a\n  APPEND ro\n  append ro crashkernel=1M quiet\n"
    assert edit_line(text, r"[ \t]*(?i:append)[ \t]+", ["2M"]) == (
        "LABEL a\n  APPEND ro crashkernel=2M\n  append ro crashkernel=2M quiet\n"
    )


def test_long_lines_take_no_long_time() -> None:
    assert replace_words(" " * 1_000_000, ["1M"]).endswith("crashkernel=1M" + " " * 1_000_000)
    assert assign_words('A="' + "\\\\" * 500_000 + '"\n', "A", ["1M"]).endswith(' crashkernel=1M"\n')
