"""
How this machine reaches servers now, so that the capture kernel can do the same.

The kernel is asked for the way; the interfaces on it are followed down to the
network cards, through VLANs and bonds. What only matters to guests and
containers, a bridge, is left out: its one card takes its place.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from postpanic.capture.resolve.nameservers import read_nameservers
from postpanic.capture.resolve.sysfs import find_drivers, read_value, stable_path
from postpanic.errors import NotReadyError, OutputError
from postpanic.saver.network.links import Address, Interfaces, Link, Route
from postpanic.saver.network.netlink import Netlink, NetlinkError
from postpanic.saver.plan import InterfacePlan, NetworkPlan, RoutePlan

__all__ = ["HostNetwork", "plan_network"]

_MODULES = {"vlan": "8021q", "bond": "bonding"}
_CARDS = frozenset({"", "veth"})
"""Kinds that need nothing to be made: cards, and the end of a cable to another namespace."""
_GUESTS = frozenset({"veth", "tun", "macvtap", "vxlan"})
_USUAL_MTU = 1500
_MAX_DEPTH = 8
# Those that say how it works, not how it is; names of Documentation/networking/bonding.rst.
_BOND_OPTIONS = (
    *("mode", "miimon", "updelay", "downdelay", "use_carrier", "arp_interval", "arp_ip_target", "arp_validate"),
    *("lacp_rate", "ad_select", "xmit_hash_policy", "fail_over_mac", "primary_reselect", "min_links", "primary"),
)


@dataclass(frozen=True)
class HostNetwork:
    """
    How the servers are reached.

    Attributes
    ----------
    plan : NetworkPlan
    modules : tuple of str
        Names of the modules of the cards, of what they are below, and of what is made of them.
    sysfs_paths : tuple of str
        Of the cards, below ``/sys/devices``, as :class:`~postpanic.saver.plan.DevicePlan` takes them.
    devices : tuple of Path
        The cards' directories in sysfs.
    evidence : tuple of str
        What was found, a line for each server.
    """

    plan: NetworkPlan
    modules: tuple[str, ...] = ()
    sysfs_paths: tuple[str, ...] = ()
    devices: tuple[Path, ...] = ()
    evidence: tuple[str, ...] = ()


def plan_network(
    servers: Sequence[str], *, nameservers: Sequence[str] = (), wait_s: float = 30.0, root: Path = Path("/")
) -> HostNetwork:
    """
    Find out how servers are reached.

    Parameters
    ----------
    servers : sequence of str
        Names or addresses; names are looked up now, and never again.
    nameservers : sequence of str
        Instead of this machine's.
    root : Path
        Below which this machine's files are; the kernel that is asked is the one that runs.

    Raises
    ------
    NotReadyError
        If a name cannot be looked up, there is no way to a server, or the way
        leads over something that a capture kernel cannot have.
    """
    try:
        with Netlink() as netlink:
            finder = _Finder(Interfaces(netlink), root / "sys")
            for server in servers:
                finder.add_server(server)
            return finder.finish(tuple(nameservers) or read_nameservers(root), wait_s)
    except OutputError as exc:
        raise NotReadyError(exc.message, where=exc.where, hint=exc.hint) from exc


@dataclass
class _Finder:
    interfaces: Interfaces
    sysfs: Path
    plans: dict[str, InterfacePlan] = field(default_factory=dict)
    hosts: list[tuple[str, str]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    devices: list[Path] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.links = {link.index: link for link in self.interfaces.list_links()}

    def finish(self, nameservers: tuple[str, ...], wait_s: float) -> HostNetwork:
        """Put together what was found."""
        paths = [stable_path(device, self.sysfs) for device in self.devices]
        plan = NetworkPlan(
            interfaces=tuple(self.plans.values()), nameservers=nameservers, hosts=tuple(self.hosts), wait_s=wait_s
        )
        return HostNetwork(
            plan,
            tuple(dict.fromkeys(self.modules)),
            tuple(dict.fromkeys(path for path in paths if path)),
            tuple(dict.fromkeys(self.devices)),
            tuple(self.evidence),
        )

    def add_server(self, server: str) -> None:
        """Find the way to one server, and what is needed for it."""
        address, route = self._find_way(server)
        if route.is_local:
            raise NotReadyError(
                f"{server} is this machine itself, which will not be there", hint="name another machine"
            )
        link = self.links.get(route.index)
        if link is None:
            raise NotReadyError(f"the way to {server} leads over interface {route.index}, which is not here")
        name = self._add_link(link, server, 0)
        addressed = self._describe_addresses(self.plans[name], link, route, address)
        self.plans[name] = self._add_route(addressed, route, address)
        if address != server:
            self.hosts.append((address, server))
        plan = self.plans[name]
        way = f" by way of {route.gateway}" if route.gateway else ""
        self.evidence.append(f"{server}: {address} over {name}{way}, {plan.method}")

    def _find_way(self, server: str) -> tuple[str, Route]:
        """Look up a server, and find the first of its addresses that there is a way to."""
        error: NetlinkError | None = None
        for address in _look_up(server):
            try:
                return address, self.interfaces.find_route(address)
            except NetlinkError as exc:
                error = error or exc
        raise NotReadyError(f"no route to {server}: {error.message if error else 'it has no address'}")

    def _add_link(self, link: Link, server: str, depth: int) -> str:
        """Describe an interface and all that it is made of; the name of what takes its place in the plan."""
        if depth > _MAX_DEPTH:
            raise NotReadyError(f"{link.name} is made of interfaces without end")
        if link.kind == "bridge":
            return self._add_link(self._find_port(link, server), server, depth + 1)
        if link.name in self.plans:
            return link.name
        mtu = link.mtu if link.mtu != _USUAL_MTU else 0
        if link.kind in _MODULES:
            self.modules.append(_MODULES[link.kind])
        if link.kind == "vlan":
            parent = self.links.get(link.parent)
            if parent is None or not link.vlan_id:
                raise NotReadyError(f"{link.name} is a VLAN of an interface that is not here")
            below = self._add_link(parent, server, depth + 1)
            plan = InterfacePlan(name=link.name, kind="vlan", parent=below, vlan_id=link.vlan_id, mtu=mtu)
        elif link.kind == "bond":
            members = [each for each in self.links.values() if each.master == link.index]
            names = tuple(self._add_link(member, server, depth + 1) for member in members)
            if not names:
                raise NotReadyError(f"{link.name} is a bond without members")
            options = self._read_bond_options(link.name)
            plan = InterfacePlan(
                name=link.name, kind="bond", mac=link.mac, members=names, bond_options=options, mtu=mtu
            )
        else:
            plan = self._describe_card(link, server, mtu)
        self.plans[link.name] = plan
        return link.name

    def _describe_card(self, link: Link, server: str, mtu: int) -> InterfacePlan:
        directory = self.sysfs / "class" / "net" / link.name
        device = directory / "device"
        if link.kind not in _CARDS or (not link.kind and not device.exists()):
            what = f"an interface of kind {link.kind}" if link.kind else "no network card"
            raise NotReadyError(
                f"the way to {server} leads over {link.name}, {what}: the capture kernel cannot have it",
                hint="name a server that is reached over a card, a VLAN or a bond",
            )
        if (directory / "phy80211").exists() or (directory / "wireless").exists():
            raise NotReadyError(
                f"the way to {server} leads over {link.name}, a wireless card: the capture kernel cannot log in",
                hint="name a server that is reached by cable",
            )
        mac = read_value(directory / "bonding_slave" / "perm_hwaddr") or link.permanent_mac or link.mac
        if not device.exists():
            return InterfacePlan(name=link.name, mac=mac, mtu=mtu)
        place = device.resolve()
        self.devices.append(place)
        self.modules += [driver.module for driver in find_drivers(place, self.sysfs) if driver.module]
        return InterfacePlan(name=link.name, mac=mac, sysfs_path=stable_path(place, self.sysfs), mtu=mtu)

    def _find_port(self, bridge: Link, server: str) -> Link:
        """Find the card, VLAN or bond by which a bridge is connected to the world."""
        ports = [link for link in self.links.values() if link.master == bridge.index and link.kind not in _GUESTS]
        if len(ports) != 1:
            names = ", ".join(link.name for link in ports) or "none"
            raise NotReadyError(
                f"the way to {server} leads over the bridge {bridge.name}, and its way out is not one card: {names}",
                hint="describe the interfaces in the configuration",
            )
        return ports[0]

    def _read_bond_options(self, name: str) -> tuple[tuple[str, str], ...]:
        options: list[tuple[str, str]] = []
        for option in _BOND_OPTIONS:
            # "active-backup 1": the name, then the number.
            words = read_value(self.sysfs / "class" / "net" / name / "bonding" / option).split()
            if words:
                options.append((option, words[0]))
        return tuple(options)

    def _describe_addresses(self, plan: InterfacePlan, link: Link, route: Route, address: str) -> InterfacePlan:
        """Say how the interface gets the address from which the server is reached."""
        wants_ipv6 = ":" in address
        usable = [
            each
            for each in self.interfaces.list_addresses(link.index)
            if each.is_usable and (":" in each.text) == wants_ipv6
        ]
        source = next((each for each in usable if each.text == route.source), usable[0] if usable else None)
        if source is None:
            raise NotReadyError(f"{link.name} has no address from which {address} is reached")
        if source.is_leased and not wants_ipv6 and plan.method != "auto6":
            return replace(plan, method="dhcp")
        # An address of its own, without a network: no router announced it, but a server of DHCPv6.
        if source.is_leased and wants_ipv6 and source.prefix_length < 128 and plan.method != "dhcp":
            return replace(plan, method="auto6")
        static = [f"{each.text}/{each.prefix_length}" for each in _without_leases(usable, source)]
        addresses = tuple(dict.fromkeys((*plan.addresses, *static)))
        return replace(plan, method=plan.method if plan.method != "none" else "static", addresses=addresses)

    def _add_route(self, plan: InterfacePlan, route: Route, address: str) -> InterfacePlan:
        """Add the route to a server, where the interface does not get it by itself."""
        version = ipaddress.ip_address(address).version
        has_static = any((":" in each) == (version == 6) for each in plan.addresses)
        if not has_static:
            return plan
        if not route.gateway:
            networks = [ipaddress.ip_interface(each).network for each in plan.addresses]
            if any(ipaddress.ip_address(address) in network for network in networks):
                return plan
        many = sum((":" in each) == (version == 6) for each in plan.addresses) > 1
        source = route.source if many else ""
        taken = {
            (each.destination, ":" in (each.gateway or each.source))
            for other in (*self.plans.values(), plan)
            for each in other.routes
        }
        is_first = bool(route.gateway) and ("default", version == 6) not in taken
        destination = "default" if is_first else f"{address}/{32 if version == 4 else 128}"
        added = RoutePlan(destination=destination, gateway=route.gateway, source=source)
        same_way = any(
            each.destination == "default" and each.gateway == route.gateway and route.gateway for each in plan.routes
        )
        return plan if added in plan.routes or same_way else replace(plan, routes=(*plan.routes, added))


def _look_up(server: str) -> list[str]:
    """List the addresses of a server."""
    try:
        found = socket.getaddrinfo(server.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = (getattr(exc, "strerror", "") or str(exc)).lower()
        raise NotReadyError(f"the name {server} cannot be looked up: {reason}", hint="give its address") from exc
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _without_leases(addresses: list[Address], source: Address) -> list[Address]:
    """List the addresses that stay, that from which the server is reached first."""
    rest = [each for each in addresses if not each.is_leased and each != source]
    return [source, *rest]
