"""
Where targets that are ready to be written meet, to be fed from one read.

The first one waits a little for the others. Who comes later, or wants another
selection of pages or another compression, reads on its own.
"""

from __future__ import annotations

import threading

from postpanic.errors import PostpanicError
from postpanic.pages.filtering import GrowingDump
from postpanic.saver.fan_out import FanOut, Lane
from postpanic.saver.plan import TargetPlan

__all__ = ["Rendezvous"]

GRACE_S = 3.0


class Rendezvous:
    """
    The meeting.

    Parameters
    ----------
    expected : int
        How many may come.
    grace_s : float
        How long those that are ready wait for the others.
    """

    def __init__(self, expected: int, grace_s: float = GRACE_S) -> None:
        self._expected = expected
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._lanes: dict[int, Lane] = {}
        self._files: list[GrowingDump] = []
        self._key: object = None
        self._gone: set[int] = set()
        self._is_closed = False

    def join(self, member: object, plan: TargetPlan, file: GrowingDump, level: int) -> Lane | None:
        """
        Take part, if the pages and their encoding are those of the others.

        Parameters
        ----------
        member : object
            Who, for :meth:`withdraw`.

        Returns
        -------
        Lane or None
            None: read on your own.
        """
        # With a level of its own a codec keeps track of what it has stored, file by file.
        key = (level, plan.compression)
        if plan.compression_level is not None or self._expected < 2:
            return None
        with self._changed:
            if self._is_closed or (self._lanes and self._key != key):
                return None
            self._key = key
            lane = self._lanes[id(member)] = Lane(file.writer)
            self._files.append(file)
            self._changed.notify_all()
            return lane

    def withdraw(self, member: object, error: PostpanicError | None = None) -> None:
        """Say that a target is done, or will not come."""
        with self._changed:
            self._gone.add(id(member))
            lane = self._lanes.get(id(member))
            self._changed.notify_all()
        if lane is not None and error is not None:
            lane.fail(error)

    def gather(self) -> tuple[GrowingDump, FanOut] | None:
        """
        Wait for the targets, and close the door.

        Returns
        -------
        tuple or None
            One of the files, which tells what to read, and where to put it; None if nobody came.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._lanes or self._all_accounted())
            self._changed.wait_for(self._all_accounted, timeout=self._grace_s)
            self._is_closed = True
            if not self._lanes:
                return None
            return self._files[0], FanOut(list(self._lanes.values()))

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _all_accounted(self) -> bool:
        return len(self._gone | set(self._lanes)) >= self._expected
