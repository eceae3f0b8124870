"""Where a listener's lines and reports go."""

from __future__ import annotations

from datetime import datetime

from postpanic.evidence.netconsole.receive import Sender
from postpanic.evidence.netconsole.stream import Message
from postpanic.evidence.oops.model import Report

__all__ = ["Outlet", "stamp_of"]


def stamp_of(when: datetime) -> str:
    """
    Spell a time of UTC as the logs have it.

    >>> stamp_of(datetime(2026, 11, 21, 19, 40, 3, 120999))
    '2026-11-21T19:40:03.120Z'
    """
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03}Z"


class Outlet:
    """What is done with lines and reports; the base does nothing."""

    wants_messages = False
    """Whether :meth:`on_message` is to be called."""

    def on_lines(self, host: str, stamp: bytes, lines: list[bytes]) -> None:
        """Take the lines of a host, each with its end; *stamp* is when they came, with a blank behind it."""

    def on_message(self, host: str, message: Message, received: datetime) -> None:
        """Take one message."""

    def on_report(self, host: str, report: Report, received: datetime) -> None:
        """Take a report that has ended."""

    def on_boot(self, host: str, received: datetime) -> None:
        """Learn that a host began anew."""

    def on_pause(self, now_s: float) -> None:
        """Learn that all lines that are there were given."""

    def on_probe(self, sender: Sender, number: bytes, port: int) -> None:
        """Learn that somebody tests whether his messages arrive."""
