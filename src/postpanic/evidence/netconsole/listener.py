"""
Take the packets of many senders, and give out lines and reports.

For every packet little is done: it is decoded, put in order and made a line.
Several times a second the lines of each host are written to its log with one
call, and looked at together for what may begin a report; only a host that has
something of that kind, or a report that is open, is looked at more closely.

Memory is bounded whatever comes: senders are forgotten when there are too
many, those that sent only once first; and what is kept back of messages and
of reports has a limit for all of them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from ipaddress import IPv6Address

from postpanic.evidence.follow import may_begin_report
from postpanic.evidence.netconsole.lines import format_continuation, format_message, is_continuation
from postpanic.evidence.netconsole.outlet import Outlet, stamp_of
from postpanic.evidence.netconsole.receive import Sender, name_sender
from postpanic.evidence.netconsole.sources import Limits, Source
from postpanic.evidence.netconsole.stream import Counters, Message
from postpanic.evidence.oops.model import Report

__all__ = ["PROBE", "Listener"]

PROBE = b"postpanic: netconsole test "
"""What ``listen --setup`` prints to see whether it arrives; then its number and the port for the answer."""

_PROBE = re.compile(rb"postpanic: netconsole test ([0-9a-f]{16})(?: (\d{4,5}))?(?![0-9a-f])")
_FLUSH_S = 0.05
_PARTIAL_LIMIT = 16384
_PARTIALS_LIMIT = 512


class Listener:
    """
    All senders.

    Parameters
    ----------
    outlet : Outlet
    limits : Limits
    name_of : callable
        Names a sender; what it says is the name of its directory.
    clock : callable
        Of the time of day.
    """

    def __init__(
        self,
        outlet: Outlet,
        limits: Limits | None = None,
        *,
        name_of: Callable[[Sender], str] = name_sender,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits = limits or Limits()
        self.reports = 0
        self.unwanted = 0
        """Packets from networks that are not taken."""
        self.forgotten = 0
        """Senders that were forgotten because there were too many."""
        self._outlet = outlet
        self._name_of = name_of
        self._clock = clock
        self._known: dict[Sender, Source] = {}
        self._newcomers: dict[Sender, Source] = {}
        self._dirty: dict[Sender, Source] = {}
        self._waiting: dict[Sender, Source] = {}
        self._open: dict[Sender, Source] = {}
        self._partial: dict[Sender, Source] = {}
        self._gone = Counters()
        self._flushed_s = 0.0

    # ---- what is asked from outside

    @property
    def is_busy(self) -> bool:
        """Whether :meth:`tick` has something to do soon."""
        return bool(self._dirty or self._waiting or self._open or self._partial)

    @property
    def source_count(self) -> int:
        """Senders that are remembered."""
        return len(self._known) + len(self._newcomers)

    def sources(self) -> Iterator[Source]:
        """Yield the senders that are remembered."""
        yield from self._known.values()
        yield from self._newcomers.values()

    def total(self) -> Counters:
        """Add up what became of all packets."""
        total = Counters()
        total.add(self._gone)
        for source in self.sources():
            total.add(source.stream.counters)
        return total

    # ---- packets

    def take(self, packets: Iterable[tuple[Sender, bytes]], now_s: float) -> None:
        """Take packets; :meth:`tick` gives out what becomes of them."""
        known, dirty, limits = self._known, self._dirty, self.limits
        for sender, data in packets:
            source = known.get(sender)
            if source is None:
                source = self._find(sender, now_s)
                if source is None:
                    continue
            if limits.rate and self._is_too_much(source, now_s):
                source.stream.counters.packets += 1
                source.stream.counters.refused += 1
                continue
            stream = source.stream
            messages = stream.accept(data, now_s)
            if messages:
                self._line_up(sender, source, messages)
                dirty[sender] = source
            if stream.is_waiting:
                self._waiting[sender] = source
        self.tick_if_due(now_s)

    def tick_if_due(self, now_s: float) -> None:
        """Do what :meth:`tick` does, if the last time is long enough ago."""
        if now_s - self._flushed_s >= _FLUSH_S:
            self.tick(now_s)

    def tick(self, now_s: float) -> None:
        """Give out what is there, and what has been waited for long enough."""
        for sender, source in list(self._waiting.items()):
            messages = source.stream.tick(now_s)
            if messages:
                self._line_up(sender, source, messages)
                self._dirty[sender] = source
            if not source.stream.is_waiting:
                del self._waiting[sender]
        self._limit_held(now_s)
        self._flush(now_s)
        for sender, source in list(self._partial.items()):
            if now_s - source.fed_s >= 1.0:
                self._end_line(sender, source)
        for sender, source in list(self._open.items()):
            if now_s - source.fed_s >= source.follower.silence_s:
                self._finish(sender, source)
        self._limit_open()
        self._outlet.on_pause(now_s)
        self._flushed_s = now_s

    def close(self, now_s: float) -> None:
        """Give out all that there is."""
        for place in (self._known, self._newcomers):
            for sender, source in place.items():
                self._give_up(sender, source, now_s)
        self._flush(now_s)
        for sender, source in [*self._known.items(), *self._newcomers.items()]:
            if source.follower.is_open:
                self._finish(sender, source)

    # ---- senders

    def _find(self, sender: Sender, now_s: float) -> Source | None:
        source = self._newcomers.pop(sender, None)
        if source is not None:
            self._known[sender] = source
            return source
        if self.limits.networks and not self._is_wanted(sender):
            self.unwanted += 1
            return None
        if self.source_count >= self.limits.sources:
            place = self._newcomers if len(self._newcomers) >= self.limits.newcomers else self._known
            oldest = next(iter(place))
            self._forget(oldest, place.pop(oldest), now_s)
        source = self._newcomers[sender] = Source(self._name_of(sender))
        return source

    def _is_wanted(self, sender: Sender) -> bool:
        address = IPv6Address(sender[2:18])
        plain = address.ipv4_mapped or address
        return any(plain.version == network.version and plain in network for network in self.limits.networks)

    def _forget(self, sender: Sender, source: Source, now_s: float) -> None:
        self.forgotten += 1
        self._give_up(sender, source, now_s)
        if self._dirty.pop(sender, None) is not None:
            self._write(sender, source, now_s)
        if source.follower.is_open:
            self._finish(sender, source)
        self._gone.add(source.stream.counters)

    def _give_up(self, sender: Sender, source: Source, now_s: float) -> None:
        """Cease to wait for what a sender may still send."""
        if sender in self._waiting:
            del self._waiting[sender]
            messages = source.stream.flush(now_s)
            if messages:
                self._line_up(sender, source, messages)
                self._dirty[sender] = source
        if sender in self._partial:
            self._end_line(sender, source)

    def _is_too_much(self, source: Source, now_s: float) -> bool:
        second = int(now_s)
        if source.second != second:
            source.second, source.count = second, 0
        source.count += 1
        return source.count > self.limits.rate

    # ---- lines

    def _line_up(self, sender: Sender, source: Source, messages: list[Message]) -> None:
        outlet = self._outlet
        lost = source.stream.counters.lost
        if lost != source.lost:
            if lost > source.lost:
                source.lines.append(b"# %d messages lost\n" % (lost - source.lost))
            source.lost = lost
        for message in messages:
            if message.is_first:
                source.lines.append(b"# begins anew\n")
                source.last_seq = -2
                outlet.on_boot(source.name, self._clock())
            if outlet.wants_messages:
                outlet.on_message(source.name, message, self._clock())
            packet = message.packet
            if packet is None:
                self._line_up_basic(sender, source, message)
                continue
            if packet.flag != b"-":
                source.has_plus = source.has_plus or packet.flag == b"+"
                if source.lines and is_continuation(
                    packet, source.last_seq, source.last_caller, has_plus=source.has_plus
                ):
                    source.lines[-1] = source.lines[-1][:-1] + format_continuation(message)
                    source.last_seq = packet.seq
                    continue
            source.lines.append(format_message(message))
            source.last_seq, source.last_caller = packet.seq, packet.caller

    def _line_up_basic(self, sender: Sender, source: Source, message: Message) -> None:
        text = source.partial + format_message(message)
        source.last_seq = -2
        end = text.rfind(b"\n") + 1
        if len(text) - end > _PARTIAL_LIMIT:
            text += b"\n"
            end = len(text)
        if end:
            source.lines += text[:end].splitlines(keepends=True)
        source.partial = text[end:]
        if not source.partial:
            self._partial.pop(sender, None)
            return
        self._partial[sender] = source
        if len(self._partial) > _PARTIALS_LIMIT:
            self._end_line(*next(iter(self._partial.items())))

    def _end_line(self, sender: Sender, source: Source) -> None:
        self._partial.pop(sender, None)
        if source.partial:
            source.lines.append(source.partial + b"\n")
            source.partial = b""
            self._dirty[sender] = source

    def _flush(self, now_s: float) -> None:
        dirty = self._dirty
        if not dirty:
            return
        self._dirty = {}
        text = b"".join(b"".join(source.lines) for source in dirty.values())
        is_suspicious = may_begin_report(text)
        has_probe = PROBE in text
        stamp = self._stamp()
        for sender, source in dirty.items():
            if has_probe:
                self._answer_probe(sender, source)
            self._write(sender, source, now_s, stamp, is_suspicious=is_suspicious)
            if self._known.pop(sender, None) is not None:
                # The last in the dictionary is the last that is forgotten.
                self._known[sender] = source

    def _stamp(self) -> bytes:
        return f"{stamp_of(self._clock())} ".encode()

    def _write(
        self, sender: Sender, source: Source, now_s: float, stamp: bytes = b"", *, is_suspicious: bool = True
    ) -> None:
        lines, source.lines = source.lines, []
        if not lines:
            return
        self._outlet.on_lines(source.name, stamp or self._stamp(), lines)
        source.fed_s = now_s
        follower = source.follower
        is_beyond = source.is_beyond(self.limits.reports, now_s)
        if is_beyond and follower.is_open:
            self._finish(sender, source)
        if is_beyond or not (is_suspicious or follower.is_open):
            follower.skip(lines)
            return
        text = b"".join(lines)
        self._give_reports(source, follower.feed(text))
        if follower.is_open:
            self._open[sender] = source
        else:
            self._open.pop(sender, None)

    def _answer_probe(self, sender: Sender, source: Source) -> None:
        for match in _PROBE.finditer(b"".join(source.lines)):
            port = int(match[2] or 0)
            if 1024 <= port <= 65535:
                self._outlet.on_probe(sender, match[1], port)

    # ---- reports

    def _finish(self, sender: Sender, source: Source) -> None:
        self._open.pop(sender, None)
        self._give_reports(source, source.follower.finish())

    def _give_reports(self, source: Source, reports: list[Report]) -> None:
        for report in reports:
            self.reports += 1
            source.reports += 1
            self._outlet.on_report(source.name, report, self._clock())

    def _limit_held(self, now_s: float) -> None:
        held = sum(source.stream.held_bytes for source in self._waiting.values())
        for sender, source in list(self._waiting.items()):
            if held <= self.limits.held_bytes:
                break
            held -= source.stream.held_bytes
            self._give_up(sender, source, now_s)

    def _limit_open(self) -> None:
        held = sum(source.follower.held_bytes for source in self._open.values())
        for sender, source in list(self._open.items()):
            if held <= self.limits.open_bytes:
                break
            held -= source.follower.held_bytes
            self._finish(sender, source)
