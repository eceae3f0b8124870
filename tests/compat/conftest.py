"""Fixtures of tests in which other programs take part."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compat.crash_oracle import CrashOracle
from tests.compat.judged import Judged, judge
from tests.compat.namespaces import DNSMASQ, IP, MAC, Net, run
from tests.vm.lab import Crash

Serve = Callable[..., None]
KERNELS = ("6.1", "6.12")


@pytest.fixture(scope="session", params=KERNELS)
def judged(
    request: pytest.FixtureRequest,
    crashed: Callable[[str], Crash],
    crash_oracle: CrashOracle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Judged]:
    """Give a dump of each kernel that both we and crash have opened."""
    crash = crashed(request.param)
    if crash.vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    judged = judge(crash_oracle, crash, request.param, tmp_path_factory.mktemp("debuginfo"))
    with judged.dump:
        yield judged


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(f"ppa{os.getpid()}", f"ppb{os.getpid()}", tmp_path)
    for name in (net.ours, net.theirs):
        run(IP, "netns", "add", name)
    run(IP, "-n", net.ours, "link", "add", "eth7", "address", MAC, "type", "veth", "peer", "srv", "netns", net.theirs)
    net.on_theirs("link", "set", "srv", "up")
    net.on_theirs("link", "set", "lo", "up")
    net.on_theirs("address", "add", "192.0.2.1/24", "dev", "srv")
    net.on_theirs("address", "add", "2001:db8::1/64", "dev", "srv", "nodad")
    yield net
    for name in (net.ours, net.theirs):
        run(IP, "netns", "delete", name)


@pytest.fixture
def serve(net: Net, tmp_path: Path) -> Iterator[Serve]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> None:
        assert DNSMASQ is not None
        words = [DNSMASQ, "--no-daemon", "--port=0", "--conf-file=/dev/null", "--interface=srv", "--bind-interfaces"]
        words += [f"--dhcp-leasefile={tmp_path / 'leases'}", "--user=root", "--pid-file=", *options]
        with (tmp_path / "dnsmasq.log").open("wb") as log:
            processes.append(subprocess.Popen([IP, "netns", "exec", net.theirs, *words], stdout=log, stderr=log))
        time.sleep(0.5)
        assert processes[-1].poll() is None, (tmp_path / "dnsmasq.log").read_text()

    yield start
    for process in processes:
        process.terminate()
        process.wait()
