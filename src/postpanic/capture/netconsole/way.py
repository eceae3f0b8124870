"""
The way of packets to a receiver: interface, own address, and the hardware address that they are sent to.

The kernel that dies asks nobody: whatever it needs to send a packet has to be
written down before. It is asked for now, of the routing table and of the
neighbours that ARP and neighbour discovery have found.

Sources: rtnetlink(7); ``include/uapi/linux/neighbour.h``.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

from postpanic.errors import NotReadyError, OutputError
from postpanic.saver.network.links import Interfaces, Link, Route, pack_ip
from postpanic.saver.network.netlink import Netlink, NetlinkError, parse_attributes

__all__ = ["Way", "find_way"]

_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_NDMSG = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR = 1, 2
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""Reachable, stale, delay, probe, noarp, permanent: whoever was there once is known."""
_DISCARD_PORT = 9
_WAIT_S = 3.0
_MAC_BYTES = 6


@dataclass(frozen=True)
class Way:
    """
    How a receiver is reached.

    Attributes
    ----------
    remote_ip : str
        The receiver's.
    interface, local_ip : str
    next_hop : str
        Whose hardware address it is: the receiver's own, or a gateway's.
    mac : str
    """

    remote_ip: str
    interface: str
    local_ip: str
    next_hop: str
    mac: str


def find_way(host: str) -> Way:
    """
    Find out how a receiver is reached.

    Parameters
    ----------
    host : str
        Name or address.

    Raises
    ------
    NotReadyError
        If it cannot be looked up, there is no way to it, it is this machine, or nobody answers for its hardware
        address.
    """
    addresses = _look_up(host)
    try:
        with Netlink() as netlink:
            interfaces = Interfaces(netlink)
            address, route = _find_route(interfaces, host, addresses)
            link = _find_link(interfaces, route, host)
            local = route.source or _find_source(interfaces, link, address)
            next_hop = route.gateway or address
            mac = _find_mac(netlink, link, next_hop, address)
    except OutputError as exc:
        raise NotReadyError(exc.message, where=exc.where, hint=exc.hint) from exc
    return Way(address, link.name, local, next_hop, mac)


def _look_up(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as exc:
        reason = (getattr(exc, "strerror", "") or str(exc)).lower()
        raise NotReadyError(f"the name {host} cannot be looked up: {reason}", hint="give its address") from exc
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


def _find_route(interfaces: Interfaces, host: str, addresses: list[str]) -> tuple[str, Route]:
    error: NetlinkError | None = None
    for address in addresses:
        try:
            route = interfaces.find_route(address)
        except NetlinkError as exc:
            error = error or exc
            continue
        if route.is_local:
            raise NotReadyError(f"{host} is this machine itself", hint="the receiver is another one")
        return address, route
    raise NotReadyError(f"no route to {host}: {error.message if error else 'it has no address'}")


def _find_link(interfaces: Interfaces, route: Route, host: str) -> Link:
    link = next((each for each in interfaces.list_links() if each.index == route.index), None)
    if link is None:
        raise NotReadyError(f"the way to {host} leads over interface {route.index}, which is not here")
    if len(bytes.fromhex(link.mac.replace(":", ""))) != _MAC_BYTES:
        raise NotReadyError(
            f"the way to {host} leads over {link.name}, which has no hardware address: netconsole needs Ethernet"
        )
    return link


def _find_source(interfaces: Interfaces, link: Link, address: str) -> str:
    is_ipv6 = ":" in address
    for each in interfaces.list_addresses(link.index):
        if (":" in each.text) == is_ipv6 and each.is_usable:
            return each.text
    raise NotReadyError(f"{link.name} has no address from which {address} is reached")


def _find_mac(netlink: Netlink, link: Link, next_hop: str, address: str) -> str:
    """Look the hardware address up; if it is not known, send something that makes the kernel ask for it."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        mac = _read_neighbour(netlink, link.index, next_hop)
        if mac:
            return mac
        if time.monotonic() > deadline:
            whose = "it" if next_hop == address else f"the gateway {next_hop}"
            raise NotReadyError(
                f"no hardware address of {next_hop} on {link.name}: {whose} does not answer",
                hint="is it switched on and on this network?",
            )
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as provoking:
            provoking.sendto(b"", (address, _DISCARD_PORT))
        time.sleep(0.1)


def _read_neighbour(netlink: Netlink, index: int, address: str) -> str:
    family, packed = pack_ip(address)
    body = _NDMSG.pack(family, 0, 0, 0, 0)
    for kind, content in netlink.dump(_RTM_GETNEIGH, body, doing="list neighbours"):
        if kind != _RTM_NEWNEIGH or len(content) < _NDMSG.size:
            continue
        _family, found_index, state, _flags, _type = _NDMSG.unpack_from(content)
        attributes = parse_attributes(content[_NDMSG.size :])
        mac = attributes.get(_NDA_LLADDR, b"")
        is_wanted = found_index == index and attributes.get(_NDA_DST) == packed
        if is_wanted and state & _USABLE and len(mac) == _MAC_BYTES:
            return mac.hex(":")
    return ""
