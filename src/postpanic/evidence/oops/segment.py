"""
Find the reports in a text, and tell the lines of one from those of another.

The first pass looks for a few byte strings at the speed of ``bytes.find``;
only around what it finds are lines decoded and read. From there on every
printk caller has a stream of its own: a report takes the lines of its caller,
so that two CPUs that print at once do not mix. Where there are no caller ids,
there is one stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from postpanic.evidence.lines import LINE_LIMIT, Line, clean_text, split_line
from postpanic.evidence.oops.builder import ReportBuilder
from postpanic.evidence.oops.candidates import Candidates, Text
from postpanic.evidence.oops.damage import BROKEN_INTO
from postpanic.evidence.oops.fields import read_error_code, read_kernel_offset
from postpanic.evidence.oops.kinds import FAMILIES, Family, Kind
from postpanic.evidence.oops.rules import Role, Rule, match_rule
from postpanic.evidence.oops.summary import Summary

__all__ = [
    "IDLE_LIMIT",
    "PREAMBLE_BYTES",
    "PREAMBLE_LINES",
    "REPORT_LINES_LIMIT",
    "Boot",
    "Callers",
    "Event",
    "KernelOffset",
    "Text",
    "find_events",
    "lines_of",
    "starts",
]


class Boot(msgspec.Struct, frozen=True):
    """The kernel began anew; what came before it was another one's."""

    release: str = ""


class KernelOffset(msgspec.Struct, frozen=True):
    """How far the kernel of this boot was moved, bytes, and from where."""

    offset: int
    base: int | None = None


Event: TypeAlias = "ReportBuilder | Boot | KernelOffset"

IDLE_LIMIT = 48
"""Lines of a caller that say nothing to a report, after which it is over."""

REPORT_LINES_LIMIT = 6000
"""Lines of one report: backtraces of all CPUs of a large machine fit."""

PREAMBLE_LINES = 12
"""Lines before a report that may say something about it."""

PREAMBLE_BYTES = 4096
"""How far before a report these are looked for."""

_STREAMS_LIMIT = 512
_HERALD_LINES = 10
_DIE_LINES = 40
_WAITING_LIMIT = 8
_MIXED = "lines of another report are mixed in"

_DYING = frozenset(
    {
        Kind.KERNEL_BUG,
        Kind.USERCOPY,
        Kind.LIST_CORRUPTION,
        Kind.RUST_PANIC,
        Kind.CFI,
        Kind.BUG,
        Kind.DOUBLE_FAULT,
        Kind.STACK_OVERFLOW,
        Kind.BAD_MODE,
        Kind.SERROR,
        Kind.SYSRQ,
        Kind.SPINLOCK,
        *(kind for kind, family in FAMILIES.items() if family is Family.MEMORY_ACCESS),
    }
)
_HERALDED = frozenset({Kind.KERNEL_BUG, Kind.WARNING, Kind.NULL_DEREFERENCE, Kind.PAGING_REQUEST, Kind.INVALID_OPCODE})
_SLAB_SPEAKERS = frozenset({Kind.KASAN, Kind.SLAB, Kind.MEMORY_LEAK})


class _Stream:
    """What one printk caller says."""

    __slots__ = ("builder", "herald", "idle", "recent", "summary", "waiting")

    def __init__(self) -> None:
        self.builder: ReportBuilder | None = None
        self.waiting: list[ReportBuilder] = []
        self.herald: tuple[ReportBuilder, int] | None = None
        self.idle = 0
        self.recent: deque[str] = deque(maxlen=PREAMBLE_LINES)
        self.summary = Summary()


def find_events(data: Text) -> Iterator[Event]:
    """
    Yield the reports of a text as builders, in the order in which they end, and between them what holds for a boot.

    Parameters
    ----------
    data : bytes or mmap
        Plain text: one message in a line.
    """
    candidates = Candidates(data)
    position = 0
    while (place := candidates.at_or_after(position)) is not None:
        start, end = _line_around(data, place, position)
        if any(starts(line.text) for line in lines_of(data[start:end], start)):
            region = _Region(data, candidates, max(position, _preamble_start(data, start, position)), start)
            yield from region.run()
            position = region.position
        else:
            position = end + 1


def starts(text: str) -> bool:
    """Tell whether a message begins a report, or a boot."""
    return match_rule(text) is not None or text.startswith("Linux version ") or read_kernel_offset(text) is not None


