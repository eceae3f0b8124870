"""``numpy.typing`` for programs that run: names that can stand in an annotation."""

from __future__ import annotations

from typing import Any

__all__ = ["ArrayLike", "DTypeLike", "NDArray"]

ArrayLike = Any
DTypeLike = Any


class NDArray:
    """Of any type."""

    def __class_getitem__(cls, _item: object) -> type[NDArray]:
        return cls
