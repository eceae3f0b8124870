"""What became of packets, counted."""

from __future__ import annotations

import msgspec

__all__ = ["Counters"]


class Counters(msgspec.Struct):
    """What became of the packets of a sender, or of all."""

    packets: int = 0
    packet_bytes: int = 0
    messages: int = 0
    basic: int = 0
    fragments: int = 0
    incomplete: int = 0
    """Messages of which fragments never came."""
    contradicting: int = 0
    """Fragments that do not fit the others."""
    duplicates: int = 0
    reordered: int = 0
    """Messages that were put in order."""
    late: int = 0
    """Messages that came when others behind them had been given out."""
    lost: int = 0
    """Messages that the sender has counted and that did not come."""
    left_out: int = 0
    """Numbers of printk that did not come: not for this console, or lost."""
    boots: int = 0
    """How often the sender has begun anew."""
    refused: int = 0
    """Packets beyond a limit that was set."""

    def add(self, other: Counters) -> None:
        """Add those of another."""
        for name in self.__struct_fields__:
            count = getattr(other, name)
            if count:
                setattr(self, name, getattr(self, name) + count)
