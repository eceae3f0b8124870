"""The network that the configuration gives, interface by interface."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from postpanic.capture.config import InterfaceConfig, NetworkConfig
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.resolve.drivers import choose_driver_modules
from postpanic.capture.resolve.nameservers import read_nameservers
from postpanic.capture.resolve.needs import FoundNetwork
from postpanic.capture.resolve.sysfs import find_drivers, read_value, stable_path
from postpanic.errors import NotReadyError
from postpanic.saver.plan import InterfacePlan, NetworkPlan, RoutePlan

__all__ = ["look_up_servers", "plan_given_network"]

_MODULES = {"vlan": "8021q", "bond": "bonding"}
_NO_ADDRESS = "00:00:00:00:00:00"


def plan_given_network(
    config: NetworkConfig, servers: Sequence[str], tree: ModuleTree, *, root: Path = Path("/"), same_kernel: bool = True
) -> FoundNetwork:
    """
    Find the cards of the interfaces that the configuration gives.

    Parameters
    ----------
    servers : sequence of str
        Whose names are looked up now.
    tree : ModuleTree
        Of the capture kernel.

    Raises
    ------
    NotReadyError
        If a card is not there, or a server's name is not known.
    """
    sysfs = root / "sys"
    plans: list[InterfacePlan] = []
    modules: list[str] = []
    paths: list[str] = []
    evidence: list[str] = []
    for interface in config.interfaces:
        card = _find_card(interface, sysfs) if interface.kind == "physical" else None
        path = ""
        if card is not None:
            path = stable_path(card, sysfs)
            modules += choose_driver_modules(find_drivers(card, sysfs), tree, same_kernel=same_kernel)
        elif interface.kind in _MODULES:
            modules.append(_MODULES[interface.kind])
        plans.append(_plan_interface(interface, sysfs, path))
        paths += [path] if path else []
        evidence.append(f"network {interface.name}: {interface.kind}, {_describe_addresses(interface)}")
    plan = NetworkPlan(
        interfaces=tuple(plans),
        nameservers=config.nameservers or read_nameservers(root),
        hosts=look_up_servers(servers),
        wait_s=config.wait_s,
    )
    return FoundNetwork(plan, tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(paths)), tuple(evidence))


def look_up_servers(servers: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """
    Look up names of servers: address and name, every address there is.

    Raises
    ------
    NotReadyError
        If one is not known.
    """
    found: list[tuple[str, str]] = []
    for name in servers:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            try:
                answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except OSError as exc:
                reason = (exc.strerror or str(exc)).lower()
                raise NotReadyError(
                    f"the server {name} cannot be looked up: {reason}", hint="give its address"
                ) from exc
            found += [(str(answer[4][0]), name) for answer in answers]
    return tuple(dict.fromkeys(found))


def _find_card(interface: InterfaceConfig, sysfs: Path) -> Path | None:
    """Find the device of a physical interface by its hardware address, or by its name."""
    nets = sysfs / "class/net"
    if not nets.is_dir():
        return None
    names = sorted(entry.name for entry in nets.iterdir())
    if interface.mac:
        names = [name for name in names if read_value(nets / name / "address") == interface.mac]
        # A VLAN or a bond has the address of its card.
        names = [name for name in names if (nets / name / "device").exists()] or names
    elif interface.name in names:
        names = [interface.name]
    else:
        names = []
    if not names:
        what = f"hardware address {interface.mac}" if interface.mac else f"name {interface.name}"
        raise NotReadyError(
            f"there is no network interface with the {what}", where="network", hint="ip link lists them"
        )
    device = nets / names[0] / "device"
    if not device.exists():
        raise NotReadyError(
            f"{names[0]} is no card but made of others", where="network", hint='kind = "vlan" or "bond"'
        )
    return device.resolve()


def _plan_interface(interface: InterfaceConfig, sysfs: Path, path: str) -> InterfacePlan:
    mac = interface.mac
    if not mac and interface.kind == "physical":
        # A member of a bond has the bond's address for the time being.
        own = read_value(sysfs / "class/net" / interface.name / "bonding_slave/perm_hwaddr")
        mac = own or read_value(sysfs / "class/net" / interface.name / "address")
    return InterfacePlan(
        name=interface.name,
        kind=interface.kind,
        mac="" if mac == _NO_ADDRESS else mac,
        sysfs_path=path,
        parent=interface.parent,
        vlan_id=interface.vlan_id,
        members=interface.members,
        bond_options=interface.bond_options,
        mtu=interface.mtu,
        method=interface.method,
        addresses=interface.addresses,
        routes=tuple(
            RoutePlan(destination=route.destination, gateway=route.gateway, source=route.source)
            for route in interface.routes
        ),
    )


def _describe_addresses(interface: InterfaceConfig) -> str:
    if interface.method == "static":
        return " ".join(interface.addresses)
    return {"dhcp": "by DHCP", "auto6": "by router advertisements", "none": "no address of its own"}[interface.method]
