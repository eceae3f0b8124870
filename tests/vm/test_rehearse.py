"""Rehearsals of a tree: what works is proven, what goes wrong on purpose is told from what is broken."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postpanic.capture.config import read_config
from postpanic.capture.host import Host
from postpanic.capture.rehearsals import REHEARSAL_NAME, read_rehearsal
from postpanic.cli.app import main
from postpanic.rehearse.kernels import Kernel
from tests.compat.ssh_server import find_missing, make_key
from tests.vm.lab import Lab, hold_machine
from tests.vm.overlaid import OverlayError
from tests.vm.rehearsed import ARMED, Tree, make_tree, rehearse_overlaid, rehearse_tree

UUID = "6b1f7e2e-28c8-4f0b-b15b-9f0a7f6d5a10"
OTHER_UUID = "0c8a2f0e-5a55-4a55-9d0b-3a6f0a5a1b2c"
FILE_TARGET = f"""
[[target]]
kind = "file"
path = "/var/crash"
device = "UUID={UUID}"
filesystem = "ext4"
"""
OTHER_TARGET = FILE_TARGET.replace(UUID, OTHER_UUID)
RAW_TARGET = f"""
[[target]]
kind = "raw"
device = "UUID={UUID}"
swap = true
"""
VIRTIO = '[capture]\nmodules = ["virtio_pci", "virtio_blk", "ext4"]\n'
SERVERS = """
[[target]]
kind = "ssh"
server = "192.0.2.40"
user = "dumps"
path = "/srv/dumps"
[[target]]
kind = "http"
url = "http://198.51.100.7:8080/dumps?host={name}&file={file}"
[[target]]
kind = "nfs"
server = "192.0.2.41"
export = "/srv/export"
path = "/dumps"
[capture]
modules = ["virtio_pci", "virtio_blk", "ext4", "virtio_net", "af_packet"]
[[network.interface]]
name = "eth0"
mac = "52:54:00:70:70:70"
method = "static"
addresses = ["192.0.2.3/24"]
[[network.interface.route]]
gateway = "192.0.2.1"
"""
NFS = """
[[target]]
kind = "nfs"
server = "192.0.2.41"
export = "/srv/export"
path = "/dumps"
version = "{version}"
{options}
attempts = 1
""" + SERVERS[SERVERS.index("[capture]") :]
Rehearse = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tree(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return make_tree(crash_lab, fetch_kernel("6.1"), tmp_path_factory.mktemp("rehearsed"))


@pytest.fixture
def rehearse(crash_lab: Lab, tree: Tree, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Rehearse:
    count = iter(range(100))

    def call(text: str, *words: str, status: int = 0) -> dict[str, Any]:
        tree.configure(text)
        return rehearse_tree(crash_lab, tree, tmp_path / f"kept{next(count)}", capsys, *words, status=status)

    return call


def links(value: dict[str, Any], name: str = "sysrq") -> dict[str, dict[str, str]]:
    return {link["name"]: link for link in value["rehearsals"][name]["links"]}


def make_ssh_files(tree: Tree) -> None:
    directory = tree.root / "root/.ssh"
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("id_ed25519", "host"):
        if not (directory / name).exists():
            make_key(directory / name)
    (directory / "known_hosts").write_text(f"192.0.2.40 {(directory / 'host.pub').read_text()}")


def test_what_works_is_proven_and_nothing_is_changed(
    crash_lab: Lab, tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = find_missing()
    if missing:
        pytest.skip(missing)
    make_ssh_files(tree)
    tree.configure(FILE_TARGET + SERVERS)
    words = ("--crashkernel", "192M", "--host-memory", "64G")
    blind = ""
    try:
        value, changes = rehearse_overlaid(crash_lab, tree, tmp_path, *words)
        assert changes == []
    except OverlayError as exc:
        blind = f"what it changes cannot be seen here: {exc}"
        shutil.rmtree(tmp_path / "kept")
        value = rehearse_tree(crash_lab, tree, tmp_path / "kept", capsys, *words)
    assert (value["verdict"], value["broken"]) == ("proven", None)
    found = links(value)
    assert {link["state"] for name, link in found.items() if not name.startswith("self-test ")} == {"held"}, found
    assert len([name for name in found if name.startswith("dump ")]) == 4
    assert found["self-test nfs 192.0.2.41:/srv/export"]["evidence"].startswith("passed")
    one = value["rehearsals"]["sysrq"]
    assert 0 < one["seconds"] < 600
    assert 40 << 20 < one["peak_bytes"] < 192 << 20
    dumps = [path for path in (tmp_path / "kept").rglob("*") if path.name in {"vmcore", "vmcore.flat"}]
    assert len(dumps) == 4
    assert one["dump_bytes"] == max(dump.stat().st_size for dump in dumps)
    (received,) = (tmp_path / "kept").rglob("saved/1/srv/dumps/*/vmcore")
    assert received in dumps
    (received,) = (tmp_path / "kept").rglob("saved/3/srv/export/dumps/*/vmcore")
    assert received in dumps
    assert f"the account dumps: in the machine it is {getpass.getuser()}" in " ".join(one["unproven"])
    expected = value["extrapolated"]
    assert expected["memory_bytes"] == 64 << 30
    assert one["dump_bytes"] < expected["dump_bytes"]["least"] < expected["dump_bytes"]["most"]
    if blind:
        pytest.skip(blind)


def test_an_image_that_is_armed_and_stale_is_a_broken_link(rehearse: Rehearse, tree: Tree) -> None:
    armed = tree.root / ARMED
    armed.parent.mkdir(parents=True)
    armed.write_bytes(b"an image of before")
    try:
        value = rehearse(FILE_TARGET + VIRTIO, "--crashkernel", "160M", status=4)
    finally:
        shutil.rmtree(armed.parent)
    assert value["broken"].startswith("the image that is armed is stale: ")
    assert value["rehearsals"] == {}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(FILE_TARGET + VIRTIO.replace("virtio_blk", 'virtio_scsi", "sd_mod'), (), id="scsi"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "nmi"), id="nmi"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "out-of-memory"), id="out-of-memory"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "null"), id="null"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "softlockup"), id="softlockup"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "hung-task"), id="hung-task"),
        pytest.param(FILE_TARGET + VIRTIO, ("--crash", "stack"), id="stack"),
        pytest.param(FILE_TARGET + VIRTIO, ("--fault", "saver-killed"), id="saver-killed"),
    ],
)
def test_others_are_proven(rehearse: Rehearse, text: str, words: tuple[str, ...]) -> None:
    value = rehearse(text, "--crashkernel", "192M", *words)
    assert value["verdict"] == "proven"


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("3", ""),
        ("3", 'options = "port=2050,mountport=2051"'),
        ("4.0", ""),
        ("4.1", 'options = "nconnect=2"'),
        ("4.2", 'options = "port=2050"'),
    ],
)
def test_a_server_of_nfs_is_proven_in_every_version(rehearse: Rehearse, version: str, options: str) -> None:
    value = rehearse(NFS.format(version=version, options=options), "--crashkernel", "192M")
    assert value["verdict"] == "proven"
    found = links(value)
    assert found["self-test nfs 192.0.2.41:/srv/export"]["evidence"].startswith("passed")
    assert found["dump nfs 192.0.2.41:/srv/export"]["state"] == "held"
    assert f"that the real server has NFS {version}" in " ".join(value["rehearsals"]["sysrq"]["unproven"])


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("version", "words", "evidence", "mend"),
    [
        ("4.2", ("--unreachable", "0"), "no route to the server", "the server must be up"),
        ("3", ("--unreachable", "0"), "no route to the server", "the server must be up"),
        ("4.2", ("--free", "0=8M"), "saved, incomplete", "make room"),
        ("3", ("--free", "0=8M"), "saved, incomplete", "make room"),
    ],
)
def test_what_breaks_at_a_server_of_nfs_is_named(
    rehearse: Rehearse, version: str, words: tuple[str, ...], evidence: str, mend: str
) -> None:
    value = rehearse(NFS.format(version=version, options=""), "--crashkernel", "192M", *words, status=4)
    broken = links(value)["target nfs 192.0.2.41:/srv/export"]
    assert (broken["state"], evidence in broken["evidence"], mend in broken["mend"]) == ("broken", True, True), broken


@pytest.mark.matrix
@pytest.mark.parametrize("fault", ["disk-error", "disk-hang"])
def test_a_disk_that_fails_is_a_fault_where_another_has_the_dump(rehearse: Rehearse, fault: str) -> None:
    value = rehearse(FILE_TARGET + OTHER_TARGET + VIRTIO, "--crashkernel", "192M", "--fault", f"{fault}=0")
    assert value["verdict"] == "proven"
    found = {name: link["state"] for name, link in links(value).items() if name.endswith((UUID, OTHER_UUID))}
    for name, state in found.items():
        if name.endswith(OTHER_UUID):
            assert state == "held", name
        else:
            assert state == ("faulted" if name.startswith("target ") else "not reached"), name


@pytest.mark.matrix
def test_a_disk_that_fails_alone_is_a_broken_link(rehearse: Rehearse) -> None:
    value = rehearse(FILE_TARGET + VIRTIO, "--crashkernel", "160M", "--fault", "disk-error", status=4)
    assert value["broken"].startswith("target file")


@pytest.mark.matrix
def test_a_matrix_has_a_verdict_for_every_kind_and_target(crash_lab: Lab, tree: Tree, tmp_path: Path) -> None:
    tree.configure(FILE_TARGET + OTHER_TARGET + VIRTIO)
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(64 << 20))
    words = ["rehearse", "--root", str(tree.root), "--crashkernel", "160M", "--matrix", "--crash", "sysrq"]
    words += ["--crash", "nmi", "--disk", f"1={blank}", "--keep", str(tmp_path / "kept"), "--shell"]
    with hold_machine(crash_lab.cache_dir), (tmp_path / "err").open("w+") as errors:
        command = [sys.executable, "-m", "postpanic", *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process:
            printed = read_until(process, "rehearsal: a Python prompt")
            for line in ("6 * 7", "raise SystemExit"):
                printed += read_until(process, ">>> ")
                time.sleep(1.0)
                assert process.stdin is not None
                process.stdin.write(f"{line}\r".encode())
                process.stdin.flush()
            printed += read_until(process, "")
            status = process.wait(60)
        said = (tmp_path / "err").read_text()
    assert status == 4, printed + said
    rows = {line.split()[0]: line for line in printed.splitlines() if line.startswith(("crash ", "sysrq ", "nmi "))}
    assert rows["crash"].split() == ["crash", "target", "0", "target", "1"]
    for kind in ("sysrq", "nmi"):
        assert f"{kind} " in rows[kind]
        assert "proven" in rows[kind]
        assert rows[kind].endswith("BROKEN at target")
    assert "(4 of 4)" in said
    assert "42" in printed.split("a Python prompt")[1]


def read_until(process: subprocess.Popen[bytes], text: str) -> str:
    """Read what a program prints until it has printed this; to the end where it is empty."""
    assert process.stdout is not None
    found = b""
    while not text or not found.endswith(text.encode()):
        more = process.stdout.read(1)
        if not more:
            assert not text, found.decode(errors="replace")
            break
        found += more
    return found.decode(errors="replace")


@pytest.mark.matrix
def test_crash_that_the_kernel_cannot_do_is_said(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.configure(FILE_TARGET + VIRTIO)
    words = ["rehearse", "--root", str(tree.root), "--kernel", tree.kernel.release, "--crashkernel", "160M"]
    assert main([*words, "--crash", "bug"]) == 4
    assert "has no module lkdtm" in capsys.readouterr().err


@pytest.mark.matrix
def test_of_the_host_itself_the_verdict_is_kept_and_nothing_else(
    crash_lab: Lab, tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.configure(FILE_TARGET + VIRTIO)
    host = Host(tree.root, "x86_64", tree.kernel.release)
    # The machine that runs is not to be rehearsed by a test: the tree is taken for it.
    monkeypatch.setattr(
        "postpanic.cli.rehearse._find_config", lambda *_: (host, read_config(tree.root / "etc/postpanic.toml"))
    )
    (tree.root / ARMED).parent.parent.mkdir(parents=True, exist_ok=True)
    before = describe(tree.root)
    with hold_machine(crash_lab.cache_dir):
        assert main(["rehearse", "--crashkernel", "160M"]) == 0, capsys.readouterr()
    path = tree.root / ARMED.replace("capture.img", REHEARSAL_NAME)
    record = read_rehearsal(path)
    assert record is not None
    assert (record.verdict, record.kinds, record.fingerprint["the reservation"]) == ("proven", ("sysrq",), "167772160")
    assert min(record.dump_bytes, record.peak_bytes, record.seconds) > 0
    shutil.rmtree(path.parent)
    assert describe(tree.root) == before


def describe(root: Path) -> dict[str, tuple[int, int, int]]:
    # The mode of everything; of what is no directory its size and time, too.
    found = {path: path.lstat() for path in root.rglob("*")}
    return {
        str(path): (status.st_mode, 0, 0) if path.is_dir() else (status.st_mode, status.st_size, status.st_mtime_ns)
        for path, status in found.items()
    }


@pytest.mark.matrix
def test_the_smallest_reservation_works_and_one_step_less_does_not(rehearse: Rehearse) -> None:
    value = rehearse(FILE_TARGET + VIRTIO, "--crashkernel", "160M", "--smallest")
    size = value["smallest_bytes"] >> 20
    assert 64 <= size < 160
    for _ in range(2):
        assert rehearse(FILE_TARGET + VIRTIO, "--crashkernel", f"{size}M")["verdict"] == "proven"
        assert rehearse(FILE_TARGET + VIRTIO, "--crashkernel", f"{size - 16}M", status=4)["verdict"] == "broken"
