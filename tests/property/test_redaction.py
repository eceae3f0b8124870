"""Erasing: what the ranges say and nothing else, whatever their order and overlap."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from postpanic.errors import UsageError
from postpanic.pages.redaction import ERASED_BYTE, Erasure
from postpanic.pages.redaction.requests import parse_member_request, parse_symbol_request

PAGE = 64
FRAMES = 12
RANGES = st.lists(st.tuples(st.integers(0, FRAMES * PAGE), st.integers(0, 3 * PAGE)), max_size=30)


@given(RANGES, st.permutations(range(FRAMES)))
def test_exactly_the_bytes_of_the_ranges_change(ranges: list[tuple[int, int]], order: list[int]) -> None:
    starts = np.array([start for start, _ in ranges], dtype=np.uint64)
    ends = starts + np.array([size for _, size in ranges], dtype=np.uint64)
    erasure = Erasure.from_ranges([(starts, ends)], PAGE)
    wanted = np.zeros((FRAMES + 4) * PAGE, dtype=bool)
    for start, size in ranges:
        wanted[start : start + size] = True
    assert erasure.size_bytes == np.count_nonzero(wanted)
    pages = np.zeros((FRAMES, PAGE), dtype=np.uint8)
    count = erasure.apply(np.array(order, dtype=np.uint64), pages)
    expected = wanted.reshape(-1, PAGE)[order]
    assert np.array_equal(pages == ERASED_BYTE, expected)
    assert count == np.count_nonzero(expected)


@given(st.text(max_size=40))
def test_no_request_is_anything_but_parsed_or_refused(text: str) -> None:
    for parse in (parse_member_request, parse_symbol_request):
        try:
            assert parse(text).expression
        except UsageError:
            continue
