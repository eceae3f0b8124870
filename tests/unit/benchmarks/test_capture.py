"""What the capture benchmark concludes from its runs."""

from __future__ import annotations

import pytest
from benchmarks.capture import find_smallest
from benchmarks.capture_runs import Run

LOWEST, HIGHEST, STEP = 64, 320, 4


@pytest.mark.parametrize("guess", [64, 112, 256, 320])
@pytest.mark.parametrize("border", [40, 64, 65, 68, 96, 100, 112, 116, 128, 197, 320])
def test_the_smallest_size_is_found_from_any_guess(border: int, guess: int) -> None:
    tried: list[int] = []

    def crash(size: int) -> Run:
        tried.append(size)
        return Run("ours", "cloud", size, failure="" if size >= border else "no dump")

    found = find_smallest(crash, LOWEST, HIGHEST, STEP, guess)
    assert found == max(LOWEST, -(-border // STEP) * STEP)
    assert tried.count(found) == 2
    assert all(LOWEST <= size <= HIGHEST for size in tried)
    assert len(tried) < 14


def test_nothing_works() -> None:
    def crash(size: int) -> Run:
        return Run("ours", "cloud", size, failure="no dump")

    assert find_smallest(crash, LOWEST, HIGHEST, STEP, 112) is None


def test_a_size_that_works_once_only_does_not_count() -> None:
    tried: list[int] = []

    def crash(size: int) -> Run:
        tried.append(size)
        works = size > 104 or (size in (100, 104) and tried.count(size) == 1)
        return Run("ours", "cloud", size, failure="" if works else "no dump")

    assert find_smallest(crash, LOWEST, HIGHEST, STEP, 112) == 108
