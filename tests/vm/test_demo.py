"""The demo: what it shows of a dump, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.process import run
from tests.vm.demo import ConsoleFilter
from tests.vm.lab import Crash, default_cache_dir

DEMO = [sys.executable, "-m", "tests.vm.demo"]
ROOT = Path(__file__).parents[2]


def processes_of(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if word.encode() in command and b"qemu-system" in command.split(b"\0")[0]:
            found.append(path.parent.name)
    return found


def test_demo_shows_who_crashed_with_nothing_but_the_dump(crashed: Callable[..., Crash], tmp_path: Path) -> None:
    crash = crashed("6.1")
    # An empty cache of debug information, but the kernels and dumps that are there.
    (tmp_path / "postpanic").mkdir()
    (tmp_path / "postpanic" / "lab").symlink_to(default_cache_dir())
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    shown = run([*DEMO, "--cached"], cwd=ROOT, env=environment).stdout.decode()
    steps = re.findall(r"^\[(\d)/7\] .+$", shown, re.MULTILINE)
    assert steps == ["1", "2", "3", "4", "5", "6", "7"]
    assert re.search(r"^verdict: +good$", shown, re.MULTILINE)
    assert re.search(rf"^kernel: +{re.escape(crash.release)}$", shown, re.MULTILINE)
    assert re.search(r"^ +KERNEL: synthesized from the dump", shown, re.MULTILINE)
    assert re.search(r'^ +PANIC: "Kernel panic - not syncing: sysrq triggered crash"$', shown, re.MULTILINE)
    assert re.search(r'^PID: \d+ +TASK: [0-9a-f]+ +CPU: \d +COMMAND: "panic-maker"$', shown, re.MULTILINE)
    assert re.search(r"^ #\d \[[0-9a-f]+\] sysrq_handle_crash at ", shown, re.MULTILINE)
    assert re.search(r"^\[ +[0-9.]+\] Kernel panic - not syncing: sysrq triggered crash$", shown, re.MULTILINE)
    commands = re.findall(r"^\$ (.*)$", shown, re.MULTILINE)
    assert len(commands) == 4
    assert "vmlinux" not in " ".join(commands)
    assert "unavailable" not in shown
    assert re.search(rf"open {re.escape(str(tmp_path / 'postpanic/lab/captures'))}/\S+/vmcore$", shown.rstrip())


def test_demo_without_its_programs_says_what_to_do(crashed: Callable[..., Crash], tmp_path: Path) -> None:
    crashed("6.1")
    environment = {**os.environ, "PATH": str(tmp_path)}
    finished = run([*DEMO, "--cached"], cwd=ROOT, env=environment, check=False)
    assert finished.returncode == 1
    assert b"programs are not installed" in finished.stderr
    assert b"scripts/setup-machine" in finished.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.matrix)])
def test_demo_that_is_stopped_leaves_neither_machine_nor_half_a_dump(
    number: signal.Signals, crashed: Callable[..., Crash]
) -> None:
    crashed("6.1")
    crashes = default_cache_dir() / "crashes"
    before = set(crashes.glob(".demo-*.build"))
    kept = set(crashes.glob("demo-*"))
    with subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        try:
            assert demo.stdout is not None
            while b"Linux version" not in demo.stdout.readline():
                assert demo.poll() is None
            (work,) = set(crashes.glob(".demo-*.build")) - before
            assert processes_of(work.name)
            demo.send_signal(number)
            _, messages = demo.communicate(timeout=60)
        finally:
            demo.kill()
    assert demo.returncode == 128 + number
    assert b"Traceback" not in messages
    assert not work.exists()
    assert set(crashes.glob("demo-*")) == kept
    deadline = time.monotonic() + 10
    while processes_of(work.name) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(work.name)


def test_panic_is_shown_whole_and_of_the_boots_the_landmarks() -> None:
    console = [
        ("[    0.000000] Linux version 6.1.0", True),
        ("[    0.010191] last_pfn = 0x3ffd4", False),
        ("lab: loaded, 238 processes", True),
        ("[   21.571681] sysrq: Trigger a crash", True),
        ("[   21.574049]  dump_stack_lvl+0x44/0x5c", True),
        ("[    0.000000] Linux version 6.1.0", True),
        ("[    0.014466] Using GB pages for direct mapping", False),
        ("lab: Mem:         220680       17644", False),
        ("lab:               total        used", False),
        ("crash: saved 846225408 bytes", True),
    ]
    shown = ConsoleFilter()
    assert [shown.takes(line) for line, _ in console] == [expected for _, expected in console]
