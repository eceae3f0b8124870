"""Say on stderr what takes so long, on a terminal and after a second only."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ["Progress"]

DELAY_S = 1.0


class Progress:
    """
    A context manager that is called with a phrase before each long step.

    Nothing is printed, and nothing imported, when stderr is no terminal or the
    work is done within a second.
    """

    def __init__(self) -> None:
        self._text = "opening the dump"
        self._status: Status | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __call__(self, text: str) -> None:
        """Name the step that begins now."""
        with self._lock:
            self._text = text
            if self._status is not None:
                self._status.update(text)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer = threading.Timer(DELAY_S, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer.join()
        with self._lock:
            if self._status is not None:
                self._status.stop()

    def _show(self) -> None:
        from rich.console import Console

        with self._lock:
            self._status = Console(stderr=True).status(self._text)
            self._status.start()
