"""What standard modules ask of ``logging``: a line on stderr for what is worse than a warning."""

from __future__ import annotations

import sys

__all__ = ["StreamHandler", "getLogger"]


class Logger:
    """Of one name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, message: object, *_values: object, **_options: object) -> None:
        """Say nothing."""

    info = warning = addHandler = setLevel = debug  # noqa: N815 - its names

    def error(self, message: object, *values: object, **_options: object) -> None:
        """Write a line, and what is being handled."""
        text = str(message) % values if values else str(message)
        sys.stderr.write(f"{self.name}: {text}\n")
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())

    exception = critical = error


def getLogger(name: str = "root") -> Logger:  # noqa: N802 - its name
    """Return a logger."""
    return Logger(name)


def StreamHandler(*_arguments: object) -> None:  # noqa: N802 - its name
    """Do nothing: there is one stream."""
