"""
How well reports are read: judged on a directory of real ones with expected headers.

A file of the corpus is header lines (``TITLE:``, ``ALT:``, ``TYPE:``, ``CORRUPTED: Y``,
``PANICKED: Y`` …), an empty line and the raw console log; a file without a title must
give no report. Facts must agree: whether there is a report, its kind, the access and
its size, whether the kernel panicked. The function to blame and the damage are
judgements, with which most of ours should agree.

Usage::

    python benchmarks/oops.py DIRECTORY [--halves SEED] [--failures]
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.evidence.oops import Access, Kind, Report, find_reports
from postpanic.evidence.oops.functions import plain_name
from postpanic.evidence.oops.signature import bucket_of

BARS = {
    "detected": 0.99,
    "panicked": 1.0,
    "kind": 0.97,
    "access": 0.97,
    "size": 0.97,
    "blamed first": 0.85,
    "blamed in three": 0.93,
    "in the trace": 0.99,
    "damaged F1": 0.85,
    "same precision": 0.98,
    "same recall": 0.90,
}
"""What is asked for, as shares; no report may be found in a file that has none."""

NOT_KERNEL = ("SYZ", "trusty", "go runtime", "fatal error", "panic:", "unexpected kernel reboot")
"""Titles of what is not a report of the kernel."""

KINDS: tuple[tuple[str, Kind], ...] = (
    ("KASAN: ", Kind.KASAN),
    ("KFENCE: ", Kind.KFENCE),
    ("KMSAN: ", Kind.KMSAN),
    ("KCSAN: ", Kind.KCSAN),
    ("UBSAN: ", Kind.UBSAN),
    ("memory leak", Kind.MEMORY_LEAK),
    ("general protection fault", Kind.GENERAL_PROTECTION),
    ("BUG: unable to handle kernel NULL", Kind.NULL_DEREFERENCE),
    ("BUG: unable to handle", Kind.PAGING_REQUEST),
    ("BUG: corrupted list", Kind.LIST_CORRUPTION),
    ("BUG: bad usercopy", Kind.USERCOPY),
    ("WARNING: bad usercopy", Kind.USERCOPY),
    ("kernel BUG", Kind.KERNEL_BUG),
    ("WARNING: refcount", Kind.REFCOUNT),
    ("WARNING: ODEBUG", Kind.ODEBUG),
    ("WARNING: locking bug", Kind.LOCKDEP),
    ("WARNING: bad unlock", Kind.LOCK_USAGE),
    ("BUG: bad unlock", Kind.LOCK_USAGE),
    ("WARNING: held lock", Kind.LOCK_USAGE),
    ("BUG: held lock", Kind.LOCK_USAGE),
    ("BUG: still has locks", Kind.LOCK_USAGE),
    ("WARNING: lock held", Kind.LOCK_USAGE),
    ("BUG: lock held", Kind.LOCK_USAGE),
    ("WARNING: suspicious RCU", Kind.RCU_USAGE),
    ("INFO: suspicious RCU", Kind.RCU_USAGE),
    ("WARNING: possible circular", Kind.DEADLOCK),
    ("WARNING: kernel stack", Kind.BUG),
    ("WARNING", Kind.WARNING),
    ("possible deadlock", Kind.DEADLOCK),
    ("inconsistent lock state", Kind.LOCK_STATE),
    ("INFO: task hung", Kind.HUNG_TASK),
    ("INFO: task can't die", Kind.HUNG_TASK),
    ("INFO: rcu detected", Kind.RCU_STALL),
    ("BUG: soft lockup", Kind.SOFT_LOCKUP),
    ("INFO: trying to register", Kind.LOCKDEP),
    ("BUG: MAX_", Kind.LOCKDEP),
    ("BUG: sleeping function", Kind.ATOMIC_SLEEP),
    ("BUG: scheduling while", Kind.ATOMIC_SLEEP),
    ("BUG: using ", Kind.PREEMPTION),
    ("BUG: spinlock", Kind.SPINLOCK),
    ("BUG: rwlock", Kind.SPINLOCK),
    ("BUG: workqueue", Kind.WORKQUEUE_LOCKUP),
    ("BUG: stack guard", Kind.STACK_OVERFLOW),
    ("BUG: Bad ", Kind.BAD_PAGE),
    ("BUG: Object", Kind.SLAB),
    ("INFO: Freed", Kind.SLAB),
    ("INFO: Allocated", Kind.SLAB),
    ("divide error", Kind.DIVIDE_ERROR),
    ("stack segment", Kind.STACK_SEGMENT),
    ("invalid opcode", Kind.INVALID_OPCODE),
    ("PANIC: double fault", Kind.DOUBLE_FAULT),
    ("double fault", Kind.DOUBLE_FAULT),
    ("kernel stack overflow", Kind.STACK_OVERFLOW),
    ("kernel panic: stack is corrupted", Kind.STACK_PROTECTOR),
    ("kernel panic: corrupted stack end", Kind.STACK_OVERFLOW),
    ("kernel panic: Attempted to kill", Kind.INIT_DIED),
    ("kernel panic: bad mode", Kind.BAD_MODE),
    ("kernel panic: hung_task", Kind.HUNG_TASK),
    ("kernel panic: softlockup", Kind.SOFT_LOCKUP),
    ("kernel panic: Hard LOCKUP", Kind.HARD_LOCKUP),
    ("kernel panic: Out of memory", Kind.OUT_OF_MEMORY),
    ("kernel panic: System is deadlocked", Kind.OUT_OF_MEMORY),
    ("kernel panic: VFS: Unable to mount", Kind.NO_ROOT),
    ("kernel panic", Kind.PANIC),
    ("Unhandled fault", Kind.UNHANDLED_FAULT),
    ("Internal error", Kind.INTERNAL_ERROR),
    ("Alignment trap", Kind.ALIGNMENT),
    ("VFS: ", Kind.FILE_SYSTEM),
    ("unregister_netdevice", Kind.NETDEVICE_REFERENCE),
    ("attempt to ", Kind.RUST_PANIC),
    ("BUG", Kind.BUG),
)
"""Which kind a title means, by its beginning."""


@dataclass
class Expected:
    """One file of the corpus."""

    name: str
    log: bytes
    title: str = ""
    alternatives: list[str] = field(default_factory=list)
    is_damaged: bool = False
    is_panic: bool = False

    @property
    def kind(self) -> Kind | None:
        """The kind that the title means, None if no kind of ours is meant."""
        return next((kind for start, kind in KINDS if self.title.startswith(start)), None)

    @property
    def functions(self) -> set[str]:
        """The functions that are rightly blamed; empty: none is asked for."""
        if " in " not in self.title or self.title.endswith("in corrupted"):
            return set()
        names: set[str] = set()
        for title in (self.title, *self.alternatives):
            if " in " in title:
                name = title.rpartition(" in ")[2]
                names |= {name} if name.startswith("<") else set(name.partition(" ")[0].split("/"))
        return names | {plain_name(name) for name in names}

    @property
    def access(self) -> Access | None:
        """What the title says was done to the address."""
        match = re.match(r"KASAN: \S+ (Read|Write) in|KFENCE: .*(read|write) in", self.title)
        return Access((match[1] or match[2]).lower()) if match is not None else None

    @property
    def size_bytes(self) -> int | None:
        """The size of the access, as the log says it."""
        match = re.search(rb"(?:Read|Write) of size (\d+)", self.log) if self.access is not None else None
        return int(match[1]) if match is not None else None


def read_expected(path: Path) -> Expected:
    """Read one file of the corpus."""
    lines = path.read_bytes().replace(b"\r", b"").split(b"\n")
    expected = Expected(path.stem, b"")
    for number, line in enumerate(lines):
        if not line:
            log = b"\n".join(lines[number + 1 :])
            expected.log = log.partition(b"\n\nREPORT:\n")[0]
            break
        key, _, value = line.decode("utf-8", "replace").partition(":")
        _take_header(expected, key, value.strip())
    return expected


def _take_header(expected: Expected, key: str, value: str) -> None:
    if key == "TITLE":
        expected.title = value
    elif key == "ALT":
        expected.alternatives.append(value)
    elif key == "CORRUPTED":
        expected.is_damaged = value == "Y"
    elif key == "PANICKED":
        expected.is_panic = value == "Y"


@dataclass
class Tally:
    """How often ours agreed, by what was asked."""

    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    false_reports: int = 0
    empty_files: int = 0

    def note(self, name: str, title: str, question: str, *, is_right: bool) -> None:
        """Count one answer."""
        self.asked[question] = self.asked.get(question, 0) + 1
        self.right[question] = self.right.get(question, 0) + is_right
        if not is_right:
            self.failures.append(f"{name}: {question}: {title}")

    def share(self, question: str) -> float:
        """Return the share of right answers, 1.0 where nothing was asked."""
        asked = self.asked.get(question, 0)
        return self.right.get(question, 0) / asked if asked else 1.0


def judge(files: Iterable[Expected]) -> dict[str, float]:
    """Judge files and return the share of each question of :data:`BARS`, and ``false reports``."""
    return shares(tally(files))


def tally(files: Iterable[Expected]) -> tuple[Tally, list[tuple[Expected, Report]]]:
    """Judge each file by itself."""
    counts, pairs = Tally(), list[tuple[Expected, Report]]()
    for expected in files:
        reports = find_reports(expected.log)
        if not expected.title:
            counts.empty_files += 1
            counts.false_reports += bool(reports)
            if reports:
                counts.failures.append(f"{expected.name}: a report where none is")
        elif not expected.title.startswith(NOT_KERNEL):
            counts.note(expected.name, expected.title, "detected", is_right=bool(reports))
            if reports:
                pairs.append((expected, reports[0]))
                _judge_report(counts, expected, reports[0])
    return counts, pairs


def _judge_report(counts: Tally, expected: Expected, report: Report) -> None:
    def note(question: str, *, is_right: bool) -> None:
        counts.note(expected.name, expected.title, question, is_right=is_right)

    note("panicked", is_right=report.is_panic == expected.is_panic)
    note("kind", is_right=report.kind is expected.kind)
    if expected.access is not None:
        note("access", is_right=report.access is expected.access)
    if expected.size_bytes is not None:
        note("size", is_right=report.size_bytes == expected.size_bytes)
    wanted = expected.functions
    if wanted:
        blamed = [blame.function for blame in report.blame]
        note("blamed first", is_right=bool(wanted & set(blamed[:1])))
        note("blamed in three", is_right=bool(wanted & set(blamed[:3])))
        seen = {plain_name(frame.function) for trace in report.traces for frame in trace.frames}
        seen |= {plain_name(lock.function) for lock in report.locks} | set(blamed)
        note("in the trace", is_right=bool(wanted & seen))
    note("damaged", is_right=bool(report.damage) == expected.is_damaged)


def shares(judged: tuple[Tally, list[tuple[Expected, Report]]]) -> dict[str, float]:
    """Turn counts into shares."""
    counts, pairs = judged
    found = {question: counts.share(question) for question in BARS if question in counts.asked}
    found["damaged F1"] = _f1([(expected.is_damaged, bool(report.damage)) for expected, report in pairs])
    found["same precision"], found["same recall"] = _same(pairs)
    found["false reports"] = float(counts.false_reports)
    return found


def _f1(pairs: list[tuple[bool, bool]]) -> float:
    both = sum(truth and ours for truth, ours in pairs)
    total = sum(truth for truth, _ in pairs) + sum(ours for _, ours in pairs)
    return 2 * both / total if total else 1.0


def _same(pairs: list[tuple[Expected, Report]]) -> tuple[float, float]:
    """Judge by pairs which reports are held to be the same crash."""
    named = [
        ({expected.title, *expected.alternatives}, bucket_of(report))
        for expected, report in pairs
        if "corrupted" not in expected.title
    ]
    both = ours = truth = 0
    for (titles, bucket), (other_titles, other_bucket) in itertools.combinations(named, 2):
        is_same, is_ours = bool(titles & other_titles), bucket == other_bucket
        both += is_same and is_ours
        ours += is_ours
        truth += is_same
    return (both / ours if ours else 1.0), (both / truth if truth else 1.0)


def halves(files: list[Expected], seed: int) -> Iterator[tuple[str, list[Expected]]]:
    """Yield two random halves, then all."""
    shuffled = list(files)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - nothing secret
    middle = len(shuffled) // 2
    yield "one half", shuffled[:middle]
    yield "the other half", shuffled[middle:]
    yield "all", shuffled


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--halves", type=int, default=20261121, metavar="SEED")
    parser.add_argument("--failures", action="store_true", help="name the files that failed")
    arguments = parser.parse_args()
    files = [read_expected(path) for path in sorted(arguments.directory.glob("*.txt"))]
    columns = {name: tally(part) for name, part in halves(files, arguments.halves)}
    results = {name: shares(judged) for name, judged in columns.items()}
    print(f"{'':18}{'asked for':>10}" + "".join(f"{name:>16}" for name in results))
    for question, bar in BARS.items():
        print(
            f"{question:18}{bar:>10.2f}" + "".join(f"{found.get(question, 1.0):>16.3f}" for found in results.values())
        )
    print(f"{'false reports':18}{0:>10}" + "".join(f"{found['false reports']:>16.0f}" for found in results.values()))
    if arguments.failures:
        print("\n".join(columns["all"][0].failures))


if __name__ == "__main__":
    main()
