"""One read to a disk and to servers at once, in the capture kernel: real servers, one of them dead, another slow."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.saver.plan import HttpPlan, InterfacePlan, NetworkPlan, RoutePlan, SshPlan
from tests.compat.http_store import HttpServer, drop_now_and_then
from tests.compat.slow_line import SlowLine
from tests.compat.ssh_server import SshServer, find_missing
from tests.vm.captures import MODULES, OUTPUT, Request, captured, find_dumps, plan_for, read_files
from tests.vm.lab import Lab

HOST = "10.0.2.2"
"""The host's loopback interface, as QEMU's network has it."""
NETWORK = NetworkPlan(
    interfaces=(
        InterfacePlan(
            name="eth0",
            mac="52:54:00:12:34:56",
            method="static",
            addresses=("10.0.2.15/24",),
            routes=(RoutePlan(gateway=HOST),),
        ),
    ),
)


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[SshServer]:
    missing = find_missing()
    if missing:
        pytest.skip(missing)
    base = tmp_path / "ssh"
    base.mkdir()
    server = SshServer(base)
    server.prepare()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def dead_port() -> Iterator[int]:
    """Give a port on which connections are accepted by the kernel, and by nobody else."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def plan_ssh(server: SshServer) -> tuple[SshPlan, dict[str, bytes]]:
    """Make the target as the capture kernel sees it, and the files that it needs there."""
    plan = SshPlan(name="ssh", user=server.plan.user, server=HOST, port=server.port, path=str(server.dumps), attempts=2)
    host_key = " ".join((server.base / "host.pub").read_text().split()[:2])
    files = {
        plan.key: (server.base / "user").read_bytes(),
        plan.known_hosts: f"[{HOST}]:{server.port} {host_key}\n".encode(),
    }
    return plan, files


def test_a_disk_and_servers_get_the_same_dump_from_one_read(
    crash_lab: Lab, tmp_path: Path, ssh_server: SshServer, http_server: HttpServer, dead_port: int
) -> None:
    ssh, files = plan_ssh(ssh_server)
    http_server.store.drop_after = drop_now_and_then(7, 0.2, 1 << 20)
    http_server.store.delay_s = 0.02
    url = f"http://{HOST}:{http_server.server_port}/dumps/{{name}}/{{file}}"
    plan = plan_for(
        OUTPUT,
        ssh,  # type: ignore[arg-type]
        HttpPlan(name="http", url=url, attempts=3),  # type: ignore[arg-type]
        HttpPlan(name="dead", url=f"http://{HOST}:{dead_port}/{{file}}", attempts=1, timeout_s=5.0),  # type: ignore[arg-type]
        network=NETWORK,
    )
    request = Request(
        plan,
        kernel="6.12",
        scenario="out-of-memory",
        crashkernel="192M",
        modules={**MODULES, "virtio_net": "", "af_packet": ""},
        programs=("ssh",),
        files=files,
        is_isolated=False,
    )
    with captured(crash_lab, request, tmp_path, timeout_s=150.0) as capture:
        said = "\n".join(capture.said)
        assert "dead: given up" in said
        (name,) = find_dumps(capture.disks.output)
        local = read_files(capture.disks.output, name, tmp_path / "saved")
    assert main(["verify", str(local / "vmcore")]) == 0
    (remote,) = ssh_server.dumps.iterdir()
    assert (remote / "vmcore").read_bytes() == (local / "vmcore").read_bytes()
    assert re.search(r"Out of memory|out of memory", (local / "vmcore-dmesg.txt").read_text())
    assert (remote / "vmcore-dmesg.txt").read_bytes() == (local / "vmcore-dmesg.txt").read_bytes()
    judge_parts(http_server, tmp_path)
    for log in (local / "saver.log", remote / "saver.log"):
        assert "dead: given up" in log.read_text()


