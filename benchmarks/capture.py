"""
Capturing a crash: postpanic and Debian's kdump-tools in the same guest, a Debian 12.

Three questions, each for the cloud and the generic kernel:

- what is the smallest ``crashkernel=`` that works for either: every size is a
  boot, a crash and a dump that is tested; the border is crossed once more;
- how long is it from the panic to the first line of the capture kernel, to its
  init, to the log, to the whole dump on the disk, to the reboot: the two take
  turns at a size that is enough for both;
- what is the memory used for.

The guest is built once, as root (debootstrap, apt in a chroot), and kept in the
lab's cache. Usage, in the root of the work tree::

    python -m benchmarks.capture [--kernel cloud,generic] [--side ours,kdump-tools] [--only search,times,memory]
        [--rounds 3] [--step 4] [--range 64-320] [--guess 112] [--size 256] [--armed] [--json FILE] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.capture_guest import (
    ARM,
    COMMAND_LINE,
    FLAVOURS,
    ROOT_UUID,
    UNARMED,
    Guest,
    arm_guest,
    build_guest,
    build_memwatch,
    list_postpanic_files,
)
from benchmarks.capture_runs import Run, Side, crash_once
from tests.vm.lab import default_cache_dir, hold_machine

from postpanic.capture.initramfs.image import ImageRequest, build_image
from postpanic.capture.kexec.command_line import CommandLineChanges, build_command_line
from postpanic.process import find_program
from postpanic.process import run as run_program
from postpanic.saver.plan import BlockPlan, FilePlan, HookPlan, SavePlan

OURS, THEIRS = "ours", "kdump-tools"
SIDES = (OURS, THEIRS)
PARTS = ("search", "times", "memory")
# From the panic to the end, on an idle machine; at a size that is too small nothing may ever come.
TIMEOUT_S = 90.0
LAST_EVENT = "dump saved"
MODULES = ("virtio_pci", "virtio_blk", "ext4")
MEMWATCH = "usr/bin/memwatch"
EVENTS_OF_OURS = {
    "init": r"Run /init as init process",
    "saver": r"postpanic: saver started",
    "log saved": r"postpanic: .*: log saved",
    "dump saved": r"postpanic: .*: saved, level",
    "tested": r"postpanic: .*: self-test",
}
EVENTS_OF_THEIRS = {
    "init": r"Run /init as init process",
    "saver": r"Starting kdump-tools",
    # Each comes after a sync: the next step's announcement, and the date.
    "log saved": r"running makedumpfile -F",
    "dump written": r"saved vmcore in",
    "dump saved": r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d",
}


def make_theirs(cache_dir: Path, *, watch: bool = False) -> Side:
    """Describe kdump-tools: armed by its own service, as installed."""
    arm, files = ":\n", dict[str, bytes | str | Path]()
    if watch:
        arm = (
            "cp /opt/run/memwatch /usr/local/sbin/\n"
            "mkdir -p /etc/systemd/system/kdump-tools-dump.service.d\n"
            "printf '[Service]\\nExecStartPre=/usr/local/sbin/memwatch\\n' "
            ">/etc/systemd/system/kdump-tools-dump.service.d/memwatch.conf\n"
        )
        files = {"memwatch": build_memwatch(cache_dir)}
    return Side(THEIRS, arm, EVENTS_OF_THEIRS, "dump.*", files)


def make_ours(cache_dir: Path, guest: Guest, *, watch: bool = False, more_words: str = "") -> Side:
    """Describe ours: an image from the guest's own Python, made here, loaded in the guest."""
    before = (HookPlan(command=(f"/{MEMWATCH}",), timeout_s=5.0),) if watch else ()
    target = FilePlan(name="file /var/crash", device=BlockPlan(uuid=ROOT_UUID), path="/var/crash")
    with tempfile.TemporaryDirectory(prefix="image-", dir=cache_dir) as name:
        root = Path(name) / "root"
        # Links, so that a program can be added.
        run_program([find_program("cp"), "-al", guest.directory / "python", root])
        if watch:
            shutil.copy(build_memwatch(cache_dir), root / MEMWATCH)
        image = build_image(
            ImageRequest(
                plan=SavePlan(node="guest", targets=(target,), before=before),
                modules_dir=guest.modules_dir,
                modules=dict.fromkeys(MODULES, ""),
                root=root,
                boot_dir=guest.directory / "boot",
            )
        )
    line = build_command_line(COMMAND_LINE, "x86_64", CommandLineChanges(append=more_words)).text
    _say(f"image: {len(image.data) / 1e6:.1f} MB {image.compression}, {image.unpacked_bytes / 1e6:.1f} MB unpacked")
    arm = f"kexec -p -s --initrd=/opt/run/image --command-line='{line}' /boot/vmlinuz-$(uname -r)\n"
    return Side(OURS, arm, EVENTS_OF_OURS, "vmcore", {"image": image.data}, (UNARMED,))


