"""Symbols of Rust in the kernel's log."""

from __future__ import annotations

import shutil

import pytest

from postpanic.analysis.commands.log import demangle_records
from postpanic.findings.table import Problem
from postpanic.kernel.printk import LogRecord

SYMBOL = b"_RNvNtCshc5sK6KjdJJ_6kernel5print11call_printk"


def _record(text: bytes) -> LogRecord:
    return LogRecord(1, 0, 4, 0, 0, 0, text)


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed")
def test_symbols_are_spelled_as_in_the_source() -> None:
    problems: list[Problem] = []
    records = [_record(b" ? " + SYMBOL + b"+0x20/0xe0 [rust]\n panic+0x1/0x2"), _record(b"nothing \xff")]
    texts = [record.text for record in demangle_records(records, problems)]
    assert texts == [b" ? kernel::print::call_printk+0x20/0xe0 [rust]\n panic+0x1/0x2", b"nothing \xff"]
    assert problems == []


def test_without_cxxfilt_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    problems: list[Problem] = []
    assert [record.text for record in demangle_records([_record(SYMBOL)], problems)] == [SYMBOL]
    assert len(problems) == 1


def test_a_log_without_rust_needs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    problems: list[Problem] = []
    demangle_records([_record(b"R13: 0001 _RET")], problems)
    assert problems == []
