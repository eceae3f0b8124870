"""Errors that a machine reported of its memory: what the kernel printed, and what it stored when one was fatal."""

from __future__ import annotations

from collections.abc import Callable

from postpanic.evidence.hardware.mce_record import decode_mce_record
from postpanic.evidence.hardware.model import Part, Severity, Source
from postpanic.evidence.hardware.text import find_hardware_errors
from postpanic.evidence.oops import Kind, find_reports
from postpanic.evidence.pstore import RecordType
from tests.vm.evidence_texts import read_stored, read_texts
from tests.vm.records import FATAL, Evidence


def test_a_fatal_error_of_memory(evidence: Callable[..., Evidence]) -> None:
    """A corrected one comes before: the kernel's collector of such (drivers/ras/cec.c) keeps it to itself."""
    found = evidence("erst")
    assert b"mce: [Hardware Error]: Machine check events logged" in found.console
    for form, text in read_texts(found).items():
        (error,) = (error for error in find_hardware_errors(text) if error.source is Source.MACHINE_CHECK)
        assert (error.part, error.severity, error.is_panic) == (Part.MEMORY, Severity.FATAL, True), form
        check = error.machine_check
        assert check is not None
        assert (check.cpu, check.bank, check.status) == (FATAL.cpu, FATAL.bank, FATAL.status)
        # The address is a page's: the low bits are said not to be valid.
        assert (check.addr, check.misc) == (FATAL.address & ~0xFFF, FATAL.misc)
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
