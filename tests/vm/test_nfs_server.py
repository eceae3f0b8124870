"""The NFS server that stands in, judged by the kernel's own client: all versions, in one guest."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from postpanic.rehearse.network import CARDS, stage_network
from postpanic.rehearse.servers.nfs.serving import LOG_NAME
from postpanic.rehearse.servers.stand_ins import ServerStandIn, make_nfs_server
from postpanic.saver.plan import InterfacePlan, NetworkPlan, NfsPlan
from tests.vm.hosts import CommandResult, run_on_host
from tests.vm.lab import Lab
from tests.vm.scenarios.nfs_in_guest import DIRECTORIES, FILES, MAC, NAME

SCRIPT = Path(__file__).parent / "scenarios" / "nfs_in_guest.py"
CUT = Path(__file__).parent / "cut_connection.py"
RUN = "PYTHONPATH=/opt/host/src python3 /root/nfs_in_guest.py"
VERSIONS = ("3", "4.0", "4.1", "4.2")
PORTS = "port=2050,mountport=2051"
ROOM_BYTES = 5 << 20
AMPLE_BYTES = 64 << 20
DUMP_BYTES = 12 << 20
CONNECTION_MESSAGES = 150
"""Each connection of a server that is broken is cut after so many."""
CUTS = "cuts"
BROKEN = 20


def address(version: str, offset: int = 0) -> str:
    return f"10.9.0.{3 + VERSIONS.index(version) + offset}"


class Servers:
    """Three of each version: one that has room, one that soon has none, one whose connections break."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[ServerStandIn] = []
        for version in VERSIONS:
            self.add(version, 0, AMPLE_BYTES)
            self.add(version, 10, ROOM_BYTES)
            self.add(version, BROKEN, None)
        self.add("3", 30, AMPLE_BYTES, PORTS)
        self.add("4.2", 30, AMPLE_BYTES, PORTS)

    def add(self, version: str, offset: int, room_bytes: int | None, options: str = "") -> None:
        plan = NfsPlan(
            name="nfs",
            server=address(version, offset),
            export="/srv/export",
            version=version,  # type: ignore[arg-type]
            options=options,
        )
        place = self.directory / plan.server
        server = make_nfs_server(plan, place, self.directory / f"root-{plan.server}", room_bytes)
        if offset == BROKEN:
            words = [sys.executable, str(CUT), str(CONNECTION_MESSAGES), str(place / CUTS)]
            command = f"{shlex.join(words)} {server.command}"
            server = ServerStandIn(plan, server.host, server.ports, command, server.received, {}, ())
        self.all.append(server)

    def root(self, version: str, offset: int = 0) -> Path:
        return self.directory / f"root-{address(version, offset)}" / "srv/export"

    def spell(self) -> tuple[str, ...]:
        interface = InterfacePlan(name="eth0", mac=MAC, method="static", addresses=("10.9.0.2/24",))
        return stage_network(NetworkPlan(interfaces=(interface,)), CARDS["virtio_net"], self.all, []).words

    def read_logs(self) -> Iterator[str]:
        for server in self.all:
            path = self.directory / server.host / LOG_NAME
            if path.exists() and path.read_text():
                yield f"{server.host}: {path.read_text()}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Servers:
    return Servers(tmp_path_factory.mktemp("nfs"))


@pytest.fixture(scope="module")
def results(crash_lab: Lab, servers: Servers) -> dict[str, CommandResult]:
    return run(crash_lab, servers, [("all", version, 0) for version in VERSIONS])


@pytest.fixture(scope="module")
def wide_results(crash_lab: Lab, servers: Servers) -> dict[str, CommandResult]:
    wanted = [("full", 10), ("missing", 0), ("broken", BROKEN)]
    jobs = [(kind, version, offset) for version in VERSIONS for kind, offset in wanted]
    return run(crash_lab, servers, [*jobs, ("ports", "3", 30), ("ports", "4.2", 30)])


def run(lab: Lab, servers: Servers, jobs: list[tuple[str, str, int]]) -> dict[str, CommandResult]:
    """Do everything in one guest: most of the time goes into booting."""
    commands = {"network": f"modprobe -a virtio_net af_packet nfs nfsv3 nfsv4; {RUN} network"}
    for kind, version, offset in jobs:
        words = f"all {version} {address(version, offset)} {PORTS}"
        if kind != "ports":
            words = f"{kind} {version} {address(version, offset)}"
        commands[f"{kind} {version}"] = f"{RUN} {words}"
    found = run_on_host(
        lab,
        "6.1",
        list(commands.values()),
        files={"/root/nfs_in_guest.py": SCRIPT},
        command_timeout_s=120,
        words=servers.spell(),
    )
    return dict(zip(commands, found, strict=True))


