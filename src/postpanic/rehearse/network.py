"""
The network of the machine: the host's own addresses, its servers at theirs, and nothing else.

QEMU's user network is given a network wide enough for all of them, and is
closed but for the servers that stand in. An address that nobody has is not
answered, as on a real wire.

Sources: QEMU's manual (``-netdev user``, ``guestfwd``, ``hubport``); ``src/slirp.c`` and ``arp_input()`` of libslirp.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from postpanic.errors import NotReadyError
from postpanic.rehearse.servers.stand_ins import ServerStandIn
from postpanic.saver.plan import InterfacePlan, NetworkPlan

__all__ = ["CARDS", "Card", "NetworkStage", "choose_card", "find_addresses", "list_places", "stage_network"]

_NARROWEST = 24
_MAC = "52:54:00:70:70:{:02x}"
_DISCARD_PORT = 9
"""Of a gateway, which must answer ARP and takes no connection (RFC 863)."""


@dataclass(frozen=True)
class Card:
    """
    A kind of network card.

    Attributes
    ----------
    driver : str
        The kernel module that drives it.
    modules : tuple of str
        All that a kernel needs for it.
    device : str
        What QEMU calls it.
    """

    driver: str
    modules: tuple[str, ...]
    device: str


CARDS = {
    one.driver: one
    for one in (
        Card("virtio_net", ("virtio_pci", "virtio_net"), "virtio-net-pci"),
        Card("e1000e", ("e1000e",), "e1000e"),
        Card("e1000", ("e1000",), "e1000"),
        Card("vmxnet3", ("vmxnet3",), "vmxnet3"),
        Card("8139cp", ("8139cp",), "rtl8139"),
        Card("pcnet32", ("pcnet32",), "pcnet"),
        Card("tulip", ("tulip",), "tulip"),
    )
}


@dataclass(frozen=True)
class NetworkStage:
    """
    What the machine has.

    Attributes
    ----------
    plan : NetworkPlan
        As its saver finds it.
    words : tuple of str
        For QEMU.
    unproven : tuple of str
        What is otherwise than on the host.
    """

    plan: NetworkPlan
    words: tuple[str, ...]
    unproven: tuple[str, ...]


def choose_card(modules: Iterable[str]) -> Card | None:
    """
    Return the card that one of these drivers is for; None: QEMU emulates none of them.

    >>> choose_card(["af_packet", "e1000e"]).device
    'e1000e'
    """
    names = {name.replace("-", "_") for name in modules}
    return next((one for driver, one in CARDS.items() if driver in names), None)


def find_addresses(plan: NetworkPlan, host: str) -> list[IPv4Address]:
    """
    Find the addresses of a server, as the saver would.

    Raises
    ------
    NotReadyError
        If it has none of IPv4: the machine's network has no servers of IPv6.
    """
    texts = [address for address, name in plan.hosts if name == host] or [host]
    found = [address for text in texts if isinstance(address := _parse(text), IPv4Address)]
    if not found:
        raise NotReadyError(f"{host} has no address of IPv4, and the machine's network has no servers of IPv6")
    return found


def list_places(plan: NetworkPlan, servers: Iterable[ServerStandIn]) -> set[tuple[IPv4Address, int]]:
    """
    List the addresses and ports of servers.

    Raises
    ------
    NotReadyError
        As :func:`find_addresses`.
    """
    return {
        (address, port) for server in servers for address in find_addresses(plan, server.host) for port in server.ports
    }


def stage_network(
    plan: NetworkPlan, card: Card, servers: Sequence[ServerStandIn], unreachable: Sequence[ServerStandIn]
) -> NetworkStage:
    """
    Lay out the machine's network.

    Parameters
    ----------
    servers : sequence of ServerStandIn
        Those that are there.
    unreachable : sequence of ServerStandIn
        Those whose addresses nobody answers.

    Raises
    ------
    NotReadyError
        If an interface gets its address by what QEMU does not have.
    """
    unproven = ["the place of the network cards: in the machine they are found by their hardware addresses"]
    interfaces = tuple(_number(_flatten_vlans(plan.interfaces, unproven)))
    for interface in interfaces:
        if interface.method == "auto6":
            raise NotReadyError(f"{interface.name} gets its address from a router of IPv6, of which there is none here")
        if dict(interface.bond_options).get("mode", "").startswith("802.3ad"):
            unproven.append(f"{interface.name}: the switch's part of the bond")
    places = {place: server.command for server in servers for place in sorted(list_places(plan, [server]))}
    gateways = [_parse(route.gateway) for interface in interfaces for route in interface.routes if route.gateway]
    for gateway in gateways:
        if isinstance(gateway, IPv4Address) and gateway not in {address for address, _ in places}:
            places[gateway, _DISCARD_PORT] = "false"
    taken = {address for address, _ in places}
    taken |= {address for server in unreachable for address in find_addresses(plan, server.host)}
    own = {ipaddress.ip_interface(text).ip for interface in interfaces for text in interface.addresses}
    taken |= {address for address in own if isinstance(address, IPv4Address)}
    words = _spell_network(taken, places)
    cards = [interface for interface in interfaces if interface.kind == "physical"]
    words += _spell_cards(card, [interface.mac for interface in cards])
    hosts = tuple((address, name) for address, name in plan.hosts if isinstance(_parse(address), IPv4Address))
    staged = replace(plan, interfaces=interfaces, hosts=hosts)
    return NetworkStage(staged, tuple(words), tuple(unproven))


def _flatten_vlans(interfaces: Sequence[InterfacePlan], unproven: list[str]) -> list[InterfacePlan]:
    """Give the addresses of a VLAN to what it is made of: QEMU's network has no tags."""
    found = {interface.name: interface for interface in interfaces}
    for interface in interfaces:
        if interface.kind == "vlan":
            unproven.append(
                f"{interface.name}: the tags of VLAN {interface.vlan_id}: its addresses are on {interface.parent}"
            )
            below = found[interface.parent]
            found[interface.parent] = replace(
                below,
                method=interface.method,
                addresses=(*below.addresses, *interface.addresses),
                routes=(*below.routes, *interface.routes),
            )
            del found[interface.name]
    return list(found.values())


