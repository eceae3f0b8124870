"""
gdb on a dump with 10,000 tasks: time to the first prompt, and of ``info threads``.

Each round is a whole session: postpanic opens the dump, starts gdb, gdb connects
and reads the list of threads (first prompt), then shows all of them. The times
are taken inside gdb and by ours; "open" is how long the dump takes to open alone.

Usage::

    python benchmarks/gdb.py [--rounds 3] [--arm64 | --dump FILE]

Without ``--dump`` the lab crashes a kernel with 10,000 threads, or takes the dump
from its cache; with ``--arm64`` an emulated arm64 machine, whose dump gdb-multiarch reads.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_PROMPT_S = 2.0
GOAL_THREADS_S = 5.0
CLOCK = "python import time; print('at', time.time())"


def lab_dump() -> Path:
    """Get the dump from the lab."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.vm.lab import Lab, Recipe, default_cache_dir

    return Lab(default_cache_dir(), say=print).crash(Recipe.choose("6.12", "many-tasks")).filtered


def arm64_dump() -> Path:
    """Get the dump of an emulated arm64 machine from the lab."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.vm.arm64_work import fetch_work
    from tests.vm.lab import Lab, default_cache_dir

    return fetch_work(Lab(default_cache_dir(), say=print), "6.12", "many-tasks").dump


def measure_open(dump: Path) -> float:
    """Open the dump at the prompt, and leave."""
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", "postpanic", "open", "-s", "-e", "q", str(dump)], check=True, capture_output=True
    )
    return time.time() - started


def measure_session(dump: Path) -> tuple[float, float, int]:
    """Run a session; seconds to gdb's first prompt, of ``info threads``, and how many there were."""
    words = ["-nx", "-batch", "-ex", CLOCK, "-ex", "info threads", "-ex", CLOCK]
    started = time.time()
    finished = subprocess.run(
        [sys.executable, "-m", "postpanic", "gdb", str(dump), "--", *words], check=True, capture_output=True, text=True
    )
    first, last = (float(found) for found in re.findall(r"^at ([0-9.]+)$", finished.stdout, re.MULTILINE))
    return first - started, last - first, len(re.findall(r"^[* ] +\d+ +Thread ", finished.stdout, re.MULTILINE))


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--arm64", action="store_true", help="a dump of an emulated arm64 machine")
    arguments = parser.parse_args()
    dump = arguments.dump or (arm64_dump() if arguments.arm64 else lab_dump())
    measure_open(dump)
    prompts, threads = [], []
    for _ in range(arguments.rounds):
        opened = measure_open(dump)
        prompt, listing, count = measure_session(dump)
        prompts.append(prompt - opened)
        threads.append(listing)
        print(
            f"open {opened:5.2f} s   first prompt {prompt:5.2f} s ({prompt - opened:+.2f} s)   "
            f"info threads {listing:5.2f} s ({count} threads)   load {os.getloadavg()[0]:.1f}"
        )
    print(
        f"median: first prompt {statistics.median(prompts):.2f} s after the dump is open (goal {GOAL_PROMPT_S:.0f} s), "
        f"info threads {statistics.median(threads):.2f} s (goal {GOAL_THREADS_S:.0f} s)"
    )


if __name__ == "__main__":
    main()
