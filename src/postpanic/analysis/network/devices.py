"""Network devices of a namespace, their addresses, and the neighbours that they know."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object, Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.net import for_each_netdev, neigh_table_for_each_neighbor

from postpanic.analysis.cells import decode, guarded
from postpanic.findings.table import Problem

__all__ = ["Neighbour", "device_addresses", "device_name", "network_namespace", "read_devices", "read_neighbours"]

_MAX_HW_ADDRESS = 32
"""``MAX_ADDR_LEN``."""

# include/uapi/linux/if_arp.h
_HARDWARE = {
    1: "ETHER",
    24: "IEEE1394",
    32: "INFINIBAND",
    512: "PPP",
    768: "TUNNEL",
    769: "TUNNEL6",
    772: "LOOPBACK",
    776: "SIT",
    778: "IPGRE",
    801: "IEEE80211",
    823: "IP6GRE",
    65534: "NONE",
}
# include/uapi/linux/neighbour.h
_STATES = ("INCOMPLETE", "REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "NOARP", "PERMANENT")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One entry of a table of neighbours."""

    vaddr: int
    """``struct neighbour *``."""
    address: str
    hardware: str
    hardware_address: str
    device: str
    state: str


def network_namespace(task: Object) -> Object:
    """Return the ``struct net *`` of a task; the initial one for a task that has left its own."""
    proxy = task.nsproxy.read_()
    if not proxy:
        proxy = task.prog_["init_task"].nsproxy.read_()
    return proxy.net_ns.read_()


def read_devices(namespace: Object, problems: list[Problem]) -> Iterator[Object]:
    """Walk the ``struct net_device *`` of a ``struct net *``."""
    return guarded(for_each_netdev(namespace), "list of network devices", problems)


def device_name(device: Object) -> str:
    """Name a ``struct net_device *``."""
    return decode(device.name.string_())


def device_addresses(device: Object, problems: list[Problem]) -> list[str]:
    """List the IPv4 and IPv6 addresses of a ``struct net_device *``, as text."""
    return [*_ipv4_addresses(device, problems), *_ipv6_addresses(device, problems)]


def _ipv4_addresses(device: Object, problems: list[Problem]) -> Iterator[str]:
    holder = device.ip_ptr.read_()
    if not holder:
        return
    for entry in guarded(_chain(holder.ifa_list.read_()), f"IPv4 addresses of {device.value_():#x}", problems):
        # Its own address; ifa_address is the other end's where there are two.
        yield ipv4_text(device.prog_, entry.ifa_local.address_)


def _chain(entry: Object) -> Iterator[Object]:
    while entry:
        yield entry
        entry = entry.ifa_next.read_()


def _ipv6_addresses(device: Object, problems: list[Problem]) -> Iterator[str]:
    holder = device.ip6_ptr.read_()
    if not holder:
        return
    entries = list_for_each_entry("struct inet6_ifaddr", holder.addr_list.address_of_(), "if_list")
    for entry in guarded(entries, f"IPv6 addresses of {device.value_():#x}", problems):
        yield ipv6_text(device.prog_, entry.addr.address_)


def ipv4_text(prog: Program, vaddr: int | None) -> str:
    """Spell the IPv4 address in memory at *vaddr*."""
    return str(ipaddress.IPv4Address(prog.read(vaddr or 0, 4)))


def ipv6_text(prog: Program, vaddr: int | None) -> str:
    """Spell the IPv6 address in memory at *vaddr*."""
    return str(ipaddress.IPv6Address(prog.read(vaddr or 0, 16)))


def read_neighbours(prog: Program, problems: list[Problem]) -> Iterator[Neighbour]:
    """
    Walk the neighbours that IPv4 knows (``arp_tbl``), in all namespaces.

    Raises
    ------
    LookupError
        If the kernel has no such table.
    """
    table = prog["arp_tbl"].nht.read_()
    for entry in guarded(neigh_table_for_each_neighbor(table), "table of neighbours", problems):
        device = entry.dev.read_()
        state = int(entry.nud_state.value_())
        yield Neighbour(
            int(entry.value_()),
            ipv4_text(prog, entry.primary_key.address_),
            _HARDWARE.get(int(device.type.value_()), "UNKNOWN"),
            _hardware_address(entry, device),
            device_name(device),
            "|".join(name for bit, name in enumerate(_STATES) if state >> bit & 1) or "NONE",
        )


def _hardware_address(entry: Object, device: Object) -> str:
    length = min(int(device.addr_len.value_()), _MAX_HW_ADDRESS)
    return bytes(entry.prog_.read(entry.ha.address_ or 0, length)).hex(":")
