"""A task that hangs: here it is seen to hang, and is ended; whether that is a panic is up to the kernel's settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from postpanic.errors import PostpanicError
from postpanic.rehearse.hanging import hang_a_task


def find_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def find_children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may let faults in the kernel wait for it")
def test_a_process_waits_for_what_nothing_ends() -> None:
    program = f"from postpanic.rehearse.hanging import hang_a_task; hang_a_task({os.uname().machine!r})"
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, start_new_session=True)
    try:
        end = time.monotonic() + 60
        states: list[str] = []
        while "D" not in states and time.monotonic() < end and parent.poll() is None:
            time.sleep(0.2)
            states = [find_state(pid) for pid in find_children(parent.pid)]
        if parent.poll() is not None:
            assert parent.stderr is not None
            pytest.skip(parent.stderr.read().decode().splitlines()[-1])
        assert sorted(states) == ["D", "S"]
    finally:
        # The one that holds the pipe waits for a page, which can be ended: so the other one gets it, and its signal.
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate(timeout=60)


def test_other_machines_are_refused() -> None:
    with pytest.raises(PostpanicError, match="no task can be made to hang on mips"):
        hang_a_task("mips")
