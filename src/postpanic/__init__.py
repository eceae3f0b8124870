"""Everything that happens after a Linux kernel panics, in one tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postpanic.version import __version__

if TYPE_CHECKING:
    from postpanic.analysis.open_dump import open_dump

__all__ = ["__version__", "open_dump"]


def __getattr__(name: str) -> object:
    # The package is imported by PID 1 of a capture kernel, too: what opens a dump is loaded when it is asked for.
    if name == "open_dump":
        from postpanic.analysis.open_dump import open_dump

        return open_dump
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
