"""Configurations that are rehearsed, then crashed for real: the verdicts are the same, what broke is named."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk
from postpanic.saver.recovery import find_raw_dumps
from tests.builders.nfs_calls import NFS, call, frame
from tests.compat.http_store import HttpServer
from tests.compat.ssh_server import SshServer, find_free_port, find_missing
from tests.vm.captures import find_dumps, make_disk, read_files
from tests.vm.hosts import CommandResult, run_on_host
from tests.vm.lab import Lab
from tests.vm.rehearsed import ARMED, Tree, crash_for_real, make_tree, rehearse_tree
from tests.vm.test_saver_network import FILES, SERVE

HOST = "10.0.2.2"
"""The host's loopback interface, as QEMU's network has it."""
UUID = "6b1f7e2e-28c8-4f0b-b15b-9f0a7f6d5a10"
OTHER_UUID = "0c8a2f0e-5a55-4a55-9d0b-3a6f0a5a1b2c"
FILE = f"""
[[target]]
kind = "file"
path = "/crash"
device = "UUID={UUID}"
filesystem = "ext4"
"""
DISK_MODULES = '[capture]\nmodules = ["virtio_pci", "virtio_blk", "ext4"]\n'
NETWORK = """
[capture]
modules = ["virtio_pci", "virtio_net", "af_packet"]
[[network.interface]]
name = "eth0"
mac = "52:54:00:12:34:56"
method = "static"
addresses = ["10.0.2.15/24"]
"""


@dataclass
class Case:
    """
    A configuration, with the real thing that it is about.

    Attributes
    ----------
    text : str
        The configuration.
    size_mib : int
        Of the real disk; 0: there is none.
    mkfs : tuple of str
        How it is made.
    link, evidence : str
        What the rehearsal is to name; empty: nothing breaks.
    given : bool
        Whether the rehearsal gets the real disk.
    """

    text: str
    size_mib: int = 512
    kind: str = "ext4"
    mkfs: tuple[str, ...] = ("-U", UUID)
    crashkernel: str = "160M"
    words: tuple[str, ...] = ()
    link: str = ""
    evidence: str = ""
    given: bool = False
    controller: str = ""
    disk: Path | None = field(default=None, init=False)


CASES = {
    "ext4": Case(FILE + DISK_MODULES),
    "given-disk": Case(FILE + DISK_MODULES, given=True),
    "xfs": Case(
        FILE.replace("ext4", "xfs") + DISK_MODULES.replace("ext4", "xfs"), kind="xfs", mkfs=("-q", "-m", f"uuid={UUID}")
    ),
    "nvme": Case(FILE + DISK_MODULES.replace("virtio_blk", "nvme"), controller="nvme,serial=x"),
    "swap": Case(
        f'[[target]]\nkind = "raw"\ndevice = "UUID={UUID}"\nswap = true\n' + DISK_MODULES,
        kind="swap",
        mkfs=("-U", UUID),
    ),
    "fallback": Case(
        FILE.replace(UUID, OTHER_UUID).replace("[[target]]", "[[target]]\nattempts = 1")
        + FILE.replace("[[target]]", "[[fallback]]")
        + DISK_MODULES,
        given=True,
        link="target file",
        evidence=f"no block device with UUID={OTHER_UUID} within",
    ),
    "no-driver": Case(
        FILE + DISK_MODULES.replace('"virtio_blk", ', ""), link="target file", evidence="no driver for the disk"
    ),
    "wrong-uuid": Case(
        FILE + DISK_MODULES,
        mkfs=("-U", OTHER_UUID),
        given=True,
        link="target file",
        evidence=f"ext4 {OTHER_UUID}",
    ),
    "too-small": Case(FILE + DISK_MODULES, crashkernel="64M", evidence="memory"),
    "full-disk": Case(FILE + DISK_MODULES, size_mib=24, given=True, link="target file", evidence="saved, incomplete"),
    "stale-image": Case(FILE + DISK_MODULES, link="", evidence="the image that is armed is stale"),
}
SERVERS = ("ssh", "http", "server-away")
NFS_UP_S = 200.0
NFS_CARD = """
modprobe -a virtio_net af_packet
for card in /sys/class/net/*; do [ -e $card/device ] && name=${card##*/}; done
ip link set $name up
ip address add 10.0.2.15/24 dev $name
"""
NFS_WAIT = """
for second in $(seq 300); do
    ls /srv/export/dumps/*/vmcore.manifest.json >/dev/null 2>&1 && break
    sleep 1
done
sleep 20
postpanic verify /srv/export/dumps/*/vmcore && cat /srv/export/dumps/*/vmcore.manifest.json
"""


@pytest.fixture(scope="module")
def tree(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return make_tree(crash_lab, fetch_kernel("6.1"), tmp_path_factory.mktemp("crashed"))


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[SshServer]:
    missing = find_missing()
    if missing:
        pytest.skip(missing)
    (tmp_path / "ssh").mkdir()
    server = SshServer(tmp_path / "ssh")
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


@pytest.mark.matrix
@pytest.mark.parametrize("name", CASES)
def test_disks(crash_lab: Lab, tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    case = CASES[name]
    disk = make_disk(tmp_path / "real.img", case.size_mib, *case.mkfs, kind=case.kind)
    words = ["--crashkernel", case.crashkernel]
    if case.given:
        given = make_disk(tmp_path / "blank.img", 64) if name == "fallback" else disk
        words += ["--disk", f"0={given}"]
    tree.configure(case.text)
    subject = tree.read_subject(case.crashkernel)
    image = subject.image
    armed = tree.root / ARMED
    if name == "stale-image":
        # What is armed was built for another disk.
        tree.configure(case.text.replace(UUID, OTHER_UUID))
        image = tree.read_subject(case.crashkernel).image
        armed.parent.mkdir(parents=True)
        armed.write_bytes(image)
        tree.configure(case.text)
    try:
        before = disk.read_bytes()
        proven = rehearse_and_judge(crash_lab, tree, tmp_path, capsys, words, case)
        assert disk.read_bytes() == before
    finally:
        shutil.rmtree(armed.parent, ignore_errors=True)

    def is_saved(console: str) -> bool:
        if case.kind == "ext4":
            return is_on_ext4(disk, tmp_path / "found")
        if case.kind == "swap":
            return any(dump.is_complete for dump in find_raw_dumps([disk]))
        return re.search(r"^postpanic: saved: ", console, re.MULTILINE) is not None

    drive = (
        "-drive",
        f"file={disk},format=raw,if=none,id=real,cache=unsafe",
        "-device",
        f"{case.controller},drive=real",
    )
    saved, console = crash_for_real(
        crash_lab,
        subject,
        image,
        tmp_path / "crash",
        crashkernel=case.crashkernel,
        is_saved=is_saved,
        disks=() if case.controller else (Disk(disk),),
        words=drive if case.controller else (),
    )
    # A target that cannot work is a broken link, even where a fallback takes over.
    assert saved is (proven or name == "fallback"), console[-3000:]


def is_on_ext4(disk: Path, place: Path) -> bool:
    for number, name in enumerate(find_dumps(disk, "/crash")):
        manifest = read_files(disk, name, place / str(number)) / "vmcore.manifest.json"
        if manifest.exists() and json.loads(manifest.read_text())["complete"]:
            return main(["verify", str(manifest.parent / "vmcore")]) == 0
    return False


def rehearse_and_judge(
    lab: Lab, tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], case: Case
) -> bool:
    status = 4 if case.evidence else 0
    value = rehearse_tree(lab, tree, tmp_path / "kept", capsys, *words, status=status)
    assert value["verdict"] == ("broken" if case.evidence else "proven")
    if case.evidence:
        assert case.evidence in value["broken"], value["broken"]
        assert value["broken"].startswith(case.link)
    shutil.rmtree(tmp_path / "kept")
    return not case.evidence


@pytest.mark.matrix
@pytest.mark.parametrize("name", SERVERS)
def test_servers(
    crash_lab: Lab,
    tree: Tree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ssh_server: SshServer,
    http_server: HttpServer,
    name: str,
) -> None:
    text = describe_server(tree, ssh_server, http_server, name)
    tree.configure(text + NETWORK)
    case = Case(text, link="target http", evidence="the server must be up") if name == "server-away" else Case(text)
    words = ["--crashkernel", "192M", *(["--unreachable", "0"] if name == "server-away" else [])]
    proven = rehearse_and_judge(crash_lab, tree, tmp_path, capsys, words, case)
    assert not list(ssh_server.dumps.iterdir()), "nothing has reached the real servers"
    assert not http_server.store.objects

    def is_saved(_: str) -> bool:
        if name == "ssh":
            return any(main(["verify", str(path / "vmcore")]) == 0 for path in ssh_server.dumps.iterdir())
        return any(path.endswith("vmcore.flat.manifest.json") for path in http_server.store.objects)

    subject = tree.read_subject("192M")
    saved, console = crash_for_real(
        crash_lab, subject, subject.image, tmp_path / "crash", crashkernel="192M", is_saved=is_saved
    )
    assert saved is proven, console[-3000:]


def describe_server(tree: Tree, ssh: SshServer, http: HttpServer, name: str) -> str:
    if name == "ssh":
        directory = tree.root / "root/.ssh"
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(ssh.base / "user", directory / "id_ed25519")
        key = " ".join((ssh.base / "host.pub").read_text().split()[:2])
        (directory / "known_hosts").write_text(f"[{HOST}]:{ssh.port} {key}\n")
        return (
            f'[[target]]\nkind = "ssh"\nserver = "{HOST}"\nport = {ssh.port}\n'
            f'user = "{ssh.plan.user}"\npath = "{ssh.dumps}"\n'
        )
    port = http.server_port if name == "http" else find_free_port()
    return f'[[target]]\nkind = "http"\nurl = "http://{HOST}:{port}/dumps/{{name}}/{{file}}"\nattempts = 1\n'


@pytest.mark.matrix
def test_a_server_of_nfs(crash_lab: Lab, tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's own server, in a machine beside the one that crashes."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two machines run at a time")
    text = f'[[target]]\nkind = "nfs"\nserver = "{HOST}"\nexport = "/srv/export"\npath = "/dumps"\n'
    tree.configure(text + NETWORK)
    assert rehearse_and_judge(crash_lab, tree, tmp_path, capsys, ["--crashkernel", "192M"], Case(text))
    # A port that is free now may not be so after a rehearsal.
    port = find_free_port()
    tree.configure(f'{text}options = "port={port}"\n{NETWORK}')
    results: list[CommandResult] = []
    server = threading.Thread(target=lambda: results.extend(serve_nfs(crash_lab, port)))
    server.start()
    try:
        wait_for_nfs(port)
        subject = tree.read_subject("192M")
        _, console = crash_for_real(
            crash_lab, subject, subject.image, tmp_path / "crash", crashkernel="192M", is_saved=lambda _: True
        )
    finally:
        server.join()
    assert re.search(r"^postpanic: saved: ", console, re.MULTILINE), console[-3000:]
    assert "self-test passed" in console
    assert results[-1].status == 0, results
    assert json.loads(results[-1].stdout[results[-1].stdout.index("{") :])["complete"]


def serve_nfs(lab: Lab, port: int) -> list[CommandResult]:
    network = f"user,id=outside,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:2049"
    exports = str(FILES["/etc/exports"]).replace("127.0.0.1", "*")
    return run_on_host(
        lab,
        "6.1",
        [NFS_CARD, SERVE.replace("size=64m", "size=300m"), NFS_WAIT],
        packages=("nfs-kernel-server", "rpcbind", "nfs-common"),
        files={**FILES, "/etc/exports": exports},
        command_timeout_s=350,
        words=("-netdev", network, "-device", "virtio-net-pci,netdev=outside,romfile="),
    )


def wait_for_nfs(port: int) -> None:
    deadline = time.monotonic() + NFS_UP_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(frame(call(NFS, 4, 0)))
            if connection.recv(4):
                return
        time.sleep(1.0)
    pytest.fail("the kernel's server did not come up")
