"""What ``postpanic listen`` prints: lines, events and statistics."""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime

import msgspec

from postpanic.evidence.announce import Announcer
from postpanic.evidence.netconsole.outlet import stamp_of
from postpanic.evidence.netconsole.record import Event

__all__ = ["Show"]

_STATISTICS: tuple[tuple[str, str], ...] = (
    ("files", "files"),
    ("read_bytes", "bytes read"),
    ("rotations", "files rotated or truncated"),
    ("packets", "packets"),
    ("messages", "messages"),
    ("basic", "of them of the basic format"),
    ("fragments", "fragments"),
    ("incomplete", "messages with fragments that never came"),
    ("contradicting", "fragments that fit no message"),
    ("duplicates", "messages that came twice"),
    ("reordered", "messages put in order"),
    ("late", "messages too late to be put in order"),
    ("lost", "messages lost, by the senders' own count"),
    ("left_out", "numbers left out by the senders, or lost"),
    ("boots", "beginnings anew"),
    ("refused", "packets beyond the rate"),
    ("unwanted", "packets from elsewhere"),
    ("dropped_by_kernel", "packets dropped by our kernel, not fetched in time"),
    ("unwritten_bytes", "bytes that could not be written"),
    ("sources", "hosts"),
    ("forgotten_sources", "hosts forgotten, because there were too many"),
    ("reports", "reports"),
    ("unstored_reports", "reports not stored, because there were too many"),
    ("announced", "reports announced"),
    ("kept_back", "reports not announced: the same again, or too many"),
)
_ALWAYS = frozenset({"packets", "messages", "dropped_by_kernel", "sources", "reports"})


class Show:
    """
    Print events.

    Parameters
    ----------
    as_json : bool
        One object in a line, of everything.
    quiet : bool
        Print problems alone.
    announcer : Announcer
        Is told of reports.
    """

    def __init__(self, announcer: Announcer, *, as_json: bool = False, quiet: bool = False) -> None:
        self._announcer = announcer
        self._as_json = as_json
        self._quiet = quiet
        self._lock = threading.RLock()

    def lines(self, host: str, stamp: bytes, lines: list[bytes]) -> None:
        """Print the lines of a host."""
        prefix = stamp + host.encode() + b" "
        sys.stdout.buffer.write(prefix + prefix.join(lines))
        sys.stdout.buffer.flush()

    def event(self, event: Event, now_s: float) -> None:
        """Print an event, and announce it if it is a report; may be called by several threads."""
        with self._lock:
            self._event(event, now_s)

    def _event(self, event: Event, now_s: float) -> None:
        document = event.pop("document", None)
        if event["event"] == "report":
            told = {**document, "path": event["path"]} if isinstance(document, dict) else None
            event["announced"] = self._announcer.offer(str(event["signature"]), told, now_s)
        if self._as_json:
            self._print_json(event)
        elif event["event"] == "problem":
            print(f"warning: {event['message']}", file=sys.stderr, flush=True)
        elif event["event"] == "report" and not self._quiet:
            what = "panic" if event["is_panic"] else "report"
            print(f"{event['received']} {event['host']} {what}: {event['title']} [{event['signature']}]", flush=True)
        elif event["event"] == "boot" and not self._quiet:
            print(f"{event['received']} {event['host']} begins anew", flush=True)

    def problem(self, message: str) -> None:
        """Say what went wrong; may be called by several threads."""
        with self._lock:
            self._event({"event": "problem", "message": message}, 0.0)

    def statistics(self, counts: dict[str, int]) -> None:
        """Print what was received."""
        with self._lock:
            self._statistics(counts)

    def _statistics(self, counts: dict[str, int]) -> None:
        counts = {**counts, "announced": self._announcer.told, "kept_back": self._announcer.kept_back}
        if self._as_json:
            self._print_json({"event": "statistics", "received": stamp_of(datetime.now(UTC)), **counts})
            return
        if self._quiet:
            return
        for name, words in _STATISTICS:
            if counts.get(name) or (name in _ALWAYS and name in counts):
                print(f"{words}: {counts.get(name, 0)}", file=sys.stderr)
        sys.stderr.flush()

    @staticmethod
    def _print_json(event: Event) -> None:
        data = msgspec.json.encode(event) + b"\n"
        sys.stdout.flush()
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
