"""
How long triage takes, beyond opening the dump.

Two dumps: the one that a guest of 1 GiB leaves (5 s are allowed), and one with
10,000 tasks (60 s). Each round opens the dump afresh in a process of its own;
the best round counts. On a machine with other work the processor's time says more
than the clock's, and it is what is compared with the time allowed.

Usage::

    python -m benchmarks.triage [--rounds 3] [--dump FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHILD = """\
import json, resource, sys, time
from postpanic import open_dump
from postpanic.analysis.tasks.lists import read_tasks
from postpanic.analysis.triage import triage_dump
started = time.monotonic()
with open_dump(sys.argv[1], debuginfo="synth") as dump:
    workspace = dump.workspace
    opened, opened_cpu = time.monotonic(), time.process_time()
    verdict = triage_dump(workspace)
    done, done_cpu = time.monotonic(), time.process_time()
    tasks = len(read_tasks(workspace, []))
print(json.dumps({
    "open_s": opened - started, "triage_s": done - opened, "cpu_s": done_cpu - opened_cpu, "tasks": tasks,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "sentence": verdict.sentence, "confidence": verdict.confidence,
}))
"""
ALLOWED_S = {"1 GiB": 5.0, "1 GiB, locks": 5.0, "10,000 tasks": 60.0}


def list_dumps() -> Iterator[tuple[str, Path]]:
    """Yield the dumps of the lab, crashing machines where they are not in its cache."""
    from tests.vm.lab import Lab, Recipe, default_cache_dir

    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr, flush=True))
    yield "1 GiB", lab.crash(Recipe.choose("6.1", "module-null")).filtered
    yield "1 GiB, locks", lab.crash(Recipe.choose("6.1", "locked")).filtered
    yield "10,000 tasks", lab.crash(Recipe.choose("6.12", "many-tasks")).filtered


def measure(dump: Path, rounds: int) -> list[dict[str, object]]:
    """Run triage in processes of its own."""
    results = []
    for _ in range(rounds):
        finished = subprocess.run([sys.executable, "-c", CHILD, dump], stdout=subprocess.PIPE, check=True)
        results.append(json.loads(finished.stdout))
    return results


def main(words: list[str] | None = None) -> int:
    """Measure, print, and return 1 where it takes too long."""
    parser = argparse.ArgumentParser(prog="benchmarks.triage", description="how long triage takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dump", type=Path, help="this one instead of the lab's")
    chosen = parser.parse_args(words)
    dumps = iter([(chosen.dump.name, chosen.dump)]) if chosen.dump else list_dumps()
    late = False
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{'dump':<14} {'tasks':>6} {'open':>7} {'triage':>8} {'of CPU':>8} {'allowed':>8} {'peak':>9}  verdict")
    for name, dump in dumps:
        best = min(measure(dump, chosen.rounds), key=lambda result: float(str(result["cpu_s"])))
        allowed_s = ALLOWED_S.get(name)
        late = late or (allowed_s is not None and float(str(best["cpu_s"])) > allowed_s)
        allowed = f"{allowed_s:.0f} s" if allowed_s else ""
        print(
            f"{name:<14} {best['tasks']:>6} {best['open_s']:>5.2f} s {best['triage_s']:>6.2f} s "
            f"{best['cpu_s']:>6.2f} s {allowed:>8} {best['peak_mib']:>5.0f} MiB  "
            f"{best['confidence']}: {best['sentence']}"
        )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
