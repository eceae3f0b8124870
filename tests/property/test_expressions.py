"""Expressions: what is printed is parsed again as the same, and no text hangs or surprises the parser."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from drgn import Architecture, Object, Platform, Program
from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.expressions import ExpressionError, evaluate, format_expression, parse_expression
from postpanic.analysis.expressions.tree import (
    PRECEDENCE,
    Binary,
    Cast,
    Character,
    Conditional,
    Index,
    Member,
    Name,
    Node,
    Number,
    OffsetOf,
    PerCpu,
    Real,
    SizeOf,
    SizeOfType,
    TypeAt,
    Unary,
)
from postpanic.errors import PostpanicError

T = TypeVar("T")
NAMES = st.sampled_from(["a", "init_task", "x1", "__per_cpu_offset", "f.isra.0", "var.4", "$1"])
MEMBERS = st.sampled_from(["next", "se", "bits", "a"])
TYPES = st.sampled_from(["int", "struct page", "size_t", "struct list_head *", "unsigned long", "const char * *"])
LEAVES = st.one_of(
    st.builds(Number, st.sampled_from(["0", "1", "42", "0x1f", "017", "0b101", "7UL", "0xffffffffffffffff", "8b79cf"])),
    st.builds(Real, st.sampled_from(["1.5", ".25", "2.", "1.5e3"])),
    st.builds(Character, st.sampled_from(["'a'", r"'\n'", r"'\0'", r"'\x41'", "'\"'"])),
    st.builds(Name, NAMES),
    st.builds(PerCpu, st.sampled_from(["runqueues", "irq_stat"]), st.integers(0, 9999)),
    st.builds(SizeOfType, TYPES),
    st.builds(OffsetOf, TYPES, st.sampled_from(["a", "a.b", "a[2].b"])),
)


def _grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        st.builds(Unary, st.sampled_from("+-~!*&"), inner),
        st.builds(Binary, st.sampled_from(sorted(PRECEDENCE)), inner, inner),
        st.builds(Conditional, inner, inner, inner),
        st.builds(Cast, TYPES, inner),
        st.builds(TypeAt, TYPES, inner),
        st.builds(SizeOf, inner),
        st.builds(Member, inner, MEMBERS, st.booleans()),
        st.builds(Index, inner, inner),
    )


EXPRESSIONS: st.SearchStrategy[Node] = st.recursive(LEAVES, _grow, max_leaves=12)
PIECES = st.sampled_from(
    [*"()[]{}?:.,+-*/%&|^~!<>=@'\"\\ ", "->", "<<", "&&", "a", "1", "0x", "struct", "sizeof", "offsetof", "int", "1.5"]
)


def is_type(name: str) -> bool:
    return name == "size_t"


def attempt(work: Callable[[], T]) -> T | PostpanicError:
    """Return what comes out, or the error that was raised on purpose."""
    try:
        return work()
    except PostpanicError as error:
        return error


@pytest.fixture(scope="module")
def prog() -> Program:
    return Program(Platform(Architecture.X86_64))


@given(EXPRESSIONS)
def test_printed_expression_is_parsed_as_the_same(node: Node) -> None:
    assert parse_expression(format_expression(node), is_type) == node


@given(EXPRESSIONS)
def test_printed_expression_is_printed_the_same_again(node: Node) -> None:
    text = format_expression(node)
    assert format_expression(parse_expression(text, is_type)) == text


@given(st.one_of(st.text(max_size=400), st.lists(PIECES, max_size=120).map("".join)))
def test_any_text_is_an_expression_or_one_clear_error(text: str) -> None:
    found = attempt(lambda: parse_expression(text, is_type))
    if isinstance(found, ExpressionError):
        assert 1 <= found.column <= len(text) + 1
        assert "\n" not in str(found)
    else:
        assert not isinstance(found, PostpanicError)
        assert parse_expression(format_expression(found), is_type) == found


@given(text=st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=60).map("".join)))
def test_any_text_evaluates_or_fails_on_purpose(prog: Program, text: str) -> None:
    found = attempt(lambda: evaluate(prog, text))
    assert isinstance(found, Object) or "\n" not in str(found)


@pytest.mark.parametrize("opening", ["(", "-", "!", "(int)", "a[", "a ? ", "*", "sizeof ", "~(", "{int}"])
def test_nesting_without_end_is_refused(opening: str) -> None:
    with pytest.raises(ExpressionError):
        parse_expression(opening * 100_000 + "1", is_type)


def test_chain_without_end_is_refused() -> None:
    with pytest.raises(ExpressionError, match="more than 256 words"):
        parse_expression("+".join(["1"] * 100_000))
    with pytest.raises(ExpressionError, match="more than 256 words"):
        parse_expression("a" + "->a" * 100_000)
