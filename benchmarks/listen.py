"""
How many messages ``postpanic listen`` takes, and how much memory many hosts need.

The listener is the real command in a process of its own; a blaster, which is
another process, sends to it over the loopback interface from as many addresses
as are wanted. Bars: 50,000 messages in a second without a loss on two cores,
the blaster included; less than 200 MB with 10,000 hosts.

Usage::

    python benchmarks/listen.py [--seconds 10] [--rate 50000]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PORT = 16666
RATE_BAR = 50_000
MEMORY_BAR_MB = 200
HOSTS_BAR = 10_000
IP_PKTINFO = 8
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
TEXTS = (
    b"usb 1-1: new high-speed USB device number 5 using xhci_hcd",
    b"EXT4-fs (sda1): mounted filesystem with ordered data mode. Quota mode: none.",
    b"audit: type=1400 audit(1515564630.515:5): avc:  denied  { read } for  pid=3348 comm=x",
    b"e1000e 0000:00:1f.6 eno1: NIC Link is Up 1000 Mbps Full Duplex, Flow Control: Rx/Tx",
)
OOPS = (
    b"BUG: kernel NULL pointer dereference, address: 0000000000000018",
    b"#PF: supervisor write access in kernel mode",
    b"Oops: 0002 [#1] PREEMPT SMP NOPTI",
    b"CPU: 3 PID: 812 Comm: modprobe Tainted: G        W  OE      6.12.1 #7",
    b"RIP: 0010:widget_attach+0x2b/0x90 [widget]",
    b"Call Trace:",
    b" <TASK>",
    *(b" widget_function_%d+0x14/0x290 [widget]" % n for n in range(20)),
    b" do_syscall_64+0x82/0x190",
    b" </TASK>",
    b"---[ end trace 0000000000000000 ]---",
)


def blast(hosts: int, rate: int, seconds: float, *, with_oopses: bool) -> int:
    """Send; return how many packets that were."""
    sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    addresses = [socket.inet_aton(f"127.{1 + n // 65536}.{n // 256 % 256}.{n % 256}") for n in range(1, hosts + 1)]
    controls = [[(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, address, bytes(4)))] for address in addresses]
    texts = TEXTS if not with_oopses else (*TEXTS * 20, *OOPS)
    where = ("127.0.0.1", PORT)
    total = int(rate * seconds)
    started = time.monotonic()
    for number in range(total):
        turn, host = divmod(number, hosts)
        data = b"6,%d,%d,-;%s\n" % (500 + turn, 9_000_000 + turn * 20, texts[turn % len(texts)])
        sending.sendmsg([data], controls[host], 0, where)
        if number % 64 == 0:
            ahead = started + number / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
    return total


def measure(name: str, hosts: int, rate: int, seconds: float, *, processes: int = 1, with_oopses: bool = False) -> bool:
    """Run a listener and a blaster, and print what came of it."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "postpanic",
            "listen",
            "-p",
            str(PORT),
            "-d",
            f"{directory}/logs",
            "--json",
            "--rotate",
            "4096",
        ]
        command += ["--processes", str(processes)] if processes > 1 else []
        out = Path(directory) / "events"
        with out.open("wb") as file:
            listener = subprocess.Popen(command, stdout=file)
        time.sleep(1.5)
        words = [sys.executable, __file__, "--blast", str(hosts), "--rate", str(rate), "--seconds", str(seconds)]
        blaster = subprocess.Popen([*words, "--oopses"] if with_oopses else words)
        started = time.monotonic()
        if blaster.wait():
            raise SystemExit("the blaster failed")
        took_s = time.monotonic() - started
        wait_idle(listener.pid)
        peak_mb, used_s = use_of(listener.pid)
        for child in children_of(listener.pid):
            child_mb, child_s = use_of(child)
            peak_mb, used_s = peak_mb + child_mb, used_s + child_s
        listener.send_signal(signal.SIGTERM)
        listener.wait(timeout=60)
        counts = json.loads(out.read_bytes().splitlines()[-1])
        lines = sum(count_lines(path) for path in Path(directory).glob("logs/*/messages.log*"))
    sent = int(rate * seconds)
    lost = sent - counts["messages"]
    print(
        f"{name}: {sent} sent in {took_s:.1f} s ({sent / took_s:,.0f}/s) by {hosts} hosts; lost {lost}, "
        f"dropped by the kernel {counts['dropped_by_kernel']}, lines in logs {lines}; "
        f"{used_s / sent * 1e6:.1f} us of processor time each, {peak_mb:.0f} MB at most, reports {counts['reports']}"
    )
    return lost == 0 and lines == sent


def wait_idle(process: int) -> None:
    """Wait until a process and its children have nothing to do: packets wait in the socket for a while."""
    before = -1.0
    while True:
        used_s = sum(use_of(each)[1] for each in (process, *children_of(process)))
        if used_s - before < 0.02:
            return
        before = used_s
        time.sleep(1.0)


def count_lines(path: Path) -> int:
    """Count the lines of a file."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def use_of(process: int) -> tuple[float, float]:
    """Return the most memory that a process had, in MB, and its processor time in seconds."""
    status = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(match[1]) / 1000 if match else 0.0, (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def children_of(process: int) -> list[int]:
    """List the children of a process."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=RATE_BAR)
    parser.add_argument("--blast", type=int, default=0, help="be the blaster, with so many hosts")
    parser.add_argument("--oopses", action="store_true")
    options = parser.parse_args()
    if options.blast:
        blast(options.blast, options.rate, options.seconds, with_oopses=options.oopses)
        return
    measure("one host", 1, options.rate, options.seconds)
    measure("100 hosts", 100, options.rate, options.seconds)
    measure("10,000 hosts", HOSTS_BAR, options.rate, options.seconds)
    measure("100 hosts, two processes", 100, options.rate, options.seconds, processes=2)
    measure("100 hosts with reports", 100, options.rate, options.seconds, with_oopses=True)


if __name__ == "__main__":
    main()
