"""
How the time that there is is shared out: to pages, to what ends a dump, to the last word.

What is cut off in the middle of a page leaves less than what is told to stop:
a dump that stops in time has its headers, says that it is incomplete, and
opens. And targets that would not be done in time leave some to the fallbacks.

::

    began ──── half, if there are fallbacks and none would be done in time
          ──────────────────────── no more pages ── given up ── until
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

__all__ = ["RoundLimit", "TimeLimit"]

_SHARE_TO_END = 0.2
_MOST_TO_END_S = 60.0
_GRACE_SHARE = 0.6


@dataclass(frozen=True)
class RoundLimit:
    """
    The time of one round: of the targets, or of one fallback. All times are of ``time.monotonic()``.

    Attributes
    ----------
    half : float
        When those must be on course for whom others wait; infinite if nobody does.
    stop : float
        When no more pages are written.
    grace_s : float
        How long those that were told to stop have to end what they have.
    """

    began: float
    half: float
    stop: float
    grace_s: float

    def reason_to_stop(self, now: float, share_done: float) -> str:
        """
        Say why no more pages are to be written; empty if they may.

        Parameters
        ----------
        share_done : float
            Of the target that is furthest, 0 to 1.
        """
        if now > self.stop:
            return "the time is up"
        if now > self.half and self.began + (now - self.began) / max(share_done, 1e-9) > self.stop:
            return "it would not be done in time"
        return ""


class TimeLimit:
    """
    The time of all rounds.

    Parameters
    ----------
    until : float or None
        When everything must be over, by ``time.monotonic()``; None is no limit.
    """

    def __init__(self, until: float | None) -> None:
        self._until = math.inf if until is None else until
        self._to_end_s = min(max(self._until - time.monotonic(), 0) * _SHARE_TO_END, _MOST_TO_END_S)

    @property
    def left_s(self) -> float:
        """How much there is, without what it takes to end a dump."""
        return max(self._until - self._to_end_s - time.monotonic(), 0)

    @property
    def last_word_s(self) -> float:
        """How much there is for a last word."""
        return max(self._until - time.monotonic() - self._to_end_s / 8, 0)

    def begin_round(self, *, is_last: bool) -> RoundLimit:
        """Begin a round now; others wait for it unless it is the last."""
        now = time.monotonic()
        half = math.inf if is_last else now + self.left_s / 2
        return RoundLimit(now, half, now + self.left_s, self._to_end_s * _GRACE_SHARE)
