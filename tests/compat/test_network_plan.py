"""How servers are reached, found out in namespaces that ip(8) has set up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from postpanic.saver.plan import InterfacePlan, NetworkPlan, RoutePlan
from tests.compat.namespaces import MAC, Net, find_missing, run

pytestmark = [pytest.mark.compat, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "works")]

CARD = InterfacePlan(name="eth7", mac=MAC)


@pytest.fixture
def ours(net: Net) -> Net:
    net.on_ours("link", "set", "lo", "up")
    net.on_ours("link", "set", "eth7", "up")
    return net


def test_server_on_the_link(ours: Net) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7")
    plan, _ = ours.find("192.0.2.1")
    assert plan == NetworkPlan(
        interfaces=(replace(CARD, method="static", addresses=("192.0.2.7/24",)),), nameservers=("192.0.2.53",)
    )


def test_server_beyond_a_gateway(ours: Net) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7")
    ours.on_ours("route", "add", "default", "via", "192.0.2.1")
    ours.on_ours("link", "set", "eth7", "mtu", "1400")
    plan, _ = ours.find("198.51.100.7", "203.0.113.9", "192.0.2.1")
    card = replace(CARD, method="static", mtu=1400, addresses=("192.0.2.7/24",))
    assert plan.interfaces == (replace(card, routes=(RoutePlan(gateway="192.0.2.1"),)),)


def test_servers_beyond_two_gateways(ours: Net) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7")
    ours.on_ours("route", "add", "default", "via", "192.0.2.1")
    ours.on_ours("route", "add", "203.0.113.0/24", "via", "192.0.2.2")
    plan, _ = ours.find("198.51.100.7", "203.0.113.9")
    assert plan.interfaces[0].routes == (
        RoutePlan(gateway="192.0.2.1"),
        RoutePlan(destination="203.0.113.9/32", gateway="192.0.2.2"),
    )


def test_address_that_runs_out_is_a_lease(ours: Net) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7", "valid_lft", "3600", "preferred_lft", "3600")
    ours.on_ours("route", "add", "default", "via", "192.0.2.1")
    plan, _ = ours.find("198.51.100.7")
    assert plan.interfaces == (replace(CARD, method="dhcp"),)


def test_address_that_a_router_announced(ours: Net, serve: Callable[..., None]) -> None:
    serve("--enable-ra", "--dhcp-range=2001:db8::,ra-only,64")
    for _ in range(100):
        if ours.addresses("eth7"):
            break
        time.sleep(0.1)
    time.sleep(2.5)
    plan, said = ours.find("2001:db8::1")
    assert plan.interfaces == (replace(CARD, method="auto6"),), said


def test_ipv6_beyond_a_gateway(ours: Net) -> None:
    ours.on_ours("address", "add", "2001:db8::7/64", "dev", "eth7", "nodad")
    ours.on_ours("route", "add", "default", "via", "fe80::1", "dev", "eth7")
    plan, _ = ours.find("2001:db8:1::1")
    assert plan.interfaces[0].routes == (RoutePlan(gateway="fe80::1"),)
    assert plan.interfaces[0].addresses == ("2001:db8::7/64",)


def test_both_families_on_one_card(ours: Net) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7")
    ours.on_ours("address", "add", "2001:db8::7/64", "dev", "eth7", "nodad")
    plan, _ = ours.find("192.0.2.1", "2001:db8::1")
    assert plan.interfaces == (replace(CARD, method="static", addresses=("192.0.2.7/24", "2001:db8::7/64")),)


def test_the_card_of_a_bridge_takes_its_place(ours: Net) -> None:
    ours.on_ours("link", "add", "br0", "type", "bridge")
    ours.on_ours("link", "set", "eth7", "master", "br0")
    ours.on_ours("link", "add", "guest", "type", "veth", "peer", "name", "inside")
    ours.on_ours("link", "set", "br0", "up")
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "br0")
    _, said = ours.find("192.0.2.1")
    # The cable to the other namespace looks like a guest's.
    assert "its way out is not one card: none" in said


@pytest.mark.parametrize(
    ("server", "wanted"),
    [
        ("198.51.100.7", "no route to 198.51.100.7"),
        ("127.0.0.1", "is this machine itself"),
        ("192.0.2.7", "is this machine itself"),
        ("no-such-host.invalid", "cannot be looked up"),
    ],
)
def test_servers_that_cannot_be_reached(ours: Net, server: str, wanted: str) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7")
    _, said = ours.find(server)
    assert said.startswith("ERROR ")
    assert wanted in said
    assert "Traceback" not in said


def test_unreachable_route(ours: Net) -> None:
    ours.on_ours("route", "add", "unreachable", "198.51.100.0/24")
    _, said = ours.find("198.51.100.7")
    assert "no route to 198.51.100.7" in said


def test_tunnel_is_refused(ours: Net) -> None:
    if run("/usr/sbin/ip", "-n", ours.ours, "tuntap", "add", "tun0", "mode", "tun", check=False).returncode:
        pytest.skip("no tunnels here")
    ours.on_ours("link", "set", "tun0", "up")
    ours.on_ours("address", "add", "10.8.0.2/24", "dev", "tun0")
    _, said = ours.find("10.8.0.1")
    assert "leads over tun0, an interface of kind tun: the capture kernel cannot have it" in said


def test_what_was_found_brings_the_network_up_again(ours: Net) -> None:
    ours.on_ours("address", "add", "192.0.2.7/24", "dev", "eth7")
    ours.on_ours("route", "add", "default", "via", "192.0.2.1")
    plan, _ = ours.find("198.51.100.7")
    ours.on_ours("address", "flush", "dev", "eth7")
    ours.on_ours("link", "set", "eth7", "down")
    ours.on_ours("link", "set", "eth7", "name", "ens3")
    assert "ERROR" not in ours.set_up(plan)
    assert ours.ping("192.0.2.1")
    assert ours.find("198.51.100.7")[0] == plan