def make_armed(cache_dir: Path, guest: Guest) -> Side:
    """Describe ours as a user has it: ``postpanic arm`` in the guest, of which only the loading is left to do."""
    root = arm_guest(cache_dir, guest)
    return Side(OURS, ARM, EVENTS_OF_OURS, "vmcore", list_postpanic_files(), (UNARMED,), root)


def find_smallest(crash: Callable[[int], Run], lowest: int, highest: int, step: int, guess: int) -> int | None:
    """
    Return the smallest size that works, MiB; None if there is none up to the highest.

    What works at a size is taken to work above it; the smallest is tried once
    more, and the search goes on above it if that fails. It begins at a guess,
    with strides that become longer: every size is a boot and a crash.
    """
    runs: dict[int, list[Run]] = {}

    def works(size: int, times: int = 1) -> bool:
        seen = runs.setdefault(size, [])
        while len(seen) < times and all(run.is_good for run in seen):
            seen.append(crash(size))
        return all(run.is_good for run in seen)

    low, high = lowest - step, highest + step
    size, stride = guess, 4 * step
    while high - low > step or (high <= highest and not works(high, 2)):
        if high - low <= step:
            low, high, size, stride = high, highest + step, high + step, step
        if works(size):
            high = size
        else:
            low = size
        if high > highest:
            size, stride = min(size + stride, highest), 2 * stride
        elif low < lowest <= size - stride:
            size, stride = size - stride, 2 * stride
        else:
            size = low + max((high - low) // 2 // step, 1) * step
    return high if high <= highest else None


def print_run(run: Run) -> None:
    """Say in a line what came of a run."""
    times = ", ".join(f"{name} {_describe([run], name)}" for name in run.seconds)
    verdict = f"good, {run.dump_bytes / 1e6:.1f} MB" if run.is_good else f"FAILED: {run.failure[:160]}"
    _say(f"{run.flavour} {run.crashkernel_mib}M {run.side}: {verdict}; {times}")


def print_times(runs: Sequence[Run]) -> None:
    """Print the median time of each event, and the ratios of pairs."""
    print(f"\nseconds from the panic, by the clock / of CPU; medians of {len(runs) // 2} rounds in turn")
    for flavour in dict.fromkeys(run.flavour for run in runs):
        for side in SIDES:
            own = [run for run in runs if run.flavour == flavour and run.side == side]
            names = list(dict.fromkeys(name for run in own for name in run.seconds))
            print(f"{flavour:8} {side:12} " + ", ".join(f"{name} {_describe(own, name)}" for name in names))
        for what in ("seconds", "cpu_seconds"):
            ratios = _pair(runs, flavour, what)
            if ratios:
                text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{flavour:8} ours / kdump-tools, panic to {LAST_EVENT}, {what.replace('_', ' ')}: {text}")
        waits = [
            run.seconds["log saved"] - run.seconds["saver"]
            for run in runs
            if run.flavour == flavour and run.side == OURS and {"log saved", "saver"} <= set(run.seconds)
        ]
        if waits:
            print(f"{flavour:8} ours, saver's start to log saved: {statistics.median(waits):.2f} s")


def _describe(runs: Sequence[Run], name: str) -> str:
    walls = [run.seconds[name] for run in runs if name in run.seconds]
    used = [run.cpu_seconds[name] for run in runs if name in run.cpu_seconds]
    return f"{statistics.median(walls):.1f}/{statistics.median(used):.1f}"


def _pair(runs: Sequence[Run], flavour: str, what: str) -> list[float]:
    by_side = {
        side: [getattr(run, what).get(LAST_EVENT) for run in runs if run.flavour == flavour and run.side == side]
        for side in SIDES
    }
    return [ours / theirs for ours, theirs in zip(by_side[OURS], by_side[THEIRS], strict=False) if ours and theirs]


def print_memory(runs: Sequence[Run]) -> None:
    """Print what the memory was used for, MiB: the most that each took, not all at once."""
    rows = {name: [figure(run.memory, run.crashkernel_mib) for run in runs] for name, figure in MEMORY_ROWS.items()}
    print("\nmemory of the capture kernel, MiB, each at its worst")
    print(f"{'':44}" + "".join(f"{f'{run.flavour} {run.side}':>22}" for run in runs))
    print(f"{'crashkernel=':44}" + "".join(f"{run.crashkernel_mib:22.1f}" for run in runs))
    for name, figures in rows.items():
        print(f"{name:44}" + "".join(f"{figure:22.1f}" for figure in figures))
    large = {name for run in runs for name in run.memory if name.startswith("large ")}
    for name in sorted(large, key=lambda name: -max(run.memory.get(name, 0) for run in runs)):
        print(f"{'  ' + name:44}" + "".join(f"{run.memory.get(name, 0) / 1024:22.1f}" for run in runs))


def _sum_of(*names: str) -> Callable[[dict[str, int], int], float]:
    return lambda memory, _: sum(memory.get(name, 0) for name in names) / 1024


MEMORY_ROWS: dict[str, Callable[[dict[str, int], int], float]] = {
    "kernel: text, data, struct pages, reserved": lambda memory, size: size - memory.get("high MemTotal", 0) / 1024,
    "  of which text, rodata, data, bss": _sum_of("kernel kernel code", "kernel rodata", "kernel rwdata", "kernel bss"),
    "slab that stays": _sum_of("high SUnreclaim"),
    "all slab": _sum_of("high Slab"),
    "vmalloc": _sum_of("high VmallocUsed"),
    "stacks, page tables, per CPU": _sum_of("high KernelStack", "high PageTables", "high Percpu"),
    "files: image, and page cache": _sum_of("high Cached"),
    "  as the saver starts: image": _sum_of("low Cached"),
    "processes": _sum_of("high AnonPages"),
    "least available": _sum_of("low MemAvailable"),
    "least free": _sum_of("low MemFree"),
}


class Bench:
    """What the command line asks for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.cache_dir = default_cache_dir()
        self.runs: list[Run] = []

    def crash(self, guest: Guest, side: Side, size: int) -> Run:
        """Crash once, with other guests beside it: how much memory it takes has nothing to do with them."""
        with hold_machine(self.cache_dir):
            return self._crash(guest, side, size)

    def crash_all(self, guest: Guest, sides: Sequence[Side], size: int, rounds: int = 1) -> list[Run]:
        """Crash one after the other, in turn, with no other guest in between."""
        with hold_machine(self.cache_dir, alone=True):
            return [self._crash(guest, side, size) for _ in range(rounds) for side in sides]

    def _crash(self, guest: Guest, side: Side, size: int) -> Run:
        number = len(self.runs)
        keep = self.arguments.keep / f"{number:03}-{guest.flavour}-{size}-{side.name}" if self.arguments.keep else None
        run = crash_once(guest, side, size, cache_dir=self.cache_dir, timeout_s=TIMEOUT_S, keep=keep)
        self.runs.append(run)
        print_run(run)
        self.write()
        return run

    def sides(self, guest: Guest, *, watch: bool = False) -> list[Side]:
        """Make the sides that take part."""
        sides = []
        if OURS in self.arguments.side:
            # What is watched or told otherwise takes another image.
            is_own = watch or self.arguments.words or not self.arguments.armed
            words = self.arguments.words
            sides.append(
                make_ours(self.cache_dir, guest, watch=watch, more_words=words)
                if is_own
                else make_armed(self.cache_dir, guest)
            )
        if THEIRS in self.arguments.side:
            sides.append(make_theirs(self.cache_dir, watch=watch))
        return sides

    def search(self, guest: Guest) -> dict[str, int | None]:
        """Find the smallest size of each side."""
        lowest, highest = (int(text) for text in self.arguments.range.split("-"))
        found = {}
        for side in self.sides(guest):
            size = find_smallest(
                partial(self.crash, guest, side), lowest, highest, self.arguments.step, self.arguments.guess
            )
            found[side.name] = size
            print(f"{guest.flavour} {side.name}: smallest crashkernel: {size or 'none'}M", flush=True)
        return found

    def write(self) -> None:
        """Write all runs so far."""
        if self.arguments.json:
            self.arguments.json.write_text(json.dumps([asdict(run) for run in self.runs], indent=1))


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=lambda text: text.split(","), default=list(FLAVOURS))
    parser.add_argument("--side", type=lambda text: text.split(","), default=list(SIDES))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", type=int, default=4, help="MiB")
    parser.add_argument("--guess", type=int, default=112, help="MiB, where to begin")
    parser.add_argument("--range", default="64-320", help="MiB")
    parser.add_argument("--size", type=int, default=256, help="MiB, for times and memory")
    parser.add_argument("--armed", action="store_true", help="let the guest make our image, by postpanic arm")
    parser.add_argument("--words", default="", help="more words for our capture kernel's command line")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a directory for consoles and dumps")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark that the command line asks for; status 1 if ours needs more memory or time."""
    arguments = _parse()
    bench = Bench(arguments)
    smallest: dict[str, dict[str, int | None]] = {}
    timed: list[Run] = []
    watched: list[Run] = []
    for flavour in arguments.kernel:
        guest = build_guest(bench.cache_dir, flavour)
        if "times" in arguments.only:
            sides = bench.sides(guest)
            timed += bench.crash_all(guest, sides, arguments.size, arguments.rounds)
        if "memory" in arguments.only:
            watched += bench.crash_all(guest, bench.sides(guest, watch=True), arguments.size)
        if "search" in arguments.only:
            smallest[flavour] = bench.search(guest)
    met = True
    for flavour, sizes in smallest.items():
        print(f"{flavour}: smallest crashkernel: " + ", ".join(f"{side} {size}M" for side, size in sizes.items()))
        ours, theirs = sizes.get(OURS), sizes.get(THEIRS)
        met &= theirs is None or OURS not in sizes or (ours is not None and ours <= theirs)
    if timed:
        print_times(timed)
        met &= all(statistics.median(_pair(timed, name, "seconds") or [0.0]) <= 1 for name in arguments.kernel)
    if watched:
        print_memory(watched)
    print(f"\nall bars met: {'yes' if met else 'NO'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
