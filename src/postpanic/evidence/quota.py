"""How often something may happen."""

from __future__ import annotations

__all__ = ["Quota"]


class Quota:
    """
    A number of times in a span, which comes back evenly.

    Parameters
    ----------
    count : int
        At once.
    span_s : float
        In which as many come back.

    Examples
    --------
    >>> quota = Quota(2, 60.0)
    >>> [quota.take(0.0), quota.take(0.0), quota.take(0.0), quota.take(30.0), quota.take(30.0)]
    [True, True, False, True, False]
    """

    __slots__ = ("_count", "_left", "_span_s", "_then_s")

    def __init__(self, count: int, span_s: float) -> None:
        self._count = count
        self._span_s = span_s
        self._left = float(count)
        self._then_s = 0.0

    def take(self, now_s: float) -> bool:
        """Use one up; False if there is none."""
        self._left = min(self._count, self._left + max(now_s - self._then_s, 0.0) * self._count / self._span_s)
        self._then_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
