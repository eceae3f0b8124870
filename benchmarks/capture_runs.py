"""One crash of the benchmark's guest: armed one way or the other, timed from its console, its dump judged."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from benchmarks.capture_guest import MEMORY_MIB, Guest, make_run_disk, spell_command_line

from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.pages.selftest import check_dump
from postpanic.process import find_program, run
from postpanic.rehearse.machine import HEADROOM, Disk, Machine, MachineConfig

__all__ = ["MEMORY_LINE", "ConsoleClock", "Run", "Side", "crash_once"]

TICK_S = 0.02
BOOT_TIMEOUT_S = 90.0
SILENCE_TIMEOUT_S = 25.0
DUMP_DIR = "/var/crash"
CAPTURE_KERNEL = r"Linux version \d"
MEMORY_LINE = r"Memory: (\d+)K/(\d+)K available"
END = "sh -c 'echo bench: crash; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger'\n"
# Left out where the memory is scarce: here the dump is tested anyway.
OPTIONAL_EVENTS = frozenset({"tested"})
FAILED_ARMING = r"bench: failed:.*|end Kernel panic - not syncing.*"
CRASHED = r"(?:sysrq: Trigger a crash|Kernel panic - not syncing: sysrq)"
ENDED = r"reboot: Restarting system|reboot: Power down|Rebooting in \d+ seconds|end Kernel panic - not syncing"


@dataclass(frozen=True)
class Side:
    """
    A way to be armed.

    Attributes
    ----------
    name : str
        ``ours`` or ``kdump-tools``.
    arm : str
        Shell script of the guest.
    files : mapping
        What the script needs.
    command_line : tuple of str
        Words for the guest's kernel.
    events : mapping
        Name of an event: what the console says then. In the order in which they happen, after the capture kernel
        has begun.
    dump_pattern : str
        Of the dump's name below ``/var/crash``.
    root : Path, optional
        A disk of its own.
    """

    name: str
    arm: str
    events: Mapping[str, str]
    dump_pattern: str
    files: Mapping[str, bytes | str | Path] = field(default_factory=dict)
    command_line: tuple[str, ...] = ()
    root: Path | None = None


@dataclass
class Run:
    """
    What came of one crash.

    Attributes
    ----------
    seconds : dict
        Event: time since the panic.
    cpu_seconds : dict
        Event: what QEMU has used of the CPU since the panic; a host with other things to do does not make it longer.
    failure : str
        Why there is no good dump; empty if there is one.
    memory : dict
        Lowest and highest of ``/proc/meminfo`` in the capture kernel, KiB, where it was watched; and what the kernel
        said of itself.
    """

    side: str
    flavour: str
    crashkernel_mib: int
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    dump_bytes: int = 0
    log_bytes: int = 0
    self_test: str = ""
    memory: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether there is a dump that has all that a debugger needs."""
        return not self.failure


class Moment(NamedTuple):
    """When a line of the console has come: by the clock, and in seconds of CPU that QEMU had used."""

    wall_s: float
    cpu_s: float
    line: str


class ConsoleClock:
    """Notes when each line of a console has come, in a thread of its own."""

    def __init__(self, console: Path, pid: int) -> None:
        self.lines: list[Moment] = []
        self._console = console
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(2 * TICK_S)
        self._stop.set()
        self._thread.join()

    def find(self, pattern: str, *, after: int = 0) -> int | None:
        """Return the number of the first line that has a pattern."""
        expression = re.compile(pattern)
        found = (number for number, it in enumerate(self.lines) if number >= after and expression.search(it.line))
        return next(found, None)

    def _run(self) -> None:
        rest = b""
        with self._console.open("rb") as stream:
            is_over = False
            while not is_over:
                # Once more after the end: the last lines count most, and a busy host is late.
                is_over = self._stop.wait(TICK_S)
                now, used = time.monotonic(), _read_cpu_s(self._pid)
                *lines, rest = (rest + stream.read()).split(b"\n")
                lines += [rest] if is_over and rest else []
                self.lines += [Moment(now, used, line.decode(errors="replace").rstrip("\r")) for line in lines]


def _read_cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its threads (proc(5), ``stat``: utime and stime)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def crash_once(
    guest: Guest, side: Side, crashkernel_mib: int, *, cache_dir: Path, timeout_s: float, keep: Path | None = None
) -> Run:
    """
    Boot, arm, crash, wait for the end, judge; for holders of the lab's lock: one guest at a time.

    Parameters
    ----------
    timeout_s : float
        From the panic to the end on an idle machine; after that it has failed.
    keep : Path, optional
        Gets the console, and the directory of the dump.
    """
    result = Run(side.name, guest.flavour, crashkernel_mib)
    with tempfile.TemporaryDirectory(prefix="capture-", dir=cache_dir) as name:
        directory = Path(name)
        disk = directory / "root.img"
        run([find_program("cp"), "--sparse=always", "--reflink=auto", side.root or guest.root, disk])
        job = make_run_disk(directory / "run.img", {"arm.sh": side.arm, "end.sh": END, **side.files})
        config = MachineConfig(
            kernel=guest.kernel,
            initrd=guest.initrd,
            command_line=spell_command_line(f"{crashkernel_mib}M", *side.command_line),
            disks=(Disk(disk), Disk(job)),
            memory_mib=MEMORY_MIB,
        )
        _crash(config, directory, timeout_s, side, result)
        _judge(disk, directory / "crash", side, result)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / "console.log", keep)
            if (directory / "crash").exists():
                shutil.copytree(directory / "crash", keep / "crash", dirs_exist_ok=True)
    return result