def judge_parts(server: HttpServer, tmp_path: Path) -> None:
    """Put the objects together again, as the manifest lists them."""
    objects = {path.rsplit("/", 1)[-1]: content for path, content in server.store.objects.items()}
    names = sorted(name for name in objects if re.fullmatch(r"vmcore\.flat\.\d+", name))
    assert len(names) > 1
    stream = tmp_path / "vmcore.flat"
    stream.write_bytes(b"".join(objects[name] for name in names))
    manifest = tmp_path / "vmcore.flat.manifest.json"
    manifest.write_bytes(objects[manifest.name])
    assert json.loads(manifest.read_text())["complete"] is True
    assert f"{names[0]} to {names[-1]}" in manifest.read_text()
    assert main(["verify", str(stream)]) == 0


@pytest.mark.matrix
def test_half_a_second_for_each_packet_costs_neither_the_other_dump_nor_the_reboot(
    crash_lab: Lab, tmp_path: Path, ssh_server: SshServer, http_server: HttpServer
) -> None:
    ssh, files = plan_ssh(ssh_server)
    lines = [SlowLine(ssh_server.port, 0.5), SlowLine(http_server.server_port, 0.5)]
    for line in lines:
        line.start()
    files[ssh.known_hosts] = files[ssh.known_hosts].replace(b":%d " % ssh.port, b":%d " % lines[0].port)
    plan = plan_for(
        replace(ssh, port=lines[0].port),  # type: ignore[arg-type]
        HttpPlan(name="http", url=f"http://{HOST}:{lines[1].port}/{{file}}"),  # type: ignore[arg-type]
        OUTPUT,
        network=NETWORK,
        timeout_s=34.0,
    )
    request = Request(
        plan,
        crashkernel="192M",
        modules={**MODULES, "virtio_net": "", "af_packet": ""},
        programs=("ssh",),
        files=files,
        is_isolated=False,
    )
    with captured(crash_lab, request, tmp_path) as capture:
        said = capture.said

        for name in ("ssh", "http"):
            assert any(re.match(rf"{name}: (given up: the time is up|saved, incomplete)", line) for line in said), name
        assert not any(line.startswith("saver ") and "given up" in line for line in said), "it came to its own end"
        (name,) = find_dumps(capture.disks.output)
        saved = read_files(capture.disks.output, name, tmp_path / "saved")
    for line in lines:
        line.stop()
        assert line.packets > 10
    assert main(["verify", str(saved / "vmcore")]) == 0
    log = (saved / "vmcore-dmesg.txt").read_bytes()
    assert b"Trigger a crash" in log
    assert "the time is up" in (saved / "saver.log").read_text()
    assert http_server.store.objects.get("/vmcore-dmesg.txt", log) == log


@pytest.mark.matrix
def test_a_changed_host_key_is_refused_and_the_disk_takes_over(
    crash_lab: Lab, tmp_path: Path, ssh_server: SshServer
) -> None:
    ssh, files = plan_ssh(ssh_server)
    other = hashlib.sha256(b"another key").digest()
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + other
    files[ssh.known_hosts] = f"[{HOST}]:{ssh_server.port} ssh-ed25519 {base64.b64encode(blob).decode()}\n".encode()
    plan = plan_for(replace(ssh, attempts=1), fallbacks=(OUTPUT,), network=NETWORK)  # type: ignore[arg-type]
    request = Request(
        plan,
        crashkernel="192M",
        modules={**MODULES, "virtio_net": "", "af_packet": ""},
        programs=("ssh",),
        files=files,
        is_isolated=False,
    )
    with captured(crash_lab, request, tmp_path) as capture:
        given_up = next(line for line in capture.said if line.startswith("ssh: given up"))
        assert "host key" in given_up
        (name,) = find_dumps(capture.disks.output)
        assert main(["verify", str(read_files(capture.disks.output, name, tmp_path / "saved") / "vmcore")]) == 0
    assert not list(ssh_server.dumps.iterdir())
