"""The processes of ``postpanic listen``: sockets, signals, and the way of what is received."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Self

import msgspec

from postpanic.cli.listen_show import Show
from postpanic.errors import PostpanicError
from postpanic.evidence.netconsole.disk import DiskQueue
from postpanic.evidence.netconsole.listener import Listener
from postpanic.evidence.netconsole.logs import OTHER_HOSTS, HostLogs
from postpanic.evidence.netconsole.receive import Receiver, Sender, name_sender, open_socket, share_by_sender
from postpanic.evidence.netconsole.record import Event, Recorder
from postpanic.evidence.netconsole.serve import collect_statistics, serve
from postpanic.evidence.netconsole.sources import Limits
from postpanic.evidence.netconsole.workers import Workers

__all__ = ["Settings", "Signals", "listen_alone", "listen_together"]


_BUFFER_BYTES = 8 << 20
_FILES = 32768
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; *directory* None: lines are printed and nothing is stored."""

    address: str
    port: int
    processes: int
    directory: Path | None
    limit_bytes: int
    keep: int
    hosts_limit: int
    by_port: bool
    names: Mapping[str, str]
    limits: Limits
    answers: bool
    as_json: bool
    announces: bool

    def open_logs(self, process: int = 0) -> HostLogs | None:
        """Open the directory of the logs, for one of the processes."""
        if self.directory is None:
            return None
        return HostLogs(
            self.directory,
            limit_bytes=self.limit_bytes,
            keep=self.keep,
            hosts_limit=self.hosts_limit,
            open_limit=_raise_file_limit() // 2,
            others=f"{OTHER_HOSTS}.{process}" if process else OTHER_HOSTS,
            disk=DiskQueue(in_background=True),
        )

    def name_of(self, sender: Sender) -> str:
        """Name a sender as the file of names does, or by its address."""
        name = name_sender(sender)
        address, _, port = name.partition("#")
        known = self.names.get(address)
        if known is None:
            return name
        return f"{known}#{port}" if port else known


