"""
Time of commands that go over all of a dump: postpanic and crash on the same one, a guest with 10,000 tasks.

The contenders take turns, round after round, so that a machine whose speed
drifts is unfair to none; ratios are formed within a round. Every run is a whole
process that opens the dump, answers one command, and ends. A run that answers
nothing tells what of that is opening; the rest is the command's own.

On a machine with other work the CPU time says more than the wall time.

Usage::

    python benchmarks/commands.py [--rounds 5] [--arm64 | --dump FILE --vmlinux FILE] [--only "foreach bt"]

Without ``--dump`` the lab makes the dump (or takes the cached one), fetches
the kernel's debug information for crash, and the newest crash. postpanic has
no debug information but what it made of the dump before the first round.

With ``--arm64`` the guest is an emulated arm64 machine, and the peer is drgn with
its commands of crash's names: no crash for x86-64 reads dumps of arm64, and one for
arm64 would run in emulation. A crash that was built with ``target=ARM64`` is for
``--crash``.
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
DRGN_COMMANDS = ("foreach bt", "ps", "kmem -s")
"""What drgn has, too; its search cannot go through dumps without gaps."""
OPENING = ""
DRGN_SCRIPT = """\
import importlib.metadata, sys
import drgn
from drgn.commands import run_command
dump, vmlinux, *line = sys.argv[1:]
prog = drgn.Program()
prog.set_core_dump(dump)
prog.load_debug_info([vmlinux])
for entry in importlib.metadata.entry_points(group="drgn.plugins"):
    entry.load()
if line:
    run_command(prog, "crash " + line[1])
"""
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
        verdict = f"{theirs.name} takes {whole:.1f} times as long, {cpu:.1f} times the CPU"
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


def arm64_dump() -> tuple[Path, Path]:
    """Get the dump of an emulated arm64 guest with 10,000 tasks, and its vmlinux."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.vm.arm64 import KERNELS
    from tests.vm.arm64_work import fetch_work
    from tests.vm.lab import Lab, default_cache_dir

    from postpanic.rehearse.kernels import KernelStore

    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr))
    work = fetch_work(lab, "6.12", "many-tasks")
    return work.dump, KernelStore(lab.cache_dir).fetch_debug_info(KERNELS["6.12"], work.kernel, []).vmlinux


def newest_crash() -> tuple[str, ...]:
    """Return the command of Debian's newest crash."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.compat.crash_oracle import fetch_oracle
    from tests.vm.lab import default_cache_dir

    return fetch_oracle(default_cache_dir()).program.command


def build_peer(crash: str | None, dump: Path, vmlinux: Path, scratch: Path, *, has_crash: bool) -> Contender:
    """Tell who is compared with."""
    if has_crash:
        command = [crash] if crash else list(newest_crash())
        return Contender("crash", [*command, "-s", str(vmlinux), str(dump)], takes_stdin=True)
    script = scratch / "drgn_commands.py"
    script.write_text(DRGN_SCRIPT)
    return Contender("drgn", [sys.executable, str(script), str(dump), str(vmlinux)], takes_stdin=False)


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--vmlinux", type=Path)
    parser.add_argument("--arm64", action="store_true", help="a dump of an emulated arm64 machine")
    parser.add_argument("--crash", help="program to run as crash, instead of Debian's newest")
    parser.add_argument("--only", action="append", help="a command line to time, instead of the usual ones")
    arguments = parser.parse_args()
    if (arguments.dump is None) != (arguments.vmlinux is None):
        parser.error("--dump and --vmlinux go together")
    choose = arm64_dump if arguments.arm64 else lab_dump
    dump, vmlinux = (arguments.dump, arguments.vmlinux) if arguments.dump else choose()
    has_crash = bool(arguments.crash) or not arguments.arm64
    commands = tuple(arguments.only or (COMMANDS if has_crash else DRGN_COMMANDS))
    print(f"{dump} ({dump.stat().st_size / (1 << 20):.0f} MiB), {arguments.rounds} rounds after one warm-up")
    with tempfile.TemporaryDirectory(prefix="postpanic-bench-") as scratch:
        python = [sys.executable, "-m", "postpanic", "open", "-s", "--debuginfo", "synth"]
        ours = Contender("postpanic", ["env", f"XDG_CACHE_HOME={scratch}", *python, str(dump)], takes_stdin=False)
        theirs = build_peer(arguments.crash, dump, vmlinux, Path(scratch), has_crash=has_crash)
        for number in range(arguments.rounds + 1):
            for line in (OPENING, *commands):
                for contender in (ours, theirs):
                    contender.run_once(line, is_counted=number > 0)
        print_table(ours, theirs, commands)


if __name__ == "__main__":
    main()
