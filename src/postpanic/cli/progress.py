"""Say on stderr what takes so long, on a terminal and after a second only."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.status import Status

__all__ = ["PageProgress", "Progress"]

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
        self.stop()

    def stop(self) -> None:
        """Take away what is shown, before anything else is printed."""
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


class PageProgress(Progress):
    """
    A :class:`Progress` that, once it is told how much there is to do, shows a bar with rate and time left.

    :meth:`advance` may be called from any thread, often: drawing is a thread's
    own business, a few times in a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._page_size_bytes = 0
        self._total_pages = 0
        self._done_pages = 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def begin(self, total_pages: int, page_size_bytes: int) -> None:
        """Tell how many pages there are to be written, of which size."""
        with self._lock:
            self._total_pages, self._page_size_bytes, self._done_pages = total_pages, page_size_bytes, 0
            if self._status is not None:
                self._status.stop()
                self._status = None
                self._show_bar()

    def advance(self, pages: int) -> None:
        """Tell that so many more pages were written."""
        self._done_pages += pages
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done_pages * self._page_size_bytes)

    def __call__(self, text: str) -> None:
        """Name the step that begins now; a bar that was there ends."""
        with self._lock:
            self._end_bar()
        super().__call__(text)

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        with self._lock:
            self._end_bar()

    def _show(self) -> None:
        if not self._total_pages:
            super()._show()
            return
        with self._lock:
            self._show_bar()

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
        self._task = self._bar.add_task("", total=self._total_pages * self._page_size_bytes)
        self._bar.start()

    def _end_bar(self) -> None:
        self._total_pages = 0
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
