"""What only looks at a machine changes nothing of it: every call by which Python could is watched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.capture.status.machines import StatusTree, arm_debian, arm_machine
from tests.unit.capture.status.test_machines import take_snapshot

# The table of audit events of Python's library reference; a device or a sysctl is changed by opening it for writing,
# a mount, a module or a loop device by ctypes, by ioctl or by a program.
WATCHED = """
import os, sys
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NAMES = {"os." + name for name in (
    "chmod chown link mkdir remove removexattr rename rmdir setxattr symlink truncate utime lockf "
    "exec fork forkpty kill killpg posix_spawn spawn system"
).split()} | {"fcntl.ioctl", "ctypes.dlsym", "ctypes.dlsym/handle", "syslog.syslog"}
KINDS = ("subprocess", "shutil", "tempfile", "socket")
seen = []
def watch(event, values):
    if event == "open" and values[2] & CHANGING and values[0] not in (1, 2):
        seen.append(f"open {values[0]} {values[2]:#o}")
    elif event in NAMES or event.split(".")[0] in KINDS:
        seen.append(f"{event} {values}")
sys.addaudithook(watch)
from postpanic.cli.app import main
status = main(sys.argv[1:])
sys.stdout.flush()
print(*(f"watched: {line}" for line in seen), sep="\\n", file=sys.stderr)
sys.exit(status)
"""
MACHINES = ("/proc/self/mounts", "/proc/swaps", "/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops")


def watch(*words: str | Path) -> tuple[int, str, list[str]]:
    """Run a verb; return its status, its output, and what it did besides reading."""
    command = [sys.executable, "-B", "-c", WATCHED, *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    return (
        done.returncode,
        done.stdout,
        [line.removeprefix("watched: ") for line in done.stderr.splitlines() if line.startswith("watched: ")],
    )


def look_at_this_machine() -> dict[str, str]:
    found = {name: Path(name).read_text() for name in MACHINES if Path(name).exists()}
    return found | {"disks": str(sorted(path.name for path in Path("/sys/block").glob("*")))}


@pytest.mark.parametrize("words", [("status",), ("status", "--json", "--strict"), ("crashkernel",), ("list",)])
def test_this_machine_is_only_read(words: tuple[str, ...]) -> None:
    before = look_at_this_machine()
    status, out, changes = watch(*words)
    assert status in {0, 4}
    assert out or words == ("list",)
    assert changes == []
    assert look_at_this_machine() == before


@pytest.mark.parametrize("make", [arm_machine, arm_debian])
def test_an_armed_tree_is_only_read(tmp_path: Path, make: Callable[[Path], StatusTree]) -> None:
    tree = make(tmp_path)
    before = take_snapshot(tmp_path)
    status, out, changes = watch("status", "--verbose", "--root", tree.root)
    assert (status, changes) == (0, [])
    assert "ready: a crash will be captured" in out
    assert take_snapshot(tmp_path) == before


def test_what_changes_something_is_seen(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    _, _, changes = watch("crashkernel", "set", "300M", "--root", tree.root)
    assert any(line.startswith("open ") and str(tree.root) in line for line in changes)
    assert any(line.startswith("os.rename ") for line in changes)
