"""
How well reports are read: judged on a directory of real ones with expected headers.

A file of the corpus is header lines (``TITLE:``, ``ALT:``, ``TYPE:``, ``CORRUPTED: Y``,
``PANICKED: Y`` …), an empty line and the raw console log; a file without a title must
give no report. Facts must agree: whether there is a report, its kind, the access and
its size, whether the kernel panicked. The function to blame and the damage are
judgements, with which most of ours should agree.

Rules that were written while these files were read fit them better than others.
``--leave-out`` says by how much at most: names of functions are taken out of the rules
one by one, and a file whose answer hangs on a name that no other file needs counts as
wrong, as if the name had never been seen.

Usage::

    python benchmarks/oops.py DIRECTORY [--halves SEED] [--failures] [--leave-out]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.evidence.oops import Access, Kind, Report, dispatch, find_reports, functions
from postpanic.evidence.oops.frames import base_name
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
    ("WARNING: still has locks", Kind.LOCK_USAGE),
    ("WARNING: nested lock", Kind.LOCK_USAGE),
    ("BUG: nested lock", Kind.LOCK_USAGE),
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


Blamed = dict[str, tuple[bool, bool]]


def blamed(files: Iterable[Expected]) -> Blamed:
    """Return for each file that names a function whether we name it first, and in the first three."""
    found: Blamed = {}
    for expected in files:
        if expected.functions and expected.title and not expected.title.startswith(NOT_KERNEL):
            names = [blame.function for report in find_reports(expected.log)[:1] for blame in report.blame]
            found[expected.name] = (
                bool(expected.functions & set(names[:1])),
                bool(expected.functions & set(names[:3])),
            )
    return found


def alternatives(pattern: str) -> list[str]:
    """Split a pattern at the bars that stand in no group."""
    parts, depth = [""], 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def leave_out(files: list[Expected]) -> tuple[float, float]:
    """Return the shares of "blamed first" and "in three" that do not hang on a name which only one file needs."""
    base, by_name = blamed(files), {expected.name: expected for expected in files}
    seen: dict[str, set[str]] = {}
    for expected in files:
        for report in find_reports(expected.log)[:1]:
            for trace in report.traces:
                for frame in trace.frames:
                    seen.setdefault(base_name(frame.function).lstrip("_")[:128], set()).add(expected.name)
    first, three = set[str](), set[str]()
    for words in _rule_words():
        for number, word in enumerate(words.all):
            named = {name for function, names in seen.items() if re.fullmatch(word, function) for name in names}
            words.without(number)
            now = blamed(by_name[name] for name in named & base.keys())
            for rank, lost in ((0, first), (1, three)):
                needy = {name for name, answer in now.items() if base[name][rank] and not answer[rank]}
                lost |= needy if len(needy) == 1 else set()
        words.restore()
    right = [sum(answer[rank] for answer in base.values()) for rank in (0, 1)]
    return (right[0] - len(first)) / len(base), (right[1] - len(three)) / len(base)


class _Words:
    """The alternatives of one rule, which can be put in its place and back."""

    def __init__(self, pattern: str, put: Callable[[list[str]], None]) -> None:
        self.all = alternatives(pattern)
        self._put = put

    def without(self, number: int) -> None:
        """Leave one out."""
        self._put([*self.all[:number], *self.all[number + 1 :]])

    def restore(self) -> None:
        """Put all in place again."""
        self._put(self.all)


def _rule_words() -> Iterator[_Words]:
    """Yield the words of the rules for functions."""
    parts = functions._PARTS  # noqa: SLF001 - what is judged here are these words

    def put_part(number: int, words: list[str]) -> None:
        changed = (re.compile("|".join(words)), parts[number][1])
        functions._PARTS = (*parts[:number], changed, *parts[number + 1 :])  # noqa: SLF001
        functions.part_of.cache_clear()

    def put_dispatch(words: list[str]) -> None:
        dispatch._PATTERN = re.compile("|".join(words))  # noqa: SLF001
        dispatch.calls_back.cache_clear()

    for number, (pattern, _) in enumerate(parts):
        yield _Words(pattern.pattern, functools.partial(put_part, number))
    yield _Words(dispatch._PATTERN.pattern, put_dispatch)  # noqa: SLF001


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
    parser.add_argument("--leave-out", action="store_true", help="estimate how it is on other files (slow)")
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
    if arguments.leave_out:
        estimates = zip(("blamed first", "blamed in three"), leave_out(files), strict=True)
        print("\nWithout names that only one file needs:")
        print("\n".join(f"{question:18}{BARS[question]:>10.2f}{share:>16.3f}" for question, share in estimates))
    if arguments.failures:
        print("\n".join(columns["all"][0].failures))


if __name__ == "__main__":
    main()