def _number(interfaces: Iterable[InterfacePlan]) -> Iterator[InterfacePlan]:
    """Let every card be found by a hardware address."""
    for number, interface in enumerate(interfaces):
        if interface.kind == "physical":
            yield replace(interface, sysfs_path="", mac=interface.mac or _MAC.format(number))
        else:
            yield interface


def _spell_network(taken: set[IPv4Address], places: dict[tuple[IPv4Address, int], str]) -> list[str]:
    network = _enclose(taken)
    router, names, leases = _find_free(network, taken)
    words = [f"user,id=servers,restrict=on,ipv6=off,net={network.network_address}/{network.netmask}"]
    words += [f"host={router}", f"dns={names}", f"dhcpstart={leases}"]
    # A comma within a value is written twice.
    words += [
        f"guestfwd=tcp:{address}:{port}-cmd:{command.replace(',', ',,')}" for (address, port), command in places.items()
    ]
    return ["-netdev", ",".join(words)]


def _enclose(addresses: Iterable[IPv4Address]) -> IPv4Network:
    """Return the narrowest network, 256 addresses at the least, that has them all."""
    numbers = [int(address) for address in addresses]
    length = _NARROWEST
    while len({number >> (32 - length) for number in numbers}) > 1:
        length -= 1
    return IPv4Network((numbers[0] >> (32 - length) << (32 - length), length))


def _find_free(network: IPv4Network, taken: set[IPv4Address]) -> list[IPv4Address]:
    """Find three addresses for what QEMU's network has of its own, the last with 15 free ones behind it."""
    last = int(network.broadcast_address)
    for start in range(last - 18, int(network.network_address), -1):
        found = [IPv4Address(start + offset) for offset in range(18)]
        if not taken & set(found):
            return found[:3]
    raise NotReadyError(f"the network {network} has no room for the machine's own addresses")


def _spell_cards(card: Card, macs: Sequence[str]) -> list[str]:
    if len(macs) == 1:
        return ["-device", f"{card.device},netdev=servers,mac={macs[0]},romfile="]
    words = ["-netdev", "hubport,id=wire,hubid=0,netdev=servers"]
    for number, mac in enumerate(macs):
        words += ["-netdev", f"hubport,id=port{number},hubid=0"]
        words += ["-device", f"{card.device},netdev=port{number},mac={mac},romfile="]
    return words


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
