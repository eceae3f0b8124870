"""How records of the kernel log are written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.cli.log_format import (
    LogStyle,
    escape_text,
    format_json,
    format_record,
    parse_facilities,
    parse_levels,
)
from postpanic.errors import UsageError
from postpanic.kernel.printk import LogRecord, RecordState


def make_record(text: bytes = b"hello", **fields: object) -> LogRecord:
    values: dict[str, object] = {
        "seq": 7,
        "timestamp_ns": 5_123_456_789,
        "level": 4,
        "facility": 0,
        "flags": 0,
        "caller_id": 1,
        "text": text,
    }
    return LogRecord(**(values | fields))  # type: ignore[arg-type]


def test_default_prefix_is_seconds_and_microseconds_cut_off() -> None:
    assert format_record(make_record(), LogStyle()) == "[    5.123456] hello"


def test_long_uptime_widens_the_prefix() -> None:
    assert format_record(make_record(timestamp_ns=1234567 * 10**9), LogStyle()) == "[1234567.000000] hello"


def test_every_line_of_a_record_has_the_prefix() -> None:
    assert format_record(make_record(b"one\ntwo\n"), LogStyle(raw=True)).split("\n") == [
        "<4>[    5.123456] one",
        "<4>[    5.123456] two",
        "<4>[    5.123456] ",
    ]


def test_record_without_its_text_says_why() -> None:
    record = make_record(b"", damage="its text is not in the dump")
    assert format_record(record, LogStyle()) == "[    5.123456] (unavailable: its text is not in the dump)"


def test_raw_priority_has_the_facility() -> None:
    assert format_record(make_record(facility=3, level=6), LogStyle(raw=True)) == "<30>[    5.123456] hello"


def test_decode_names_facility_and_level_in_columns() -> None:
    assert format_record(make_record(level=5), LogStyle(decode=True)) == "kern  :notice: [    5.123456] hello"
    assert format_record(make_record(facility=3), LogStyle(decode=True)).startswith("daemon:warn  : ")


@pytest.mark.parametrize(("caller_id", "text"), [(1, "[    T1]"), (0x80000002, "[    C2]"), (1234567, "[T1234567]")])
def test_caller_is_written_as_the_kernel_does(caller_id: int, text: str) -> None:
    line = format_record(make_record(caller_id=caller_id), LogStyle(caller=True))
    assert line == f"[    5.123456]{text} hello"


def test_no_time_leaves_the_text_alone() -> None:
    assert format_record(make_record(b" indented"), LogStyle(time=False)) == " indented"


def test_date_is_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        line = format_record(make_record(timestamp_ns=3 * 10**9), LogStyle(boot_time_s=1_700_000_000))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert line == "[Tue Nov 14 22:13:23 2023] hello"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\ttab", "plain\ttab"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"nul\0", "nul\\x00"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("µs".encode(), "µs"),
        (b"\xc2\x85", "\\xc2\\x85"),
        (b"cr\r", "cr\\x0d"),
    ],
)
def test_control_and_foreign_bytes_are_escaped(raw: bytes, text: str) -> None:
    assert escape_text(raw) == text


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_escaped_text_never_controls_the_terminal(raw: bytes) -> None:
    escaped = escape_text(raw)
    assert all(char.isprintable() or char in "\t\n" or ord(char) >= 0xA0 for char in escaped)
    escaped.encode("utf-8")


def test_json_has_the_fields_by_name() -> None:
    record = make_record(b"usb 1-1: new", level=6, subsystem="usb", device="c189:1", caller_id=0x80000001)
    assert json.loads(format_json(record)) == {
        "seq": 7,
        "timestamp": 5.123456789,
        "level": "info",
        "facility": "kern",
        "caller": "C1",
        "text": "usb 1-1: new",
        "dict": {"SUBSYSTEM": "usb", "DEVICE": "c189:1"},
    }


def test_json_tells_an_unfinished_record() -> None:
    fields = json.loads(format_json(make_record(state=RecordState.RESERVED, damage="half-written")))
    assert (fields["state"], fields["damage"]) == ("reserved", "half-written")


@pytest.mark.parametrize(
    ("text", "levels"),
    [("err", {3}), ("err,debug", {3, 7}), ("crit+", {0, 1, 2}), ("+notice", {5, 6, 7}), ("4", {4})],
)
def test_levels_are_read_as_dmesg_does(text: str, levels: set[int]) -> None:
    assert parse_levels(text) == levels


@pytest.mark.parametrize("text", ["", "loud", "8", "err,", "-1"])
def test_unknown_level_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is no level"):
        parse_levels(text)


def test_facilities_are_read_by_name() -> None:
    assert parse_facilities("kern,daemon") == {0, 3}
    with pytest.raises(UsageError, match="is no facility"):
        parse_facilities("kernel")
