"""``postpanic listen --setup`` on a real host: its kernel's messages arrive at ``postpanic listen`` on this machine."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.hosts import run_on_host
from tests.vm.lab import Lab

# A machine at the other end of a TAP interface, which netconsole can use as it can a card: it answers ARP and the test.
RESPONDER = """
import fcntl, os, re, struct
MAC, IP = bytes.fromhex("525400aabbcc"), bytes((192, 0, 2, 1))
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"near0", 0x1002))
open("/run/ready", "w").close()

def send(frame, source, data, port):
    udp = struct.pack(">HHHH", 5555, port, 8 + len(data), 0) + data
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, IP, source)
    total = sum(struct.unpack(">10H", head))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    os.write(tap, frame[6:12] + MAC + b"\\x08\\x00" + head[:10] + total.to_bytes(2, "big") + head[12:] + udp)

while True:
    frame = os.read(tap, 4096)
    if frame[12:14] == b"\\x08\\x06" and frame[20:22] == b"\\0\\1" and frame[38:42] == IP:
        os.write(tap, frame[6:12] + MAC + frame[12:20] + b"\\0\\2" + MAC + IP + frame[22:32])
    elif frame[12:14] == b"\\x08\\x00" and frame[23] == 17:
        at = 14 + (frame[14] & 15) * 4
        port, to, size = struct.unpack(">HHH", frame[at : at + 6])
        data = frame[at + 8 : at + size]
        if to != 5555:
            continue
        with open("/root/received", "ab") as file:
            file.write(b"%d %s\\n" % (port, data.replace(b"\\n", b"|")))
        match = re.search(rb"postpanic: netconsole test ([0-9a-f]{16}) (\\d+)", data)
        if match:
            send(frame, frame[26:30], b"postpanic: arrived " + match[1] + b" 5555", int(match[2]))
