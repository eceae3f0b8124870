"""
Several processes that share a port, and the one that started them.

Each has its own socket, and all packets of a sender come to the same one. What
they have to tell comes to the first process as lines of JSON, one event in
each; it prints, announces and adds up.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import msgspec

from postpanic.evidence.netconsole.record import Event

__all__ = ["Workers"]

_LINE_LIMIT = 8 << 20


class Workers:
    """
    Processes that do the same work.

    Parameters
    ----------
    count : int
    work : callable
        Gets the number of the process and what takes its events; it is called in the new process and returns
        when it was told to stop by SIGTERM.
    """

    def __init__(self, count: int, work: Callable[[int, Callable[[Event], None]], None]) -> None:
        self.count = count
        self._processes: dict[int, int] = {}
        self._partial: dict[int, bytes] = {}
        self._poll = select.poll()
        self._failed = False
        for number in range(count):
            reading, writing = os.pipe()
            process = os.fork()
            if process == 0:
                os.close(reading)
                for other in self._processes:
                    os.close(other)
                _run(number, writing, work)
            os.close(writing)
            self._processes[reading] = process
            self._partial[reading] = b""
            self._poll.register(reading, select.POLLIN)

    @property
    def is_running(self) -> bool:
        """Whether any of them is there."""
        return bool(self._processes)

    @property
    def has_failed(self) -> bool:
        """Whether one ended otherwise than it was told to."""
        return self._failed

    def register(self, descriptor: int) -> None:
        """Let :meth:`wait` return when something else is there to be read."""
        self._poll.register(descriptor, select.POLLIN)

    def signal(self, number: int) -> None:
        """Send a signal to all of them."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def wait(self, timeout_s: float) -> list[Event]:
        """Return the events that come, at the latest after some time."""
        events: list[Event] = []
        for descriptor, _ in self._poll.poll(1000 * timeout_s):
            if descriptor not in self._processes:
                continue
            data = os.read(descriptor, 1 << 20)
            if not data:
                self._end(descriptor)
                continue
            *lines, rest = (self._partial[descriptor] + data).split(b"\n")
            self._partial[descriptor] = rest if len(rest) <= _LINE_LIMIT else b""
            for line in lines:
                with suppress(msgspec.DecodeError):
                    events.append(msgspec.json.decode(line, type=dict[str, object]))
        return events

    def _end(self, descriptor: int) -> None:
        process = self._processes.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(process, 0)
        self._failed = self._failed or os.waitstatus_to_exitcode(status) != 0


def _run(number: int, writing: int, work: Callable[[int, Callable[[Event], None]], None]) -> NoReturn:
    """Do the work of a new process, which must not go on with what its parent was about."""
    status = 1
    try:
        # The first process hears of the terminal's keys, and tells us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            lock = threading.Lock()

            def emit(event: Event) -> None:
                data = msgspec.json.encode(event) + b"\n"
                with lock:
                    while data:
                        data = data[pipe.write(data) or 0 :]

            work(number, emit)
        status = 0
    finally:
        os._exit(status)
