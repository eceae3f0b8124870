"""
Filtering a raw dump: postpanic and makedumpfile on the same file, in turn.

The contenders take turns, round after round, so that a machine whose speed
drifts is unfair to none; ratios are formed within a round. Every run is a
whole process with a warm cache: start of the interpreter, opening, filter,
self-test, manifest, end. Dirty pages are written back between runs, untimed.

Beside the contenders it measures what bounds them: copying memory, reading and
writing files, the codec alone on pages of the same dump, starting Python; and
makedumpfile's own time for "Excluding unnecessary pages" beside our scan.

Usage::

    python benchmarks/filter.py [--rounds 5] [--dump FILE] [--makedumpfile CMD]... [--only c,z] [--scratch DIR]
    python benchmarks/filter.py --arm64 [--rounds 5] [--scratch DIR]

Without ``--dump`` the lab crashes a guest of 6 GiB that has been at work (or
takes the cached dump). Without ``--makedumpfile`` the peers are the host's and
Debian's newest. Our ``-z`` is the default, so it is run once. With ``--arm64``
ours alone runs, on dumps of both architectures: :mod:`benchmarks.filter_beside`.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GIB = 1 << 30
MIB = 1 << 20
PROBES = Path(__file__).with_name("filter_probes.py")
POSTPANIC = (sys.executable, "-m", "postpanic")
CODECS = {"l": "lzo", "z": "zstd", "c": "zlib", "p": "snappy"}
LEVELS = {"l": (1, 31), "z": (1, 31), "c": (1,), "p": (1,)}
THREADS = (1, 2)
# A run at level 31 is short: three of them a round.
TURNS = {1: 1, 31: 3}
WARM_UP_LEVEL = 31
# A scan is shorter still.
SCANS = 3
EXTRA_MEMORY_MIB = 50_000_000 / MIB
# Medians of the same command differ by so much from one call to the next.
NOISE = 0.03
NEEDED = ("postpanic.cli.filter", *(f"postpanic.pages.{name}" for name in ("classify", "filtering")), "zstandard")
_EXCLUDING = re.compile(rb"STEP \[Excluding unnecessary pages\] : ([0-9.]+) seconds")


@dataclass
class Contender:
    """One command, and what its runs took."""

    name: str
    codec: str
    level: int
    command: Sequence[str]
    threads: int = 1
    peer: str = ""
    """Which makedumpfile; empty for ours."""
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    size_bytes: int = 0

    def run_once(self, output: Path) -> None:
        """Run to the end and note wall time, processor time, peak memory and the size of what came out."""
        _remove(output)
        os.sync()
        started = time.monotonic()
        with tempfile.TemporaryFile() as printed:
            child = subprocess.Popen([*self.command, str(output)], stdout=printed, stderr=printed)
            _, status, usage = os.wait4(child.pid, 0)
            elapsed_s = time.monotonic() - started
            child.returncode = os.waitstatus_to_exitcode(status)
            printed.seek(0)
            if child.returncode:
                sys.exit(f"{shlex.join(self.command)}: status {child.returncode}\n{printed.read().decode()}")
        self.wall_s.append(elapsed_s)
        self.cpu_s.append(usage.ru_utime + usage.ru_stime)
        self.peak_mib.append(usage.ru_maxrss / 1024)
        self.size_bytes = output.stat().st_size

    @property
    def median_s(self) -> float:
        """Of the wall times."""
        return statistics.median(self.wall_s)

    @property
    def median_peak_mib(self) -> float:
        """Of the peaks of resident memory."""
        return statistics.median(self.peak_mib)

    def forget(self) -> None:
        """Drop the figures of the warm-up."""
        for figures in (self.wall_s, self.cpu_s, self.peak_mib):
            figures.clear()


@dataclass(frozen=True)
class Peer:
    """A makedumpfile."""

    name: str
    command: tuple[str, ...]
    codecs: frozenset[str]


def describe_peer(words: Sequence[str]) -> Peer:
    """Ask a makedumpfile what it is and can do: what it was not built with it silently stores as it is."""
    printed = subprocess.run([*words, "-v"], capture_output=True, check=False)
    text = (printed.stdout + printed.stderr).decode(errors="replace")
    version = re.search(r"version ([0-9.]+)", text)
    if version is None:
        sys.exit(f"not a makedumpfile: {shlex.join(words)}")
    letters = {"lzo": "l", "zstd": "z", "snappy": "p"}
    there = {letter for name, letter in letters.items() if re.search(rf"{name}\s+enabled", text)}
    return Peer(f"mdf {version[1]}", tuple(words), frozenset({"c", *there}))


def build_contenders(dump: Path, peers: Sequence[Peer], only: Sequence[str]) -> list[Contender]:
    """List who takes part: every codec and level, ours on one thread and on two."""
    contenders = []
    # Snappy's peer is lzo, zstd's is that and makedumpfile's zstd.
    theirs = {"l"} | set(only)
    for level in (1, 31):
        for codec in CODECS:
            if level not in LEVELS[codec]:
                continue
            for peer in peers:
                if codec in peer.codecs and codec in theirs and (level == 1 or codec == "l"):
                    command = [*peer.command, "--message-level", "0", f"-{codec}", "-d", str(level), str(dump)]
                    contenders.append(Contender(peer.name, codec, level, command, peer=peer.name))
            if codec not in only:
                continue
            options = [f"-{codec}"] if codec != "z" else []
            for threads in THREADS:
                words = ["filter", *options, "-q", "-d", str(level), "--num-threads", str(threads), str(dump)]
                contenders.append(Contender("postpanic", codec, level, [*POSTPANIC, *words], threads))
    return contenders


def run_rounds(contenders: Sequence[Contender], rounds: int, output: Path) -> None:
    """Let them take turns; the short runs warm up for all."""
    for level, turns in sorted(TURNS.items(), reverse=True):
        group = [contender for contender in contenders if contender.level == level]
        if level == WARM_UP_LEVEL:
            for contender in group:
                contender.run_once(output)
                contender.forget()
        for number in range(1, rounds * turns + 1):
            for contender in group:
                _say(f"level {level}, run {number} of {rounds * turns}: {contender.name} -{contender.codec}")
                contender.run_once(output)
    _remove(output)
    _say("")


def print_table(contenders: Sequence[Contender], ram_gib: float) -> None:
    """Print medians; ratios are those of throughput against each makedumpfile's -l at that level, paired by run."""
    bases = [(peer, level) for peer in _peer_names(contenders) for level in (1, 31)]
    names = _peer_names(contenders)
    print(
        f"\n{'':12}{'':>4}{'-d':>4}{'thr':>4}{'wall s':>9}{'min':>8}{'max':>8}{'cpu s':>8}{'GiB/s':>7}{'peak MiB':>10}"
        f"{'size MiB':>10}" + "".join(f"{'x ' + name + ' -l':>15}" for name in names)
    )
    for it in contenders:
        ratios = ""
        for peer, level in bases:
            if level == it.level:
                base = _find(contenders, "l", level, peer=peer)
                ratios += f"{_ratio(it, base):15.2f}" if base else f"{'':15}"
        print(
            f"{it.name:12}{'-' + it.codec:>4}{it.level:4}{it.threads:4}{it.median_s:9.3f}{min(it.wall_s):8.3f}"
            f"{max(it.wall_s):8.3f}{statistics.median(it.cpu_s):8.2f}{ram_gib / it.median_s:7.2f}"
            f"{it.median_peak_mib:10.0f}{it.size_bytes / MIB:10.1f}{ratios}"
        )


