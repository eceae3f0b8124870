"""Completion by prefix, on as many names as a large kernel has."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.cli.completions import SUGGESTION_LIMIT, SortedNames

NAMES = st.lists(st.text(alphabet="ab_z", max_size=6), max_size=50)


@settings(derandomize=True, deadline=None)
@given(NAMES, st.text(alphabet="ab_", max_size=3))
def test_found_names_are_exactly_those_with_the_prefix(names: list[str], prefix: str) -> None:
    expected = sorted({name for name in names if name.startswith(prefix)})
    assert SortedNames(names).starting_with(prefix) == expected


def test_list_is_limited() -> None:
    names = SortedNames(f"f{index:06}" for index in range(10_000))
    assert names.starting_with("f") == [f"f{index:06}" for index in range(SUGGESTION_LIMIT)]


def test_200000_names_are_searched_in_a_millisecond() -> None:
    generator = random.Random(1)
    names = SortedNames("".join(generator.choices("abcdefgh_", k=12)) for _ in range(200_000))
    start = time.process_time()
    for _ in range(100):
        names.starting_with("abc")
    assert (time.process_time() - start) / 100 < 0.001
