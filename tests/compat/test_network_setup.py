"""Bringing up a network in namespaces: against dnsmasq, and looked at by ip(8)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from postpanic.saver.plan import InterfacePlan, NetworkPlan, RoutePlan, SavePlan
from postpanic.saver.plan_json import encode_plan
from tests.compat.namespaces import IP, MAC, REPOSITORY, Net, find_missing, run

Serve = Callable[..., None]


pytestmark = [pytest.mark.compat, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "works")]


def make_interface(**settings: object) -> InterfacePlan:
    return InterfacePlan(name="eth0", mac=MAC, **settings)  # type: ignore[arg-type]


def test_static_addresses_and_routes(net: Net) -> None:
    interface = make_interface(
        method="static",
        addresses=("192.0.2.7/24", "2001:db8::7/64"),
        routes=(
            RoutePlan(gateway="192.0.2.1"),
            RoutePlan(destination="198.51.100.0/24", gateway="192.0.2.2", source="192.0.2.7"),
            RoutePlan(gateway="2001:db8::1"),
            RoutePlan(destination="203.0.113.0/24"),
        ),
        mtu=1400,
    )
    plan = NetworkPlan(
        interfaces=(interface,), nameservers=("192.0.2.53", "192.0.2.54"), hosts=(("192.0.2.1", "dumps.example"),)
    )
    said = net.set_up(plan, times=2)
    assert "ERROR" not in said
    assert said.count("network eth0: up, 192.0.2.7/24, 2001:db8::7/64") == 2
    assert net.addresses("eth0") == {"192.0.2.7/24", "2001:db8::7/64"}
    assert json.loads(net.on_ours("-j", "link", "show", "eth0"))[0]["mtu"] == 1400
    ways = {(route["dst"], route.get("gateway", "")) for route in net.routes()}
    assert ways == {
        ("default", "192.0.2.1"),
        ("192.0.2.0/24", ""),
        ("198.51.100.0/24", "192.0.2.2"),
        ("203.0.113.0/24", ""),
    }
    assert ("default", "2001:db8::1") in {(route["dst"], route.get("gateway", "")) for route in net.routes("-6")}
    assert net.ping("192.0.2.1")
    assert net.ping("2001:db8::1")
    assert (net.base / "etc" / "resolv.conf").read_text().splitlines()[:2] == [
        "nameserver 192.0.2.53",
        "nameserver 192.0.2.54",
    ]
    assert "192.0.2.1 dumps.example" in (net.base / "etc" / "hosts").read_text().splitlines()
    assert "UP" in json.loads(net.on_ours("-j", "link", "show", "lo"))[0]["flags"]


def test_gateway_outside_of_our_networks(net: Net) -> None:
    net.on_theirs("address", "add", "10.9.9.9/32", "dev", "srv")
    net.on_theirs("route", "add", "192.0.2.7/32", "dev", "srv")
    interface = make_interface(method="static", addresses=("192.0.2.7/32",), routes=(RoutePlan(gateway="10.9.9.9"),))
    assert "ERROR" not in net.set_up(NetworkPlan(interfaces=(interface,)))
    assert net.ping("10.9.9.9")


def test_address_by_dhcp(net: Net, serve: Serve) -> None:
    serve(
        "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,1h",
        f"--dhcp-host={MAC},192.0.2.55",
        "--dhcp-option=option:router,192.0.2.1",
        "--dhcp-option=option:dns-server,192.0.2.53",
        "--dhcp-option=option:mtu,1300",
    )
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="dhcp"),)), times=2)
    assert said.count("network eth0: up, 192.0.2.55/24") == 2
    assert net.addresses("eth0") == {"192.0.2.55/24"}
    assert net.routes()[0] | {"dst": "default", "gateway": "192.0.2.1"} == net.routes()[0]
    assert json.loads(net.on_ours("-j", "link", "show", "eth0"))[0]["mtu"] == 1300
    assert "nameserver 192.0.2.53" in (net.base / "etc" / "resolv.conf").read_text()
    assert float(said.split("TOOK ")[1]) < 8


def test_routes_by_dhcp(net: Net, serve: Serve) -> None:
    serve(
        "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,1h",
        "--dhcp-option=option:router,192.0.2.99",
        "--dhcp-option=121,0.0.0.0/0,192.0.2.1,198.51.100.128/25,192.0.2.2",
    )
    net.set_up(NetworkPlan(interfaces=(make_interface(method="dhcp"),)))
    ways = {(route["dst"], route.get("gateway", "")) for route in net.routes()}
    assert ways == {("default", "192.0.2.1"), ("192.0.2.0/24", ""), ("198.51.100.128/25", "192.0.2.2")}


def test_dhcp_server_that_comes_late(net: Net, serve: Serve) -> None:
    plan = NetworkPlan(interfaces=(make_interface(method="dhcp"),), wait_s=15)
    (net.base / "plan.json").write_bytes(encode_plan(SavePlan(network=plan)))
    words = [
        sys.executable,
        "-m",
        "tests.compat.network_script",
        "set-up",
        str(net.base / "plan.json"),
        str(net.base),
        "1",
    ]
    with subprocess.Popen(
        [IP, "netns", "exec", net.ours, *words], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        time.sleep(3)
        serve("--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,1h")
        said, _ = process.communicate(timeout=30)
    assert "network eth0: up, 192.0.2.5" in said


def test_no_dhcp_server(net: Net) -> None:
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="dhcp"),), wait_s=2))
    assert "ERROR network eth0: no address by DHCP after 2 s: no server answers" in said
    assert float(said.split("TOOK ")[1]) < 6


def test_address_that_a_router_announces(net: Net, serve: Serve) -> None:
    serve("--enable-ra", "--dhcp-range=2001:db8::,ra-only,64")
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="auto6"),), wait_s=15))
    assert "network eth0: up, 2001:db8::5054:ff:feaa:bb01/64" in said
    assert net.ping("2001:db8::1")


def test_no_router(net: Net) -> None:
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="auto6"),), wait_s=2))
    assert "ERROR network eth0: no IPv6 address after 2 s: no router announces a prefix" in said


def test_address_that_another_machine_has(net: Net) -> None:
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="static", addresses=("2001:db8::1/64",)),)))
    assert "ERROR network eth0: another machine has the address 2001:db8::1" in said


def test_no_link(net: Net) -> None:
    net.on_theirs("link", "set", "srv", "down")
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="static", addresses=("192.0.2.7/24",)),), wait_s=1))
    assert "ERROR network eth0: no link after 1 s" in said
    assert "HINT is the cable in" in said


def test_network_card_that_is_not_there(net: Net) -> None:
    interface = InterfacePlan(name="eth0", mac="52:54:00:00:00:99", method="dhcp")
    said = net.set_up(NetworkPlan(interfaces=(interface,), wait_s=1))
    assert "ERROR network eth0: the network card 52:54:00:00:00:99 is not there" in said
    assert "HINT is its driver among the modules?" in said


def test_name_that_another_card_has(net: Net) -> None:
    run(IP, "-n", net.ours, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="static", addresses=("192.0.2.7/24",)),)))
    assert "ERROR" not in said
    assert net.ping("192.0.2.1")


def test_one_interface_of_two_is_enough(net: Net) -> None:
    missing = InterfacePlan(name="eth9", mac="52:54:00:00:00:99", method="dhcp")
    vlan = InterfacePlan(name="eth9.5", kind="vlan", parent="eth9", vlan_id=5, method="dhcp")
    good = make_interface(method="static", addresses=("192.0.2.7/24",))
    said = net.set_up(NetworkPlan(interfaces=(missing, vlan, good), wait_s=1))
    assert "ERROR" not in said
    assert "network eth9: the network card 52:54:00:00:00:99 is not there" in said
    assert net.ping("192.0.2.1")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"addresses": ("192.0.2.300/24",)}, "'192.0.2.300' is no address"),
        ({"addresses": ("192.0.2.3/33",)}, "no length of a prefix"),
        (
            {"addresses": ("192.0.2.3/24",), "mtu": 70000},
            "cannot set the MTU to 70000: mtu greater than device maximum",
        ),
        ({"addresses": ("192.0.2.3/24",), "routes": (RoutePlan(gateway="::x"),)}, "'::x' is no address"),
    ],
)
def test_plans_that_cannot_be_carried_out(net: Net, settings: dict[str, object], wanted: str) -> None:
    said = net.set_up(NetworkPlan(interfaces=(make_interface(method="static", **settings),), wait_s=1))
    assert "ERROR network" in said
    assert wanted in said
    assert "Traceback" not in said
