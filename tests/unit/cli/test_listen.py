"""``postpanic listen`` as a process: sockets, signals, files, commands and servers."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from postpanic.capture.netconsole.configfs import list_targets, remove_target, write_target
from postpanic.capture.netconsole.persist import (
    boot_parameter,
    is_built_in,
    persistent_files,
    remove_files,
    write_files,
)
from postpanic.capture.netconsole.target import Target, parse_receiver, parse_userdata
from postpanic.errors import UsageError
from tests.builders.netconsole import Record, packets
from tests.unit.cli.conftest import Outcome
from tests.unit.evidence import texts

ETH0 = Target("eth0", "192.0.2.7", "192.0.2.1", "52:54:00:12:34:56", 5555)


@contextlib.contextmanager
def listening(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "postpanic", "listen", *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as looking:
        looking.bind(("::", 0))
        return int(looking.getsockname()[1])


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_bound(port: int) -> None:
    wait_for(lambda: f":{port:04X} " in Path("/proc/net/udp6").read_text() + Path("/proc/net/udp").read_text())


def has_open(process: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path in {each.readlink() for each in Path(f"/proc/{process}/fd").iterdir()}
    return False


def crash() -> list[bytes]:
    lines = texts.PAGE_FAULT.splitlines()
    return [packets(Record(line.encode(), 100 + n, 5_000_000 + n, 4))[0] for n, line in enumerate(lines)]


def send(port: int, data: list[bytes], source: str = "127.0.0.1") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.bind((source, 0))
        for each in data:
            sending.sendto(each, ("127.0.0.1", port))


def end(process: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, Any]], str]:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


@pytest.mark.parametrize("processes", [1, 3])
def test_hosts_are_logged_and_reports_told(tmp_path: Path, processes: int) -> None:
    port, told = free_port(), tmp_path / "told"
    program = tmp_path / "tell"
    program.write_text(f"#!/bin/sh\ncat >>{told}\n")
    program.chmod(0o755)
    options = ("-p", port, "-d", tmp_path / "logs", "--json", "--command", program, "--processes", processes)
    with listening(*options) as process:
        wait_bound(port)
        for number in range(1, 7):
            send(port, crash(), f"127.0.0.{number}")
        wait_for(lambda: len(list(tmp_path.glob("logs/*/reports/*.json"))) == 6)
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGHUP)
        status, events, err = end(process)
    assert (status, err) == (0, "")
    reports = [event for event in events if event["event"] == "report"]
    assert sorted(event["host"] for event in reports) == [f"127.0.0.{number}" for number in range(1, 7)]
    assert sum(event["announced"] for event in reports) == 1
    statistics = events[-1]
    assert statistics["event"] == "statistics"
    counts = [
        statistics[name] for name in ("packets", "sources", "reports", "announced", "kept_back", "dropped_by_kernel")
    ]
    assert counts == [6 * len(crash()), 6, 6, 1, 5, 0]
    document = json.loads(told.read_text())
    assert document["path"] in {event["path"] for event in reports}
    assert json.loads(Path(document["path"]).read_text())["lines"] == document["lines"]
    log = (tmp_path / "logs/127.0.0.3/messages.log").read_text().splitlines()
    assert len(log) == len(crash())
    assert log[0].partition(" ")[2] == f"<4>[    5.000000] {texts.PAGE_FAULT.splitlines()[0]}"


def test_all_that_comes_is_printed(tmp_path: Path) -> None:
    port, hosts = free_port(), tmp_path / "hosts"
    hosts.write_text("127.0.0.9 web9\n")
    with listening("-p", port, "--names", hosts, "--json") as process:
        wait_bound(port)
        send(port, packets(Record(b"caf\xc3\xa9", 7, 1, 3, 1, caller="T1", userdata={"rack": "b12"})), "127.0.0.9")
        status, events, _ = end(process)
    assert status == 0
    message = events[0]
    message.pop("received")
    assert message == {
        "event": "message",
        "host": "web9",
        "level": 3,
        "facility": 1,
        "seq": 7,
        "time_us": 1,
        "flag": "-",
        "caller": "T1",
        "release": "",
        "fields": {"rack": "b12"},
        "text": "café",
    }


def test_a_server_is_told() -> None:
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = free_port()
        with listening("-p", port, "-q", "--webhook", f"http://127.0.0.1:{server.server_port}/hook?token=x") as process:
            wait_bound(port)
            send(port, crash())
            wait_for(lambda: got)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        server.shutdown()
    assert got[0]["title"].startswith("NULL pointer dereference in widget_attach")
    assert got[0]["kept_back"] == 0


def test_a_command_that_fails_is_said_and_does_not_end_it(tmp_path: Path) -> None:
    port = free_port()
    with listening("-p", port, "-d", tmp_path, "--command", "false") as process:
        wait_bound(port)
        send(port, crash())
        wait_for(lambda: list(tmp_path.glob("*/reports/*.json")))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"warning: the command: false: exit status 1" in err
    assert out.count(b" 127.0.0.1 ") == 1


def test_a_file_is_followed(tmp_path: Path) -> None:
    log = tmp_path / "db1.log"
    log.write_text("[    1.000000] old\n")
    with listening("--follow", log, "--follow", tmp_path / "later", "-d", tmp_path / "found", "--json") as process:
        wait_for(lambda: has_open(process.pid, log))
        (tmp_path / "later").write_text("".join(f"[    5.000000] {line}\n" for line in texts.KASAN.splitlines()))
        with log.open("a") as file:
            for line in texts.PAGE_FAULT.splitlines():
                file.write(f"[    5.000000] {line}\r\n")
                file.flush()
        wait_for(lambda: len(list(tmp_path.glob("found/*/reports/*.json"))) == 2)
        status, events, _ = end(process)
    assert status == 0
    reports = {Path(event["host"]).name: event for event in events if event["event"] == "report"}
    assert reports["db1.log"]["title"].startswith("NULL pointer dereference in widget_attach")
    assert reports["later"]["kind"] == "kasan"
    assert Path(reports["db1.log"]["path"]).parts[-3:-1] == ("db1.log", "reports")


def test_the_port_is_taken(run_cli: Callable[..., Outcome]) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken:
        taken.bind(("::", 0))
        port = taken.getsockname()[1]
        outcome = run_cli("listen", "-p", port)
    assert outcome.status == 4
    assert f"error[not-ready]: :{port}: cannot listen: address already in use" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--allow", "nonsense"), "--allow nonsense"),
        (("--processes", "2"), "--processes needs --directory"),
        (("--webhook", "ftp://x"), "ftp://x"),
        (("--command", "'"), "--command: no closing quotation"),
        (("--from-start",), "--from-start goes with --follow"),
        (("--userdata", "a=b"), "--userdata goes with --setup"),
        (("--setup", "x", "-d", "y"), "--directory is the receiver's"),
        (("--setup", "x", "--by-port"), "--by-port is the receiver's"),
        (("--setup", "x", "--basic", "--release"), "--basic has neither"),
        (("--setup", "x", "--remove"), "exclude each other"),
        (("--setup", "x:99999"), "HOST or HOST:PORT"),
        (("--setup", "127.0.0.1", "--userdata", "nothing"), "KEY=VALUE"),
    ],
)
def test_wrong_usage(run_cli: Callable[..., Outcome], arguments: tuple[str, ...], message: str) -> None:
    outcome = run_cli("listen", *arguments)
    assert outcome.status == 64
    assert message in outcome.err


def test_this_machine_is_no_receiver(run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("listen", "--setup", "127.0.0.1", "--dry-run")
    assert outcome.status == 4
    assert "127.0.0.1 is this machine itself" in outcome.err


def test_parameter_of_several_targets() -> None:
    six = Target("bond0.7", "2001:db8::7", "2001:db8::1", "52:54:00:12:34:57", release=True)
    plain = Target("eth0", "192.0.2.7", "192.0.2.9", "52:54:00:12:34:58", extended=False, release=True)
    assert boot_parameter([ETH0, six, plain]) == (
        "netconsole=+6665@192.0.2.7/eth0,5555@192.0.2.1/52:54:00:12:34:56;"
        "+r6665@2001:db8::7/bond0.7,6666@2001:db8::1/52:54:00:12:34:57;"
        "6665@192.0.2.7/eth0,6666@192.0.2.9/52:54:00:12:34:58"
    )


def test_files_of_the_next_boot(tmp_path: Path) -> None:
    files = persistent_files([ETH0])
    written = write_files(files, tmp_path)
    assert [path.read_text().splitlines()[-1] for path in written] == [
        "netconsole",
        "options netconsole netconsole=+6665@192.0.2.7/eth0,5555@192.0.2.1/52:54:00:12:34:56",
    ]
    assert remove_files(tmp_path) == written
    assert remove_files(tmp_path) == []


def test_built_in(tmp_path: Path) -> None:
    place = tmp_path / "lib/modules/6.1/modules.builtin"
    place.parent.mkdir(parents=True)
    place.write_text("kernel/drivers/net/netconsole.ko\n")
    assert is_built_in("6.1", tmp_path)
    place.write_text("kernel/drivers/net/loopback.ko\n")
    assert not is_built_in("6.1", tmp_path)
    assert not is_built_in("6.2", tmp_path)


def test_target_in_a_directory(tmp_path: Path) -> None:
    """What is written and in which order; a real kernel's configfs is tried in the tests of virtual machines."""
    place = tmp_path / ETH0.name
    (place / "userdata/stale").mkdir(parents=True)
    (place / "userdata/msgid_enabled").write_text("0")
    (place / "enabled").write_text("1")
    target = Target("eth0", "192.0.2.7", "192.0.2.1", ETH0.remote_mac, 5555, release=True, userdata=(("rack", "b12"),))
    assert write_target(tmp_path, target) == ["the release before each message"]
    found = {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}
    assert found == {
        "dev_name": "eth0",
        "local_port": "6665",
        "remote_port": "5555",
        "local_ip": "192.0.2.7",
        "remote_ip": "192.0.2.1",
        "remote_mac": "52:54:00:12:34:56",
        "extended": "1",
        "enabled": "1",
        "userdata/msgid_enabled": "1",
        "userdata/rack/value": "b12",
    }
    assert list_targets(tmp_path) == ["postpanic-192.0.2.1-5555"]
    # In configfs what was not made by us goes with its directory.
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()
    (place / "userdata/rack").rmdir()
    (place / "userdata").rmdir()
    remove_target(tmp_path, ETH0.name)
    assert list_targets(tmp_path) == []


@pytest.mark.parametrize("text", ["", ":5", "h:", "h:0", "h:x", "[::1", "[::1]5", "a:b:c", "[]:5"])
def test_what_is_no_receiver(text: str) -> None:
    with pytest.raises(UsageError):
        parse_receiver(text)


@pytest.mark.parametrize("text", ["a", "=b", "a/b=c", "..=x", "a=", "a=x\ny", "a=" + "x" * 200, "k" * 54 + "=x"])
def test_what_is_no_userdata(text: str) -> None:
    with pytest.raises(UsageError):
        parse_userdata(text)
