"""
The messages of one sender, in their order.

UDP loses packets, doubles them and lets them overtake each other. printk's
numbers put them in order again, but a number that is missing need not be a
loss: what the console's level leaves out is not sent. Where the sender counts
its packets (``msgid``, Linux 6.17), a missing number is a loss.

A sender that boots anew begins with small numbers and an early time, which is
told apart from a packet that is late by both.
"""

from __future__ import annotations

from array import array

import msgspec

from postpanic.evidence.netconsole.counters import Counters
from postpanic.evidence.netconsole.fragments import Assembly
from postpanic.evidence.netconsole.packets import Packet, decode_packet, decode_properties, decode_text

__all__ = ["Counters", "Message", "Stream"]

WINDOW = 32
"""Messages that are kept back for one that may still come."""

WAIT_S = 0.2
"""How long they are."""

FRAGMENTS_WAIT_S = 2.0
"""How long the rest of a message is waited for."""

_ASSEMBLIES_LIMIT = 16
_RECENT = 64
"""Messages whose times are remembered, to know one that comes twice."""

_HOLES = 32
"""Runs of missing numbers that are remembered, to know one that comes late."""

_SLACK_US = 2_000_000
"""By how much the clocks of two CPUs may differ."""

_BOOT_S = 3.0
"""No machine is quicker to boot."""

_MSGID = b"\n msgid="
_U64 = (1 << 64) - 1
_NO_PROPERTIES: dict[bytes, bytes] = {}


class Message(msgspec.Struct, frozen=True, gc=False):
    """
    A message of printk as it was received; *packet* is None of a basic one.

    Parameters
    ----------
    text : bytes
        Of an extended one without its line's end; of a basic one as it came.
    packet : Packet, optional
        With the header's fields.
    properties : bytes
        The lines behind the text, as they came.
    missing_bytes : int
        Of fragments that never came; ``…`` stands in their place.
    is_first : bool
        The sender booted anew, and this is its first message.
    """

    text: bytes
    packet: Packet | None = None
    properties: bytes = b""
    missing_bytes: int = 0
    is_first: bool = False

    @property
    def fields(self) -> dict[bytes, bytes]:
        """What stands behind the text, decoded."""
        return decode_properties(self.properties) if self.properties else _NO_PROPERTIES


class _Hole(msgspec.Struct, gc=False):
    """Numbers that did not come, with the times around them."""

    start: int
    end: int
    before_us: int
    after_us: int


