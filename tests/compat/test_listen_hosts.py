"""``postpanic listen`` between namespaces: real addresses of both families, gateways, and hosts behind a cable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.netconsole import Record, packets
from tests.compat.namespaces import IP, REPOSITORY, Net, find_missing, run
from tests.unit.evidence import texts

pytestmark = [pytest.mark.compat, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "works")]

SEND = """
import socket, sys
for line in sys.stdin.buffer.read().split(b"\\0"):
    family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sending:
        sending.sendto(line, (sys.argv[1], 6666))
"""


@pytest.fixture
def hosts(net: Net) -> Net:
    """Give our end of the cable addresses of both families; the other end has some."""
    for words in (
        ("link", "set", "lo", "up"),
        ("link", "set", "eth7", "up"),
        ("address", "add", "192.0.2.7/24", "dev", "eth7"),
        ("address", "add", "2001:db8::7/64", "dev", "eth7", "nodad"),
    ):
        net.on_ours(*words)
    return net


def mac_of_theirs(net: Net) -> str:
    return str(json.loads(net.on_theirs("-j", "link", "show", "dev", "srv"))[0]["address"])


def set_up(net: Net, *receivers: str) -> subprocess.CompletedProcess[str]:
    words = [word for receiver in receivers for word in ("--setup", receiver)]
    command = [sys.executable, "-m", "postpanic", "listen", *words, "--dry-run", "--json"]
    return run(IP, "netns", "exec", net.ours, *command, check=False)


def test_way_to_receivers_of_both_families(hosts: Net) -> None:
    done = set_up(hosts, "192.0.2.1:5555", "[2001:db8::1]:77")
    mac = mac_of_theirs(hosts)
    assert json.loads(done.stdout)["parameter"] == (
        f"netconsole=+6665@192.0.2.7/eth7,5555@192.0.2.1/{mac};+6665@2001:db8::7/eth7,77@2001:db8::1/{mac}"
    )


def test_way_to_a_receiver_beyond_a_gateway(hosts: Net) -> None:
    hosts.on_ours("route", "add", "default", "via", "192.0.2.1")
    (target,) = json.loads(set_up(hosts, "198.51.100.9").stdout)["targets"]
    assert (target["remote_ip"], target["remote_mac"]) == ("198.51.100.9", mac_of_theirs(hosts))


def test_nobody_there(hosts: Net) -> None:
    done = set_up(hosts, "192.0.2.99")
    assert done.returncode == 4
    assert "no hardware address of 192.0.2.99 on eth7: it does not answer" in done.stderr


def test_hosts_of_both_families(hosts: Net, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "postpanic", "listen", "-d", str(tmp_path / "logs"), "--json"]
    listening = subprocess.Popen([IP, "netns", "exec", hosts.theirs, *command], stdout=subprocess.PIPE, cwd=REPOSITORY)
    try:
        lines = enumerate(texts.PAGE_FAULT.splitlines(), 1)
        crash = b"\0".join(packets(Record(line.encode(), number, number * 100))[0] for number, line in lines)
        deadline = time.monotonic() + 60
        while ":6666" not in run(IP, "netns", "exec", hosts.theirs, "ss", "-uln").stdout:
            assert time.monotonic() < deadline
        for address in ("192.0.2.1", "2001:db8::1"):
            command = [IP, "netns", "exec", hosts.ours, sys.executable, "-c", SEND, address]
            subprocess.run(command, input=crash, check=True)
        while len(list(tmp_path.glob("logs/*/reports/*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        listening.send_signal(signal.SIGTERM)
        events = [json.loads(line) for line in listening.communicate(timeout=60)[0].splitlines()]
    finally:
        listening.kill()
        listening.communicate()
    assert {event["host"] for event in events if event["event"] == "report"} == {"192.0.2.7", "2001:db8::7"}
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["192.0.2.7", "2001-db8--7"]