def read(results: dict[str, CommandResult], name: str) -> dict[str, str]:
    result = results[name]
    assert result.status == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout, result.stdout + result.stderr
    return {line.split()[0]: line.split(maxsplit=2)[2] for line in result.stdout.splitlines()}


@pytest.mark.vm
@pytest.mark.parametrize("version", VERSIONS)
def test_the_saver_and_whoever_else_has_a_file_system(
    results: dict[str, CommandResult], servers: Servers, version: str
) -> None:
    check_files(results, servers, f"all {version}", version, 0)


@pytest.mark.matrix
@pytest.mark.vm
@pytest.mark.parametrize("version", ["3", "4.2"])
def test_ports_are_those_that_are_asked_for(
    wide_results: dict[str, CommandResult], servers: Servers, version: str
) -> None:
    check_files(wide_results, servers, f"ports {version}", version, 30)


def check_files(results: dict[str, CommandResult], servers: Servers, name: str, version: str, offset: int) -> None:
    found = read(results, name)
    assert found["MOUNT"].startswith("vers=True")
    assert found["SAVED"] == f"{DUMP_BYTES} {address(version, offset)}:/srv/export/dumps/{NAME}"
    before, after = map(int, found["ROOM"].split())
    assert before == AMPLE_BYTES
    # The kernel counts in blocks of 1 MiB.
    assert 0 <= AMPLE_BYTES - DUMP_BYTES - after <= 1 << 20
    assert found["LIST"] == f"{FILES + 1} file 000 ünï"
    assert found["READ"] == "a" * 5 + "b" * 10
    assert found["SIZE"] == "7"
    assert found["REPLACED"] == "0 False"
    assert found["STATUS"] == "0o100640 2000 7 8"
    assert found["UNLINKED"] == "gone"
    assert found["REMOVED"] == "['dumps']"
    assert found["UNMOUNTED"] == "True"
    errors = dict(line.split()[2:] for line in results[name].stdout.splitlines() if line.startswith("ERROR"))
    # 524 is the kernel's own ENOTSUPP, which it lets through.
    expected = {"rmdir": "ENOTEMPTY", "mkdir": "EEXIST", "link": "524", "long": "ENAMETOOLONG", "exclusive": "EEXIST"}
    assert errors == expected
    dump = servers.root(version, offset) / "dumps" / NAME
    assert sorted(path.name for path in dump.iterdir()) == ["vmcore", "vmcore-dmesg.txt"]
    content = b"".join(bytes([place + 1]) * (2 << 20) for place in range(0, 12, 2))
    marked = content[:100] + version.encode() + content[100 + len(version) :]
    assert (dump / "vmcore").read_bytes() == marked
    assert [path.name for path in servers.root(version, offset).iterdir()] == ["dumps"]


@pytest.mark.matrix
@pytest.mark.vm
@pytest.mark.parametrize("version", VERSIONS)
def test_a_full_server_says_so(wide_results: dict[str, CommandResult], servers: Servers, version: str) -> None:
    found = read(wide_results, f"full {version}")
    assert found["FREE"] == str(ROOM_BYTES)
    assert found["FULL"].startswith("NoSpaceError")
    stored = sum(path.stat().st_size for path in servers.root(version, 10).rglob("*") if path.is_file())
    assert 0 < stored <= ROOM_BYTES


@pytest.mark.matrix
@pytest.mark.vm
@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_that_is_not_there_is_named(wide_results: dict[str, CommandResult], version: str) -> None:
    assert "the server has no such export" in read(wide_results, f"missing {version}")["MISSING"]


@pytest.mark.matrix
@pytest.mark.vm
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_done_is_not_done_again_when_connections_break(
    wide_results: dict[str, CommandResult], servers: Servers, version: str
) -> None:
    assert read(wide_results, f"broken {version}")["BROKEN"] == f"True {DIRECTORIES} 0"
    assert (servers.directory / address(version, BROKEN) / CUTS).stat().st_size > 1


@pytest.mark.vm
def test_the_servers_had_nothing_to_complain_of(results: dict[str, CommandResult], servers: Servers) -> None:
    assert results
    assert [line for line in servers.read_logs() if "the connection broke" not in line] == []
