"""The machine's network: wide enough for all, closed but for the servers."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from postpanic.errors import NotReadyError
from postpanic.rehearse.network import CARDS, choose_card, find_addresses, list_places, stage_network
from postpanic.rehearse.servers.stand_ins import ServerStandIn
from postpanic.saver.plan import HttpPlan, InterfacePlan, NetworkPlan, RoutePlan

CARD = CARDS["virtio_net"]
PLAN = NetworkPlan(
    interfaces=(
        InterfacePlan(
            name="eth0",
            mac="52:54:00:12:34:56",
            sysfs_path="pci0000:00/0000:00:03.0",
            method="static",
            addresses=("10.1.2.3/24",),
            routes=(RoutePlan(gateway="10.1.2.1"),),
        ),
    ),
    hosts=(("2001:db8::1", "dumps"), ("192.168.5.6", "dumps")),
)


def server(host: str, port: int = 80) -> ServerStandIn:
    return ServerStandIn(HttpPlan(name=f"http {host}"), host, (port,), "serve a,b", Path("x"), {}, ())


def decode(words: tuple[str, ...]) -> tuple[IPv4Network, set[IPv4Address], list[str]]:
    text = words[words.index("-netdev") + 1]
    network = IPv4Network(re.search(r"net=([^,]*)", text)[1])  # type: ignore[index]
    own = {IPv4Address(found) for found in re.findall(r"(?:host|dns|dhcpstart)=([^,]*)", text)}
    return network, own, re.findall(r"guestfwd=tcp:([^-]*)", text)


def test_servers_and_gateway_are_there_and_nothing_else() -> None:
    stage = stage_network(PLAN, CARD, [server("dumps", 8080)], [server("10.1.2.9")])
    network, own, forwarded = decode(stage.words)
    assert forwarded == ["192.168.5.6:8080", "10.1.2.1:9"]
    assert "cmd:serve a,,b" in stage.words[1]
    assert "restrict=on" in stage.words[1]
    for address in ("192.168.5.6", "10.1.2.1", "10.1.2.3", "10.1.2.9"):
        assert IPv4Address(address) in network
        assert IPv4Address(address) not in own
    assert len(own) == 3
    assert all(address in network for address in own)
    assert stage.words[-1] == "virtio-net-pci,netdev=servers,mac=52:54:00:12:34:56,romfile="
    assert stage.plan.interfaces[0].sysfs_path == ""
    assert stage.plan.hosts == (("192.168.5.6", "dumps"),)


def test_a_server_is_at_all_its_ports_by_its_name_or_its_address() -> None:
    nfs = replace(server("dumps"), ports=(2049, 111))
    places = list_places(PLAN, [nfs])
    assert places == {(IPv4Address("192.168.5.6"), 2049), (IPv4Address("192.168.5.6"), 111)}
    assert places & list_places(PLAN, [server("192.168.5.6", 111)])
    stage = stage_network(PLAN, CARD, [nfs], [])
    assert set(decode(stage.words)[2]) == {"192.168.5.6:2049", "192.168.5.6:111", "10.1.2.1:9"}


def test_a_server_that_is_the_gateway_is_one_place() -> None:
    stage = stage_network(PLAN, CARD, [server("10.1.2.1", 22)], [])
    network, _, forwarded = decode(stage.words)
    assert forwarded == ["10.1.2.1:22"]
    assert network == IPv4Network("10.1.2.0/24")


def test_a_bond_has_its_cards_on_one_wire_and_a_vlan_no_tags() -> None:
    interfaces = (
        InterfacePlan(name="a0", mac="52:54:00:00:00:01"),
        InterfacePlan(name="a1"),
        InterfacePlan(name="bond0", kind="bond", members=("a0", "a1"), bond_options=(("mode", "802.3ad"),)),
        InterfacePlan(name="bond0.5", kind="vlan", parent="bond0", vlan_id=5, method="dhcp"),
    )
    stage = stage_network(replace(PLAN, interfaces=interfaces), CARD, [server("dumps")], [])
    assert [one.name for one in stage.plan.interfaces] == ["a0", "a1", "bond0"]
    assert stage.plan.interfaces[2].method == "dhcp"
    assert sum("hubport,id=port" in word for word in stage.words) == 2
    assert any("VLAN 5" in text for text in stage.unproven)
    assert any("the switch's part" in text for text in stage.unproven)
    macs = [re.search(r"mac=([^,]*)", word)[1] for word in stage.words if "mac=" in word]  # type: ignore[index]
    assert macs == [one.mac for one in stage.plan.interfaces[:2]]


def test_what_qemu_does_not_have_is_said() -> None:
    with pytest.raises(NotReadyError, match=r"2001:db8::5 has no address of IPv4"):
        find_addresses(PLAN, "2001:db8::5")
    with pytest.raises(NotReadyError, match="nowhere has no address of IPv4"):
        find_addresses(PLAN, "nowhere")
    auto = replace(PLAN.interfaces[0], method="auto6")
    with pytest.raises(NotReadyError, match="a router of IPv6"):
        stage_network(replace(PLAN, interfaces=(auto,)), CARD, [server("dumps")], [])


def test_cards_are_chosen_by_driver() -> None:
    found = choose_card(["ext4", "vmxnet3"])
    assert found is not None
    assert found.device == "vmxnet3"
    assert choose_card(["mlx5_core"]) is None
