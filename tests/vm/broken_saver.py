"""PID 1 of an image whose saver has a mistake: it cannot choose pages."""

from __future__ import annotations

from typing import NoReturn

from postpanic.saver import init, memory_image

__all__ = ["main"]


def main() -> None:
    memory_image.MemoryImage.select = _break  # type: ignore[method-assign]
    init.main()


def _break(_image: object, _level: int) -> NoReturn:
    raise ZeroDivisionError("a mistake of ours")