@dataclass(frozen=True)
class Bar:
    """How much faster ours has to be."""

    text: str
    mine: tuple[str, int, int]
    """Codec, level, threads."""
    theirs: tuple[str, int]
    at_least: float


BARS = (
    Bar("-c, 1 thread, against -c", ("c", 1, 1), ("c", 1), 2.5),
    Bar("-c, 2 threads, against -c", ("c", 1, 2), ("c", 1), 4.0),
    Bar("zstd, 2 threads, against -l", ("z", 1, 2), ("l", 1), 1.3),
    Bar("zstd, 2 threads, against -z", ("z", 1, 2), ("z", 1), 2.0),
    Bar("-p, 1 thread, against -l", ("p", 1, 1), ("l", 1), 1.0),
    Bar("-p, 2 threads, against -l", ("p", 1, 2), ("l", 1), 1.0),
    Bar("-l -d 31, 1 thread, against -l", ("l", 31, 1), ("l", 31), 0.5),
    Bar("-l -d 31, 2 threads, against -l", ("l", 31, 2), ("l", 31), 0.5),
    Bar("zstd -d 31, 1 thread, against -l", ("z", 31, 1), ("l", 31), 0.5),
    Bar("zstd -d 31, 2 threads, against -l", ("z", 31, 2), ("l", 31), 0.5),
)


