"""``numpy.ma`` where there are no masked arrays."""

from __future__ import annotations

__all__ = ["MaskedArray", "isMA", "isMaskedArray", "is_masked"]


class MaskedArray:
    """No array is one."""


def is_masked(_array: object) -> bool:
    """Tell that no array is masked."""
    return False


isMaskedArray = isMA = is_masked  # noqa: N816 - numpy's names
