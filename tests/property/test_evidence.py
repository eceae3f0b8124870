"""What must hold for any text: no error, no hang, bounded memory, time that grows with the size alone."""

from __future__ import annotations

import re
import time
import tracemalloc
from re import Pattern

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.evidence import lines, sources
from postpanic.evidence.lines import clean_text, split_line
from postpanic.evidence.oops import builder, fields, find_reports, frames, functions, parse, rules
from postpanic.evidence.oops.answer import answer_of
from postpanic.evidence.oops.demangle import demangle
from postpanic.evidence.oops.functions import part_of
from postpanic.evidence.sources import plain_text
from postpanic.findings.schema import answer_value
from tests.unit.evidence import texts
from tests.unit.evidence.texts import stamped

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=80)
ALL = "".join(stamped(getattr(texts, name), caller) for name in texts.__all__[:-1] for caller in ("", "T7"))
PIECES = [line.encode() for line in ALL.splitlines(keepends=True)]

reports_torn = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)), max_size=80).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Real text with bytes changed, cut out or doubled."""
    name = draw(st.sampled_from(texts.__all__[:-1]))
    raw = bytearray(stamped(getattr(texts, name), draw(st.sampled_from(["", "C1", "T99"]))).encode())
    for _ in range(draw(st.integers(0, 12))):
        place = draw(st.integers(0, len(raw) - 1))
        change = draw(st.sampled_from(["flip", "cut", "double", "newline"]))
        if change == "flip":
            raw[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del raw[place : place + draw(st.integers(1, 200))]
        elif change == "double":
            raw[place:place] = raw[place : place + 300]
        else:
            raw[place:place] = b"\r\n"
        if not raw:
            break
    return bytes(raw)


def read_all(text: bytes) -> None:
    for report in find_reports(plain_text(text), with_notices=True):
        assert 0 <= report.offset <= report.end <= len(text) or plain_text(text) is not text
        assert report.title
        assert len(report.signature) == 16
        answer_value(answer_of([report]))


@DETERMINISTIC
@given(st.one_of(st.binary(max_size=2000), reports_torn, mutated()))
def test_any_bytes_are_read_without_an_error(text: bytes) -> None:
    read_all(text)


@DETERMINISTIC
@given(st.one_of(st.text(max_size=300), st.sampled_from(ALL.splitlines())))
def test_any_line_keeps_its_message(text: str) -> None:
    for line in split_line(text):
        assert line.text in text
    clean_text(text.encode("utf-8", "surrogateescape") if text.isascii() else text.encode("utf-16"))


@DETERMINISTIC
@given(st.text(alphabet="_RNvCsXMYIBETL0123456789abcdefuz", max_size=120))
def test_any_name_is_demangled_or_left_alone(name: str) -> None:
    assert isinstance(demangle("_R" + name), str)
    assert isinstance(demangle("_Z" + name), str)


def patterns() -> list[tuple[str, Pattern[str]]]:
    found = [(f"rule {rule.needle!r}", rule.pattern) for rule in rules.RULES]
    for module in (lines, sources, fields, frames, builder, parse, functions):
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                found.append((f"{module.__name__}.{name}", value))
    return found + [("part of a function", pattern) for pattern, _ in functions._PARTS]


EVIL = (
    " ", "a", "0", "_", ".", "[", "(", "<", "?", "\t", ": ", "x/", "[<", "BUG: ", "WARNING: ", "INFO: task ", "at 0x1 ",
    "a b ", "a+0x1", "[1.000000]", "<4>", "Tainted: G ", "CPU: 1 PID: 1 Comm: ", "Oops: ", "a from ",
    "Jan 12 10:00:00 ",
    "kern  :warn  : ", "{a}", "-{2:2}, at: ", "WARNING: [", "print_lock",
)  # fmt: skip


@pytest.mark.parametrize(("name", "pattern"), patterns(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_pattern_takes_longer_than_the_length_of_its_text(name: str, pattern: Pattern[str]) -> None:
    # Names of functions are cut before they are matched; every other text is at most a line.
    length = 128 if "function" in name else lines.LINE_LIMIT // 2
    for seed in EVIL:
        text = (seed * (length // len(seed) + 1))[:length] + "!"
        started = time.process_time()
        pattern.search(text)
        pattern.match(text)
        assert time.process_time() - started < 0.5, f"{name} on {seed!r}"


LONG = 1 << 18


@pytest.mark.parametrize(
    "unit",
    [
        b"\x00",
        b"BUG: ",
        b"BUG: x\n",
        b"WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n",
        b"[    1.000000] Kernel panic - not syncing: x\n",
        b"Kernel panic - not syncing: ",
        b"\x1b[1m",
        b"\r",
        b"[    1.000000][    T1] ",
        b" f+0x1/0x2\n",
        b"BUG: KASAN: x in f+0x1/0x2\n f+0x1/0x2\n",
        b"Linux version \n",
        b"\xff\xfe",
        b"refcount_t: x\n",
        b'{"MESSAGE":"BUG: x"}\n',
        b"MESSAGE=BUG: x\n",
        b'{"dmesg": [{"msg":"',
    ],
)
def test_time_and_memory_grow_with_the_size_alone(unit: bytes) -> None:
    small, large = unit * (LONG // 4 // len(unit)), unit * (LONG // len(unit))
    took = []
    for text in (small, large):
        started = time.process_time()
        find_reports(plain_text(text))
        took.append(time.process_time() - started)
    assert took[1] < 8 * took[0] + 0.5, "four times the text must not take much more than four times the time"
    assert took[1] < 10


def test_deep_stream_of_frames_is_bounded_in_memory() -> None:
    text = b"BUG: KASAN: use-after-free in f+0x1/0x2\n" + b" f+0x1/0x2\n" * 100_000
    tracemalloc.start()
    try:
        reports = find_reports(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(reports) == 1
    assert peak < 32 << 20


def test_flood_of_reports_is_bounded_in_number() -> None:
    assert len(find_reports(b"BUG: x\n" * 20_000)) == parse.REPORTS_LIMIT


def test_every_name_has_a_part_or_none_in_time() -> None:
    started = time.process_time()
    for number in range(3000):
        part_of("print_" + "a_lock" * 20 + str(number))
    assert time.process_time() - started < 5
