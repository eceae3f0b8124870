"""
Calls that must not hold anything up: a mount, a driver's probe, a read from a disk that may never answer.

A system call that hangs in the kernel cannot be taken back. The call is made
on a thread of its own, which is left behind when its time is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from postpanic.errors import OutputError

__all__ = ["Call", "DeadlineError", "call_with_deadline"]

_Result = TypeVar("_Result")


class DeadlineError(OutputError):
    """Something took too long, and was left behind."""

    code = "deadline"


class Call(Generic[_Result]):
    """
    A call on a thread of its own, begun at once.

    Parameters
    ----------
    doing : str
        What it does, for messages: ``mounting``.

    Attributes
    ----------
    results : list
        What the function returned, once it has.
    error : BaseException or None
        What it raised.
    is_given_up : bool
        For whoever waits: nobody does any more.
    """

    def __init__(self, function: Callable[[], _Result], *, doing: str) -> None:
        self.doing = doing
        self.results: list[_Result] = []
        self.error: BaseException | None = None
        self.is_given_up = False
        self._function = function
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=doing, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it has come to an end."""
        return not self._thread.is_alive()

    @property
    def age_s(self) -> float:
        """How long ago it began."""
        return time.monotonic() - self._started

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, no longer than so many seconds."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self.results.append(self._function())
        except BaseException as exc:  # noqa: BLE001 - raised again where the call is waited for
            self.error = exc


def call_with_deadline(function: Callable[[], _Result], timeout_s: float, *, doing: str, where: str = "") -> _Result:
    """
    Call a function, and wait for it no longer than so many seconds.

    Parameters
    ----------
    doing : str
        What it does, for the message: ``mounting``.
    where : str
        The target or device, for the message.

    Raises
    ------
    DeadlineError
        If it has not returned by then; it goes on on its own thread.
    BaseException
        Whatever the function raises.
    """
    call = Call(function, doing=doing)
    call.wait(timeout_s)
    if not call.is_over:
        raise DeadlineError(f"{doing} takes longer than {timeout_s:g} s, left behind", where=where)
    if call.error is not None:
        raise call.error
    return call.results[0]
