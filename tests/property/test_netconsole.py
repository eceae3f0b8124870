"""What must hold for packets of any kind: no error, bounded memory, the same text however it arrives."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.evidence.follow import ReportFollower
from postpanic.evidence.netconsole import lines, packets
from postpanic.evidence.netconsole.lines import format_message
from postpanic.evidence.netconsole.listener import Listener
from postpanic.evidence.netconsole.outlet import Outlet
from postpanic.evidence.netconsole.packets import decode_packet, decode_properties
from postpanic.evidence.netconsole.sources import Limits
from postpanic.evidence.netconsole.stream import Message, Stream
from postpanic.evidence.oops import find_reports
from tests.builders.netconsole import Record, fragment
from tests.builders.netconsole import packets as packets_of
from tests.property.test_evidence import reports_torn

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=150)

texts = st.binary(max_size=3000).filter(lambda text: not text.endswith(b"\n"))
keys = st.text("abcxyz_.-", min_size=1, max_size=20)
values = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\"), max_size=150)
records = st.builds(
    Record,
    text=texts,
    seq=st.integers(0, 2**64 - 1),
    time_us=st.integers(0, 2**63),
    level=st.integers(0, 7),
    facility=st.integers(0, 127),
    flag=st.sampled_from("-c+"),
    caller=st.sampled_from(["", "T1", "C77"]),
    release=st.sampled_from(["", "6.12.0", "7.2.1-rc3+deb14-cloud-amd64"]),
    properties=st.dictionaries(keys.filter(lambda key: key != "msgid"), values, max_size=4),
)
numbers = st.one_of(st.integers(0, 40), st.integers(2**63, 2**64 + 5), st.sampled_from([10**19, 10**20 - 1]))
words = st.one_of(st.binary(max_size=12), st.sampled_from([b"caller=T1", b"ncfrag=0/5", b"ncfrag=3/99999", b"ncemg=1"]))
forged = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda level, seq, us, flag, more, text, end: (
            b"%d,%d,%d,%s%s;%s%s" % (level, seq, us, flag, b"".join(b"," + word for word in more), text, end)
        ),
        st.integers(0, 99999),
        numbers,
        numbers,
        st.sampled_from([b"-", b"c", b"+", b"?"]),
        st.lists(words, max_size=3),
        st.binary(max_size=60),
        st.sampled_from([b"", b"\n", b"\n cpu=1\n", b"\n msgid=7\n", b"\n msgid=99999999999\n", b"\n msgid=0\n"]),
    ),
)


def run(stream: Stream, data: list[bytes]) -> list[Message]:
    return [message for each in data for message in stream.accept(each, 0.0)]


@DETERMINISTIC
@given(records, st.integers(300, 1000))
def test_packets_and_back(record: Record, chunk: int) -> None:
    stream = Stream()
    (message,) = run(stream, packets_of(record, chunk=chunk))
    assert message.text == record.text
    assert message.packet is not None
    found = (message.packet.seq, message.packet.time_us, message.packet.level, message.packet.facility)
    assert found == (record.seq, record.time_us, record.level, record.facility)
    assert message.packet.release.decode() == record.release
    assert {name.decode(): value.decode() for name, value in message.fields.items()} == record.properties
    assert not stream.is_waiting
    assert stream.held_bytes == 0


@DETERMINISTIC
@given(st.binary(min_size=50, max_size=6000), st.randoms(use_true_random=False), st.integers(20, 400))
def test_fragments_in_any_order_overlapping_and_doubled(text: bytes, rng: random.Random, size: int) -> None:
    record = Record(text.replace(b"\n", b" "))
    step = rng.randint(max(size // 2, len(record.body) // 200 + 1), size) if size > len(record.body) // 100 else size
    size = max(size, step)
    parts = [fragment(record, at, size) for at in range(0, len(record.body), step)]
    if len(parts) > 200:
        return
    sent = parts + rng.sample(parts, len(parts) // 2)
    rng.shuffle(sent)
    stream = Stream()
    (message,) = run(stream, sent)
    assert message.text == record.text
    assert stream.counters.contradicting == 0
    assert stream.held_bytes == sum(each.held_bytes for each in stream._assemblies.values())


@DETERMINISTIC
@given(st.lists(forged, max_size=150))
def test_forged_packets_cost_bounded_memory_and_lose_no_text(sent: list[bytes]) -> None:
    stream = Stream()
    given_out = run(stream, sent) + stream.tick(10.0) + stream.flush(20.0)
    assert stream.held_bytes == 0
    assert not stream.is_waiting
    for message in given_out:
        for line in format_message(message).split(b"\n"):
            assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", line)
        assert isinstance(message.fields, dict)
    counters = stream.counters
    assert counters.packets == len(sent)
    dropped = counters.duplicates + counters.contradicting
    whole = [each for each in sent if (packet := decode_packet(each)) is None or not packet.fragment_total]
    assert len(given_out) >= len(whole) - dropped
    assert len(given_out) == counters.messages


@DETERMINISTIC
@given(st.permutations(range(20)), st.lists(st.integers(0, 19), max_size=10), st.sets(st.integers(1, 18), max_size=5))
def test_order_is_restored(order: list[int], doubled: list[int], lost: set[int]) -> None:
    all_of_them = {n: packets_of(Record(b"m%d" % n, n + 1, 1000 + n))[0] for n in range(20) if n not in lost}
    # The first is there first: nobody can know that one before it is still on its way.
    sent = [0, *(n for n in order if n != 0), *doubled]
    stream = Stream()
    given_out = run(stream, [all_of_them[n] for n in sent if n not in lost]) + stream.flush(1.0)
    assert [message.text for message in given_out] == [b"m%d" % n for n in sorted(all_of_them)]
    assert stream.counters.duplicates == len([n for n in doubled if n not in lost])
    assert stream.counters.left_out == len([n for n in lost if n < max(all_of_them)])


@DETERMINISTIC
@given(reports_torn, st.lists(st.integers(1, 500), min_size=1, max_size=50))
def test_a_text_that_grows_has_the_same_reports(text: bytes, sizes: list[int]) -> None:
    follower = ReportFollower()
    found, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        found += follower.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    found += follower.finish()
    whole = find_reports(text)
    if len(whole) <= 10:
        assert [(each.title, each.offset, each.lines) for each in found] == [
            (each.title, each.offset, each.lines) for each in whole
        ]


@DETERMINISTIC
@given(st.lists(st.tuples(st.integers(0, 30), forged), max_size=300))
def test_a_listener_takes_anything(sent: list[tuple[int, bytes]]) -> None:
    class Counted(Outlet):
        lines = 0

        def on_lines(self, _host: str, _stamp: bytes, lines: list[bytes]) -> None:
            assert all(line.endswith(b"\n") for line in lines)
            self.lines += len(lines)

    outlet = Counted()
    listener = Listener(outlet, Limits(sources=12, newcomers=4), clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for turn, (number, data) in enumerate(sent):
        listener.take([(bytes(12) + b"\xff\xff" + number.to_bytes(4, "big") + bytes(4), data)], turn / 50)
        assert listener.source_count <= 12
    listener.close(1000.0)
    assert listener.total().packets == len(sent)
    assert not any(source.lines or source.partial for source in listener.sources())


def test_headers_made_to_be_hard() -> None:
    """The worst that a header can be made to do, and every escape and property there can be."""
    hostile = [
        b"1" * 4096,
        b"1," * 2048,
        b"1.1" * 1300 + b",1,1,1,-;",
        b"1.,1,1,1," * 400,
        b"6,1,1,-" + b",caller=T" + b"1" * 4000 + b";",
        b"6,1,1,-" + b",a" * 255 + b";x",
        b"6,1,1,-;" + rb"\x" * 2000,
        b"6,1,1,-;x\n" + b" a=\n" * 1000,
        b"6,1,1,-;x\n" + b"=" * 4000,
    ]
    for data in hostile:
        for message in Stream().accept(data, 0.0):
            assert len(format_message(message)) <= 4 * len(data) + 64
        assert len(decode_properties(data)) <= 300


def test_patterns_cannot_backtrack_far() -> None:
    for module in (packets, lines):
        for pattern in (value for value in vars(module).values() if isinstance(value, re.Pattern)):
            source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
            assert not re.search(r"(?<!\\)[*+](?![^\[]*\])", source), source
