"""A network that the configuration gives is found on the machine's cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.config import decode_config
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.resolve import FoundNetwork
from postpanic.capture.resolve.nameservers import read_nameservers
from postpanic.capture.resolve.networks import look_up_servers, plan_given_network
from postpanic.errors import NotReadyError
from postpanic.saver.plan import InterfacePlan, RoutePlan
from tests.unit.capture.resolve.machine import MachineTree

TEXT = """
[network]
wait = 9
[[network.interface]]
name = "eno1"
[[network.interface]]
name = "other"
mac = "52:54:00:00:00:02"
[[network.interface]]
name = "bond0"
kind = "bond"
members = ["eno1", "other"]
bond_options = { mode = "active-backup" }
mtu = 9000
[[network.interface]]
name = "bond0.7"
kind = "vlan"
parent = "bond0"
vlan_id = 7
method = "static"
addresses = ["192.0.2.7/24"]
[[network.interface.route]]
gateway = "192.0.2.1"
"""


@pytest.fixture
def machine(tmp_path: Path) -> MachineTree:
    (tmp_path / "machine").mkdir()
    machine = MachineTree(tmp_path / "machine")
    (machine.root / "sys/class/net").mkdir()
    for number in (1, 2):
        pci = f"pci0000:00/0000:00:0{number}.0"
        machine.add_device(pci, driver="virtio-pci", module="virtio_pci")
        device = machine.add_device(f"{pci}/virtio{number}", driver="virtio_net", module="virtio_net", bus="virtio")
        net = device / f"net/eno{number}"
        net.mkdir(parents=True)
        (net / "address").write_text(f"52:54:00:00:00:0{number}\n")
        (net / "device").symlink_to(device)
        (machine.root / f"sys/class/net/eno{number}").symlink_to(net)
    bond = machine.devices / "virtual/net/bond0"
    bond.mkdir(parents=True)
    (bond / "address").write_text("52:54:00:00:00:02\n")
    (machine.root / "sys/class/net/bond0").symlink_to(bond)
    slave = machine.devices / "pci0000:00/0000:00:01.0/virtio1/net/eno1/bonding_slave"
    slave.mkdir()
    (slave / "perm_hwaddr").write_text("52:54:00:00:00:aa\n")
    return machine


def plan(text: str, machine: MachineTree, servers: tuple[str, ...] = ()) -> FoundNetwork:
    config = decode_config(text.encode(), "c.toml")
    return plan_given_network(config.network, servers, ModuleTree(machine.root), root=machine.root)


def test_cards_are_found_and_what_is_made_of_them(machine: MachineTree) -> None:
    found = plan(TEXT, machine, ("192.0.2.9",))
    assert found.plan.interfaces == (
        InterfacePlan(name="eno1", mac="52:54:00:00:00:aa", sysfs_path="pci0000:00/0000:00:01.0/virtio*"),
        InterfacePlan(name="other", mac="52:54:00:00:00:02", sysfs_path="pci0000:00/0000:00:02.0/virtio*"),
        InterfacePlan(
            name="bond0",
            kind="bond",
            members=("eno1", "other"),
            bond_options=(("mode", "active-backup"),),
            mtu=9000,
        ),
        InterfacePlan(
            name="bond0.7",
            kind="vlan",
            parent="bond0",
            vlan_id=7,
            method="static",
            addresses=("192.0.2.7/24",),
            routes=(RoutePlan(gateway="192.0.2.1"),),
        ),
    )
    assert found.plan.wait_s == 9
    assert found.modules == ("virtio_pci", "virtio_net", "bonding", "8021q")
    assert found.sysfs_paths == ("pci0000:00/0000:00:01.0/virtio*", "pci0000:00/0000:00:02.0/virtio*")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "eth9"', "no network interface with the name eth9"),
        ('name = "x"\nmac = "52:54:00:00:00:99"', "hardware address 52:54:00:00:00:99"),
        ('name = "bond0"', "bond0 is no card but made of others"),
    ],
)
def test_a_card_that_is_not_there_is_refused(machine: MachineTree, text: str, message: str) -> None:
    with pytest.raises(NotReadyError, match=message):
        plan(f"[[network.interface]]\n{text}\n", machine)


def test_addresses_need_no_lookup_and_names_do() -> None:
    assert look_up_servers(["192.0.2.1", "2001:db8::1"]) == ()
    assert ("127.0.0.1", "localhost") in look_up_servers(["localhost"])
    with pytest.raises(NotReadyError, match=r"nobody\.invalid cannot be looked up"):
        look_up_servers(["nobody.invalid"])


def test_a_resolver_on_the_machine_itself_is_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("# x\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver bad\n")
    assert read_nameservers(tmp_path) == ("192.0.2.53",)
    (tmp_path / "run/systemd/resolve").mkdir(parents=True)
    (tmp_path / "run/systemd/resolve/resolv.conf").write_text("nameserver fe80::1%eth0\nnameserver 192.0.2.54\n")
    assert read_nameservers(tmp_path) == ("fe80::1%eth0", "192.0.2.54")
    assert read_nameservers(tmp_path / "none") == ()
