"""What becomes of lines and reports: logs, files of reports, and events for whoever watches."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import datetime

from postpanic.errors import OutputError
from postpanic.evidence.netconsole.logs import LOG_NAME, HostLogs
from postpanic.evidence.netconsole.outlet import Outlet, stamp_of
from postpanic.evidence.netconsole.receive import Sender
from postpanic.evidence.netconsole.reports import ReportStore, document_of
from postpanic.evidence.netconsole.stream import Message
from postpanic.evidence.oops.model import Report
from postpanic.evidence.quota import Quota

__all__ = ["ANSWER", "Event", "Recorder", "encode_message"]

Event = dict[str, object]
"""With its kind in ``event``: message, report, boot, problem, statistics."""

ANSWER = b"postpanic: arrived "
"""What the sender of a test is told, with the number of its test and our port."""

_ANSWERS, _ANSWERS_SPAN_S = 20, 10.0


class Recorder(Outlet):
    """
    Keep what is received, and tell of it.

    Parameters
    ----------
    emit : callable
        Gets each event; is called by the thread of *logs* as well.
    logs : HostLogs, optional
        Where lines go and reports are stored; without it nothing is stored.
    write_lines : callable, optional
        Gets host, stamp and lines, to show them.
    with_messages : bool
        Emit each message as an event.
    with_documents : bool
        Put the document of a report that was stored into its event, as ``document``; of all, if none are.
    clock : callable
        Monotonic seconds.
    answers_port : int
        Ours, that those who test are told; 0: they are not answered.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        logs: HostLogs | None,
        *,
        clock: Callable[[], float],
        write_lines: Callable[[str, bytes, list[bytes]], None] | None = None,
        with_messages: bool = False,
        with_documents: bool = False,
        answers_port: int = 0,
    ) -> None:
        self.wants_messages = with_messages
        self.store = ReportStore(logs.directory) if logs is not None else None
        self._emit = emit
        self._logs = logs
        self._clock = clock
        self._write_lines = write_lines
        self._with_documents = with_documents
        self._answers = Quota(_ANSWERS, _ANSWERS_SPAN_S)
        self._answers_port = answers_port
        self._problem = ""

    def on_lines(self, host: str, stamp: bytes, lines: list[bytes]) -> None:
        """Append lines to the host's log, and show them."""
        logs = self._logs
        if logs is not None:
            place = logs.place(host)
            prefix = stamp if place != logs.others else stamp + host.encode() + b" "
            logs.append(place, prefix + prefix.join(lines))
        if self._write_lines is not None:
            self._write_lines(host, stamp, lines)

    def on_message(self, host: str, message: Message, received: datetime) -> None:
        """Tell of a message."""
        self._emit(encode_message(host, message, received))

    def on_report(self, host: str, report: Report, received: datetime) -> None:
        """Store a report if there is room, and tell of it."""
        event: Event = {
            "event": "report",
            "host": host,
            "received": stamp_of(received),
            "title": report.title,
            "kind": report.kind.value,
            "signature": report.signature,
            "is_panic": report.is_panic,
            "path": None,
        }
        logs, store = self._logs, self.store
        if logs is None or store is None:
            if self._with_documents:
                event["document"] = document_of(host, report, received)
            self._emit(event)
            return
        place = logs.place(host)
        if store.has_room(place, report.signature, self._clock()):
            document = document_of(host, report, received, logs.directory / place / LOG_NAME)
            logs.disk.do(lambda: self._store(store, place, document, event))
        elif not logs.disk.is_crowded:
            logs.disk.do(lambda: self._emit(event))

    def _store(self, store: ReportStore, place: str, document: dict[str, object], event: Event) -> None:
        try:
            event["path"] = str(store.store(place, document))
        except OutputError as exc:
            self._emit({"event": "problem", "message": str(exc)})
        if self._with_documents:
            event["document"] = document
        self._emit(event)

    def on_pause(self, now_s: float) -> None:
        """Bring the lines to the disk."""
        logs = self._logs
        if logs is None:
            return
        logs.write(now_s)
        if logs.problem != self._problem:
            self._problem = logs.problem
            if self._problem:
                self._emit({"event": "problem", "message": self._problem})

    def on_boot(self, host: str, received: datetime) -> None:
        """Tell that a host began anew."""
        event: Event = {"event": "boot", "host": host, "received": stamp_of(received)}
        if self._logs is None:
            self._emit(event)
        elif not self._logs.disk.is_crowded:
            self._logs.disk.do(lambda: self._emit(event))

    def on_probe(self, sender: Sender, number: bytes, port: int) -> None:
        """
        Answer somebody who tests.

        The answer is shorter than what it answers, and there are few of them:
        who forges a test reaches nobody with it that he could not reach himself.
        """
        if not self._answers_port or not self._answers.take(self._clock()):
            return
        scope = int.from_bytes(sender[18:22], "little")
        address = socket.inet_ntop(socket.AF_INET6, sender[2:18])
        is_ipv4 = address.startswith("::ffff:") and "." in address
        try:
            with socket.socket(socket.AF_INET if is_ipv4 else socket.AF_INET6, socket.SOCK_DGRAM) as answering:
                answering.settimeout(0)
                where = (address[7:], port) if is_ipv4 else (address, port, 0, scope)
                answering.sendto(ANSWER + number + b" %d" % self._answers_port, where)
        except OSError as exc:
            self._emit({"event": "problem", "message": f"no answer to {address}: {(exc.strerror or str(exc)).lower()}"})


def encode_message(host: str, message: Message, received: datetime) -> Event:
    """Make the event of one message."""
    event: Event = {"event": "message", "host": host, "received": stamp_of(received)}
    packet = message.packet
    if packet is not None:
        event |= {
            "level": packet.level,
            "facility": packet.facility,
            "seq": packet.seq,
            "time_us": packet.time_us,
            "flag": packet.flag.decode("ascii"),
            "caller": packet.caller.decode("ascii"),
            "release": packet.release.decode("utf-8", "replace"),
            "fields": {
                name.decode("utf-8", "backslashreplace"): value.decode("utf-8", "backslashreplace")
                for name, value in message.fields.items()
            },
        }
    if message.missing_bytes:
        event["missing_bytes"] = message.missing_bytes
    event["text"] = message.text.decode("utf-8", "backslashreplace")
    return event