def print_verdicts(contenders: Sequence[Contender]) -> bool:
    """Hold the figures against the bars; return whether all are met."""
    met = True
    print(f"\n{'throughput, times the peer':46}{'needed':>8}{'is':>7}  size/peer's  verdict")
    for bar in BARS:
        for peer in _peer_names(contenders):
            mine, theirs = _find(contenders, *bar.mine), _find(contenders, *bar.theirs, peer=peer)
            if mine is None or theirs is None:
                continue
            ratio, size = _ratio(mine, theirs), mine.size_bytes / theirs.size_bytes
            good = ratio >= bar.at_least
            met &= good and size <= 1
            verdict = ("met" if good else "NOT MET") + ("" if size <= 1 else ", LARGER")
            print(f"{bar.text + ' of ' + peer:46}{bar.at_least:8.2f}{ratio:7.2f}{size:13.3f}  {verdict}")
    print(f"\n{'two threads against one':46}{'needed':>8}{'is':>7}")
    for one, two in _pair_threads(contenders):
        ratio = _ratio(two, one)
        good = ratio >= 1 - NOISE
        met &= good
        print(f"{f'-{one.codec} -d {one.level}':46}{'1 ± .03':>8}{ratio:7.2f}{'':13}  {'met' if good else 'NOT MET'}")
    print(f"\n{'peak memory, MiB':46}{'allowed':>8}{'is':>7}")
    for it in contenders:
        for peer in _peer_names(contenders):
            theirs = _find(contenders, it.codec, it.level, peer=peer) or _find(contenders, "l", it.level, peer=peer)
            if it.peer or theirs is None:
                continue
            allowed = theirs.median_peak_mib + EXTRA_MEMORY_MIB
            good = it.median_peak_mib <= allowed
            met &= good
            name = f"-{it.codec} -d {it.level}, {it.threads} thr, {peer} -{theirs.codec}"
            print(f"{name:46}{allowed:8.0f}{it.median_peak_mib:7.0f}{'':13}  {'met' if good else 'NOT MET'}")
    return met


def print_startup(contenders: Sequence[Contender], rounds: int) -> None:
    """Tell what starting Python takes, and its share in runs at level 31."""
    steps = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
        "postpanic --version": [*POSTPANIC, "--version"],
        "import what a filter needs": [sys.executable, "-c", f"import {', '.join(NEEDED)}"],
    }
    short = [it for it in contenders if it.level == 31 and not it.peer]
    print("\nstart-up, median s" + "".join(f"{f'of -{it.codec} -d 31 /{it.threads}':>18}" for it in short))
    for name, command in steps.items():
        times = [_time_command(command) for _ in range(3 * rounds)]
        took_s = statistics.median(times)
        shares = "".join(f"{took_s / it.median_s:18.0%}" for it in short)
        print(f"{name:36}{took_s:7.3f}" + shares)


def time_exclusion(peer: Peer, dump: Path, output: Path) -> float:
    """Return what makedumpfile says that it took to tell which pages it leaves out; nothing is written."""
    command = [*peer.command, "--dry-run", "--message-level", "31", "-l", "-d", "31", str(dump), str(output)]
    printed = subprocess.run(command, capture_output=True, check=True)
    return sum(map(float, _EXCLUDING.findall(printed.stdout + printed.stderr)))