class Stream:
    r"""
    Put the packets of one sender in order.

    Examples
    --------
    >>> stream = Stream()
    >>> [message.text for message in stream.accept(b"6,1,1000,-;one\n", 0.0)]
    [b'one']
    >>> stream.accept(b"6,3,3000,-;three\n", 0.0)
    []
    >>> [message.text for message in stream.accept(b"6,2,2000,-;two\n", 0.1)]
    [b'two', b'three']
    """

    __slots__ = (
        "_assemblies",
        "_counts_packets",
        "_held",
        "_held_since_s",
        "_holes",
        "_last_s",
        "_last_us",
        "_next",
        "_recent",
        "counters",
        "held_bytes",
    )

    def __init__(self) -> None:
        self.counters = Counters()
        self.held_bytes = 0
        self._next: int | None = None
        self._counts_packets = False
        self._last_us = 0
        self._last_s = 0.0
        self._held: dict[int, Message] = {}
        self._held_since_s = 0.0
        self._recent = array("Q", bytes(8 * _RECENT))
        self._holes: list[_Hole] = []
        self._assemblies: dict[int, Assembly] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether :meth:`tick` has something to do sooner or later."""
        return bool(self._held or self._assemblies)

    def accept(self, data: bytes, now_s: float) -> list[Message]:
        """Take a packet, and return the messages that are in their order now."""
        counters = self.counters
        counters.packets += 1
        counters.packet_bytes += len(data)
        packet = decode_packet(data)
        if packet is None:
            counters.basic += 1
            counters.messages += 1
            return [Message(data)]
        if packet.fragment_total:
            counters.fragments += 1
            return self._assemble(packet, now_s)
        message = _message_of(packet, packet.body)
        number = packet.seq
        if number == self._next and not self._held and not self._counts_packets and _MSGID not in packet.body:
            # The usual case.
            if self._last_us - packet.time_us > _SLACK_US:
                return self._begin_anew(message, number, now_s)
            counters.messages += 1
            self._next = number + 1
            self._recent[number % _RECENT] = packet.time_us & _U64
            self._last_us = max(self._last_us, packet.time_us)
            self._last_s = now_s
            return [message]
        return self._order(message, now_s)

    def tick(self, now_s: float) -> list[Message]:
        """Return the messages that have been kept back for too long."""
        given: list[Message] = []
        for seq, assembly in list(self._assemblies.items()):
            if now_s - assembly.since_s >= FRAGMENTS_WAIT_S:
                given += self._give_up(seq, now_s)
        if self._held and now_s - self._held_since_s >= WAIT_S:
            given += self._release(all_of_them=True, now_s=now_s)
        return given

    def flush(self, now_s: float) -> list[Message]:
        """Return all that is kept back."""
        given: list[Message] = []
        for seq in list(self._assemblies):
            given += self._give_up(seq, now_s)
        return given + self._release(all_of_them=True, now_s=now_s)

    # ---- fragments

    def _assemble(self, packet: Packet, now_s: float) -> list[Message]:
        given: list[Message] = []
        assembly = self._assemblies.get(packet.seq)
        if assembly is None:
            if not self._counts_packets and self._is_known(packet.seq, packet.time_us):
                self.counters.duplicates += 1
                return []
            if len(self._assemblies) >= _ASSEMBLIES_LIMIT:
                given = self._give_up(next(iter(self._assemblies)), now_s)
            assembly = self._assemblies[packet.seq] = Assembly(packet, now_s)
            self.held_bytes += assembly.held_bytes
        held = assembly.held_bytes
        if not assembly.add(packet):
            self.counters.contradicting += 1
            return given
        self.held_bytes += assembly.held_bytes - held
        body = assembly.join()
        if body is None:
            return given
        self._drop(packet.seq)
        return given + self._order(_message_of(assembly.first, body), now_s)

    def _drop(self, seq: int) -> Assembly:
        assembly = self._assemblies.pop(seq)
        self.held_bytes -= assembly.held_bytes
        return assembly

    def _give_up(self, seq: int, now_s: float) -> list[Message]:
        assembly = self._drop(seq)
        body, missing = assembly.join_what_there_is()
        self.counters.incomplete += 1
        return self._order(_message_of(assembly.first, body, missing), now_s)

    # ---- order

    def _order(self, message: Message, now_s: float) -> list[Message]:
        packet = message.packet
        assert packet is not None  # noqa: S101 - only extended messages have an order
        number, counts = _number_of(message, packet)
        if self._counts_packets and message.missing_bytes:
            # The number was in what is missing.
            self.counters.messages += 1
            return [message]
        if counts != self._counts_packets:
            # The sender began to count its packets, or ceased to: other numbers.
            given = self._release(all_of_them=True, now_s=now_s)
            self._counts_packets = counts
            self._forget()
            return given + self._in_order(message, number, now_s)
        if self._next is None or number == self._next:
            return self._in_order(message, number, now_s)
        if number in self._held or self._is_known(number, packet.time_us):
            self.counters.duplicates += 1
            return []
        if number < self._next:
            if self._fills_hole(number, packet.time_us) or self._is_of_this_boot(packet.time_us, now_s):
                self.counters.late += 1
                return self._give(message, number)
            return self._begin_anew(message, number, now_s)
        if self._last_us - packet.time_us > _SLACK_US:
            return self._begin_anew(message, number, now_s)
        if not self._held:
            self._held_since_s = now_s
        self._held[number] = message
        self.held_bytes += _cost(message)
        return self._release(all_of_them=False, now_s=now_s) if len(self._held) > WINDOW else []

    def _in_order(self, message: Message, number: int, now_s: float) -> list[Message]:
        assert message.packet is not None  # noqa: S101 - only extended messages have an order
        if self._next is not None and self._last_us - message.packet.time_us > _SLACK_US:
            return self._begin_anew(message, number, now_s)
        self._last_s = now_s
        given = self._give(message, number)
        self._next = number + 1
        if self._held:
            self.counters.reordered += 1
            given += self._contiguous()
        return given

    def _contiguous(self) -> list[Message]:
        """Give what follows without a hole."""
        given: list[Message] = []
        while self._next in self._held:
            number = self._next
            message = self._held.pop(number)
            self.held_bytes -= _cost(message)
            given += self._give(message, number)
            self._next = number + 1
        return given

    def _release(self, *, all_of_them: bool, now_s: float) -> list[Message]:
        """Cease to wait for the next number, or for all."""
        given: list[Message] = []
        while self._held:
            first = min(self._held)
            after = self._held[first].packet
            if self._next is not None and after is not None and first > self._next:
                count = first - self._next
                if self._counts_packets:
                    self.counters.lost += count
                else:
                    self.counters.left_out += count
                self._holes.append(_Hole(self._next, first, self._last_us, after.time_us))
                del self._holes[:-_HOLES]
            self._next = first
            given += self._contiguous()
            self._held_since_s = now_s
            if not all_of_them:
                break
        return given

    def _give(self, message: Message, number: int) -> list[Message]:
        assert message.packet is not None  # noqa: S101 - only extended messages have an order
        self.counters.messages += 1
        time_us = message.packet.time_us
        self._recent[number % _RECENT] = time_us & _U64
        self._last_us = max(self._last_us, time_us)
        return [message]

    def _is_known(self, number: int, time_us: int) -> bool:
        """Tell whether a message has been given out, as far as that is remembered."""
        following = self._next
        return (
            following is not None
            and following - _RECENT <= number < following
            and self._recent[number % _RECENT] == time_us & _U64
        )

    def _is_of_this_boot(self, time_us: int, now_s: float) -> bool:
        return self._last_us - time_us <= _SLACK_US and now_s - self._last_s < _BOOT_S

    def _fills_hole(self, number: int, time_us: int) -> bool:
        for place, hole in enumerate(self._holes):
            if hole.start <= number < hole.end:
                if not hole.before_us - _SLACK_US <= time_us <= hole.after_us + _SLACK_US:
                    return False
                rest = [
                    _Hole(hole.start, number, hole.before_us, time_us),
                    _Hole(number + 1, hole.end, time_us, hole.after_us),
                ]
                self._holes[place : place + 1] = [part for part in rest if part.start < part.end]
                del self._holes[:-_HOLES]
                if self._counts_packets:
                    self.counters.lost -= 1
                else:
                    self.counters.left_out -= 1
                return True
        return False

    def _begin_anew(self, message: Message, number: int, now_s: float) -> list[Message]:
        """Take a message as the first of another boot."""
        given: list[Message] = []
        if self._held:
            given = self._release(all_of_them=True, now_s=now_s)
        self._forget()
        self.counters.boots += 1
        return given + self._in_order(msgspec.structs.replace(message, is_first=True), number, now_s)

    def _forget(self) -> None:
        self._next = None
        self._last_us = 0
        self._recent = array("Q", bytes(8 * _RECENT))
        self._holes.clear()


def _message_of(packet: Packet, body: bytes, missing_bytes: int = 0) -> Message:
    if body[-1:] == b"\n" and body.find(b"\n") == len(body) - 1:
        text, properties = body[:-1], b""
    else:
        text, _, properties = body.partition(b"\n")
    return Message(decode_text(text) if b"\\" in text else text, packet, properties, missing_bytes)


def _cost(message: Message) -> int:
    """Return about how much memory a message takes, bytes."""
    return 512 + len(message.text) + len(message.properties)


def _number_of(message: Message, packet: Packet) -> tuple[int, bool]:
    """Return the number by which a message is put in order, and whether it counts what was sent."""
    if b"msgid=" in message.properties:
        value = message.fields.get(b"msgid", b"")
        if value.isdigit() and len(value) <= 10:
            return int(value), True
    return packet.seq, False
