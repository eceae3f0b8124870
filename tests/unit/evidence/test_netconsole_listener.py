"""Many senders: lines, reports, logs, and what they may cost."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from postpanic.errors import CorruptError, NotReadyError
from postpanic.evidence.netconsole.listener import Listener
from postpanic.evidence.netconsole.logs import OTHER_HOSTS, HostLogs, directory_name
from postpanic.evidence.netconsole.names import read_names
from postpanic.evidence.netconsole.outlet import Outlet
from postpanic.evidence.netconsole.packets import PACKET_LIMIT
from postpanic.evidence.netconsole.receive import (
    Receiver,
    Sender,
    name_sender,
    open_socket,
    share_by_sender,
)
from postpanic.evidence.netconsole.record import Event, Recorder
from postpanic.evidence.netconsole.sources import Limits
from postpanic.evidence.netconsole.stream import Message
from postpanic.evidence.oops import Report
from tests.builders.netconsole import Record, basic, packets
from tests.unit.evidence import texts

NOW = datetime(2026, 11, 21, 19, 40, 3, 120_000, UTC)


class Collected(Outlet):
    wants_messages = True

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.messages: list[Message] = []
        self.reports: list[tuple[str, Report]] = []
        self.boots: list[str] = []
        self.probes: list[tuple[bytes, int]] = []

    def on_lines(self, host: str, stamp: bytes, lines: list[bytes]) -> None:
        assert stamp == b"2026-11-21T19:40:03.120Z "
        self.lines += [(host, line) for line in lines]

    def on_message(self, _host: str, message: Message, _received: datetime) -> None:
        self.messages.append(message)

    def on_report(self, host: str, report: Report, _received: datetime) -> None:
        self.reports.append((host, report))

    def on_boot(self, host: str, _received: datetime) -> None:
        self.boots.append(host)

    def on_probe(self, _sender: Sender, number: bytes, port: int) -> None:
        self.probes.append((number, port))


def sender(number: int = 7) -> Sender:
    return bytes(12) + b"\xff\xff" + (0xC0000200 + number).to_bytes(4, "big") + bytes(4)


def crash(first: int = 1, text: str = texts.PAGE_FAULT) -> list[bytes]:
    return [
        packets(Record(line.encode(), first + place, 5_000_000 + place * 100, 4, caller="T812"))[0]
        for place, line in enumerate(text.splitlines())
    ]


def listen(outlet: Outlet, limits: Limits | None = None) -> Listener:
    return Listener(outlet, limits, clock=lambda: NOW)


def test_a_report_is_found_when_the_host_falls_silent() -> None:
    outlet = Collected()
    listener = listen(outlet)
    listener.take([(sender(), data) for data in crash()], 1.0)
    listener.tick(2.0)
    assert outlet.reports == []
    listener.tick(4.5)
    ((host, report),) = outlet.reports
    assert (host, report.function, report.time_s) == ("192.0.2.7", "widget_attach", 5.0)
    first = texts.PAGE_FAULT.splitlines()[0]
    assert outlet.lines[0][1] == f"<4>[    5.000000][  T812] {first}\n".encode()
    assert not listener.is_busy


def test_a_report_without_its_end_is_waited_for_longer() -> None:
    outlet = Collected()
    listener = listen(outlet)
    listener.take([(sender(), data) for data in crash()[:20]], 1.0)
    listener.tick(1.1)
    listener.tick(5.0)
    assert outlet.reports == []
    listener.tick(6.2)
    assert len(outlet.reports) == 1


def test_reports_of_two_hosts_do_not_mix() -> None:
    outlet = Collected()
    listener = listen(outlet)
    for one, two in zip(crash(), crash(500, texts.KASAN), strict=False):
        listener.take([(sender(1), one), (sender(2), two)], 1.0)
    listener.close(2.0)
    assert [(host, report.kind.value) for host, report in outlet.reports] == [
        ("192.0.2.1", "null-dereference"),
        ("192.0.2.2", "kasan"),
    ]


def test_basic_text_is_put_together_to_lines() -> None:
    outlet = Collected()
    listener = listen(outlet)
    text = b"[    1.000000] " + b"y" * 1200 + b"\n[    1.000001] next"
    listener.take([(sender(), data) for data in basic(text)], 1.0)
    listener.tick(1.2)
    assert [len(line) for _, line in outlet.lines] == [1216]
    listener.tick(3.0)
    listener.tick(3.1)
    assert outlet.lines[-1] == ("192.0.2.7", b"[    1.000001] next\n")


def test_pieces_of_a_line_are_joined() -> None:
    outlet = Collected()
    listener = listen(outlet)
    pieces = [("-", b"Modules linked in:"), ("c", b" ext4"), ("c", b" jbd2"), ("-", b"next")]
    data = [packets(Record(text, seq, seq * 10, flag=flag))[0] for seq, (flag, text) in enumerate(pieces, 1)]
    listener.take([(sender(), each) for each in data], 1.0)
    listener.close(1.0)
    assert [line for _, line in outlet.lines] == [
        b"<6>[    0.000010] Modules linked in: ext4 jbd2\n",
        b"<6>[    0.000040] next\n",
    ]


def test_a_boot_is_told() -> None:
    outlet = Collected()
    listener = listen(outlet)
    listener.take([(sender(), data) for data in crash(9000)], 1.0)
    listener.take([(sender(), packets(Record(b"Linux version 6.1", 1, 0))[0])], 60.0)
    assert outlet.boots == ["192.0.2.7"]
    listener.close(60.0)
    assert [line for _, line in outlet.lines][-2:] == [b"# begins anew\n", b"<6>[    0.000000] Linux version 6.1\n"]


def test_losses_are_noted_where_they_were() -> None:
    outlet = Collected()
    listener = listen(outlet)
    sent = [packets(Record(b"m%d" % n, n * 5, n, userdata={"msgid": str(n)}))[0] for n in (1, 2, 6, 7)]
    listener.take([(sender(), data) for data in sent], 1.0)
    listener.tick(1.3)
    assert [line.rpartition(b" ")[2] for _, line in outlet.lines] == [b"m1\n", b"m2\n", b"lost\n", b"m6\n", b"m7\n"]
    assert outlet.lines[2][1] == b"# 3 messages lost\n"


def test_who_tests_is_noticed() -> None:
    outlet = Collected()
    listener = listen(outlet)
    line = b"postpanic: netconsole test 0123456789abcdef 40000"
    wrong = b"postpanic: netconsole test 0123456789abcdef 80"
    listener.take([(sender(), packets(Record(each, seq))[0]) for seq, each in enumerate((line, wrong), 1)], 1.0)
    listener.close(1.0)
    assert outlet.probes == [(b"0123456789abcdef", 40000)]


def test_senders_are_forgotten_those_of_one_packet_first() -> None:
    outlet = Collected()
    listener = listen(outlet, Limits(sources=100, newcomers=10))
    for number in range(50):
        listener.take([(sender(number), data) for data in crash()[:2]], 1.0)
    flood = [(bytes(2) + struct.pack(">QQI", 0x20010DB8 << 32, number, 0), b"x\n") for number in range(5000)]
    listener.take(flood, 1.5)
    assert listener.source_count == 100
    assert {source.name for source in listener.sources()} >= {f"192.0.2.{number}" for number in range(50)}
    assert listener.total().packets == 5100
    assert len(outlet.lines) + sum(len(source.lines) for source in listener.sources()) == 5100


def test_packets_from_elsewhere_are_not_taken() -> None:
    outlet = Collected()
    networks = (ipaddress.ip_network("192.0.2.0/28"), ipaddress.ip_network("2001:db8::/32"))
    listener = listen(outlet, Limits(networks=networks))
    listener.take([(sender(1), b"a\n"), (sender(77), b"b\n")], 1.0)
    listener.close(1.0)
    assert [host for host, _ in outlet.lines] == ["192.0.2.1"]
    assert listener.unwanted == 1


def test_packets_beyond_the_rate_are_refused() -> None:
    outlet = Collected()
    listener = listen(outlet, Limits(rate=10))
    listener.take([(sender(), b"x\n")] * 30, 1.0)
    listener.take([(sender(), b"x\n")] * 5, 2.0)
    listener.close(2.0)
    assert len(outlet.lines) == 15
    assert listener.total().refused == 20


def test_memory_of_what_is_kept_back_is_bounded() -> None:
    listener = listen(Outlet(), Limits(held_bytes=100_000, open_bytes=100_000))
    for number in range(200):
        parts = packets(Record(b"z" * 5000, number + 10, 1000))
        listener.take([(sender(number), part) for part in parts[:-1]], 1.0)
        listener.take([(sender(number), data) for data in crash()[:12]], 1.0)
        listener.tick(1.0 + number / 1000)
        assert sum(source.stream.held_bytes for source in listener.sources()) <= 110_000
        assert sum(source.follower.held_bytes for source in listener.sources()) <= 110_000


def test_a_flood_of_reports_is_not_looked_at() -> None:
    outlet = Collected()
    listener = listen(outlet, Limits(reports=3))
    for number in range(50):
        listener.take([(sender(), data) for data in crash(number * 100)], 1.0)
        listener.tick(1.0)
        listener.tick(1.0)
    listener.close(1.0)
    assert 3 <= len(outlet.reports) <= 17


def test_packets_through_real_sockets() -> None:
    with open_socket("", 0) as receiving:
        port = receiving.getsockname()[1]
        receiver = Receiver(receiving)
        assert receiver.receive() == []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
            four.sendto(b"four", ("127.0.0.1", port))
            four.sendto(b"x" * 9000, ("127.0.0.1", port))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
            six.sendto(b"", ("::1", port))
        found = receiver.receive()
        assert [(name_sender(each), data[:4], len(data)) for each, data in found] == [
            ("127.0.0.1", b"four", 4),
            ("127.0.0.1", b"xxxx", PACKET_LIMIT),
            ("::1", b"", 0),
        ]
        assert receiver.count_drops() == 0


def test_one_by_one_is_the_same_as_in_batches() -> None:
    with open_socket("127.0.0.1", 0) as receiving:
        port = receiving.getsockname()[1]
        receivers = [Receiver(receiving, by_port=True), Receiver(receiving, by_port=True)]
        receivers[1]._call = None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind(("127.0.0.2", 0))
            found = []
            for receiver in receivers:
                sending.sendto(b"data", ("127.0.0.1", port))
                found += receiver.receive()
            assert found[0] == found[1]
            assert name_sender(found[0][0]) == f"127.0.0.2#{sending.getsockname()[1]}"


def test_a_port_is_shared_by_the_senders_address() -> None:
    first = open_socket("127.0.0.1", 0, is_shared=True)
    port = first.getsockname()[1]
    with first, open_socket("127.0.0.1", port, is_shared=True) as second:
        assert share_by_sender([first, second])
        for number in (2, 3, 4, 5):
            for _ in range(3):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
                    sending.bind((f"127.0.0.{number}", 0))
                    sending.sendto(b"x", ("127.0.0.1", port))
        found = [[name_sender(each) for each, _ in Receiver(each).receive()] for each in (first, second)]
    assert sorted(found) == [["127.0.0.2"] * 3 + ["127.0.0.4"] * 3, ["127.0.0.3"] * 3 + ["127.0.0.5"] * 3]


def test_a_port_that_is_taken() -> None:
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(NotReadyError, match="cannot listen"):
        open_socket("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("name", ["../../etc", "..", ".", "", "a/b", "a\nb", "-rf", "\x00", "é", "x" * 500])
def test_names_of_directories_stay_in_the_directory(name: str) -> None:
    safe = directory_name(name)
    assert safe not in {"", ".", ".."}
    assert not set(safe) & set("/\n\x00")
    assert safe[0] not in ".-"
    assert len(safe) < 200


def test_logs_are_rotated(tmp_path: Path) -> None:
    logs = HostLogs(tmp_path, limit_bytes=100, keep=2, min_free_bytes=0)
    for number in range(10):
        logs.append("h", b"line %d %s\n" % (number, b"x" * 40))
        logs.write(number)
    logs.close()
    assert sorted(path.name for path in (tmp_path / "h").iterdir()) == [
        "messages.log",
        "messages.log.1",
        "messages.log.2",
    ]
    assert (tmp_path / "h/messages.log").read_bytes().startswith(b"line 8 ")
    assert (tmp_path / "h/messages.log.2").read_bytes().startswith(b"line 4 ")


def test_hosts_beyond_the_limit_share_a_log(tmp_path: Path) -> None:
    (tmp_path / "192.0.2.1").mkdir()
    logs = HostLogs(tmp_path, hosts_limit=2, min_free_bytes=0)
    assert [logs.place(f"192.0.2.{number}") for number in (2, 1, 3)] == ["192.0.2.2", "192.0.2.1", OTHER_HOSTS]
    recorder = Recorder(list[Event]().append, logs, clock=lambda: 0.0)
    recorder.on_lines("192.0.2.3", b"STAMP ", [b"a\n", b"b\n"])
    recorder.on_pause(1.0)
    logs.close()
    assert (tmp_path / OTHER_HOSTS / "messages.log").read_bytes() == b"STAMP 192.0.2.3 a\nSTAMP 192.0.2.3 b\n"


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h/messages.log").symlink_to(tmp_path / "target")
    logs = HostLogs(tmp_path, min_free_bytes=0)
    logs.append("h", b"x\n")
    logs.write(1.0)
    assert not (tmp_path / "target").exists()
    assert logs.dropped_bytes == 2
    assert "too many levels" in logs.problem


def test_nothing_is_written_without_room(tmp_path: Path) -> None:
    logs = HostLogs(tmp_path, min_free_bytes=1 << 62)
    logs.check_room()
    logs.append("h", b"x\n")
    logs.write(1.0)
    assert not (tmp_path / "h").exists()
    assert logs.dropped_bytes == 2
    assert "MiB free" in logs.problem


def test_reports_are_stored_only_so_often(tmp_path: Path) -> None:
    events: list[Event] = []
    logs = HostLogs(tmp_path, min_free_bytes=0)
    recorder = Recorder(events.append, logs, clock=lambda: 1.0, with_documents=True)
    listener = listen(recorder)
    for number in range(6):
        listener.take([(sender(), data) for data in crash(number * 100)], 1.0 + number * 10)
        listener.tick(9.0 + number * 10)
        listener.tick(9.5 + number * 10)
    listener.close(100.0)
    logs.close()
    paths = sorted(tmp_path.glob("192.0.2.7/reports/*.json"))
    assert len(paths) == 3
    reports = [event for event in events if event["event"] == "report"]
    assert [event["path"] is not None for event in reports] == [True] * 3 + [False] * 3
    document = json.loads(paths[0].read_bytes())
    assert document["host"] == "192.0.2.7"
    assert document["received"] == "2026-11-21T19:40:03.120Z"
    assert document["title"] == reports[0]["title"]
    stem = f"20261121T194003.120Z-{document['signature']}"
    assert {path.name for path in paths} == {f"{stem}.json", f"{stem}-2.json", f"{stem}-3.json"}
    assert document["answer"]["tables"][0]["rows"]
    assert (tmp_path / "192.0.2.7/messages.log").read_bytes().count(b"\n") == 6 * len(crash())


def test_names_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\n192.0.2.7 web1 web1.example\n::ffff:192.0.2.8 web2\n2001:DB8::1  db1 # comment\n")
    assert read_names(path) == {"192.0.2.7": "web1", "192.0.2.8": "web2", "2001:db8::1": "db1"}


@pytest.mark.parametrize("line", ["192.0.2.7", "nonsense web1", "192.0.2.7 ../../etc", "192.0.2.7 .."])
def test_names_that_are_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(line + "\n")
    with pytest.raises(CorruptError, match=":1: "):
        read_names(path)


def test_who_tests_is_answered() -> None:
    events: list[Event] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.bind(("127.0.0.1", 0))
        asking.settimeout(5)
        recorder = Recorder(events.append, None, clock=lambda: 0.0, answers_port=6666)
        where = bytes(12) + b"\xff\xff" + socket.inet_aton("127.0.0.1") + bytes(4)
        for _ in range(100):
            recorder.on_probe(where, b"0123456789abcdef", asking.getsockname()[1])
        answers = []
        asking.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                answers.append(asking.recv(100))
    assert answers == [b"postpanic: arrived 0123456789abcdef 6666"] * 20
    assert events == []
