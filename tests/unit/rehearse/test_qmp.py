"""QEMU's monitor over pipes: its answers, its end, and descriptors above what select(2) can hold."""

from __future__ import annotations

import fcntl
import json
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from postpanic.rehearse.qmp import Monitor, MonitorError

_FD_SETSIZE = 1024


class Pipes:
    """Both directions, and what the other side has written beforehand."""

    def __init__(self, stack: ExitStack, *messages: object, lowest_fd: int = 0) -> None:
        answers, self.into = os.pipe()
        asked, commands = os.pipe()
        for message in messages:
            os.write(self.into, json.dumps(message).encode() + b"\n")
        moved = fcntl.fcntl(answers, fcntl.F_DUPFD, lowest_fd)
        os.close(answers)
        self.replies = stack.enter_context(os.fdopen(moved, "rb", buffering=0))
        self.commands = stack.enter_context(os.fdopen(commands, "wb", buffering=0))
        self.asked = stack.enter_context(os.fdopen(asked, "rb", buffering=0))
        stack.callback(self.end)

    def end(self) -> None:
        if self.into >= 0:
            os.close(self.into)
        self.into = -1


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


GREETING: dict[str, object] = {"QMP": {"version": {}}}


def test_events_between_a_command_and_its_answer_are_dropped(stack: ExitStack) -> None:
    pipes = Pipes(stack, GREETING, {"return": {}}, {"event": "STOP"}, {"return": {"status": "paused"}})
    monitor = Monitor(pipes.replies, pipes.commands)
    monitor.open()

    assert monitor.execute("query-status") == {"status": "paused"}
    asked = [json.loads(line)["execute"] for line in pipes.asked.read(4096).splitlines()]
    assert asked == ["qmp_capabilities", "query-status"]


def test_descriptor_above_what_select_can_hold(stack: ExitStack) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= _FD_SETSIZE:
        pytest.skip("this process may not have so many descriptors")
    pipes = Pipes(stack, GREETING, {"return": {}}, lowest_fd=_FD_SETSIZE)

    assert pipes.replies.fileno() >= _FD_SETSIZE
    Monitor(pipes.replies, pipes.commands).open()


def test_refusal_and_end_are_said(stack: ExitStack) -> None:
    pipes = Pipes(stack, {"error": {"class": "GenericError", "desc": "no such device"}})
    monitor = Monitor(pipes.replies, pipes.commands)

    with pytest.raises(MonitorError, match="monitor command eject: no such device"):
        monitor.execute("eject")
    with pytest.raises(MonitorError, match="does not answer in time"):
        monitor.execute("stop", timeout_s=0.01)
    pipes.end()
    with pytest.raises(MonitorError, match="qemu is gone"):
        monitor.execute("stop")