def time_scan(probe: str, threads: int, dump: Path) -> float:
    """Return what our scan takes in a process of its own."""
    return run_probe(probe, str(dump), str(threads))["scan_s"]


def print_scan(dump: Path, peers: Sequence[Peer], rounds: int, output: Path, ram_gib: float) -> bool:
    """Compare our scan of the struct pages with makedumpfile's step, run by run; return whether it is as fast."""
    ours = {f"postpanic, {threads} thr": partial(time_scan, "scan", threads, dump) for threads in THREADS}
    theirs = {
        f"{peer.name}, Excluding unnecessary pages": partial(time_exclusion, peer, dump, output) for peer in peers
    }
    # What makedumpfile has nothing like: it is shown, and held to nothing.
    more = {"postpanic, 1 thr, order of worth included": partial(time_scan, "scan-worth", 1, dump)}
    runs = [*theirs.items(), *ours.items(), *more.items()]
    times: dict[str, list[float]] = {name: [] for name, _ in runs}
    for number in range(SCANS * rounds):
        _say(f"scan {number + 1} of {SCANS * rounds}")
        # What ran before leaves the caches warm or cold: each comes after each.
        order = runs if number % 2 else runs[::-1]
        first = number // 2 % len(runs)
        for name, run in order[first:] + order[:first]:
            times[name].append(run())
    _say("")
    print(
        f"\n{'classification scan at level 31':46}{'ms/GiB':>8}{'min':>8}{'max':>8}"
        + "".join(f"{'/ ' + peer.name:>13}" for peer in peers)
    )
    good = True
    for name, taken in times.items():
        figures = (statistics.median(taken), min(taken), max(taken))
        ratios = [statistics.median(map(operator.truediv, taken, times[other])) for other in theirs]
        print(
            f"{name:46}"
            + "".join(f"{1000 * figure / ram_gib:8.2f}" for figure in figures)
            + "".join(f"{ratio:13.2f}" for ratio in ratios)
        )
        good &= name not in ours or max(ratios) <= 1 + NOISE
    print(f"no slower per GiB of memory: {'met' if good else 'NOT MET'}")
    return good


def print_bounds(contenders: Sequence[Contender], dump: Path, scratch: Path, kept_gib: float) -> None:
    """Tell how far each contender is from memory, from files and from its codec alone."""
    copy, read, write = run_probe("bandwidth"), run_probe("read", str(dump)), run_probe("write", str(scratch))
    read_s = dump.stat().st_size / GIB / read["read_gib_s"]
    print(
        f"\nbounds: copying memory {copy['copy_gib_s_1']:.1f} GiB/s on one thread, {copy['copy_gib_s_2']:.1f} on two; "
        f"reading the dump {read['read_gib_s']:.1f} GiB/s ({read_s:.2f} s); "
        f"writing files {write['write_gib_s']:.1f} GiB/s; {kept_gib:.2f} GiB are not zero"
    )
    print(f"{'':24}{'wall s':>9}{'codec s':>9}{'wall/codec':>11}{'/reading':>9}{'/copying':>9}{'codec size/page':>17}")
    for codec, name in CODECS.items():
        mine = [it for it in contenders if it.codec == codec and it.level == 1 and not it.peer]
        if not mine:
            continue
        alone = run_probe("codec", str(dump), name)
        for it in mine:
            codec_s = alone[f"s_per_gib_{it.threads}"] * kept_gib
            copy_s = kept_gib / copy[f"copy_gib_s_{it.threads}"]
            print(
                f"{f'-{codec} -d 1, {it.threads} thr':24}{it.median_s:9.2f}{codec_s:9.2f}{it.median_s / codec_s:11.2f}"
                f"{it.median_s / read_s:9.2f}{it.median_s / copy_s:9.1f}{alone['size_ratio']:17.3f}"
            )


