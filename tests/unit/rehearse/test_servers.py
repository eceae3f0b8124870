"""The servers that stand in, spoken to by the saver's own clients."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.errors import NoSpaceError, NotReadyError, OutputError
from postpanic.rehearse.servers.http import list_objects
from postpanic.rehearse.servers.sftp import SftpServer
from postpanic.rehearse.servers.stand_ins import (
    ServerStandIn,
    gather_objects,
    make_http_server,
    make_ssh_server,
)
from postpanic.saver.plan import HttpPlan, SshPlan
from postpanic.saver.targets.http import HttpTarget
from postpanic.saver.targets.sftp import SftpClient, SftpStatusError
from postpanic.saver.targets.sftp_connection import SftpConnection

Serve = Callable[[ServerStandIn], int]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[SftpClient]:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    server = subprocess.Popen(
        [sys.executable, "-m", "postpanic.rehearse.servers.sftp", str(root), str(1 << 20)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    connection = SftpConnection(
        server.stdout.fileno(),
        server.stdin.fileno(),
        name="test",
        timeout_s=20.0,
        explain=lambda: OutputError("gone"),
    )
    connection.shake_hands()
    yield SftpClient(connection)
    server.stdin.close()
    assert server.wait(20) == 0
    server.stdout.close()


def test_files_are_written_read_renamed_and_removed(client: SftpClient, tmp_path: Path) -> None:
    client.make_directory("/var")
    handle = client.open_file("/var/.part")
    client.write(handle, 0, [memoryview(b"a" * 100_000), memoryview(b"b" * 50_000)])
    client.connection.drain()
    assert client.connection.write_failure is None
    assert client.sync(handle)
    assert b"".join(client.read(handle, 99_999, 10)) == b"a" + b"b" * 9
    client.set_size(handle, 100_001)
    assert client.read_attributes(handle).size_bytes == 100_001
    client.close_handle(handle)
    client.rename("/var/.part", "/var/vmcore")
    assert (tmp_path / "root/var/vmcore").read_bytes() == b"a" * 100_000 + b"b"
    assert [entry.name for entry in client.list_directory("/var")] == ["vmcore"]
    room = client.find_room("/var")
    assert room is not None
    assert room.free_bytes < (1 << 20) - 100_000
    client.remove("/var/vmcore")
    client.remove_directory("/var")
    assert client.find_attributes("/var") is None


def test_a_full_server_says_so(client: SftpClient) -> None:
    handle = client.open_file("/vmcore")
    for place in range(0, 2 << 20, 1 << 16):
        client.write(handle, place, [memoryview(bytes(1 << 16))])
    client.connection.drain()
    assert "no space left on device" in str(client.connection.write_failure)


@pytest.mark.parametrize("path", ["../secret", "/../secret", "/a/../../secret", "/./../../../secret"])
def test_nothing_leads_out_of_the_directory(client: SftpClient, path: str) -> None:
    assert client.find_attributes(path) is None
    with pytest.raises(SftpStatusError):
        client.remove(path)


@pytest.mark.parametrize("packet", [b"", b"\x03", b"\x03\0\0\0\1", b"\xc8\0\0\0\1\0\0\0\5abc", b"\x06" + b"\xff" * 40])
def test_packets_that_are_none_are_refused(tmp_path: Path, packet: bytes) -> None:
    assert SftpServer(tmp_path).answer(packet)[0] == 101
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Do what QEMU does: start a server's command for each connection."""
    listeners: list[socket.socket] = []
    children: list[subprocess.Popen[bytes]] = []

    def accept(listener: socket.socket, command: str) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                children.append(
                    subprocess.Popen(shlex.split(command), stdin=connection.fileno(), stdout=connection.fileno())
                )

    def start(server: ServerStandIn) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener, server.command), daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for child in children:
        child.kill()
        child.wait()


def put(plan: HttpPlan, content: bytes) -> tuple[str, ...]:
    target = HttpTarget(plan)
    target.open("host-20260101-000000")
    target.put("vmcore-dmesg.txt", b"log")
    sink = target.open_dump("vmcore")
    try:
        sink.write_at(0, [content])
        sink.finish()
        target.commit()
        return target.dump_files
    finally:
        sink.close()
        target.close()


@pytest.mark.parametrize("mode", ["parts", "range", "whole"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_put_is_found_by_its_names(tmp_path: Path, serve: Serve, mode: str, scheme: str) -> None:
    if scheme == "https" and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    plan = HttpPlan(
        name="h",
        url=f"{scheme}://127.0.0.1/d/{{name}}?x={{file}}",
        mode=mode,  # type: ignore[arg-type]
        part_bytes=1 << 16,
        ca_file="/ca.pem" if scheme == "https" else "",
    )
    server = make_http_server(plan, tmp_path / "server", tmp_path / "saved/0")
    port = serve(server)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(server.files.get("/ca.pem", b""))
    url = plan.url.replace("127.0.0.1", f"127.0.0.1:{port}")
    content = os.urandom(200_000)
    put(
        HttpPlan(name="h", url=url, mode=plan.mode, part_bytes=1 << 16, ca_file=str(ca) if plan.ca_file else ""),
        content,
    )
    objects = list_objects(tmp_path / "server/objects")
    assert "/d/host-20260101-000000?x=vmcore-dmesg.txt" in objects
    gather_objects(server, tmp_path / "server")
    place = tmp_path / "saved/0/host-20260101-000000"
    assert sorted(path.name for path in place.iterdir()) == ["vmcore-dmesg.txt", "vmcore.flat"]
    assert content in (place / "vmcore.flat").read_bytes()
    assert b"PRIVATE" not in ca.read_bytes()


def test_a_full_http_server_says_so(tmp_path: Path, serve: Serve) -> None:
    plan = HttpPlan(name="h", url="http://127.0.0.1/{file}", part_bytes=1 << 16, attempts=1)
    server = make_http_server(plan, tmp_path / "server", tmp_path / "saved", 100_000)
    url = f"http://127.0.0.1:{serve(server)}/{{file}}"
    with pytest.raises((NoSpaceError, OutputError), match="no room"):
        put(HttpPlan(name="h", url=url, part_bytes=1 << 16), os.urandom(400_000))


def test_a_key_that_is_none_is_refused_and_not_left_behind(tmp_path: Path) -> None:
    if shutil.which("sshd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("openssh-server is not installed")
    plan = SshPlan(name="ssh", server="192.0.2.1", port=2222)
    with pytest.raises(NotReadyError, match="the private key cannot be read"):
        make_ssh_server(plan, b"no key", tmp_path / "server", tmp_path / "saved")
    assert not (tmp_path / "server/client").exists()
