"""A program at a pseudo-terminal, typed at and read from."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

CTRL_C = b"\x03"
CTRL_D = b"\x04"
TAB = b"\t"
UP = b"\x1b[A"
ENTER = b"\r"

# A new session has no terminal until its leader takes one; only then does Ctrl-C become a signal.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)

_ROWS, _COLUMNS = 40, 120
_READ_BYTES = 1 << 16
# Terminals report the end of editing so: bracketed paste is on while a prompt reads.
_PROMPT_READS = rb"\x1b\[\?2004h"


class Terminal:
    """Run a program with a terminal of 40 rows and 120 columns of its own; kill it at the end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.pending = b""
        self._fd, inside = pty.openpty()
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        # No answers to the questions that prompts ask a terminal.
        settings = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**environment, **settings},
            start_new_session=True,
        )
        os.close(inside)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def expect(self, pattern: bytes, *, timeout_s: float = 60) -> bytes:
        """Read until the pattern appears; what came up to its end, and the rest stays for later."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.pending)):
            if not self._poll.poll(max(0, deadline - time.monotonic()) * 1000):
                raise AssertionError(f"{pattern!r} did not come within {timeout_s} s: {self.pending[-2000:]!r}")
            try:
                data = os.read(self._fd, _READ_BYTES)
            except OSError:
                data = b""
            if not data:
                raise AssertionError(f"the program ended before {pattern!r}: {self.pending[-2000:]!r}")
            self.pending += data
        taken, self.pending = self.pending[: match.end()], self.pending[match.end() :]
        return taken

    def prompt(self) -> bytes:
        """Wait until a prompt reads; what was printed before it."""
        return self.expect(_PROMPT_READS)

    def enter(self, line: bytes) -> bytes:
        """Type a line, and give what it prints until the prompt is back."""
        self.type(line + ENTER)
        self.expect(rb"\x1b\[\?2004l")
        return self.prompt()

    def wait(self, *, timeout_s: float = 20) -> int:
        """Wait for the end of the program; its exit status."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                return status
            if self._poll.poll(100):
                try:
                    self.pending += os.read(self._fd, _READ_BYTES)
                except OSError:
                    time.sleep(0.05)
        raise AssertionError("the program did not end")
