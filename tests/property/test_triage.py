"""Triage of any text: it ends, it never raises, and it claims no more than the text can show."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.analysis.triage import scene_of_log, triage_log
from postpanic.evidence.memory_report import find_memory_reports
from postpanic.evidence.troubles import find_troubles
from postpanic.findings.schema import answer_value
from postpanic.findings.verdict import Cause, Confidence, Verdict
from postpanic.findings.verdict_answer import answer_of
from postpanic.report.text import render_text
from tests.unit.analysis.triage.context.test_context import FILE_SYSTEM, IRQ, MACHINE_CHECK, NMI, NO_ROOT, panic
from tests.unit.analysis.triage.test_deliberate import LKDTM, WRITTEN
from tests.unit.evidence import texts
from tests.unit.evidence.test_memory_report import OOM
from tests.unit.evidence.test_troubles import LINES
from tests.unit.evidence.texts import stamped

BODIES = [
    *(text for name in texts.__all__ if isinstance(text := getattr(texts, name), str)),
    OOM, WRITTEN, LKDTM, IRQ, NO_ROOT, MACHINE_CHECK, FILE_SYSTEM, NMI.format(reason="31"),
    panic("Attempted to kill init! exitcode=0x0000000b", "do_exit+0x1/0x2"),
    panic("VFS: Unable to mount root fs on unknown-block(0,0)", "mount_root+0x1/0x2"),
    panic("NMI: Not continuing", "nmi_panic+0x1/0x2"),
    panic("Out of memory: compulsory panic_on_oom is enabled", "out_of_memory.cold+0x1/0x2"),
    panic("EXT4-fs (device vda1): panic forced after error", "ext4_handle_error+0x1/0x2"),
    panic("widget lost its mind", "widget_give_up+0x12/0x40 [widget]"),
    *(line + "\n" for line, _, _ in LINES),
]  # fmt: skip
LINES_OF_ALL = sorted({line for body in BODIES for line in body.splitlines()})
PARTS = st.sampled_from(BODIES)


def check(verdict: Verdict) -> None:
    assert not any("it failed" in missing.why for missing in verdict.missing), verdict.missing
    if verdict.confidence is Confidence.UNKNOWN:
        assert verdict.cause is Cause.UNKNOWN or not verdict.findings
    for finding in verdict.findings:
        assert finding.sentence
        assert all(one.what for one in finding.evidence), finding.detector
        assert bool(finding.module) or not finding.function, finding.detector
    answer = answer_of(verdict)
    assert list(render_text(answer))
    assert answer_value(answer)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PARTS, st.floats(0, 1e5), st.sampled_from(["", "T1", "C0"])), max_size=5))
def test_reports_in_any_order_and_at_any_time(parts: list[tuple[str, float, str]]) -> None:
    text = "".join(stamped(body, caller, start_s) for body, start_s, caller in parts)
    check(triage_log(text.encode()))


@settings(max_examples=60, deadline=None)
@given(PARTS, PARTS, st.data())
def test_a_text_that_is_cut_at_both_ends(one: str, other: str, data: st.DataObject) -> None:
    text = (one + other).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    check(triage_log(text[start:end]))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(LINES_OF_ALL), max_size=60))
def test_lines_in_any_order(lines: list[str]) -> None:
    check(triage_log("\n".join(lines).encode()))


@settings(max_examples=60, deadline=None)
@given(PARTS, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=40))
def test_bytes_that_were_changed(body: str, changes: list[tuple[int, int]]) -> None:
    text = bytearray(body.encode())
    for place, value in changes:
        text[place % len(text)] = value
    check(triage_log(bytes(text)))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=4096))
def test_any_bytes(text: bytes) -> None:
    check(triage_log(text))
    find_memory_reports(text)
    find_troubles(text)


@settings(max_examples=30, deadline=None)
@given(PARTS, PARTS)
def test_what_came_after_the_crash_does_not_change_its_kind(crash: str, later: str) -> None:
    first = scene_of_log(crash.encode()).first
    if first is None or not first.is_panic or "Linux version" in later:
        return
    booted = f"{crash}[    0.000000] Linux version 6.12.1-test (builder@host)\n{later}"
    after = scene_of_log(booted.encode()).first
    assert after is not None
    assert after.kind is first.kind