def _crash(config: MachineConfig, directory: Path, timeout_s: float, side: Side, result: Run) -> None:
    with Machine(config, directory) as machine, ConsoleClock(machine.console, machine.pid) as clock:
        try:
            machine.wait_for(CRASHED, timeout_s=BOOT_TIMEOUT_S, failure=FAILED_ARMING)
            # The deadlines are tight: most of what is too small ends in no other way.
            machine.wait_for(rf"{CRASHED}[\s\S]*{CAPTURE_KERNEL}", timeout_s=SILENCE_TIMEOUT_S / HEADROOM)
            machine.wait_for(rf"{CRASHED}[\s\S]*{CAPTURE_KERNEL}[\s\S]*({ENDED})", timeout_s=timeout_s / HEADROOM)
        except PostpanicError as exc:
            result.failure = exc.message
    _time_events(clock, side, result)
    _read_memory(clock, result)


def _time_events(clock: ConsoleClock, side: Side, result: Run) -> None:
    start = clock.find(CRASHED)
    if start is None:
        result.failure = result.failure or "no panic"
        return
    zero = clock.lines[start]
    at = start
    for name, pattern in {"capture kernel": CAPTURE_KERNEL, **side.events, "end": ENDED}.items():
        found = clock.find(pattern, after=at)
        if found is None:
            if name not in OPTIONAL_EVENTS:
                result.failure = result.failure or f"not on the console: {pattern}"
            continue
        result.seconds[name] = round(clock.lines[found].wall_s - zero.wall_s, 2)
        result.cpu_seconds[name] = round(clock.lines[found].cpu_s - zero.cpu_s, 2)
        at = found
    wanted = r"Out of memory|oom-kill:|invoked oom-killer|Kernel panic|postpanic: |internal error"
    result.messages = [it.line for it in clock.lines[start:] if re.search(wanted, it.line)]


def _read_memory(clock: ConsoleClock, result: Run) -> None:
    begin = clock.find(CAPTURE_KERNEL, after=clock.find(CRASHED) or 0)
    for _, _, line in clock.lines[begin or 0 :]:
        if found := re.search(MEMORY_LINE + r" \((.*)\)", line):
            result.memory |= {"kernel available": int(found[1]), "kernel total": int(found[2])}
            for size, what in re.findall(r"(\d+)K ([a-z-]+(?: code)?)", found[3]):
                result.memory[f"kernel {what}"] = int(size)
        if found := re.search(r"memwatch: large (\S+) (\S+) (\d+)", line):
            name = f"large {found[1]} {found[2].partition('+')[0]}"
            result.memory[name] = result.memory.get(name, 0) + int(found[3])
        elif line.startswith("memwatch: "):
            figures = {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", line)}
            for name, value in figures.items():
                low, high = f"low {name}", f"high {name}"
                result.memory[low] = min(value, result.memory.get(low, value))
                result.memory[high] = max(value, result.memory.get(high, value))


def _judge(disk: Path, place: Path, side: Side, result: Run) -> None:
    """Take the dump off the disk, and test it."""
    place.mkdir()
    # The journal is replayed as at the next boot; what is not in it then was not safe.
    run([find_program("e2fsck"), "-fy", disk], check=False)
    run([find_program("debugfs"), "-R", f"rdump {DUMP_DIR} {place}", disk])
    dumps = sorted(path for path in place.rglob(side.dump_pattern) if path.is_file())
    logs = [path for path in place.rglob("*dmesg*") if path.is_file()]
    result.log_bytes = max((path.stat().st_size for path in logs), default=0)
    if not dumps:
        left = ", ".join(f"{path.name} {path.stat().st_size}" for path in sorted(place.rglob("*")) if path.is_file())
        result.failure = result.failure or f"no dump; there is {left or 'nothing'}"
        return
    result.dump_bytes = dumps[-1].stat().st_size
    try:
        with open_dump(dumps[-1]) as dump:
            test = check_dump(dump)
    except PostpanicError as exc:
        result.failure = f"the dump: {exc}"
        return
    result.self_test = test.summary
    if test.failures:
        result.failure = result.failure or f"self-test: {test.summary}"
