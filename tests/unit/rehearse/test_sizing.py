"""The smallest reservation is found, with few tries, and where a guess is bad too."""

from __future__ import annotations

import pytest

from postpanic.errors import FactAbsentError
from postpanic.rehearse.sizing import STEP_MIB, find_smallest


@pytest.mark.parametrize("border", [40, 64, 100, 112, 150, 200, 250])
@pytest.mark.parametrize("guess", [32, 96, 128, 240, 999])
def test_the_border_is_found(border: int, guess: int) -> None:
    tried: list[int] = []

    def works(size: int) -> bool:
        tried.append(size)
        return size >= border

    found = find_smallest(works, known_mib=256, guess_mib=guess)
    assert found >= border > found - STEP_MIB
    assert len(tried) == len(set(tried)), "no size is tried twice"


def test_a_good_guess_takes_two_tries() -> None:
    tried: list[int] = []

    def works(size: int) -> bool:
        tried.append(size)
        return size >= 112

    assert find_smallest(works, known_mib=256, guess_mib=112) == 112
    assert tried == [112, 96]


def test_what_never_works_again_is_said() -> None:
    with pytest.raises(FactAbsentError, match="no clear border"):
        find_smallest(lambda _: False, known_mib=100, guess_mib=64)
