"""``ctypes.util`` where there is no compiler and no ldconfig to ask: it finds nothing."""

from __future__ import annotations

__all__ = ["find_library"]


def find_library(_name: str) -> str | None:
    """Find no library: what the image has is opened by its name."""
    return None