def _raise_file_limit() -> int:
    """Have as many files open as we may: a log for each host."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _FILES) if hard != resource.RLIM_INFINITY else _FILES
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return min(soft, _FILES)


class Signals:
    """
    Signals as flags, and a descriptor that wakes whoever polls.

    SIGTERM and SIGINT end, SIGUSR1 asks for statistics, SIGHUP has files opened anew; on a terminal it ends, as
    the terminal does.
    """

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.settimeout(0)
        self._writing.settimeout(0)
        self._before: dict[int, object] = {}
        self._previous_fd = -1
        self._has_terminal = sys.stdin is not None and sys.stdin.isatty()
        self.is_ended = False
        self.parent = 0
        """The process without which we end; 0: none."""
        self._wants_statistics = False
        self._wants_reopening = False

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        self._previous_fd = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._reading.close()
        self._writing.close()

    @property
    def descriptor(self) -> int:
        """Becomes readable with a signal."""
        return self._reading.fileno()

    @property
    def is_orphaned(self) -> bool:
        """Whether the process is gone that has started us."""
        return self.parent != 0 and os.getppid() != self.parent

    def drain(self) -> None:
        """Make the descriptor quiet again."""
        try:
            while self._reading.recv(64):
                pass
        except BlockingIOError:
            pass

    def take_statistics(self) -> bool:
        """Tell whether statistics were asked for since the last time."""
        wanted, self._wants_statistics = self._wants_statistics, False
        return wanted

    def take_reopening(self) -> bool:
        """Tell whether files are to be opened anew."""
        wanted, self._wants_reopening = self._wants_reopening, False
        return wanted

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._wants_statistics = True
        elif number == signal.SIGHUP and not self._has_terminal:
            self._wants_reopening = True
        else:
            self.is_ended = True


def listen_alone(settings: Settings, show: Show) -> int:
    """Listen with this process alone."""
    with Signals() as signals, open_socket(settings.address, settings.port) as receiving:
        _check_buffer(receiving, show)
        logs = settings.open_logs()
        _listen(
            settings,
            receiving,
            signals,
            logs,
            lambda event: show.event(event, time.monotonic()),
            show.statistics,
            write_lines=show.lines if logs is None and not settings.as_json else None,
        )
    return 0


def _check_buffer(receiving: socket.socket, show: Show) -> None:
    """Say so if the kernel gives less than a burst of messages needs."""
    size = receiving.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if size < _BUFFER_BYTES:
        show.problem(
            f"only {size >> 10} KiB for packets that wait, a burst will be lost: CAP_NET_ADMIN is needed, or "
            f"sysctl net.core.rmem_max={_BUFFER_BYTES}"
        )


def _listen(
    settings: Settings,
    receiving: socket.socket,
    signals: Signals,
    logs: HostLogs | None,
    emit: Callable[[Event], None],
    tell: Callable[[dict[str, int]], None],
    write_lines: Callable[[str, bytes, list[bytes]], None] | None = None,
) -> None:
    recorder = Recorder(
        emit,
        logs,
        clock=time.monotonic,
        write_lines=write_lines,
        with_messages=logs is None and settings.as_json,
        with_documents=settings.announces,
        answers_port=settings.port if settings.answers else 0,
    )
    listener = Listener(recorder, settings.limits, name_of=settings.name_of)
    receiver = Receiver(receiving, by_port=settings.by_port)

    def count() -> dict[str, int]:
        counts = collect_statistics(receiver, listener)
        counts["unwritten_bytes"] = logs.dropped_bytes if logs is not None else 0
        counts["unstored_reports"] = recorder.store.kept_back if recorder.store is not None else 0
        return counts

    def should_stop() -> bool:
        signals.drain()
        if signals.take_statistics():
            tell(count())
        if signals.take_reopening() and logs is not None:
            logs.close()
        return signals.is_ended or signals.is_orphaned

    care = logs.check_room if logs is not None else _nothing
    care()
    try:
        serve(receiver, listener, wake=signals.descriptor, should_stop=should_stop, care=care)
    finally:
        if logs is not None:
            logs.close()
            logs.disk.close()
    tell(count())


def _nothing() -> None:
    pass


def listen_together(settings: Settings, show: Show) -> int:
    """
    Listen with several processes.

    Returns 1 if one of them failed.
    """
    sockets = [open_socket(settings.address, settings.port, is_shared=True) for _ in range(settings.processes)]
    _check_buffer(sockets[0], show)
    if not share_by_sender(sockets):
        show.problem("the kernel cannot divide by sender: the packets of one may come to several processes")

    parent = os.getpid()

    def work(number: int, emit: Callable[[Event], None]) -> None:
        for place, other in enumerate(sockets):
            if place != number:
                other.close()
        with Signals() as signals:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            signals.parent = parent
            try:
                _listen(
                    settings,
                    sockets[number],
                    signals,
                    settings.open_logs(number),
                    emit,
                    lambda counts: emit({"event": "statistics", "process": number, "counts": counts}),
                )
            except (PostpanicError, OSError) as exc:
                emit({"event": "problem", "message": str(exc)})
                raise

    with Signals() as signals:
        # A signal must find handlers in the processes, not what they have of ours.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        workers = Workers(settings.processes, work)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for each in sockets:
            each.close()
        workers.register(signals.descriptor)
        _watch(workers, signals, show)
    return 1 if workers.has_failed else 0


def _watch(workers: Workers, signals: Signals, show: Show) -> None:
    """Print what the processes tell until all have ended."""
    counts: dict[object, dict[str, int]] = {}
    awaited, is_ending = 0, False
    while workers.is_running:
        for event in workers.wait(1.0):
            if event["event"] != "statistics":
                show.event(event, time.monotonic())
                continue
            found = event["counts"]
            counts[event["process"]] = found if isinstance(found, dict) else {}
            awaited -= 1
            if awaited == 0 and not is_ending:
                show.statistics(_sum(counts))
        signals.drain()
        if signals.take_statistics():
            counts, awaited = {}, workers.count
            workers.signal(signal.SIGUSR1)
        if signals.take_reopening():
            workers.signal(signal.SIGHUP)
        if (signals.is_ended or workers.has_failed) and not is_ending:
            is_ending = True
            workers.signal(signal.SIGTERM)
    show.statistics(_sum(counts))


def _sum(counts: Mapping[object, dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts.values():
        for name, value in each.items():
            total[name] = total.get(name, 0) + value
    return total
