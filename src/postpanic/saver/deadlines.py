"""
Calls that must not hold anything up: a mount, a driver's probe, a read from a disk that may never answer.

A system call that hangs in the kernel cannot be taken back. The call is made
on a thread of its own, which is left behind when its time is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from postpanic.errors import OutputError

__all__ = ["DeadlineError", "call_with_deadline"]

_Result = TypeVar("_Result")


class DeadlineError(OutputError):
    """Something took too long, and was left behind."""

    code = "deadline"


class _Call(Generic[_Result]):
    """What became of a call; written by its thread, read when that has ended."""

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._function = function
        self.results: list[_Result] = []
        self.error: BaseException | None = None

    def run(self) -> None:
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
    call = _Call(function)
    thread = threading.Thread(target=call.run, name=doing, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise DeadlineError(f"{doing} takes longer than {timeout_s:g} s, left behind", where=where)
    if call.error is not None:
        raise call.error
    return call.results[0]
