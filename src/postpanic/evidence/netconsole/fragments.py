"""Messages that came in fragments, put together: in any order, twice, overlapping, and with some that never come."""

from __future__ import annotations

from postpanic.evidence.netconsole.packets import Packet

__all__ = ["FRAGMENTS_LIMIT", "Assembly"]

FRAGMENTS_LIMIT = 256
"""Of one message; the longest there can be needs 80."""


class Assembly:
    """
    The fragments of one message.

    Parameters
    ----------
    first : Packet
        Whichever came first; it settles how long the message is.
    now_s : float
    """

    __slots__ = ("_pieces", "_text_bytes", "first", "since_s")

    def __init__(self, first: Packet, now_s: float) -> None:
        self.first = first
        self.since_s = now_s
        self._text_bytes = 0
        self._pieces: dict[int, bytes] = {}

    @property
    def held_bytes(self) -> int:
        """About how much memory it takes."""
        return self._text_bytes + 256 * (1 + len(self._pieces))

    def add(self, packet: Packet) -> bool:
        """Take a fragment; False if it contradicts the others, or there are too many."""
        if packet.fragment_total != self.first.fragment_total or packet.time_us != self.first.time_us:
            return False
        known = self._pieces.get(packet.fragment_offset)
        if known is None and len(self._pieces) >= FRAGMENTS_LIMIT:
            return False
        if known is None or len(known) < len(packet.body):
            self._pieces[packet.fragment_offset] = packet.body
            self._text_bytes += len(packet.body) - len(known or b"")
        return True

    def join(self) -> bytes | None:
        """Return the body, None while something is missing."""
        if self._text_bytes < self.first.fragment_total:
            return None
        body, missing = self.join_what_there_is()
        return body if not missing else None

    def join_what_there_is(self) -> tuple[bytes, int]:
        """Return the body with ``…`` for each hole, and how many bytes are missing."""
        parts: list[bytes] = []
        at = missing = 0
        for offset in sorted(self._pieces):
            piece = self._pieces[offset]
            if offset > at:
                parts.append("…".encode())
                missing += offset - at
                at = offset
            if offset + len(piece) > at:
                parts.append(piece[at - offset :])
                at = offset + len(piece)
        if at < self.first.fragment_total:
            parts.append("…".encode())
            missing += self.first.fragment_total - at
        return b"".join(parts), missing
