"""
Time of commands that go over all of a dump: postpanic and crash on the same one, a guest with 10,000 tasks.

The contenders take turns, round after round, so that a machine whose speed
drifts is unfair to none; ratios are formed within a round. Every run is a whole
process that opens the dump, answers one command, and ends. A run that answers
nothing tells what of that is opening; the rest is the command's own.

On a machine with other work the CPU time says more than the wall time.

Usage::

    python benchmarks/commands.py [--rounds 5] [--dump FILE --vmlinux FILE] [--only "foreach bt"]

Without ``--dump`` the lab makes the dump (or takes the cached one), fetches
the kernel's debug information for crash, and the newest crash. postpanic has
no debug information but what it made of the dump before the first round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("foreach bt", "ps", "kmem -s", "search deadbeefdeadbeef")
OPENING = ""
LIMITS_S = {"foreach bt": 10.0}
"""How long the answer of a command may take, opening included."""


@dataclass
class Contender:
    """A program, and what its runs of each command took."""

    name: str
    command: Sequence[str]
    takes_stdin: bool
    wall_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    peak_mib: dict[str, list[float]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def run_once(self, line: str, *, is_counted: bool) -> None:
        """Run to the end and note wall time, peak resident memory and how much was printed."""
        words = [*self.command, *([] if self.takes_stdin or line == OPENING else ["-e", line])]
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(f"set scroll off\n{line}\nquit\n".encode() if self.takes_stdin else b"")
            given.seek(0)
            started = time.monotonic()
            child = subprocess.Popen(words, stdin=given, stdout=printed, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            wall_s = time.monotonic() - started
            child.returncode = os.waitstatus_to_exitcode(status)
            printed.seek(0)
            count = sum(1 for _ in printed)
        if is_counted:
            self.cpu_s.setdefault(line, []).append(usage.ru_utime + usage.ru_stime)
            self.wall_s.setdefault(line, []).append(wall_s)
            self.peak_mib.setdefault(line, []).append(usage.ru_maxrss / 1024)
            self.lines[line] = count

    def own_s(self, line: str) -> list[float]:
        """Return what the command took beyond opening, round by round."""
        return [
            max(whole - opening, 0.001) for whole, opening in zip(self.wall_s[line], self.wall_s[OPENING], strict=True)
        ]


def print_table(ours: Contender, theirs: Contender, commands: Sequence[str]) -> None:
    """Print medians of both, and ratios paired by round."""
    print(f"{'':28}{'wall s':>8}{'min':>7}{'max':>7}{'own s':>8}{'CPU s':>8}{'peak MiB':>10}{'lines':>9}")
    for line in (OPENING, *commands):
        for contender in (ours, theirs):
            wall = contender.wall_s[line]
            print(
                f"{(line or 'opening')[:16]:17}{contender.name:11}{statistics.median(wall):8.2f}{min(wall):7.2f}"
                f"{max(wall):7.2f}{statistics.median(contender.own_s(line)):8.2f}"
                f"{statistics.median(contender.cpu_s[line]):8.2f}"
                f"{statistics.median(contender.peak_mib[line]):10.0f}{contender.lines[line]:9d}"
            )
    print()
    for line in (OPENING, *commands):
        whole = statistics.median(b / a for a, b in zip(ours.wall_s[line], theirs.wall_s[line], strict=True))
        own = statistics.median(b / a for a, b in zip(ours.own_s(line), theirs.own_s(line), strict=True))
        cpu = statistics.median(b / a for a, b in zip(ours.cpu_s[line], theirs.cpu_s[line], strict=True))
        verdict = f"crash takes {whole:.1f} times as long, {cpu:.1f} times the CPU"
        verdict += f"; {own:.1f} times as long without opening" if line else ""
        limit = LIMITS_S.get(line)
        took = statistics.median(ours.wall_s[line])
        verdict += f"; {took:.1f} s of at most {limit:.0f} s" if limit else ""
        print(f"{line or 'opening'}: {verdict}")


def lab_dump() -> tuple[Path, Path]:
    """Get the dump of a guest with 10,000 tasks from the lab, and its vmlinux."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.vm.lab import Lab, Recipe, default_cache_dir

    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr))
    crash = lab.crash(Recipe.choose("6.12", "many-tasks"))
    return crash.filtered, lab.fetch_debug_info("6.12", crash.kernel).vmlinux


def newest_crash() -> tuple[str, ...]:
    """Return the command of Debian's newest crash."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.compat.crash_oracle import fetch_oracle
    from tests.vm.lab import default_cache_dir

    return fetch_oracle(default_cache_dir()).program.command


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--vmlinux", type=Path)
    parser.add_argument("--crash", help="program to run as crash, instead of Debian's newest")
    parser.add_argument("--only", action="append", help="a command line to time, instead of the usual ones")
    arguments = parser.parse_args()
    if (arguments.dump is None) != (arguments.vmlinux is None):
        parser.error("--dump and --vmlinux go together")
    dump, vmlinux = (arguments.dump, arguments.vmlinux) if arguments.dump else lab_dump()
    crash = [arguments.crash] if arguments.crash else list(newest_crash())
    commands = tuple(arguments.only or COMMANDS)
    print(f"{dump} ({dump.stat().st_size / (1 << 20):.0f} MiB), {arguments.rounds} rounds after one warm-up")
    with tempfile.TemporaryDirectory(prefix="postpanic-bench-") as scratch:
        python = [sys.executable, "-m", "postpanic", "open", "-s", "--debuginfo", "synth"]
        ours = Contender("postpanic", ["env", f"XDG_CACHE_HOME={scratch}", *python, str(dump)], takes_stdin=False)
        theirs = Contender("crash", [*crash, "-s", str(vmlinux), str(dump)], takes_stdin=True)
        for number in range(arguments.rounds + 1):
            for line in (OPENING, *commands):
                for contender in (ours, theirs):
                    contender.run_once(line, is_counted=number > 0)
        print_table(ours, theirs, commands)


if __name__ == "__main__":
    main()
