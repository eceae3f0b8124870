"""What real kernels sent by netconsole, in all formats that they have: nothing is lost, and fragments become whole."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from postpanic.evidence.follow import ReportFollower
from postpanic.evidence.netconsole.stream import Message, Stream
from postpanic.evidence.oops import find_reports
from tests.vm.evidence_texts import PORTS, join_packets
from tests.vm.records import Evidence

KERNELS = ["6.12", *(pytest.param(kernel, marks=pytest.mark.matrix) for kernel in ("5.10", "6.1", "newest"))]
STAMP = re.compile(rb"^(?:<\d+>)?\[ *\d+\.\d{6}\] ")
LONG = b"lab: long " + b"0" * 973 + b" end"
CRASH = b"BUG: kernel NULL pointer dereference"


def _messages(evidence: Evidence, name: str) -> tuple[list[Message], Stream]:
    stream = Stream()
    messages = []
    for packet in evidence.packets(PORTS[name]):
        messages += stream.accept(packet.data, packet.time_us / 1e6)
    return [*messages, *stream.flush(0.0)], stream


def _lines(text: bytes) -> list[bytes]:
    """Return the lines from the crash on, without their prefixes."""
    lines = [STAMP.sub(b"", line) for line in text.replace(b"\r\n", b"\n").splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith(CRASH))
    end = next(number for number, line in enumerate(lines) if line.startswith(b"---[ end Kernel panic"))
    return lines[start : end + 1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_formats_say_what_the_serial_console_says(evidence: Callable[..., Evidence], kernel: str) -> None:
    found = evidence("ramoops", kernel)
    shown = found.console[: found.console.rindex(b"\n") + 1]
    expected = [line for line in _lines(shown) if not line.startswith(b"lab: ")]
    assert len(expected) > 50
    for name, port in PORTS.items():
        assert _lines(join_packets(found.packets(port))) == expected, name


@pytest.mark.parametrize("kernel", KERNELS)
def test_headers_and_user_data(evidence: Callable[..., Evidence], kernel: str) -> None:
    found = evidence("ramoops", kernel)
    messages, stream = _messages(found, "release")
    counters = stream.counters
    assert (counters.lost, counters.incomplete, counters.contradicting, counters.duplicates) == (0, 0, 0, 0)
    long = next(message for message in messages if message.text.startswith(b"lab: long"))
    assert long.text.rstrip(b"\n") == LONG
    words = next(message for message in messages if message.text.startswith(b"lab: caf"))
    assert words.text.rstrip(b"\n") == "lab: café back\\slash".encode()
    assert words.packet is not None
    assert words.packet.level == 4
    last = messages[-1]
    fields = {"5.10": 0, "6.1": 0, "6.12": 2, "newest": 6}[kernel]
    assert counters.fragments >= 2
    assert len(last.fields) == fields
    if fields:
        # What the kernel sends by itself comes behind what the administrator has set.
        assert list(last.fields.items())[:2] == [(b"rack", b"r17"), (b"note", b"two words")]
        assert all(message.packet and message.packet.release == found.kernel.release.encode() for message in messages)
    if fields > 2:
        assert set(last.fields) == {b"rack", b"note", b"cpu", b"taskname", b"release", b"msgid"}
        crash = next(message for message in messages if message.text.startswith(CRASH))
        assert crash.fields[b"taskname"] == b"packet-sender"
        numbers = [int(message.fields[b"msgid"]) for message in messages]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_packet_that_is_lost_or_late_is_known(evidence: Callable[..., Evidence]) -> None:
    packets = evidence("ramoops").packets(PORTS["extended"])
    whole = join_packets(packets)
    moved = [*packets[:40], packets[41], packets[40], *packets[42:]]
    assert join_packets(moved) == whole
    assert join_packets(packets[:1] + packets) == whole
    gap = packets[:40] + packets[41:]
    assert len(whole.splitlines()) - len(join_packets(gap).splitlines()) == 1


@pytest.mark.parametrize("form", ["console", *PORTS])
def test_reports_are_found_while_it_comes(evidence: Callable[..., Evidence], form: str) -> None:
    found = evidence("ramoops")
    pieces = (
        [found.console[at : at + 100] for at in range(0, len(found.console), 100)]
        if form == "console"
        else [join_packets([packet]) for packet in found.packets(PORTS[form]) if b"ncfrag" not in packet.data]
    )
    follower = ReportFollower()
    reports = [report for piece in pieces for report in follower.feed(piece)] + follower.finish()
    expected = find_reports(found.console)
    assert [report.signature for report in reports] == [report.signature for report in expected]
    assert [report.registers for report in reports] == [report.registers for report in expected]
