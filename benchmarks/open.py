"""
Time from the shell to the first backtrace: postpanic, crash and bare drgn on the same dump.

The contenders take turns, round after round, so that a machine whose speed
drifts is unfair to none; ratios are formed within a round. Every run is a
whole process: start of the interpreter, opening, ``bt``, end.

Usage::

    python benchmarks/open.py [--rounds 5] [--arm64 | --dump FILE --vmlinux FILE]

Without ``--dump`` the lab crashes a Debian kernel (or takes the cached dump)
and fetches its debug information for the peers; with ``--arm64`` kernels of that,
in emulation. crash analyses dumps of the machine only that it was built for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CRASH_INPUT = b"bt\nquit\n"
DRGN_SCRIPT = """\
import importlib.metadata
from drgn.commands import run_command
for entry in importlib.metadata.entry_points(group="drgn.plugins"):
    entry.load()
run_command(prog, "crash bt")
"""


@dataclass
class Contender:
    """One way to get to a backtrace, and what its runs took."""

    name: str
    command: Sequence[str]
    stdin: bytes = b""
    cache: Path | None = None
    """Directory to empty before each run, None to leave caches alone."""
    wall_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    frames: int = 0

    def run_once(self) -> None:
        """Run to the end and note wall time and peak resident memory of the largest process."""
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(self.stdin)
            given.seek(0)
            started = time.monotonic()
            child = subprocess.Popen(list(self.command), stdin=given, stdout=printed, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            self.wall_s.append(time.monotonic() - started)
            child.returncode = os.waitstatus_to_exitcode(status)
            self.peak_mib.append(usage.ru_maxrss / 1024)
            printed.seek(0)
            self.frames = sum(line.lstrip().startswith(b"#") for line in printed.read().splitlines())


def build_contenders(dump: Path, vmlinux: Path, scratch: Path, crash: str) -> list[Contender]:
    """List who takes part; crash only where it is installed."""
    python = sys.executable
    script = scratch / "bt.py"
    script.write_text(DRGN_SCRIPT)
    postpanic = [python, "-m", "postpanic", "open", "-s", "--debuginfo", "synth", "-e", "bt"]
    cold, warm = scratch / "cold", scratch / "warm"
    contenders = [
        Contender("postpanic, from nothing", ["env", f"XDG_CACHE_HOME={cold}", *postpanic, str(dump)], cache=cold),
        Contender("postpanic, from the cache", ["env", f"XDG_CACHE_HOME={warm}", *postpanic, str(dump)]),
        Contender("drgn with vmlinux", [python, "-m", "drgn", "-q", "-c", str(dump), "-s", str(vmlinux), str(script)]),
    ]
    program = shutil.which(crash)
    if program and read_elf_machine(vmlinux) == read_elf_machine(Path(sys.executable).resolve()):
        contenders.append(Contender("crash with vmlinux", [program, "-s", str(vmlinux), str(dump)], stdin=CRASH_INPUT))
    return contenders


def read_elf_machine(path: Path) -> bytes:
    """Read ``e_machine`` of an ELF file."""
    with path.open("rb") as file:
        return file.read(20)[18:]


def print_table(contenders: Sequence[Contender]) -> None:
    """Print medians, and the ratio of each contender to the first two, paired by round."""
    print(f"{'':28}{'wall s':>8}{'min':>7}{'max':>7}{'peak MiB':>10}{'frames':>8}{'/nothing':>10}{'/cache':>8}")
    for contender in contenders:
        ratios = [
            statistics.median(mine / theirs for mine, theirs in zip(contender.wall_s, reference.wall_s, strict=True))
            for reference in contenders[:2]
        ]
        print(
            f"{contender.name:28}{statistics.median(contender.wall_s):8.2f}{min(contender.wall_s):7.2f}"
            f"{max(contender.wall_s):7.2f}{statistics.median(contender.peak_mib):10.0f}{contender.frames:8d}"
            f"{ratios[0]:10.1f}{ratios[1]:8.1f}"
        )


def lab_dumps() -> list[tuple[Path, Path]]:
    """Get dumps and their vmlinux from the lab: filtered and raw, of two kernels."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.vm.lab import crashed_with_debuginfo

    found = []
    for kernel in ("6.1", "6.12"):
        crashed = crashed_with_debuginfo(kernel)
        found += [(crashed.filtered, crashed.vmlinux), (crashed.raw, crashed.vmlinux)]
    return found


def arm64_dumps() -> list[tuple[Path, Path]]:
    """Get filtered dumps of emulated arm64 machines, and their vmlinux."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.vm.arm64 import fetch_dump
    from tests.vm.arm64_debug import fetch_debug_info
    from tests.vm.lab import Lab, default_cache_dir

    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr))
    dumps = {key: fetch_dump(lab, key) for key in ("6.1", "6.12")}
    return [(dump.path, fetch_debug_info(lab, key, dump).vmlinux) for key, dump in dumps.items()]


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--vmlinux", type=Path)
    parser.add_argument("--arm64", action="store_true", help="dumps of emulated arm64 machines")
    parser.add_argument("--crash", default="crash", help="program to run as crash; newer kernels need a newer one")
    arguments = parser.parse_args()
    if (arguments.dump is None) != (arguments.vmlinux is None):
        parser.error("--dump and --vmlinux go together")
    choose = arm64_dumps if arguments.arm64 else lab_dumps
    pairs = [(arguments.dump, arguments.vmlinux)] if arguments.dump else choose()
    for dump, vmlinux in pairs:
        print(f"{dump} ({dump.stat().st_size / (1 << 20):.0f} MiB), {arguments.rounds} rounds after one warm-up")
        with tempfile.TemporaryDirectory(prefix="postpanic-bench-") as scratch:
            contenders = build_contenders(dump, vmlinux, Path(scratch), arguments.crash)
            for number in range(arguments.rounds + 1):
                for contender in contenders:
                    contender.run_once()
                    if number == 0:
                        contender.wall_s.clear()
                        contender.peak_mib.clear()
            print_table(contenders)


if __name__ == "__main__":
    main()
