"""Hostile text: whatever is in it, the reader ends, without an error, in bounded memory."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.evidence.oops import find_reports
from postpanic.evidence.oops.answer import answer_of
from postpanic.evidence.oops.parse import REPORTS_LIMIT
from postpanic.evidence.oops.segment import REPORT_LINES_LIMIT
from postpanic.evidence.sources import plain_text
from postpanic.findings.schema import answer_value
from tests.unit.evidence import texts
from tests.unit.evidence.texts import stamped

BODIES = [getattr(texts, name) for name in texts.__all__ if isinstance(getattr(texts, name), str)]
WORDS = [
    b"BUG: ", b"WARNING: ", b"INFO: ", b"Oops", b" [#1]", b"Kernel panic - not syncing: ", b"Call Trace:\n",
    b"RIP: 0010:",
    b"f+0x1/0x2", b"\x1b[31m", b"\r", b"\x00", b"\xff\xfe", b"\xc3\x28", b"[   12.000000] ", b"[   12.000000][ T1] ",
    b"<4>", b"---[ end trace 0000000000000000 ]---\n", b"</TASK>\n", b"CPU: 0 PID: 1 Comm: x Not tainted 6.1.0 #1\n",
    b"Code: 48 89 <ff> 00\n", b'{"MESSAGE":"', b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\x7f", b'{"dmesg": [{"msg":"',
    b"6,1,2,-;",
    b"Linux version ", b"Kernel Offset: 0x", b"0" * 400, b"(" * 400, b"at: ", b"-> #1 (", b"Allocated by task 1:\n",
    b"#PF: error_code(0x", b"CR2: ", b"lock (", b"holding lock", b"Modules linked in: ",
]  # fmt: skip


def flip(noise: random.Random, text: bytearray) -> None:
    for _ in range(noise.randrange(1, 40)):
        text[noise.randrange(len(text))] = noise.randrange(256)


def cut(noise: random.Random, text: bytearray) -> None:
    start = noise.randrange(len(text))
    del text[start : start + noise.randrange(1, 2000)]


def double(noise: random.Random, text: bytearray) -> None:
    start = noise.randrange(len(text))
    text[start:start] = text[start : start + noise.randrange(1, 2000)] * noise.randrange(1, 6)


def splice(noise: random.Random, text: bytearray) -> None:
    for _ in range(noise.randrange(1, 20)):
        place = noise.randrange(len(text) + 1)
        text[place:place] = noise.choice(WORDS)


def shuffle_lines(noise: random.Random, text: bytearray) -> None:
    lines = bytes(text).splitlines(keepends=True)
    start = noise.randrange(len(lines))
    part = lines[start : start + 30]
    noise.shuffle(part)
    text[:] = b"".join([*lines[:start], *part, *lines[start + 30 :]])


def join_lines(noise: random.Random, text: bytearray) -> None:
    text[:] = bytes(text).replace(b"\n", noise.choice([b"", b" ", b"\r", b"\x00"]), noise.randrange(1, 60))


CHANGES: list[Callable[[random.Random, bytearray], None]] = [flip, cut, double, splice, shuffle_lines, join_lines]


def hostile(seed: int) -> bytes:
    """Make a text of pieces of reports, changed in a few ways; the same for the same seed."""
    noise = random.Random(seed)
    parts = noise.choices(BODIES, k=noise.randrange(1, 4))
    text = bytearray("".join(stamped(part, noise.choice(["", "T7", "C0"])) for part in parts).encode())
    for _ in range(noise.randrange(1, 6)):
        noise.choice(CHANGES)(noise, text)
        if not text:
            return b""
    return bytes(text)


@pytest.mark.parametrize("block", range(10))
def test_changed_reports_are_read_without_an_error(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        text = hostile(seed)
        plain = plain_text(text)
        reports = find_reports(plain, with_notices=True)
        assert reports == find_reports(plain, with_notices=True), f"seed {seed}: not the same twice"
        for place, report in enumerate(reports):
            assert 0 <= report.offset <= report.end <= len(plain), f"seed {seed}"
            assert report.title
            assert "\n" not in report.title
            assert len(report.signature) == 16
            assert len(report.lines) <= REPORT_LINES_LIMIT + 1
            assert report.consequence_of is None or report.consequence_of < place
        answer_value(answer_of(reports))


@pytest.mark.parametrize("seed", range(0, 400, 8))
def test_report_is_found_again_from_its_first_line_on(seed: int) -> None:
    text = stamped(random.Random(seed).choice(BODIES)).encode() + hostile(seed)
    first = find_reports(text)[0]
    start = text.rfind(b"\n", 0, first.offset) + 1
    again = find_reports(text[start:])[0]
    assert (again.kind, again.message, again.function) == (first.kind, first.message, first.function)


MEASURE = """
import resource, sys
from postpanic.evidence.oops import find_reports, iterate_reports
from postpanic.evidence.sources import plain_text
find_reports(b"BUG: x\\n")
with open(sys.argv[1], "rb") as stream:
    text = stream.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in iterate_reports(plain_text(text)))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
MIB = 1 << 20


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        (b"A", 100 * MIB),
        (bytes(1), 20 * MIB),
        (random.Random(7).randbytes(1 << 16), 20 * MIB),
        (b"\xff\xfe\xc3\x28", 5 * MIB),
        (b"BUG: ", 5 * MIB),
        (b"[    1.000000] ", 5 * MIB),
        (b"BUG: KASAN: x in f+0x1/0x2\n" + b" f+0x1/0x2\n" * 500, 3 * MIB),
        (b"[    1.000000][ T1] BUG: x\n[    1.000000][ T2] BUG: y\n", MIB),
    ],
    ids=[
        "one line of letters",
        "one line of zeros",
        "noise",
        "no UTF-8",
        "one line of BUG",
        "stamps",
        "frames",
        "BUGs",
    ],
)
def test_memory_does_not_grow_with_the_text(unit: bytes, size: int, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(unit * (size // len(unit)))
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr
    _, grown_mib = map(int, finished.stdout.split())
    assert grown_mib < 160


def test_a_report_keeps_no_more_than_its_limit() -> None:
    text = b"BUG: KASAN: x in f+0x1/0x2\n" + b" f+0x1/0x2\n" * (REPORT_LINES_LIMIT * 3)
    (report, *_) = find_reports(text)
    assert len(report.lines) <= REPORT_LINES_LIMIT + 1
    assert sum(len(trace.frames) for trace in report.traces) <= REPORT_LINES_LIMIT + 1
    assert len(find_reports(b"BUG: x\n" * (REPORTS_LIMIT + 100))) == REPORTS_LIMIT