def _line_around(data: Text, place: int, floor: int) -> tuple[int, int]:
    floor = max(floor, place - LINE_LIMIT // 2)
    start = data.rfind(b"\n", floor, place) + 1 or floor
    return start, _line_end(data, start)


def _line_end(data: Text, start: int) -> int:
    limit = start + LINE_LIMIT
    end = data.find(b"\n", start, limit)
    return end if end >= 0 else min(limit, len(data))


def lines_of(raw: bytes, offset: int) -> list[Line]:
    """Decode a line, without what was put before its message: more than one where one broke into another."""
    text = clean_text(raw)
    if "\n" in text:
        return [line for part in text.split("\n")[:256] for line in split_line(part, offset)]
    return split_line(text, offset)


def _preamble_start(data: Text, start: int, floor: int) -> int:
    floor = max(floor, start - PREAMBLE_BYTES)
    place = start
    for _ in range(PREAMBLE_LINES):
        found = data.rfind(b"\n", floor, max(place - 1, floor))
        if found < 0:
            return floor if floor == 0 else place
        place = found + 1
    return place


def _is_asked_for(rule: Rule, text: str) -> bool:
    """Tell whether somebody made the kernel panic: nothing that was reported before has led to it."""
    return rule.role is Role.PANIC and "sysrq triggered" in text


class _Region:
    """A part of the text with reports in it: from the first one's preamble to where all are over."""

    def __init__(self, data: Text, candidates: Candidates, start: int, first: int) -> None:
        self.data = data
        self.candidates = candidates
        self.position = start
        self._first = first

    def run(self) -> Iterator[Event]:
        """Read lines until no report is open."""
        size = len(self.data)
        callers = Callers()
        while self.position < size:
            start = self.position
            end = _line_end(self.data, start)
            self.position = end + 1 if end < size and self.data[end] == 10 else end
            is_candidate = start >= self._first
            if is_candidate:
                place = self.candidates.at_or_after(start)
                is_candidate = place is not None and place < end
            for line in lines_of(self.data[start:end], start):
                yield from callers.take(line, is_candidate=is_candidate)
            if not callers.is_open and start >= self._first:
                break
        yield from callers.finish()


class Callers:
    """The streams of all printk callers, for a text that is read line by line."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._open = 0
        self._is_timed = False
        self._last: _Stream | None = None

    @property
    def is_open(self) -> bool:
        """Whether a report is being read."""
        return self._open > 0

    @property
    def has_ended(self) -> bool:
        """Whether all reports that are open have come to the line that ends them; a panic may still follow."""
        return all(stream.builder is None or stream.builder.is_ended for stream in self._streams.values())

    def finish(self) -> Iterator[ReportBuilder]:
        """Yield the reports that are open: there are no more lines."""
        for stream in self._streams.values():
            if stream.builder is not None:
                yield from self._close(stream)

    def take(self, line: Line, *, is_candidate: bool) -> Iterator[Event]:
        """
        Read a line; yield the reports that it ends, and what it says of the boot.

        Parameters
        ----------
        line : Line
        is_candidate : bool
            Whether one of the needles is in it: only then it may begin a report.
        """
        if line.time_s is not None:
            self._is_timed = True
            stream = self._stream(line.caller)
            self._last = stream
        else:
            stream = self._last if self._is_timed and self._last is not None else self._stream(line.caller)
        matched = match_rule(line.text) if is_candidate else None
        if matched is not None:
            yield from self._begin(stream, line, *matched)
            return
        if is_candidate and line.text.startswith("Linux version "):
            yield from self._reboot(line.text)
            return
        if is_candidate and (offset := read_kernel_offset(line.text)) is not None:
            yield KernelOffset(*offset)
        builder = stream.builder
        is_summary = stream.summary.takes(line.text)
        if builder is None:
            stream.recent.append(line.text)
            return
        was_ended = builder.is_ended
        if is_summary and not was_ended:
            return
        if builder.add(line):
            stream.idle = 0
        elif line.time_s is not None or not self._is_timed:
            stream.idle += 1
        if builder.is_ended and not was_ended and builder.has_died:
            stream.summary.expect(builder.lines)
        if stream.idle > IDLE_LIMIT or len(builder.lines) > REPORT_LINES_LIMIT:
            yield from self._close(stream)

    def _stream(self, caller: str) -> _Stream:
        stream = self._streams.get(caller)
        if stream is None:
            if len(self._streams) >= _STREAMS_LIMIT:
                caller = ""
            stream = self._streams.setdefault(caller, _Stream())
        return stream

    def _begin(self, stream: _Stream, line: Line, rule: Rule, variant: str) -> Iterator[Event]:
        builder = stream.builder
        new = ReportBuilder(rule, variant, line, tuple(stream.recent))
        new.lines.append(new.first.text)
        if builder is not None and stream.waiting and rule.role is Role.DIE:
            yield from self._resume(stream, line)
            builder = stream.builder
        if builder is not None:
            if _belongs(builder, rule) and (builder.kind is Kind.SYSRQ or not _is_asked_for(rule, line.text)):
                self._absorb(stream, builder, line, rule)
                return
            if rule.role in {Role.NOTE, Role.MORE}:
                yield new
                return
            if rule.role is Role.HERALD:
                # Whether it is one shows the next line; until then the report that is open goes on.
                stream.herald = (new, len(builder.lines))
                builder.add(line)
                return
            new = self._heralded(stream, new, line, rule)
            if not line.caller and _may_wait(builder) and len(stream.waiting) < _WAITING_LIMIT:
                stream.waiting.append(builder)
            else:
                if not builder.is_ended and not _has_frames(builder):
                    builder.mixed.append(BROKEN_INTO)
                yield from self._close(stream)
        stream.recent.clear()
        stream.builder = new
        stream.idle = 0
        self._open += 1

    def _resume(self, stream: _Stream, line: Line) -> Iterator[Event]:
        """
        Go on with the report whose exception this line is: CPUs die one after the other.

        Before they do, each has said already what it could not handle, and without
        printk callers nothing but the order and the error code tells whose is whose.
        """
        current = stream.builder
        candidates = [one for one in (*stream.waiting, current) if one is not None and _dies(one)]
        if not candidates:
            return
        code = read_error_code(line.text)
        chosen = next((one for one in candidates if code is not None and one.facts.get("error_code") == code), None)
        chosen = chosen or candidates[0]
        if chosen is current:
            return
        stream.waiting.remove(chosen)
        if current is not None and _dies(current):
            stream.waiting.append(current)
        elif current is not None:
            if not current.is_ended:
                current.mixed.append(_MIXED)
                chosen.mixed.append(_MIXED)
            self._open -= 1
            yield current
        chosen.has_waited = True
        stream.builder = chosen

    def _absorb(self, stream: _Stream, builder: ReportBuilder, line: Line, rule: Rule) -> None:
        builder.add(line)
        if builder.kind is Kind.WARNING and rule.kind in {Kind.REFCOUNT, Kind.ODEBUG}:
            builder.kind = rule.kind
        builder.absorb(rule, line.text)
        stream.idle = 0

    def _heralded(self, stream: _Stream, new: ReportBuilder, line: Line, rule: Rule) -> ReportBuilder:
        if stream.herald is None or stream.builder is None:
            return new
        herald, place = stream.herald
        stream.herald = None
        if len(stream.builder.lines) - place > _HERALD_LINES or not _belongs(herald, rule):
            return new
        herald.add(line)
        herald.absorb(rule, line.text)
        return herald

    def _close(self, stream: _Stream) -> Iterator[ReportBuilder]:
        closed = [*stream.waiting, *([stream.builder] if stream.builder is not None else [])]
        for builder in stream.waiting:
            builder.mixed.append(BROKEN_INTO)
        stream.builder = None
        stream.waiting = []
        stream.herald = None
        stream.idle = 0
        self._open -= len(closed)
        yield from closed

    def _reboot(self, text: str) -> Iterator[Event]:
        for stream in self._streams.values():
            if stream.builder is not None:
                yield from self._close(stream)
            stream.summary = Summary()
        yield Boot(text.split()[2][:128] if len(text.split()) > 2 else "")


def _has_frames(builder: ReportBuilder) -> bool:
    return any(trace.frames for trace in builder.traces)


def _may_wait(builder: ReportBuilder) -> bool:
    """Tell whether a report's exception may still come, though another report begins."""
    return (
        _dies(builder)
        and not builder.is_ended
        and not _has_frames(builder)
        and len(builder.lines) <= _DIE_LINES
        and builder.role is Role.EVENT
    )


def _dies(builder: ReportBuilder) -> bool:
    return builder.kind in _DYING and not builder.has_died


def _belongs(builder: ReportBuilder, rule: Rule) -> bool:
    """Tell whether a line that could begin a report is a part of the one that is open."""
    lines = len(builder.lines)
    if rule.role is Role.PANIC:
        return True
    if builder.role is Role.HERALD and lines <= _HERALD_LINES and rule.kind in _HERALDED:
        return True
    if rule.role is Role.DIE:
        return builder.kind in _DYING and not builder.has_died and lines <= _DIE_LINES
    if rule.role in {Role.MORE, Role.NOTE}:
        return (
            rule.kind is builder.kind
            or rule.kind is Kind.STACK_OVERFLOW
            or (rule.kind is Kind.SLAB and builder.kind in _SLAB_SPEAKERS)
        )
    if rule.role is Role.HERALD and lines <= _HERALD_LINES:
        return builder.kind is Kind.WARNING and rule.kind in {Kind.REFCOUNT, Kind.ODEBUG}
    return rule.kind is builder.kind and rule.kind is Kind.MEMORY_LEAK and lines <= 2
