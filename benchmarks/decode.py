"""
How fast a log is symbolised: ours and the kernel's scripts/decode_stacktrace.sh on the same log and the same vmlinux.

The log is a call trace of distinct functions of that vmlinux, chosen evenly over its text. Ours runs before and after
the script; the better of both counts, and each is shown. The script's version decides whether it looks at the call or
behind it, so only how many frames it locates is compared here; what the locations are is judged by the tests.

Usage::

    python benchmarks/decode.py VMLINUX [--script FILE] [--frames 200] [--python FILE]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from postpanic.process import find_program

BAR = 50
"""How many times the script's speed is asked for."""
_LOCATED = re.compile(rb"\([^()]{1,400}:\d+")


@dataclass
class Run:
    """One run of a program: seconds, and how many frames it located."""

    name: str
    took_s: float
    located: int

    def __str__(self) -> str:
        return f"{self.name:<24} {self.took_s:9.2f} s  {self.located:4} frames located"


def make_log(vmlinux: Path, frames: int) -> bytes:
    """Make a trace of functions whose names are unique, as the kernel would print it."""
    listed = subprocess.run(
        [find_program("nm"), "-n", "--defined-only", vmlinux], capture_output=True, check=True
    ).stdout.split(b"\n")
    symbols = [line.split() for line in listed if line.count(b" ") == 2]
    names: dict[bytes, int] = {}
    for _, _, name in symbols:
        names[name] = names.get(name, 0) + 1
    chosen = [
        (name, int(behind[0], 16) - int(vaddr, 16))
        for (vaddr, letter, name), behind in pairwise(symbols)
        if letter in b"tT" and names[name] == 1 and name[:1].isalpha() and b"." not in name
    ]
    chosen = [(name, size) for name, size in chosen if 64 <= size < 65536]
    step = max(1, len(chosen) // frames)
    lines = [
        b"[%12.6f]  %s+%#x/%#x" % (100 + number / 1000, name, size // 2, size)
        for number, (name, size) in enumerate(chosen[::step][:frames])
    ]
    header = b"[  100.000000] CPU: 0 PID: 1 Comm: init Not tainted\n[  100.000000] Call Trace:\n"
    return header + b"\n".join(lines) + b"\n"


def run(name: str, command: list[str], log: bytes) -> Run:
    """Run a filter over the log."""
    with tempfile.TemporaryFile() as file:
        file.write(log)
        file.seek(0)
        started = time.monotonic()
        finished = subprocess.run(command, stdin=file, capture_output=True, check=True)
        took_s = time.monotonic() - started
    lines = finished.stdout.split(b"\n")
    return Run(name, took_s, sum(_LOCATED.search(line) is not None for line in lines))


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("vmlinux", type=Path)
    parser.add_argument(
        "--script", type=Path, help="decode_stacktrace.sh; by default that of Debian's linux-source-6.1"
    )
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--python", default=sys.executable)
    chosen = parser.parse_args()
    script = chosen.script
    if script is None:
        from tests.compat.kernel_scripts import fetch_decode_stacktrace

        script = fetch_decode_stacktrace()
    log = make_log(chosen.vmlinux, chosen.frames)
    ours = [chosen.python, "-m", "postpanic", "decode", str(chosen.vmlinux), "auto"]
    runs = [
        run("postpanic decode", ours, log),
        run("decode_stacktrace.sh", ["bash", str(script), str(chosen.vmlinux), "auto"], log),
        run("postpanic decode", ours, log),
    ]
    print(f"{chosen.vmlinux} ({chosen.vmlinux.stat().st_size >> 20} MiB), {log.count(b'+0x')} distinct frames")
    for one in runs:
        print(f"  {one}")
    ratio = runs[1].took_s / min(runs[0].took_s, runs[2].took_s)
    is_good = ratio >= BAR and min(runs[0].located, runs[2].located) >= runs[1].located
    print(f"  {ratio:.0f} times as fast (at least {BAR} is asked for): {'ok' if is_good else 'MISSED'}")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
