"""
What the saver says: lines on the console, kept for ``saver.log``.

The console is a serial line as often as not: nothing is ever overwritten, and
progress is a line every few seconds, not a bar.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from postpanic.units import format_size

__all__ = ["Console", "ProgressLine"]

_PREFIX = "postpanic: "
_MOST_LINES = 2000
_EVERY_S = 2.0


class Console:
    """
    Takes lines from any thread.

    Parameters
    ----------
    fd : int
        Where they go.
    appendix : callable, optional
        Gives what comes after the lines in the transcript.
    """

    def __init__(self, fd: int = 2, appendix: Callable[[], str] = str) -> None:
        self._fd = fd
        self._appendix = appendix
        self._lines: list[str] = []
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print a line, after the seconds since the start; a console that is gone costs nothing."""
        line = f"[{time.monotonic() - self._started:7.2f}] {text}"
        with self._lock:
            if len(self._lines) < _MOST_LINES:
                self._lines.append(line)
            self._print(f"{_PREFIX}{text}\n")

    def show(self, text: str) -> None:
        """Print a line that is not kept."""
        with self._lock:
            self._print(f"{_PREFIX}{text}\n")

    def transcript(self) -> str:
        """Give all lines so far, and the appendix."""
        with self._lock:
            lines = "".join(f"{line}\n" for line in self._lines)
        appendix = self._appendix()
        return f"{lines}\n{appendix}" if appendix else lines

    def _print(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                return


class ProgressLine:
    """
    How far it is, with rate and time left, on the console every few seconds.

    Parameters
    ----------
    show : callable
        Gets a line.
    total_pages : int
        When all is done.
    """

    def __init__(self, show: Callable[[str], None], total_pages: int, page_size_bytes: int) -> None:
        self._show = show
        self._total = max(total_pages, 1)
        self._page_size = page_size_bytes
        self._done = 0
        self._started = self._last = time.monotonic()

    def set(self, pages: int) -> None:
        """Take note of how many pages are done; say so if it is time."""
        self._done = max(self._done, pages)
        now = time.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._show(self.describe(now))

    def describe(self, now: float) -> str:
        """
        Put it in words.

        >>> line = ProgressLine(print, 1000, 4096)
        >>> line.describe(line._started)
        'saved 0 % of 3.9 MiB'
        """
        text = f"saved {100 * self._done // self._total} % of {format_size(self._total * self._page_size)}"
        seconds = now - self._started
        if not self._done or seconds <= 0:
            return text
        rate = self._done / seconds
        left = (self._total - self._done) / rate
        return f"{text}, {format_size(int(rate * self._page_size))}/s, {left:.0f} s left"
