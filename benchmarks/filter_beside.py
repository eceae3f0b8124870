"""
The same filter on dumps of two architectures, in turn: what a GiB of memory takes on the one and on the other.

For arm64 there is no makedumpfile to be fair to: Debian's for x86-64 reads no
dump of arm64, and its own for arm64 would run in emulation. What is left to say
is whether ours is as fast there as it is where it has a peer.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.filter import POSTPANIC, SCANS, THREADS, TURNS, Contender, count_kept, time_scan

LEVELS = (1, 31)


def lab_dumps() -> dict[str, Path]:
    """Get the machines of the lab that have much in their memory, the one of arm64 half as large."""
    from tests.vm.arm64_work import fetch_work
    from tests.vm.lab import Lab, default_cache_dir, filter_load

    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr))
    return {"x86-64": filter_load(), "arm64": fetch_work(lab, "6.1", "filter-load").raw}


def compare(dumps: Mapping[str, Path], rounds: int, scratch: Path) -> None:
    """Run the filter on each in turn, and print seconds per GiB, and their ratio paired by round."""
    sizes = {name: count_kept(path) for name, path in dumps.items()}
    for name, (ram_gib, kept_gib) in sizes.items():
        print(f"{name}: {ram_gib:.2f} GiB of memory, {kept_gib:.2f} GiB not zero: {dumps[name]}")
    reference = next(iter(dumps))
    print(f"\n{'':34}" + "".join(f"{name + ' s/GiB':>16}{'MiB':>6}" for name in dumps) + f"{'ratio':>8}")
    for level in LEVELS:
        # What is written takes most of the time at level 1, what is looked at does at level 31.
        per = {name: kept_gib if level == 1 else ram_gib for name, (ram_gib, kept_gib) in sizes.items()}
        for threads in THREADS:
            words = ["filter", "-q", "-d", str(level), "--num-threads", str(threads)]
            runs = {
                name: Contender(name, "z", level, [*POSTPANIC, *words, str(path)], threads)
                for name, path in dumps.items()
            }
            for number in range(rounds * TURNS[level] + 1):
                for run in runs.values():
                    run.run_once(scratch / "out")
                    if not number:
                        run.forget()
            took = {name: [wall_s / per[name] for wall_s in run.wall_s] for name, run in runs.items()}
            peaks = {name: run.median_peak_mib for name, run in runs.items()}
            _print_row(
                f"-d {level}, {threads} thr, per GiB {'kept' if level == 1 else 'of RAM'}", took, peaks, reference
            )
    for threads in THREADS:
        scans: dict[str, list[float]] = {name: [] for name in dumps}
        for _ in range(rounds * SCANS):
            for name, path in dumps.items():
                scans[name].append(time_scan("scan", threads, path) / sizes[name][0])
        _print_row(f"scan of struct pages, {threads} thr", scans, {}, reference)


def _print_row(title: str, took: Mapping[str, list[float]], peaks: Mapping[str, float], reference: str) -> None:
    print(f"{title:34}", end="")
    for name, times in took.items():
        print(f"{statistics.median(times):16.4f}{peaks.get(name, 0):6.0f}", end="")
    last = list(took)[-1]
    ratio = statistics.median(mine / theirs for mine, theirs in zip(took[last], took[reference], strict=True))
    print(f"{ratio:8.2f}", flush=True)
