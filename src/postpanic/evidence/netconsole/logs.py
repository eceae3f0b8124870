"""
Logs of many hosts: a directory for each, rotated by size.

::

    DIRECTORY/192.0.2.7/messages.log       the newest
    DIRECTORY/192.0.2.7/messages.log.1     …
    DIRECTORY/192.0.2.7/reports/20261121T194003.120Z-0123456789abcdef.json
    DIRECTORY/other-hosts/messages.log     of hosts beyond the limit

Names are made of addresses alone, never of what a packet says. What anybody who
can send a packet may cause is bounded: directories, size and number of files.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from postpanic.errors import OutputError
from postpanic.evidence.netconsole.disk import DiskQueue

__all__ = ["LOG_NAME", "OTHER_HOSTS", "HostLogs", "directory_name"]

LOG_NAME = "messages.log"
OTHER_HOSTS = "other-hosts"
"""Where the messages of hosts go that are beyond the limit."""

_OPEN_LIMIT = 128
_FEW = 256
"""Logs that are written at once; more of them are written together a little later."""
_LATER_S = 1.0
_WAITING_LIMIT = 32 << 20
_UNUSUAL = re.compile(r"[^A-Za-z0-9._%#-]")


def directory_name(name: str) -> str:
    """
    Return the name of a host's directory: colons are for neither every file system nor every program.

    >>> directory_name("2001:db8::7"), directory_name("../x"), directory_name("")
    ('2001-db8--7', '_..-x', '_')
    """
    safe = _UNUSUAL.sub("-", name)[:128]
    return safe if safe and safe[0] not in ".-" else f"_{safe}"


class HostLogs:
    """
    Append to the logs of hosts.

    Parameters
    ----------
    directory : Path
        Is made if it is not there.
    limit_bytes : int
        Of one file; then it is rotated.
    keep : int
        Rotated files of one host.
    hosts_limit : int
        Directories; hosts beyond them share one.
    min_free_bytes : int
        Of the file system; nothing is written when there is less.
    open_limit : int
        Files that are kept open.
    others : str
        Name of the directory of hosts beyond the limit; each process has its own.
    disk : DiskQueue, optional
        By whom it is written; by default at once.

    Raises
    ------
    OutputError
        If the directory cannot be made or read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limit_bytes: int = 16 << 20,
        keep: int = 4,
        hosts_limit: int = 20000,
        min_free_bytes: int = 64 << 20,
        open_limit: int = _OPEN_LIMIT,
        others: str = OTHER_HOSTS,
        disk: DiskQueue | None = None,
    ) -> None:
        self.directory = directory
        self.others = others
        self.disk = disk or DiskQueue()
        self.dropped_bytes = 0
        """That could not be written."""
        self.problem = ""
        """Why, the last time; empty: all is well."""
        self._limit_bytes = limit_bytes
        self._keep = keep
        self._hosts_limit = hosts_limit
        self._min_free_bytes = min_free_bytes
        self._open_limit = open_limit
        self._files: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._waiting: dict[str, list[bytes]] = {}
        self._waiting_bytes = 0
        self._written_s = 0.0
        self._has_room = True
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            with os.scandir(directory) as entries:
                self._hosts = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(directory)) from exc
        self._hosts = {name for name in self._hosts if not name.startswith(OTHER_HOSTS)}

    def place(self, name: str) -> str:
        """Return the directory of a host, that of the others if there are too many."""
        directory = directory_name(name)
        if directory in self._hosts:
            return directory
        if len(self._hosts) >= self._hosts_limit:
            return self.others
        self._hosts.add(directory)
        return directory

    def append(self, place: str, data: bytes) -> None:
        """Append whole lines to a log; :meth:`write` brings them there."""
        if self._waiting_bytes > _WAITING_LIMIT:
            # The disk has stood still for long; there is no end of what comes.
            self.dropped_bytes += len(data)
            return
        waiting = self._waiting.get(place)
        if waiting is None:
            self._waiting[place] = [data]
        else:
            waiting.append(data)
        self._waiting_bytes += len(data)

    def write(self, now_s: float) -> None:
        """
        Write what was appended: at once to a few logs, to many of them about once in a second.

        What cannot be written is counted: a full disk must not end the listening.
        """
        if not self._waiting or not self.disk.is_free:
            return
        if len(self._waiting) > _FEW and now_s - self._written_s < _LATER_S:
            return
        self._written_s = now_s
        self._hand_over()

    def _hand_over(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0

        def write_all() -> None:
            for place, parts in waiting.items():
                self._write(place, b"".join(parts))

        self.disk.do(write_all)

    def _write(self, place: str, data: bytes) -> None:
        if not self._has_room:
            self.dropped_bytes += len(data)
            return
        try:
            descriptor, size = self._open(place)
            if size and size + len(data) > self._limit_bytes:
                self._rotate(place)
                descriptor, size = self._open(place)
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, data[written:])
            self._files[place] = (descriptor, size + len(data))
            self.problem = ""
        except OSError as exc:
            self.dropped_bytes += len(data)
            self.problem = f"{self.directory / place}: {(exc.strerror or str(exc)).lower()}"
            self._close(place)

    def check_room(self) -> None:
        """Look whether the file system has room; called every few seconds."""
        self.disk.do(self._check_room)

    def _check_room(self) -> None:
        with suppress(OSError):
            state = os.statvfs(self.directory)
            free = state.f_bavail * state.f_frsize
            self._has_room = free >= self._min_free_bytes
            if not self._has_room:
                self.problem = (
                    f"{self.directory}: {free >> 20} MiB free, {self._min_free_bytes >> 20} MiB are to stay free"
                )

    def close(self) -> None:
        """Write what waits, and close all files; they are opened anew when there is something to write."""
        self._hand_over()
        self.disk.do(self._close_all)

    def _close_all(self) -> None:
        for place in list(self._files):
            self._close(place)

    def _open(self, place: str) -> tuple[int, int]:
        known = self._files.get(place)
        if known is not None:
            self._files.move_to_end(place)
            return known
        while len(self._files) >= self._open_limit:
            self._close(next(iter(self._files)))
        path = f"{self.directory}/{place}/{LOG_NAME}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o640)
        except FileNotFoundError:
            (self.directory / place).mkdir(mode=0o750, exist_ok=True)
            descriptor = os.open(path, flags, 0o640)
        entry = (descriptor, os.fstat(descriptor).st_size)
        self._files[place] = entry
        return entry

    def _rotate(self, place: str) -> None:
        self._close(place)
        path = self.directory / place / LOG_NAME
        if self._keep < 1:
            path.unlink(missing_ok=True)
            return
        for number in range(self._keep - 1, 0, -1):
            with suppress(FileNotFoundError):
                path.with_name(f"{LOG_NAME}.{number}").replace(path.with_name(f"{LOG_NAME}.{number + 1}"))
        path.replace(path.with_name(f"{LOG_NAME}.1"))

    def _close(self, place: str) -> None:
        entry = self._files.pop(place, None)
        if entry is not None:
            with suppress(OSError):
                os.close(entry[0])
