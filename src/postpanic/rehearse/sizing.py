"""Find the smallest reservation that works, by trying."""

from __future__ import annotations

from collections.abc import Callable

from postpanic.errors import FactAbsentError

__all__ = ["STEP_MIB", "find_smallest"]

STEP_MIB = 16
LEAST_MIB = 32


def find_smallest(works: Callable[[int], bool], *, known_mib: int, guess_mib: int) -> int:
    """
    Return the smallest multiple of 16 MiB that works, where one step less does not.

    What works at a size is taken to work above it. The search begins at the
    guess and goes step by step, as each try is a boot, a crash and a dump, and
    a good guess is at most two steps off.

    Parameters
    ----------
    works : callable
        Tries a size, MiB.
    known_mib : int
        A size that has worked.
    guess_mib : int
        Where to begin.

    Raises
    ------
    FactAbsentError
        If a size that has worked does not any more: there is no such border then.

    >>> find_smallest(lambda size: size >= 100, known_mib=256, guess_mib=140)
    112
    """
    known = -(-known_mib // STEP_MIB) * STEP_MIB
    size = max(min(-(-guess_mib // STEP_MIB) * STEP_MIB, known - STEP_MIB), LEAST_MIB)
    if works(size):
        while size - STEP_MIB >= LEAST_MIB and works(size - STEP_MIB):
            size -= STEP_MIB
        return size
    while True:
        size += STEP_MIB
        if size >= known:
            if known != known_mib and not works(known):
                raise FactAbsentError(f"{known} MiB did not work, {known_mib} MiB did: there is no clear border")
            return known
        if works(size):
            return size
