"""The words of a command line, as crash's users type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.commands.arguments import Arguments, Operand, Option, parse_words
from postpanic.errors import UsageError

OPTIONS = (
    Option("-k", "kernel", "kernel threads"),
    Option("-F", "full", "more"),
    Option("-32", "width_32", "32 bits"),
    Option("-C", "cpus", "CPUs", value="CPUS"),
    Option("-S", "objects", "objects", value="CPUS", attached=True),
    Option("-V", "version", "devices", refused="no dump has them"),
    Option("--deep", "deep", "long"),
)
MANY = (Operand("task", "a task", many=True),)


def parse(*words: str, operands: tuple[Operand, ...] = MANY) -> Arguments:
    return parse_words("demo", words, options=OPTIONS, operands=operands)


def test_letters_stand_alone_or_together_and_count() -> None:
    arguments = parse("-kF", "1", "-F")
    assert (arguments.has("kernel"), arguments.count("full"), arguments.operands) == (True, 2, ("1",))
    assert not arguments.has("cpus")


def test_value_is_the_next_word_or_attached() -> None:
    assert parse("-C", "0,2").get("cpus") == "0,2"
    assert parse("-kC0,2").get("cpus") == "0,2"
    assert parse("-C=0").get("cpus") == "0"
    assert parse("-C", "-1").get("cpus") == "-1"


def test_attached_value_is_optional() -> None:
    assert parse("-S").all("objects") == ("",)
    assert parse("-S=0,1", "-k").get("objects") == "0,1"


def test_number_is_an_option_where_one_is_declared_else_an_operand() -> None:
    arguments = parse("-32", "-5", "-0x10")
    assert arguments.has("width_32")
    assert arguments.operands == ("-5", "-0x10")


def test_words_behind_two_dashes_are_operands() -> None:
    assert parse("--", "-k", "-C").operands == ("-k", "-C")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-x",), "demo: no option -x"),
        (("-kx",), "demo: no option -kx"),
        (("--deeep",), "demo: no option --deeep"),
        (("-C",), "demo -C: needs a value: CPUS"),
        (("-V",), "demo -V: no dump has them"),
        (("-k=1",), "demo -k: takes no value, found '1'"),
    ],
)
def test_wrong_option_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert str(caught.value) == message


def test_near_option_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        parse("--deeep")
    assert "--deep" in caught.value.hint


def test_operands_are_counted() -> None:
    one = (Operand("address", "where", required=True),)
    with pytest.raises(UsageError, match="address is missing"):
        parse(operands=one)
    with pytest.raises(UsageError, match="'2' is one word too many, at most 1 are taken"):
        parse("1", "2", operands=one)


def test_option_that_was_not_declared_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError):
        parse().has("typo")


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_words_are_sorted_or_refused(words: list[str]) -> None:
    try:
        arguments = parse(*words)
    except UsageError:
        return
    assert len(arguments.operands) <= len(words)
