"""
No pattern of the evidence readers can be made to try for long: shown on the patterns themselves.

A backtracking matcher is slow where it may divide a text in many ways. Every pattern is
taken apart, and the ways are counted: a repetition whose end the next character tells
has one; one that could as well go on multiplies by its length; and one inside another
is raised to the other's power. What a text of any length can cost per starting place
is at most the product, and that must be small.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from re import Pattern
from re import _constants as constants  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import msgspec
import pytest

import postpanic.evidence

WAYS_LIMIT = 40_000
"""Ways to divide a text, from one starting place on."""

ALL = frozenset(range(256))
SPACES = frozenset(map(ord, " \t\n\r\x0b\x0c"))
DIGITS = frozenset(map(ord, "0123456789"))
WORDS = frozenset(code for code in range(256) if chr(code).isalnum() or code == ord("_"))
CATEGORIES = {
    constants.CATEGORY_DIGIT: DIGITS,
    constants.CATEGORY_NOT_DIGIT: ALL - DIGITS,
    constants.CATEGORY_SPACE: SPACES,
    constants.CATEGORY_NOT_SPACE: ALL - SPACES,
    constants.CATEGORY_WORD: WORDS,
    constants.CATEGORY_NOT_WORD: ALL - WORDS,
}
REPEATS = (constants.MAX_REPEAT, constants.MIN_REPEAT)
POSSESSIVE = (constants.POSSESSIVE_REPEAT,)
LOOKS = (constants.ASSERT, constants.ASSERT_NOT)


@dataclass(frozen=True)
class Follow:
    """What may come next: characters, or the end of the pattern, behind which nothing can fail."""

    characters: frozenset[int]
    may_end: bool

    def joined(self, other: Follow) -> Follow:
        return Follow(self.characters | other.characters, self.may_end or other.may_end)


END = Follow(frozenset(), may_end=True)
ANYTHING = Follow(ALL, may_end=False)

NAMES = {"oops.functions": 128, "oops.dispatch": 128, "oops.places": 512}
"""Modules whose patterns are matched with whole names, cut to so many characters; their answers are kept."""
NAME_WAYS_LIMIT = 4_000_000


def characters(item: tuple[Any, Any]) -> frozenset[int] | None:
    """Return what an item of one character matches; None for the others."""
    kind, value = item
    if kind is constants.LITERAL:
        return frozenset({value}) if value < 256 else frozenset()
    if kind is constants.NOT_LITERAL:
        return ALL - {value}
    if kind is constants.ANY:
        return ALL - {10}
    if kind is constants.IN:
        return members(value)
    return None


def members(items: Iterable[tuple[Any, Any]]) -> frozenset[int]:
    found: set[int] = set()
    negated = False
    for kind, value in items:
        if kind is constants.NEGATE:
            negated = True
        elif kind is constants.LITERAL:
            found.add(value)
        elif kind is constants.RANGE:
            found.update(range(value[0], min(value[1], 255) + 1))
        else:
            found |= CATEGORIES[value]
    return ALL - found if negated else frozenset(found & ALL)


def first(items: list[tuple[Any, Any]], follow: Follow) -> Follow:
    """Return what a sequence may begin with, when *follow* comes behind it."""
    for item in reversed(items):
        follow = first_of(item, follow)
    return follow


def first_of(item: tuple[Any, Any], follow: Follow) -> Follow:
    kind, value = item
    if (chars := characters(item)) is not None:
        return Follow(chars, may_end=False)
    if kind is constants.SUBPATTERN:
        return first(list(value[3]), follow)
    if kind is constants.ATOMIC_GROUP:
        return first(list(value), follow)
    if kind is constants.BRANCH:
        found = Follow(frozenset(), may_end=False)
        for branch in value[1]:
            found = found.joined(first(list(branch), follow))
        return found
    if kind in REPEATS or kind in POSSESSIVE:
        minimum, _, body = value
        begun = first(list(body), follow)
        return begun.joined(follow) if minimum == 0 else begun
    if kind is constants.GROUPREF:
        return Follow(ALL, may_end=False)
    if kind is constants.AT and value in {constants.AT_END, constants.AT_END_STRING}:
        return Follow(frozenset({10}), may_end=False)  # takes no character, but can fail
    if kind is constants.AT and value in {constants.AT_BOUNDARY, constants.AT_NON_BOUNDARY}:
        return ANYTHING
    return follow


def ways(items: list[tuple[Any, Any]], follow: Follow, longest: float = float("inf")) -> float:
    """Return in how many ways a sequence may be matched at one place, at most."""
    total = 1.0
    for place in range(len(items) - 1, -1, -1):
        behind = first(items[place + 1 :], follow)
        total *= ways_of(items[place], behind, longest)
    return total


def ways_of(item: tuple[Any, Any], behind: Follow, longest: float) -> float:
    kind, value = item
    if kind is constants.SUBPATTERN:
        return ways(list(value[3]), behind, longest)
    if kind in LOOKS:
        return ways(list(value[1]), END, longest)
    if kind is constants.BRANCH:
        return branch_ways(value[1], behind, longest)
    if kind in REPEATS:
        return repeat_ways(value, behind, longest)
    return 1.0


def branch_ways(branches: list[Any], behind: Follow, longest: float) -> float:
    """Two branches are two ways only where the next character does not tell them apart."""
    begun = [first(list(branch), behind) for branch in branches]
    counted = [ways(list(branch), behind, longest) for branch in branches]
    most = 0.0
    for one in begun:
        together = zip(begun, counted, strict=True)
        most = max(most, sum(n for other, n in together if one.characters & other.characters))
    return max(most, 1.0)


def repeat_ways(value: tuple[Any, Any, Any], behind: Follow, longest: float) -> float:
    minimum, maximum, body = value
    items = list(body)
    begun = first(items, behind)
    maximum = min(float("inf") if maximum is constants.MAXREPEAT else maximum, longest)
    # Where the pattern may end nothing can fail behind it, so that nothing is tried again.
    is_open = bool(begun.characters & behind.characters) and not behind.may_end
    inside = ways(items, begun.joined(Follow(behind.characters, may_end=False)), longest)
    if inside > 1:
        return float(inside**maximum)
    return float(maximum - minimum + 1) if is_open else 1.0


def begins_unbounded(pattern: Pattern[Any]) -> bool:
    items = list(parser.parse(pattern.pattern, pattern.flags & ~re.LOCALE))
    return bool(items) and items[0][0] in REPEATS and items[0][1][1] is constants.MAXREPEAT


def patterns() -> Iterator[tuple[str, Pattern[Any]]]:
    """Yield all patterns that modules of the evidence readers hold, however deep."""
    names = [m.name for m in pkgutil.walk_packages(postpanic.evidence.__path__, "postpanic.evidence.")]
    seen: set[tuple[Any, int]] = set()
    for name in names:
        module = importlib.import_module(name)
        for member, value in vars(module).items():
            for pattern in found_in(value, 0):
                key = (pattern.pattern, pattern.flags)
                if key not in seen:
                    seen.add(key)
                    yield f"{name.removeprefix('postpanic.evidence.')}.{member}", pattern


def found_in(value: object, depth: int) -> Iterator[Pattern[Any]]:
    if isinstance(value, Pattern):
        yield value
    elif depth < 5:
        if isinstance(value, (tuple, list, set, frozenset)):
            for item in value:
                yield from found_in(item, depth + 1)
        elif isinstance(value, dict):
            yield from found_in(list(value.values()), depth + 1)
        elif isinstance(value, msgspec.Struct):
            yield from found_in([getattr(value, name) for name in value.__struct_fields__], depth + 1)


FOUND = list(patterns())


def test_all_patterns_are_found() -> None:
    names = {name.partition(".")[0] for name, _ in FOUND}
    assert {"lines", "sources", "oops"} <= names
    assert len(FOUND) > 150


@pytest.mark.parametrize(("name", "pattern"), FOUND, ids=[f"{n}-{place}" for place, (n, _) in enumerate(FOUND)])
def test_ways_through_a_pattern_are_few(name: str, pattern: Pattern[Any]) -> None:
    items = list(parser.parse(pattern.pattern, pattern.flags & ~re.LOCALE))
    longest = NAMES.get(name.rpartition(".")[0])
    if longest is not None:
        counted = ways(items, ANYTHING, longest)
        assert counted <= NAME_WAYS_LIMIT, f"{name}: {counted:.3g} ways through {pattern.pattern!r}"
        return
    counted = ways(items, END)
    assert counted <= WAYS_LIMIT, f"{name}: {counted:.3g} ways through {pattern.pattern!r}"
    assert not begins_unbounded(pattern), f"{name}: a search would begin anew at each character"


@pytest.mark.parametrize(
    ("pattern", "is_bounded"),
    [
        (r"(a+)+b", False),
        (r"(a|a)*b", False),
        (r"\s*=\s*\w*\w*x", False),
        (r"(?:[a-z]+ ?)*!", False),
        (r"(?:\d+,)*;", True),
        (r"a{1,80}b", True),
        (r".{1,300}.{1,300}x", False),
        (r"key=(\w{1,40});", True),
    ],
)
def test_the_count_knows_good_from_bad(pattern: str, *, is_bounded: bool) -> None:
    assert (ways(list(parser.parse(pattern)), END) <= WAYS_LIMIT) is is_bounded


def seeds(pattern: Pattern[Any]) -> list[str]:
    """Texts that the pattern likes: its own literals, its first characters, repeated."""
    items = list(parser.parse(pattern.pattern, pattern.flags & ~re.LOCALE))
    literal = "".join(chr(value) for kind, value in items if kind is constants.LITERAL)
    begin = "".join(map(chr, sorted(first(items, END).characters)[:4]))
    return [
        text for text in {literal, begin, literal + " ", literal + "0", "a", " ", "0", "[", "_:", "a b", "x/1 "} if text
    ]


@pytest.mark.parametrize(("name", "pattern"), FOUND, ids=[f"{n}-{place}" for place, (n, _) in enumerate(FOUND)])
def test_twice_the_text_takes_twice_the_time(name: str, pattern: Pattern[Any]) -> None:
    # In processor time, with room for a busy machine: what grows with the square takes four times as long each time.
    longest = NAMES.get(name.rpartition(".")[0], 8192)
    for seed in seeds(pattern):
        took = []
        for length in (longest // 4, longest):
            text: Any = (seed * (length // len(seed) + 1))[:length] + "\x01"
            if isinstance(pattern.pattern, bytes):
                text = text.encode("latin-1")
            started = time.process_time()
            pattern.search(text)
            took.append(time.process_time() - started)
        assert took[1] < 10 * took[0] + 0.25, f"{name} on {seed!r}: {took}"
