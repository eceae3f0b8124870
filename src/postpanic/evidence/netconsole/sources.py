"""What is remembered of one sender, and what all of them may use."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import msgspec

from postpanic.evidence.follow import ReportFollower
from postpanic.evidence.netconsole.stream import Stream

__all__ = ["Limits", "Source"]


class Limits(msgspec.Struct, frozen=True):
    """
    What senders may use.

    Parameters
    ----------
    sources : int
        Senders that are remembered.
    newcomers : int
        Places of these for senders of one packet alone: a flood of forged addresses pushes out no others.
    held_bytes : int
        Of messages that are kept back, all senders together.
    open_bytes : int
        Of reports that are open, all senders together.
    rate : int
        Packets of one sender in a second; 0: any number.
    reports : int
        Of one sender in a minute; beyond that it is not looked at for the rest of it.
    networks : tuple
        From which packets are taken; empty: from everywhere.
    """

    sources: int = 12288
    newcomers: int = 2048
    held_bytes: int = 16 << 20
    open_bytes: int = 8 << 20
    rate: int = 0
    reports: int = 120
    networks: tuple[IPv4Network | IPv6Network, ...] = ()


class Source:
    """One sender."""

    __slots__ = (
        "count",
        "fed_s",
        "follower",
        "has_plus",
        "last_caller",
        "last_seq",
        "lines",
        "lost",
        "minute",
        "name",
        "partial",
        "reports",
        "second",
        "stream",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.stream = Stream()
        self.follower = ReportFollower()
        self.lines: list[bytes] = []
        self.partial = b""
        self.last_seq = -2
        self.last_caller = b""
        self.has_plus = False
        self.lost = 0
        self.fed_s = 0.0
        self.second = self.count = 0
        self.minute = self.reports = 0

    def is_beyond(self, reports: int, now_s: float) -> bool:
        """Tell whether more reports were found in this minute than are looked for."""
        minute = int(now_s / 60)
        if minute != self.minute:
            self.minute, self.reports = minute, 0
        return self.reports >= reports
