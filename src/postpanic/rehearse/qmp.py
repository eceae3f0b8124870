"""
QEMU's monitor: commands in JSON, one per line, over QEMU's own standard input and output.

The protocol is docs/interop/qmp-spec.rst of QEMU. One command at a time with a
deadline is all that a rehearsal needs, so this speaks it directly instead of
bringing an event loop into synchronous code.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from typing import IO

from postpanic.errors import ProcessError

__all__ = ["Monitor", "MonitorError"]

REPLY_TIMEOUT_S = 30.0
LINE_LIMIT_BYTES = 1 << 20


class MonitorError(ProcessError):
    """QEMU refused a monitor command, or did not answer."""

    code = "qemu-monitor"


class Monitor:
    """
    The client's side of a monitor.

    Parameters
    ----------
    replies, commands : file
        QEMU's standard output and input. They are the caller's to close.
    """

    def __init__(self, replies: IO[bytes], commands: IO[bytes]) -> None:
        self._replies = replies
        self._commands = commands
        self._pending = b""
        self._poll = select.poll()
        self._poll.register(replies, select.POLLIN)

    def open(self) -> None:
        """Take QEMU's greeting and leave the negotiation mode."""
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while "QMP" not in self._read_message(deadline):
            pass
        self.execute("qmp_capabilities")

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = REPLY_TIMEOUT_S
    ) -> object:
        """
        Carry out a command and return what it answers; events in between are dropped.

        Raises
        ------
        MonitorError
            If QEMU refuses, goes away, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        request: dict[str, object] = {"execute": command}
        if arguments is not None:
            request["arguments"] = dict(arguments)
        try:
            self._commands.write(json.dumps(request).encode() + b"\n")
            self._commands.flush()
        except OSError as exc:
            raise MonitorError(f"monitor command {command}: qemu is gone: {exc.strerror}") from exc
        while True:
            message = self._read_message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MonitorError(f"monitor command {command}: {_describe(message['error'])}")

    def _read_message(self, deadline: float) -> dict[str, object]:
        while b"\n" not in self._pending:
            remaining_s = deadline - time.monotonic()
            if not self._poll.poll(max(0.0, remaining_s) * 1000):
                raise MonitorError("qemu's monitor does not answer in time")
            data = os.read(self._replies.fileno(), 65536)
            if not data:
                raise MonitorError("qemu's monitor is closed: qemu is gone")
            self._pending += data
            if len(self._pending) > LINE_LIMIT_BYTES:
                raise MonitorError(f"qemu's monitor sent a line of more than {LINE_LIMIT_BYTES} bytes")
        line, self._pending = self._pending.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError as exc:
            raise MonitorError(f"qemu's monitor sent no JSON: {line[:80]!r}") from exc
        if not isinstance(message, dict):
            raise MonitorError(f"qemu's monitor sent no object: {line[:80]!r}")
        return message


def _describe(error: object) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
