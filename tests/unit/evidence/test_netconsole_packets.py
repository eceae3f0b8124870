"""Packets of netconsole, their fragments and their order."""

from __future__ import annotations

import pytest

from postpanic.evidence.netconsole.lines import format_message, is_continuation
from postpanic.evidence.netconsole.packets import Packet, decode_packet, decode_properties, decode_text
from postpanic.evidence.netconsole.stream import Message, Stream
from tests.builders.netconsole import Record, basic, fragment, packets

LONG = Record(b"x" * 2500 + b"!", seq=7, release="6.12.0", userdata={"rack": "b12", "cpu": "9", "note": "y" * 900})


def accept(stream: Stream, *data: bytes, now_s: float = 0.0) -> list[bytes]:
    return [message.text for each in data for message in stream.accept(each, now_s)]


def numbered(*numbers: int, **more: object) -> list[bytes]:
    return [
        packets(Record(b"m%d" % number, seq=number, time_us=number * 1000, **more))[0]  # type: ignore[arg-type]
        for number in numbers
    ]


def test_all_fields_of_a_header() -> None:
    record = Record(b"hello", 4711, 12_500_000, 3, 1, "c", "T77", "6.4.0-rc1")
    assert decode_packet(packets(record)[0]) == Packet(3, 1, 4711, 12_500_000, b"c", b"hello\n", b"T77", b"6.4.0-rc1")


def test_the_example_of_the_documentation() -> None:
    first = decode_packet(b"6,416,1758426,-,ncfrag=0/31;the first chunk,")
    second = decode_packet(b"6,416,1758426,-,ncfrag=16/31; the 2nd chunk.")
    assert first is not None
    assert second is not None
    assert (first.fragment_offset, first.fragment_total, second.fragment_offset) == (0, 31, 16)
    assert accept(
        Stream(), b"6,416,1758426,-,ncfrag=0/31;the first chunk,", b"6,416,1758426,-,ncfrag=16/31; the 2nd chunk."
    ) == [b"the first chunk, the 2nd chunk."]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[    1.000000] usb 1-1: new device",
        b"6,416;text",
        b"6,416,x,-;text",
        b"6,416,1,?;text",
        b"6.1,6,416,1,-",
        b"64,6,416,1,-;a release has a dot",
        b"6,1,1,-,ncfrag=0/0;x",
        b"6,1,1,-,ncfrag=5/3;x",
        b"6,1,1,-,ncfrag=0/99999999;x",
        b"6,1,1,-,ncfrag=-1/5;x",
        b"6,1,1,-,ncfrag=0/5;",
        b"6,1,1,-,ncfrag=;x",
    ],
)
def test_what_is_not_extended_is_basic(data: bytes) -> None:
    assert decode_packet(data) is None
    assert accept(Stream(), data) == [data]


def test_escapes_are_decoded_and_control_stays_escaped_in_lines() -> None:
    record = Record("caf\xe9 \x1b[31m\\ tab\t".encode(), seq=1, time_us=1_000_001, level=4, caller="C1")
    (message,) = Stream().accept(packets(record)[0], 0.0)
    assert message.text == record.text
    assert format_message(message) == "<4>[    1.000001][    C1] caf\xe9 \\x1b[31m\\ tab\t\n".encode()
    assert decode_text(rb"\x5cx41 \xZZ") == rb"\x41 \xZZ"


def test_record_of_several_lines_has_the_prefix_on_each() -> None:
    (message,) = Stream().accept(packets(Record(b"one\ntwo\n", level=3))[0], 0.0)
    assert format_message(message) == b"<3>[    1.000000] one\n<3>[    1.000000] two\n"


def test_of_a_key_that_is_there_twice_the_kernels_own_counts() -> None:
    assert decode_properties(b" cpu=9\n DEVICE=+usb:1-1\n cpu=2\nno blank=1\n novalue\n") == {
        b"cpu": b"2",
        b"DEVICE": b"+usb:1-1",
    }


def test_fragments_with_userdata() -> None:
    parts = packets(LONG)
    assert len(parts) == 4
    assert not [message for part in parts for message in Stream().accept(part, 0.0)]
    stream = Stream()
    (message,) = [message for part in parts for message in stream.accept(part, 0.0)]
    assert message.text == LONG.text
    assert message.fields == {b"rack": b"b12", b"cpu": b"9", b"note": b"y" * 900}
    assert message.packet is not None
    assert message.packet.release == b"6.12.0"


def test_fragments_reversed_doubled_and_overlapping() -> None:
    parts = [fragment(LONG, at, 700) for at in range(0, len(LONG.body), 500)]
    stream = Stream()
    assert accept(stream, *reversed(parts), *parts) == [LONG.text]
    assert stream.counters.duplicates == len([part for part in parts if decode_packet(part)])
    assert stream.held_bytes == 0


