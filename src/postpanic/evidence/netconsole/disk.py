"""A thread for what waits for the disk, so that packets are fetched whatever the disk is doing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["DiskQueue"]

_CROWD = 1000


class DiskQueue:
    """
    Jobs that are done one after the other.

    Parameters
    ----------
    in_background : bool
        By a thread; else at once, by whoever brings them.
    """

    def __init__(self, *, in_background: bool = False) -> None:
        self._executor = ThreadPoolExecutor(1, "disk") if in_background else None
        self._last: Future[None] | None = None
        self._failure: BaseException | None = None
        self._brought = 0
        # Counted by the thread alone, as the others are by the one that brings: no lock is needed.
        self._done = 0

    @property
    def is_free(self) -> bool:
        """Whether all jobs are done."""
        return self._last is None or self._last.done()

    @property
    def is_crowded(self) -> bool:
        """Whether so many jobs wait that those should be left out that can be."""
        return self._brought - self._done > _CROWD

    def do(self, job: Callable[[], None]) -> None:
        """Have a job done; what an earlier one raised is raised here."""
        if self._failure is not None:
            raise self._failure
        if self._executor is None:
            job()
            return
        self._brought += 1
        self._last = self._executor.submit(job)
        self._last.add_done_callback(self._note)

    def close(self) -> None:
        """Wait until all jobs are done; what is brought later is done at once."""
        executor, self._executor, self._last = self._executor, None, None
        if executor is not None:
            executor.shutdown(wait=True)

    def _note(self, done: Future[None]) -> None:
        self._done += 1
        self._failure = self._failure or done.exception()
