"""Errors that a machine reported of its memory: what the kernel printed, and what it stored when one was fatal."""

from __future__ import annotations

from collections.abc import Callable

from postpanic.evidence.hardware.mce_record import decode_mce_record
from postpanic.evidence.hardware.model import Part, Severity, Source
from postpanic.evidence.hardware.text import find_hardware_errors
from postpanic.evidence.oops import Kind, find_reports
from postpanic.evidence.pstore import RecordType
from tests.vm.evidence_texts import read_stored, read_texts
from tests.vm.records import CORRECTED, FATAL, Evidence


def test_corrected_and_fatal_errors_of_memory(evidence: Callable[..., Evidence]) -> None:
    found = evidence("erst")
    for form, text in read_texts(evidence("erst")).items():
        errors = [error for error in find_hardware_errors(text) if error.source is Source.MACHINE_CHECK]
        assert [error.part for error in errors] == [Part.MEMORY, Part.MEMORY], form
        assert [error.severity for error in errors] == [Severity.CORRECTED, Severity.FATAL], form
        assert [error.is_panic for error in errors] == [False, True], form
        checks = [error.machine_check for error in errors]
        for check, injected in zip(checks, (CORRECTED, FATAL), strict=True):
            assert check is not None
            assert (check.cpu, check.bank, check.status) == (injected.cpu, injected.bank, injected.status)
            # The address is a page's: the low bits are said not to be valid.
            assert (check.addr, check.misc) == (injected.address & ~0xFFF, injected.misc)
    (report,) = find_reports(found.console)
    assert (report.kind, report.is_panic) == (Kind.MACHINE_CHECK, True)


def test_the_record_that_was_stored_is_what_was_printed(evidence: Callable[..., Evidence]) -> None:
    found = evidence("erst")
    (printed,) = (error for error in find_hardware_errors(found.console) if error.severity is Severity.FATAL)
    assert printed.machine_check is not None
    stored = read_stored(found)
    for place in ("erst", "pstore"):
        (record,) = (record for record in stored[place] if record.type is RecordType.MCE)
        check = decode_mce_record(record.data)
        names = ("status", "addr", "misc", "mcgstatus", "bank", "cpu", "ip", "tsc", "cpuid", "vendor", "time_s")
        for name in names:
            assert getattr(check, name) == getattr(printed.machine_check, name), (place, name)
        assert record.time_s is not None
        if place == "erst":
            assert abs(check.time_s - record.time_s) <= 5