def test_fragments_that_contradict_are_counted_and_left_out() -> None:
    stream = Stream()
    parts = packets(LONG)
    assert accept(stream, parts[0], fragment(LONG, 100, 10, total=9999), *parts[1:]) == [LONG.text]
    assert stream.counters.contradicting == 1


def test_what_there_is_of_a_message_is_given_out() -> None:
    stream = Stream()
    parts = packets(LONG)
    assert accept(stream, parts[0], parts[2]) == []
    assert stream.tick(1.0) == []
    (message,) = stream.tick(2.5)
    assert message.missing_bytes == len(decode_packet(parts[1]).body) + len(decode_packet(parts[3]).body)  # type: ignore[union-attr]
    assert message.text.count("…".encode()) == 1
    assert not stream.is_waiting
    assert stream.counters.incomplete == 1


def test_order_is_restored_within_the_window() -> None:
    stream = Stream()
    assert accept(stream, *numbered(1, 4, 3, 2, 5)) == [b"m1", b"m2", b"m3", b"m4", b"m5"]
    assert stream.counters.reordered == 1
    assert stream.counters.left_out == 0


def test_a_number_that_never_comes_is_waited_for_a_moment() -> None:
    stream = Stream()
    assert accept(stream, *numbered(1, 3)) == [b"m1"]
    assert stream.tick(0.1) == []
    assert [message.text for message in stream.tick(0.3)] == [b"m3"]
    assert (stream.counters.left_out, stream.counters.lost) == (1, 0)


def test_a_number_that_never_comes_is_not_waited_for_longer_than_the_window() -> None:
    stream = Stream()
    assert accept(stream, *numbered(1, *range(3, 36))) == [b"m1", *(b"m%d" % number for number in range(3, 36))]
    assert stream.counters.left_out == 1


def test_a_message_that_comes_late_fills_its_hole() -> None:
    stream = Stream()
    accept(stream, *numbered(1, 3))
    stream.tick(1.0)
    assert accept(stream, *numbered(2)) == [b"m2"]
    assert (stream.counters.late, stream.counters.left_out) == (1, 0)
    assert accept(stream, *numbered(2)) == []
    assert stream.counters.duplicates == 1


def test_duplicates_are_left_out() -> None:
    stream = Stream()
    assert accept(stream, *numbered(1, 1, 2, 1, 2, 3)) == [b"m1", b"m2", b"m3"]
    assert stream.counters.duplicates == 3


def test_losses_are_counted_by_the_senders_own_numbers() -> None:
    stream = Stream()
    sent = [
        packets(Record(b"m%d" % count, seq=count * 5, time_us=count * 1000, userdata={"msgid": str(count)}))[0]
        for count in (1, 2, 5, 6)
    ]
    assert accept(stream, *sent) == [b"m1", b"m2"]
    assert [message.text for message in stream.tick(1.0)] == [b"m5", b"m6"]
    assert (stream.counters.lost, stream.counters.left_out) == (2, 0)


def test_a_boot_begins_anew() -> None:
    stream = Stream()
    accept(stream, *numbered(*range(5000, 5100)))
    (first,) = stream.accept(packets(Record(b"Linux", seq=300, time_us=2000))[0], 60.0)
    assert first.is_first
    assert accept(stream, packets(Record(b"next", seq=301, time_us=2500))[0], now_s=60.0) == [b"next"]
    assert stream.counters.boots == 1
    assert stream.counters.left_out == 0


def test_a_boot_with_higher_numbers_is_known_by_its_time() -> None:
    stream = Stream()
    accept(stream, packets(Record(b"a", seq=10, time_us=900_000_000))[0])
    (first,) = stream.accept(packets(Record(b"b", seq=700, time_us=5_000_000))[0], 99.0)
    assert first.is_first


def test_a_forged_number_costs_no_message() -> None:
    stream = Stream()
    accept(stream, *numbered(1, 2))
    accept(stream, packets(Record(b"forged", seq=2**63, time_us=2**63))[0])
    stream.tick(1.0)
    assert accept(stream, *numbered(3, 4, 5), now_s=1.0) == [b"m3", b"m4", b"m5"]


def test_basic_text_comes_as_it_is() -> None:
    stream = Stream()
    text = b"[    1.0] long " + b"z" * 1500 + b"\n"
    assert b"".join(accept(stream, *basic(text))) == text
    assert stream.counters.basic == 2


def test_continuations() -> None:
    old = decode_packet(b"6,5,1,+;rest\n")
    new = decode_packet(b"6,5,1,c;rest\n")
    whole = decode_packet(b"6,5,1,-;rest\n")
    assert old is not None
    assert new is not None
    assert whole is not None
    assert is_continuation(old, 4, b"")
    assert is_continuation(new, 4, b"")
    assert not is_continuation(new, 4, b"", has_plus=True)
    assert not is_continuation(new, 3, b"")
    assert not is_continuation(new, 4, b"T1")
    assert not is_continuation(whole, 4, b"")


def test_message_without_fields_has_none() -> None:
    assert Message(b"x").fields == {}
