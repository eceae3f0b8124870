"""The signature of a crash is the same, whatever a kernel left of it: its memory, its consoles, records of pstore."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from postpanic.evidence.oops import Access, Kind, Report, Section, find_reports
from tests.vm.evidence_texts import PORTS, read_dump_log, read_texts
from tests.vm.lab import Crash
from tests.vm.records import Evidence

OTHER_KERNELS = [
    pytest.param(name, kernel, marks=pytest.mark.matrix)
    for name in ("ramoops", "efi")
    for kernel in ("5.10", "6.1", "newest")
]
OF_THE_TEXT: dict[str, object] = {"offset": 0, "end": 0, "time_s": None, "lines": (), "traces": ()}
"""What differs with the text: where in it, how exact its time is, and its lines' prefixes."""


def _first(text: bytes) -> Report:
    return find_reports(text)[0]


@pytest.mark.parametrize(("name", "kernel"), [("ramoops", "6.12"), ("efi", "6.12"), *OTHER_KERNELS])
def test_one_crash_in_all_its_forms(evidence: Callable[..., Evidence], name: str, kernel: str) -> None:
    texts = read_texts(evidence(name, kernel))
    expected = _first(texts["console"])
    assert (expected.kind, expected.access, expected.address) == (Kind.NULL_DEREFERENCE, Access.READ, 0)
    assert (expected.function, expected.comm) == ("dummy_xmit", "packet-sender")
    assert expected.is_panic
    assert expected.damage == ()
    found = {form: _first(text) for form, text in texts.items()}
    places = {"ramoops": {"pstore", "ramoops"}, "efi": {"pstore", "efivars", "flash"}}[name]
    assert {form.split()[0] for form in found} == {"console", "dump", "netconsole", *places}
    assert {form for form in found if form.startswith("netconsole ")} == {f"netconsole {name}" for name in PORTS}
    assert {report.signature for report in found.values()} == {expected.signature}, found
    for form, report in found.items():
        _compare(form, report, expected)


def _compare(form: str, report: Report, expected: Report) -> None:
    """Compare all that a report says; a dump that was written before the panic does not know of it."""
    alike = dict(OF_THE_TEXT)
    if not report.is_panic:
        assert form.startswith(("pstore ", "ramoops ")), form
        alike |= {"is_panic": True, "panic_message": expected.panic_message}
        alike |= {"kaslr_offset": expected.kaslr_offset, "kaslr_base": expected.kaslr_base}
    assert msgspec.structs.replace(report, **alike) == msgspec.structs.replace(expected, **OF_THE_TEXT), form
    assert _frames(report) == _frames(expected), form


def _frames(report: Report) -> list[tuple[str, int | None, bool]]:
    main = next(trace for trace in report.traces if trace.section is Section.MAIN)
    return [(frame.function, frame.offset, frame.is_reliable) for frame in main.frames]


def test_the_signature_is_that_of_the_same_crash_of_another_boot(
    evidence: Callable[..., Evidence], crashed: Callable[..., Crash]
) -> None:
    """Also of another kernel, in a dump that was captured before the kernel panicked."""
    one, other = (_first(evidence(name).console) for name in ("ramoops", "efi"))
    assert one.signature == other.signature
    assert one.registers != other.registers
    captured = _first(read_dump_log(crashed("6.1", scenario="module-null").raw))
    assert (captured.signature, captured.is_panic) == (one.signature, False)
    assert captured.release != one.release


def test_two_processors_at_once(evidence: Callable[..., Evidence]) -> None:
    """
    They warn at the same moment, lines between lines, and oops at the same moment; the machine stays up.

    Nothing in the lines says of which processor they are. How far they are mixed
    is chance: a report that lost some, or got another's, has to say so.
    """
    texts = read_texts(evidence("blk"))
    assert {form.split()[0] for form in texts} == {"console", "netconsole", "pstore", "pstore_blk", "mtdoops"}
    expected = {
        (Kind.WARNING, "both_warn_left"): ("both-left", 0, None),
        (Kind.WARNING, "both_warn_right"): ("both-right", 1, None),
        (Kind.NULL_DEREFERENCE, "both_left"): ("both-left", 0, 64),
        (Kind.NULL_DEREFERENCE, "both_right"): ("both-right", 1, 256),
    }
    signatures = set()
    for form, text in texts.items():
        reports = find_reports(text)
        assert len(reports) == len(expected), form
        assert {(report.kind, report.function) for report in reports} == set(expected), form
        for report in reports:
            facts = (report.comm, report.cpu, report.address)
            assert facts == expected[report.kind, report.function] or report.damage, form
        assert not any(report.is_panic for report in reports), form
        # The warnings came first, so what follows may follow from them.
        assert [report.consequence_of for report in reports] == [None, 0, 0, 0], form
        signatures.add(tuple(report.signature for report in reports))
    assert len(signatures) == 1
