"""
The part of PID 1 that must not fail: it starts savers, watches them, and goes down the ladder when one dies.

Saving happens in a child. Whatever becomes of it (an error of ours, the
out-of-memory killer, a device that never answers), its parent is still there:
small, holding no file of any target, feeding watchdogs, and with one more rung
to try until the time is up. What a child has achieved it tells over a pipe,
so that the next one does only what is missing.

::

    everything ─> lean (small buffers, no self-test, no order of worth) ─> log only ─> final action
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from postpanic.saver.console import Console
from postpanic.saver.plan import SavePlan

__all__ = ["RUNGS", "ChildReport", "Rung", "Tally", "supervise"]

_POLL_S = 0.5
_SILENCE_S = 90.0
"""A child that says nothing for so long is stuck: it should do so several times a second."""
_KILL_WAIT_S = 3.0
_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True)
class Rung:
    """One way to save."""

    name: str
    lean: bool = False
    log_only: bool = False


RUNGS = (
    Rung("everything"),
    Rung("with as little memory as possible", lean=True),
    Rung("the log only", lean=True, log_only=True),
)


@dataclass
class Tally:
    """What the children have achieved so far, by number of the target."""

    complete: dict[int, str] = field(default_factory=dict)
    incomplete: dict[int, str] = field(default_factory=dict)
    logs: set[int] = field(default_factory=set)
    errors: dict[int, str] = field(default_factory=dict)

    def take(self, message: dict[str, object]) -> None:
        """Take note of what a child says of a target."""
        number, state, place = message.get("number"), message.get("state"), str(message.get("place", ""))
        if not isinstance(number, int):
            return
        if message.get("has_log"):
            self.logs.add(number)
        # One that is still being tested is whole, and safe.
        if state in ("saved", "saved, being tested"):
            self.complete[number] = place
        elif state == "saved, incomplete" and place:
            self.incomplete[number] = place
        elif state == "failed":
            self.errors[number] = str(message.get("error", ""))


Child = Callable[[Rung, frozenset[int], Callable[[dict[str, object]], None]], None]
"""What a child does: the rung, the targets to leave alone, and how to tell the parent. Its return is its success."""


def supervise(plan: SavePlan, child: Child, console: Console, *, tick: Callable[[], None] = lambda: None) -> Tally:
    """
    Save, whatever happens.

    Parameters
    ----------
    child : callable
        Runs in a process of its own.
    tick : callable
        Is called at least every second: feeds watchdogs.
    """
    deadline = time.monotonic() + plan.timeout_s
    tally = Tally()
    for rung in RUNGS:
        if rung is not RUNGS[0]:
            console.say(f"trying again: {rung.name}")
        # What must be done again is done again: a dump that a child could not finish does not count.
        ended_well = _run_rung(child, rung, frozenset(tally.complete), tally, console, deadline, tick)
        if ended_well or tally.complete or time.monotonic() > deadline:
            break
        if rung.lean and tally.incomplete:
            break
    return tally


def _run_rung(
    child: Child,
    rung: Rung,
    skip: frozenset[int],
    tally: Tally,
    console: Console,
    deadline: float,
    tick: Callable[[], None],
) -> bool:
    """Run one child to its end; tell whether it came to that end by itself."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_child(child, rung, skip, writer, console)
    os.close(writer)
    report = ChildReport(reader, tally)
    try:
        reason = _watch(pid, report, deadline, tick)
    finally:
        os.close(reader)
    if reason:
        console.say(f"saver {pid} {reason}")
    return not reason or report.is_done


def _be_child(child: Child, rung: Rung, skip: frozenset[int], writer: int, console: Console) -> NoReturn:
    """Be the child, and never return."""
    status = 1
    try:
        # The out-of-memory killer is to take us, and nothing else.
        _write_quietly("/proc/self/oom_score_adj", "1000")

        def tell(message: dict[str, object]) -> None:
            os.write(writer, (json.dumps(message) + "\n").encode())

        child(rung, skip, tell)
        tell({"done": True})
        status = 0
    except BaseException as exc:  # noqa: BLE001 - the parent tries another way
        import traceback

        console.say(f"internal error: {type(exc).__name__}: {exc}")
        for line in traceback.format_exc().splitlines()[-12:]:
            console.say(f"  {line}")
    finally:
        os._exit(status)


def _watch(pid: int, report: ChildReport, deadline: float, tick: Callable[[], None]) -> str:
    """Wait for a child; say in a few words why it did not end well, or nothing."""
    while True:
        tick()
        report.read(_POLL_S)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report.read(0)
            if os.WIFSIGNALED(status):
                return f"was killed by signal {os.WTERMSIG(status)} (SIGKILL: most likely for lack of memory)"
            return f"ended with status {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else ""
        if report.is_done and report.silent_s() > _KILL_WAIT_S:
            # It is done, and only a thread that is stuck in a device keeps it from ending.
            return ""
        why = "the time is up" if time.monotonic() > deadline else ""
        why = why or (f"has not said anything for {_SILENCE_S:.0f} s" if report.silent_s() > _SILENCE_S else "")
        if why:
            _kill(pid)
            return f"is given up: {why}"


def _kill(pid: int) -> None:
    """Kill a child, and wait a little; one that is stuck in the kernel stays."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    end = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.05)


class ChildReport:
    """
    What comes over the pipe: a JSON object a line.

    Parameters
    ----------
    fd : int
        The pipe's reading end.
    """

    def __init__(self, fd: int, tally: Tally) -> None:
        self.is_done = False
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._tally = tally
        self._rest = b""
        self._last = time.monotonic()
        self._at_end = False

    def silent_s(self) -> float:
        """Tell how long nothing has come."""
        return time.monotonic() - self._last

    def read(self, timeout_s: float) -> None:
        """Take in what comes within a time."""
        if self._at_end:
            time.sleep(min(timeout_s, 0.05))
            return
        end = time.monotonic() + timeout_s
        while self._poll.poll(max(end - time.monotonic(), 0) * 1000):
            data = os.read(self._fd, _LIMIT_BYTES)
            if not data:
                self._at_end = True
                return
            self._last = time.monotonic()
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take(line)
            if time.monotonic() > end:
                return

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        if isinstance(message, dict):
            self.is_done = self.is_done or bool(message.get("done"))
            self._tally.take(message)


def _write_quietly(path: str, text: str) -> None:
    try:
        with open(path, "w") as stream:  # noqa: PTH123 - pathlib is one more import in PID 1
            stream.write(text)
    except OSError:
        pass