"""
NETWORK = """
modprobe virtio_net; modprobe tun; modprobe veth
card=$(ls /sys/class/net | grep -v lo | head -n 1)
ip link set "$card" up; ip addr add 10.0.2.15/24 dev "$card"
setsid python3 /root/responder.py </dev/null >/root/responder.log 2>&1 &
while [ ! -e /run/ready ]; do sleep 0.2; done
ip addr add 192.0.2.7/24 dev near0; ip link set near0 up
ip link add pair0 type veth peer name pair1; ip addr add 198.51.100.1/24 dev pair0
ip link set pair0 up; ip link set pair1 up
ip neigh add 198.51.100.2 lladdr 52:54:00:00:00:09 dev pair0
"""

SPEAK = """
for n in 1 2 3; do echo "<4>numbered $n"; done >/dev/kmsg; sleep 1
printf '<3>%990s!' z >/dev/kmsg; sleep 1
echo '<3>the last' >/dev/kmsg; sleep 1
"""
SAVE_PARAMETER = r"""
postpanic listen --setup 192.0.2.1:5555 --dry-run --json | sed -n 's/.*"parameter": "\(.*\)".*/\1/p' >/root/parameter
"""
USE_PARAMETER = """
rmmod netconsole; modprobe netconsole "$(cat /root/parameter)"; sleep 1
echo '<3>by parameter' >/dev/kmsg; sleep 1
"""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[int, Path, subprocess.Popen[bytes]]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        looking.bind(("127.0.0.1", 0))
        port = looking.getsockname()[1]
    logs = tmp_path / "logs"
    command = [
        sys.executable,
        "-m",
        "postpanic",
        "listen",
        "-a",
        "127.0.0.1",
        "-p",
        str(port),
        "-d",
        str(logs),
        "--json",
    ]
    listening = subprocess.Popen(command, stdout=subprocess.PIPE)
    yield port, logs, listening
    if listening.poll() is None:
        listening.kill()
        listening.communicate()


def test_setup_makes_a_real_kernel_send(
    crash_lab: Lab, tmp_path: Path, receiver: tuple[int, Path, subprocess.Popen[bytes]]
) -> None:
    port, logs, listening = receiver
    near = "/sys/kernel/config/netconsole/postpanic-192.0.2.1-5555"
    commands = [
        NETWORK,
        "postpanic listen --setup 192.0.2.1:5555 --release --userdata rack=b12 --persistent",
        f"postpanic listen --setup 192.0.2.1:5555 --setup 10.0.2.2:{port} --userdata rack=b13 --json",
        f"cat {near}/remote_mac {near}/enabled {near}/userdata/rack/value",
        SPEAK,
        "modprobe -c | grep 'options netconsole'; cat /etc/modules-load.d/postpanic-netconsole.conf",
        SAVE_PARAMETER,
        "postpanic listen --remove; ls /sys/kernel/config/netconsole /etc/modprobe.d",
        USE_PARAMETER,
        "postpanic listen --setup 198.51.100.2 --no-test",
        "ls /sys/kernel/config/netconsole | grep -v cmdline",
        "cat /root/received",
    ]
    results = run_on_host(
        crash_lab,
        "6.12",
        commands,
        network=True,
        is_isolated=False,
        crashkernel="",
        options="loglevel=7",
        files={"/root/responder.py": RESPONDER},
        directory=tmp_path / "host",
    )
    _, first, both, written, _, persistent, _, removed, _, refused, left, received = results
    parameter = "netconsole=+r6665@192.0.2.7/near0,5555@192.0.2.1/52:54:00:aa:bb:cc"
    assert first.status == 0, first.stderr
    assert f"boot       {parameter}\n" in first.stdout
    assert first.stdout.endswith("test       192.0.2.1 port 5555 answers: messages arrive\n")
    # An address translator stands before this machine, so that the answer of its receiver does not reach the guest.
    assert both.status == 4
    answer = json.loads(both.stdout)
    assert [target["arrives"] for target in answer["targets"]] == [True, False]
    assert answer["targets"][1]["remote_mac"] == "52:55:0a:00:02:02"
    assert written.stdout.split() == ["52:54:00:aa:bb:cc", "1", "b13"]
    assert persistent.stdout.splitlines()[0] == f"options netconsole {parameter}"
    assert persistent.stdout.splitlines()[-1] == "netconsole"
    assert removed.stdout.splitlines()[:4] == [
        f"removed  postpanic-10.0.2.2-{port}",
        "removed  postpanic-192.0.2.1-5555",
        "removed  /etc/modules-load.d/postpanic-netconsole.conf",
        "removed  /etc/modprobe.d/postpanic-netconsole.conf",
    ]
    assert "postpanic" not in removed.stdout.partition("/etc/modprobe.d:")[2]
    assert refused.status == 4
    assert "the driver cannot do it (netpoll: netconsole: pair0 doesn't support polling" in refused.stderr
    assert left.stdout == ""
    assert re.search(
        r"^6665 6\.12\S*,11,\d+,\d+,-;postpanic: netconsole test \w+ \d+\| rack=b12\|$", received.stdout, re.MULTILINE
    )
    assert re.search(r"-;numbered 3\| rack=b13\|$", received.stdout, re.MULTILINE)
    assert re.search(r"ncfrag=\d+/\d+; *z!\| rack=b13\|$", received.stdout, re.MULTILINE)
    assert "-;by parameter|\n" in received.stdout
    _check_log(logs, listening, answer["test_line"])


def _check_log(logs: Path, listening: subprocess.Popen[bytes], line: str) -> None:
    """See that our receiver has had all that the guest sent to it, in its order."""
    listening.send_signal(signal.SIGTERM)
    counts = json.loads(listening.communicate(timeout=60)[0].splitlines()[-1])
    text = (logs / "127.0.0.1/messages.log").read_text()
    texts = re.findall(r"^\S+Z <\d>\[ *\d+\.\d{6}\] (.*)$", text, re.MULTILINE)
    ours = [line, "numbered 1", "numbered 2", "numbered 3", " " * 989 + "z!", "the last"]
    # The kernel may have something to say in between.
    assert [text for text in texts if text in ours] == ours
    assert (counts["messages"], counts["incomplete"], counts["left_out"]) == (len(texts), 0, 0)
    assert counts["fragments"] == 2
