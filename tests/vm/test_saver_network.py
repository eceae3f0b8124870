"""What the saver does with networks and servers of NFS, on a kernel that has everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.hosts import CommandResult, run_on_host
from tests.vm.lab import Lab

SCRIPT = Path(__file__).parent / "scenarios" / "network_in_guest.py"
RUN = "PYTHONPATH=/opt/host/src python3 /root/network_in_guest.py"
FILES: dict[str, bytes | str | Path] = {
    "/root/network_in_guest.py": SCRIPT,
    "/etc/netconfig": "udp tpi_clts v inet udp - -\ntcp tpi_cots_ord v inet tcp - -\n"
    "local tpi_cots_ord - loopback - - -\n",
    "/etc/services": "sunrpc 111/tcp portmapper rpcbind\nsunrpc 111/udp portmapper rpcbind\nnfs 2049/tcp\n",
    "/etc/rpc": "portmapper 100000\nnfs 100003\nmountd 100005\n",
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n_rpc:x:100:65534::/run/rpcbind:/usr/sbin/nologin\n",
    "/etc/exports": "/srv/export 127.0.0.1(rw,no_root_squash,fsid=7,no_subtree_check,insecure)\n",
}
SERVE = """
mkdir -p /srv/export /var/lib/nfs /run/rpcbind
mount -t tmpfs -o size=64m tmpfs /srv/export
modprobe -a nfsd nfsv3 nfsv4
mount -t nfsd nfsd /proc/fs/nfsd
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
# The least that it takes, of the time in which a server that starts lets nobody open anything.
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
rpcbind
for turn in $(seq 60); do rpcinfo -p >/dev/null 2>&1 && break; sleep 0.5; done
exportfs -ra
rpc.nfsd 4
rpc.mountd
for turn in $(seq 60); do rpcinfo -p | grep -q mountd && break; sleep 0.5; done
cat /proc/fs/nfsd/portlist /proc/fs/nfsd/versions
rpcinfo -p
"""


@pytest.fixture(scope="module")
def results(crash_lab: Lab) -> dict[str, CommandResult]:
    """Everything in one guest: most of the time goes into booting."""
    commands = {
        "card": f"modprobe -a virtio_net af_packet; {RUN} card",
        "bond": f"modprobe -a bonding 8021q veth; {RUN} bond",
        "serve": SERVE,
        "nfs": f"{RUN} nfs",
    }
    found = run_on_host(
        crash_lab,
        "6.1",
        list(commands.values()),
        network=True,
        packages=("nfs-kernel-server", "rpcbind", "nfs-common"),
        files=FILES,
        command_timeout_s=120,
    )
    return dict(zip(commands, found, strict=True))


def read_lines(result: CommandResult, before: CommandResult | None = None) -> list[str]:
    told = "" if before is None else before.stdout + before.stderr
    assert result.status == 0, told + result.stdout + result.stderr
    assert "ERROR" not in result.stdout, told + result.stdout
    return result.stdout.splitlines()


@pytest.mark.vm
def test_card_is_found_by_its_place(results: dict[str, CommandResult]) -> None:
    lines = read_lines(results["card"])
    assert any(line.startswith("network net7: up, 10.0.2.15/24") for line in lines), lines
    assert "PATHS True" in lines
    assert any(line.startswith("PLAN True") for line in lines), lines
    (modules,) = [line.split()[1:] for line in lines if line.startswith("MODULES")]
    assert {"virtio_net", "virtio_pci"} <= set(modules)


@pytest.mark.vm
def test_address_of_a_router_of_qemu(results: dict[str, CommandResult]) -> None:
    assert any(line.startswith("network net8: up, fec0:") for line in read_lines(results["card"]))


@pytest.mark.vm
def test_vlan_on_a_bond(results: dict[str, CommandResult]) -> None:
    lines = read_lines(results["bond"])
    assert lines.count("REACHED True") == 4, lines
    assert "CHAIN ['a0', 'a1', 'bond0', 'bond0.5']" in lines
    assert "MEMBERS ['52:54:00:00:00:01', '52:54:00:00:00:02']" in lines
    (options,) = [line for line in lines if line.startswith("BOND")]
    for option in ("('mode', 'active-backup')", "('miimon', '100')", "('primary', 'a0')"):
        assert option in options
    (modules,) = [line for line in lines if line.startswith("MODULES")]
    assert "8021q" in modules
    assert "bonding" in modules


@pytest.mark.vm
@pytest.mark.parametrize("version", ["3", "4.0", "4.1", "4.2"])
def test_nfs_of_each_version(results: dict[str, CommandResult], version: str) -> None:
    lines = read_lines(results["nfs"], results["serve"])
    number = ("3", "4.0", "4.1", "4.2").index(version)
    name = f"node-20260131-235959{f'-{number}' if number else ''}"
    place = f"localhost:/srv/export/dumps/{name}"
    assert f"NFS {version} 5000000 {place} vers=True soft=True" in lines, lines


@pytest.mark.vm
def test_nfs_server_that_goes_away(results: dict[str, CommandResult]) -> None:
    lines = read_lines(results["nfs"], results["serve"])
    gone = [line for line in lines if line.startswith("GONE")]
    assert "the server has no such export" in gone[0]
    assert gone[1].endswith("after a while")
    assert "cannot write" in gone[1]
    assert "NO ERROR" not in lines
    (refused,) = [line for line in lines if line.startswith("REFUSED")]
    assert "cannot mount 127.0.0.1:/srv/export" in refused or "cannot mount [::1]:/srv/export" in refused
