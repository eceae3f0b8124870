"""What stands before a message is taken off, whoever put it there."""

from __future__ import annotations

import json

import pytest

from postpanic.evidence.lines import LINE_LIMIT, clean_text, split_line
from postpanic.evidence.oops import find_reports
from postpanic.evidence.sources import Form, detect_form, plain_text
from tests.unit.evidence import texts
from tests.unit.evidence.texts import stamped

MESSAGE = " widget_probe+0x44/0x70 [widget]"


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "[   12.345678] ",
        "[   12.345678][  T812] ",
        "[   12.345678][    C0] ",
        "<4>[   12.345678] ",
        "<4>",
        "[Fri Jan 12 10:11:12 2024] ",
        "[Jan12 10:11] ",
        "[  +0.000123] ",
        "[   12.345678 <    0.000123>] ",
        "kern  :warn  : [   12.345678] ",
        "kern  :alert : [Fri Jan 12 10:11:12 2024] ",
        "2024-01-12T10:11:12,123456+00:00 ",
        "Jan 12 10:11:12 host kernel: ",
        "Jan  2 10:11:12 host.example.org kernel: [   12.345678] ",
        "<4>1 2024-01-12T10:11:12.123456+01:00 host kernel: [   12.345678] ",
        "2024-01-12T10:11:12.123456+01:00 host kernel: ",
        "4,1234,12345678,-;",
        "6.4.0-rc1,4,1234,12345678,-,caller=T812;",
        "login: [   12.345678] ",
        "<4>[   12.345678]  [3:     modprobe:  812] ",
    ],
)
def test_prefix_is_taken_off(prefix: str) -> None:
    line = split_line(prefix + MESSAGE)[-1]
    assert line.text == MESSAGE


def test_time_level_and_caller_are_kept() -> None:
    (line,) = split_line("<4>[   12.345678][  T812] oops")
    assert (line.time_s, line.level, line.caller) == (12.345678, 4, "T812")
    (record,) = split_line("3,1234,12345678,-;oops")
    assert (record.time_s, record.level) == (12.345678, 3)


def test_messages_that_share_a_line_come_apart() -> None:
    first, second = split_line("[   62.905122]  ffff8801a32576d8[   62.907092] binder: set already")
    assert (first.text, second.text) == (" ffff8801a32576d8", "binder: set already")


def test_foreign_text_before_a_message_is_told_apart() -> None:
    foreign, line = split_line("executing program[   62.907092][   T12] BUG: bad")
    assert foreign.is_foreign
    assert (line.text, line.caller) == ("BUG: bad", "T12")


def test_terminal_control_is_taken_out() -> None:
    raw = b"\x1b[2J\x1b[01;31m[    1.000000] \x1b[33mBUG\x1b[0m: bad\x00\xff\x07\r\r\nnext\r\n"
    assert clean_text(raw).split("\n") == ["[    1.000000] BUG: bad\\xff", "", "next", ""]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r\r\n"])
def test_report_is_found_whatever_ends_its_lines(newline: str) -> None:
    (report,) = find_reports(stamped(texts.PAGE_FAULT).replace("\n", newline).encode())
    assert report.function == "widget_attach"
    assert report.registers["RBX"] == 0xFFFF888104A5C000
    assert not report.damage


def prefixed(text: str, form: str) -> str:
    return "".join(form.format(n=n) + line + "\n" for n, line in enumerate(text.splitlines()))


FORMS = (
    "Jan 12 10:11:12 host kernel: [   12.{n:06}] ",
    "kern  :warn  : [   12.{n:06}] ",
    "[Fri Jan 12 10:11:12 2024] ",
    "4,{n},12345678,-;",
    "<4>[   12.{n:06}] ",
    "2024-01-12T10:11:12.123456+01:00 host kernel: ",
    "\x1b[32m[   12.{n:06}] \x1b[0m\x1b[33m\x1b[0m",
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", [texts.PAGE_FAULT, texts.KASAN, texts.WARNING, texts.HUNG, texts.RCU, texts.DEADLOCK])
def test_same_crash_has_the_same_signature_in_every_log(form: str, text: str) -> None:
    (plain,) = find_reports(text.encode())
    (report,) = find_reports(prefixed(text, form).encode())
    assert (report.signature, report.title, report.comm) == (plain.signature, plain.title, plain.comm)
    assert len(report.traces) == len(plain.traces)


def as_journal_json(text: str) -> bytes:
    fields = {"_TRANSPORT": "kernel", "PRIORITY": "4"}
    return b"".join(
        json.dumps({**fields, "_SOURCE_MONOTONIC_TIMESTAMP": f"12{n:06}", "MESSAGE": line}).encode() + b"\n"
        for n, line in enumerate(text.splitlines())
    )


def as_journal_export(text: str) -> bytes:
    records = []
    for n, line in enumerate(text.splitlines()):
        raw = line.encode()
        message = b"MESSAGE\n" + len(raw).to_bytes(8, "little") + raw + b"\n" if n % 2 else b"MESSAGE=" + raw + b"\n"
        records.append(b"__CURSOR=x%d\n_SOURCE_MONOTONIC_TIMESTAMP=12%06d\nPRIORITY=4\n" % (n, n) + message + b"\n")
    return b"".join(records)


def as_dmesg_json(text: str) -> bytes:
    rows = [
        {"fac": "kern", "pri": "warn", "time": 12 + n / 1e6, "msg": line} for n, line in enumerate(text.splitlines())
    ]
    return json.dumps({"dmesg": rows}, indent=3).encode()


@pytest.mark.parametrize(
    ("wrap", "form"),
    [
        (as_journal_json, Form.JOURNAL_JSON),
        (as_journal_export, Form.JOURNAL_EXPORT),
        (as_dmesg_json, Form.DMESG_JSON),
    ],
)
def test_wrapped_logs_give_the_same_report(wrap, form: Form) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    wrapped = wrap(texts.PAGE_FAULT)
    assert detect_form(wrapped) is form
    (plain,) = find_reports(texts.PAGE_FAULT.encode())
    (report,) = find_reports(plain_text(wrapped))
    assert (report.signature, report.registers, report.time_s) == (plain.signature, plain.registers, 12.0)
    cut = plain_text(wrapped[: len(wrapped) * 3 // 4])
    (damaged,) = find_reports(cut)
    assert damaged.function == "widget_attach"


def test_line_without_end_is_read_in_pieces() -> None:
    text = b"x" * (3 * LINE_LIMIT) + b"\n" + texts.WARNING.encode()
    (report,) = find_reports(text)
    assert report.function == "widget_release"
