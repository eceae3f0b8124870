"""Erasing: what the ranges say and nothing else, whatever their order and overlap."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.errors import PostpanicError, UsageError
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages.redaction import ERASED_BYTE, Erasure, plan_erasure
from postpanic.pages.redaction.requests import parse_member_request, parse_symbol_request
from tests.builders.slab import Cache
from tests.unit.pages.slab_kernel import make_slab_kernel

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


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_kernel_is_planned_or_refused(data: st.DataObject) -> None:
    made = make_slab_kernel([Cache("secret", 64, 48, 10), Cache("other", 32, 32, 4)], links=[("alias", "secret")])
    block = made.block({5: ("secret", 10)})
    for _ in range(data.draw(st.integers(1, 8))):
        page = made.dump.pages[data.draw(st.sampled_from(sorted(made.dump.pages)))]
        at = data.draw(st.integers(0, len(page) - 8))
        page[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    try:
        erasure = plan_erasure(
            open_kernel_memory(made.dump), ["secret.key", "secret.pin.digits@alias"], ["plain", "text_pointer->"], block
        )
    except PostpanicError:
        return
    assert erasure.size_bytes == sum(erasure.lengths.tolist())
