from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps import extents
from postpanic.dumps.extents import resolve_overlaps
from postpanic.errors import CorruptError


def resolve(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    pieces = resolve_overlaps(table[:, 0].copy(), table[:, 1].copy())
    return list(zip(*(column.tolist() for column in pieces), strict=True))


def test_later_extent_wins() -> None:
    assert resolve([(0, 10), (5, 15)]) == [(0, 5, 0), (5, 15, 1)]
    assert resolve([(5, 15), (0, 10)]) == [(0, 10, 1), (10, 15, 0)]
    assert resolve([(0, 10), (3, 5)]) == [(0, 3, 0), (3, 5, 1), (5, 10, 0)]
    assert resolve([(3, 5), (0, 10)]) == [(0, 10, 1)]


def test_empty_extents_are_left_out() -> None:
    assert resolve([]) == []
    assert resolve([(5, 5), (7, 3), (1, 2)]) == [(1, 2, 2)]


def test_touching_extents_stay_apart() -> None:
    assert resolve([(2, 3), (0, 2), (3, 4)]) == [(0, 2, 1), (2, 3, 0), (3, 4, 2)]


def test_number_of_overlapping_extents_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "MAX_OVERLAPPING", 10)
    assert len(resolve([(place * 10, place * 10 + 10) for place in range(100)])) == 100
    with pytest.raises(CorruptError, match="11 extents overlap, at most 10"):
        resolve([(0, 5)] * 11)
