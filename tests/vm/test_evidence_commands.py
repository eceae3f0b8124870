"""The commands, on what real crashes left: each says the same signature of the same crash."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.evidence.oops import find_reports
from postpanic.process import run
from tests.vm.evidence_texts import PORTS
from tests.vm.records import Evidence

POSTPANIC = (sys.executable, "-m", "postpanic")
PATHS = {
    "ramoops": ("ramoops.img", "ramoops-damaged.img", "collected/pstore"),
    "efi": ("vars.fd", "collected/efivars", "collected/pstore"),
    "blk": ("blk.img", "mtdoops.img", "collected/pstore"),
}
WAIT_S = 60.0


def _find_all(answer: object, name: str) -> list[object]:
    """Return the values of a name anywhere in a JSON value."""
    if isinstance(answer, dict):
        own = [answer[name]] if name in answer else []
        return own + [found for value in answer.values() for found in _find_all(value, name)]
    if isinstance(answer, list):
        return [found for value in answer for found in _find_all(value, name)]
    return []


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in PATHS.items() for path in paths])
def test_pstore(evidence: Callable[..., Evidence], name: str, path: str) -> None:
    found = evidence(name)
    finished = run([*POSTPANIC, "pstore", "--json", found.directory / path])
    expected = {report.signature for report in find_reports(found.console)}
    assert set(_find_all(json.loads(finished.stdout), "signature")) == expected
    text = run([*POSTPANIC, "pstore", "--text", found.directory / path]).stdout
    assert {report.signature for report in find_reports(text)} == expected


def test_decode_takes_a_serial_log(evidence: Callable[..., Evidence]) -> None:
    for name in ("ramoops", "blk"):
        console = evidence(name).directory / "crash.log"
        answer = json.loads(run([*POSTPANIC, "decode", "--json", console]).stdout)
        expected = [report.signature for report in find_reports(console.read_bytes())]
        assert _find_all(answer, "signature") == expected


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[int, Path, subprocess.Popen[bytes]]]:
    """Start ``postpanic listen`` at a free port, and give port, directory and process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        looking.bind(("127.0.0.1", 0))
        port = looking.getsockname()[1]
    logs = tmp_path / "logs"
    words = ["listen", "-a", "127.0.0.1", "-p", str(port), "-d", str(logs), "--json"]
    process = subprocess.Popen([*POSTPANIC, *words], stdout=subprocess.PIPE)
    yield port, logs, process
    process.kill()
    process.communicate()


def _wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_listen_takes_what_a_kernel_sent(
    evidence: Callable[..., Evidence], listening: tuple[int, Path, subprocess.Popen[bytes]]
) -> None:
    """Replay the packets of three listeners, each from an address of its own."""
    found = evidence("ramoops")
    port, logs, process = listening
    hosts = {f"127.0.0.{number}": name for number, name in enumerate(PORTS, start=2)}
    _wait_for(lambda: bool(re.search(rf":{port:04X} ", Path("/proc/net/udp").read_text())))
    for address, name in hosts.items():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind((address, 0))
            for packet in found.packets(PORTS[name]):
                sending.sendto(packet.data, ("127.0.0.1", port))
    last = b"---[ end Kernel panic"
    _wait_for(lambda: sum(last in path.read_bytes() for path in logs.glob("*/messages.log")) == len(hosts))
    os.kill(process.pid, signal.SIGTERM)
    events = [json.loads(line) for line in process.communicate(timeout=WAIT_S)[0].splitlines()]
    (expected,) = find_reports(found.console)
    stored = [json.loads(path.read_bytes()) for path in logs.rglob("*.json")]
    assert _find_all(events, "signature") == [expected.signature] * len(hosts)
    assert {(document["host"], document["signature"]) for document in stored} == {
        (address, expected.signature) for address in hosts
    }
    for address in hosts:
        (report,) = find_reports((logs / address / "messages.log").read_bytes())
        assert (report.signature, report.registers) == (expected.signature, expected.registers), address