def run_probe(*words: str) -> dict[str, float]:
    """Measure one thing in a process of its own."""
    printed = subprocess.run([sys.executable, str(PROBES), *words], stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(printed.stdout)
    return figures


def count_kept(dump: Path) -> tuple[float, float]:
    """Return GiB of memory in the dump, and GiB of it that are not zero."""
    figures = run_probe("count", str(dump))
    return figures["ram_gib"], figures["kept_gib"]


def find_dump() -> Path:
    """Get the big dump of the lab."""
    from tests.vm.lab import filter_load

    return filter_load()


def find_peers(commands: Sequence[str]) -> list[Peer]:
    """Describe the makedumpfiles that are named; else the host's and the newest."""
    words = [shlex.split(command) for command in commands]
    if not words:
        from tests.vm.lab import newest_makedumpfile

        words = [["makedumpfile"]] if shutil.which("makedumpfile") else []
        words.append(list(newest_makedumpfile()))
    return [describe_peer(command) for command in words]


def compare_architectures(rounds: int, scratch: Path | None) -> int:
    """Filter the lab's dumps of both architectures, in turn."""
    from benchmarks.filter_beside import compare, lab_dumps

    dumps = lab_dumps()
    for dump in dumps.values():
        _warm(dump)
    with tempfile.TemporaryDirectory(prefix="postpanic-bench-", dir=scratch) as directory:
        compare(dumps, rounds, Path(directory))
    return 0


def _find(
    contenders: Sequence[Contender], codec: str, level: int, threads: int = 1, *, peer: str = ""
) -> Contender | None:
    wanted = (codec, level, threads, peer)
    return next((it for it in contenders if (it.codec, it.level, it.threads, it.peer) == wanted), None)


def _pair_threads(contenders: Sequence[Contender]) -> Iterator[tuple[Contender, Contender]]:
    for it in contenders:
        other = _find(contenders, it.codec, it.level, 2)
        if not it.peer and it.threads == 1 and other is not None:
            yield it, other


def _peer_names(contenders: Sequence[Contender]) -> list[str]:
    return list(dict.fromkeys(it.peer for it in contenders if it.peer))


def _ratio(mine: Contender, theirs: Contender) -> float:
    """Return how many times the throughput of the other, paired by run."""
    return statistics.median(other / own for own, other in zip(mine.wall_s, theirs.wall_s, strict=True))


def _time_command(command: Sequence[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def _remove(output: Path) -> None:
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _warm(dump: Path) -> None:
    with dump.open("rb", buffering=0) as stream:
        while stream.read(4 * MIB):
            pass


def main() -> int:
    """Run the benchmark that the command line asks for; status 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--makedumpfile", action="append", default=[], metavar="CMD", help="a peer; may be repeated")
    parser.add_argument("--only", default=",".join(CODECS), metavar="CODECS", help="of l, z, c, p")
    parser.add_argument("--scratch", type=Path, help="where what is written goes")
    parser.add_argument("--arm64", action="store_true", help="a dump of arm64 beside one of x86-64, no peer")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # the lab
    if arguments.arm64:
        return compare_architectures(arguments.rounds, arguments.scratch)
    only = arguments.only.split(",")
    if not set(only) <= set(CODECS):
        parser.error(f"--only takes letters of {', '.join(CODECS)}")
    dump = arguments.dump or find_dump()
    peers = find_peers(arguments.makedumpfile)
    _warm(dump)
    ram_gib, kept_gib = count_kept(dump)
    print(f"{dump}: {ram_gib:.2f} GiB of memory, {kept_gib:.2f} GiB not zero; {arguments.rounds} rounds")
    for peer in peers:
        print(f"{peer.name}: {shlex.join(peer.command)[-70:]}")
    with tempfile.TemporaryDirectory(prefix="postpanic-bench-", dir=arguments.scratch) as scratch:
        output = Path(scratch) / "out"
        contenders = build_contenders(dump, peers, only)
        run_rounds(contenders, arguments.rounds, output)
        print_table(contenders, ram_gib)
        met = print_verdicts(contenders)
        met &= print_scan(dump, peers, arguments.rounds, output, ram_gib)
        print_startup(contenders, arguments.rounds)
        print_bounds(contenders, dump, Path(scratch), kept_gib)
    print(f"\nall bars met: {'yes' if met else 'NO'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
