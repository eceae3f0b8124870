"""
Interfaces, addresses and routes, as the kernel has them.

Sources: rtnetlink(7); ``include/uapi/linux/rtnetlink.h``, ``if_link.h``,
``if_addr.h``, ``if.h``.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from postpanic.errors import OutputError
from postpanic.saver.network.netlink import Attributes, Netlink, NetlinkError, encode_attribute, parse_attributes

__all__ = ["Address", "Interfaces", "Link", "LinkFlag", "Route", "format_mac", "pack_ip", "parse_mac", "parse_prefix"]

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400

_IFINFO = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_PERM_ADDRESS = 54
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_VLAN_ID = 1, 2, 1
_NLA_F_NESTED = 0x8000

_IFADDR = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 4, 6, 8
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE, _IFA_F_PERMANENT = 0x08, 0x20, 0x40, 0x80
_FOREVER = 0xFFFFFFFF

_RTMSG = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 7, 8
_RTAX_MTU = 2
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_LINK, _RTN_UNICAST, _RTNH_F_ONLINK = 254, 3, 253, 1, 4
_RTN_LOCAL = 2
_RTN_BAD = {6: "blackhole", 7: "unreachable", 8: "prohibit"}

_MAX_NAME = 15
"""IFNAMSIZ without the final zero."""


class LinkFlag:
    """Of an interface: ``include/uapi/linux/if.h``."""

    UP = 1
    LOOPBACK = 1 << 3
    RUNNING = 1 << 6
    LOWER_UP = 1 << 16


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; *parent* and *master* are numbers of others, 0 for none."""

    index: int
    name: str
    mac: str
    flags: int
    mtu: int
    kind: str = ""
    """``vlan``, ``bond``, ``veth``; empty of physical ones."""
    parent: int = 0
    master: int = 0
    vlan_id: int = 0
    permanent_mac: str = ""
    """What the hardware has, whatever it was told to use; since Linux 5.5."""

    @property
    def has_carrier(self) -> bool:
        """Whether bits can go over it."""
        return bool(self.flags & LinkFlag.LOWER_UP)


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    index: int
    family: int
    text: str
    prefix_length: int
    flags: int
    scope: int
    valid_s: int | None
    """How long it will be valid; None is for ever."""

    @property
    def is_tentative(self) -> bool:
        """Whether the kernel still looks whether somebody else has it."""
        return bool(self.flags & _IFA_F_TENTATIVE)

    @property
    def is_taken(self) -> bool:
        """Whether somebody else has it."""
        return bool(self.flags & _IFA_F_DADFAILED)

    @property
    def is_leased(self) -> bool:
        """Whether somebody gave it to us for a time: what a router announces may be for ever, and still is not ours."""
        return self.valid_s is not None or not self.flags & _IFA_F_PERMANENT

    @property
    def is_usable(self) -> bool:
        """Whether it can be used beyond this link."""
        return self.scope < _RT_SCOPE_LINK and not self.flags & (
            _IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_DEPRECATED
        )


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address."""

    index: int
    """Of the interface."""
    gateway: str = ""
    source: str = ""
    mtu: int = 0
    is_local: bool = False
    """To this machine itself."""


class Interfaces:
    """What can be asked of and told to the kernel about its interfaces."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def list_links(self) -> list[Link]:
        """List all interfaces."""
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        found = self._netlink.dump(_RTM_GETLINK, body, doing="list interfaces")
        return [_parse_link(content) for kind, content in found if kind == _RTM_NEWLINK]

    def find_link(self, name: str) -> Link | None:
        """Find an interface by its name."""
        return next((link for link in self.list_links() if link.name == name), None)

    def change_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        name: str = "",
        mtu: int = 0,
        mac: str = "",
        master: int | None = None,
    ) -> None:
        """Change an interface: each thing that is given."""
        flags = LinkFlag.UP if up else 0
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, LinkFlag.UP if up is not None else 0)
        if name:
            body += encode_attribute(_IFLA_IFNAME, _encode_name(name))
        if mtu:
            body += encode_attribute(_IFLA_MTU, struct.pack("=I", mtu))
        if mac:
            body += encode_attribute(_IFLA_ADDRESS, parse_mac(mac))
        if master is not None:
            body += encode_attribute(_IFLA_MASTER, struct.pack("=I", master))
        self._netlink.request(_RTM_NEWLINK, body, doing=_describe_change(up, name, mtu, mac, master))

    def add_link(self, name: str, kind: str, *, parent: int = 0, vlan_id: int = 0) -> None:
        """Make an interface of a kind that the kernel makes out of nothing, or of another one."""
        info = encode_attribute(_IFLA_INFO_KIND, kind.encode() + b"\0")
        if vlan_id:
            data = encode_attribute(_IFLA_VLAN_ID, struct.pack("=H", vlan_id))
            info += encode_attribute(_IFLA_INFO_DATA | _NLA_F_NESTED, data)
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + encode_attribute(_IFLA_IFNAME, _encode_name(name))
        if parent:
            body += encode_attribute(_IFLA_LINK, struct.pack("=I", parent))
        body += encode_attribute(_IFLA_LINKINFO | _NLA_F_NESTED, info)
        try:
            self._netlink.request(
                _RTM_NEWLINK, body, flags=_NLM_F_CREATE | _NLM_F_EXCL, doing=f"make {name}, a {kind} interface"
            )
        except NetlinkError as exc:
            if exc.number == errno.EOPNOTSUPP:
                message = f"cannot make {name}: the kernel knows no {kind} interfaces, its module is missing"
                raise NetlinkError(message, number=exc.number) from exc
            raise

    def list_addresses(self, index: int = 0) -> list[Address]:
        """List all addresses, or those of one interface."""
        body = _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        found = self._netlink.dump(_RTM_GETADDR, body, doing="list addresses")
        parsed = [_parse_address(content) for kind, content in found if kind == _RTM_NEWADDR]
        return [address for address in parsed if address is not None and index in (0, address.index)]

    def add_address(self, index: int, address: str) -> None:
        """Give an interface an address: ``192.0.2.7/24``; one that it has already stays."""
        family, packed, length = parse_prefix(address)
        body = _IFADDR.pack(family, length, 0, 0, index)
        body += encode_attribute(_IFA_LOCAL, packed) + encode_attribute(_IFA_ADDRESS, packed)
        if family == socket.AF_INET and length < 31:
            host_bits = (1 << (32 - length)) - 1
            broadcast = int.from_bytes(packed, "big") | host_bits
            body += encode_attribute(_IFA_BROADCAST, broadcast.to_bytes(4, "big"))
        flags = _NLM_F_CREATE | _NLM_F_REPLACE
        self._netlink.request(_RTM_NEWADDR, body, flags=flags, doing=f"add the address {address}")

    def add_route(self, index: int, destination: str, *, gateway: str = "", source: str = "", mtu: int = 0) -> None:
        """Add a route; a gateway that is in none of our networks is taken to be on the link."""
        if destination == "default":
            family = int(socket.AF_INET6 if ":" in (gateway or source) else socket.AF_INET)
            packed, length = b"", 0
        else:
            family, packed, length = parse_prefix(destination)
        attributes = encode_attribute(_RTA_OIF, struct.pack("=I", index))
        if length:
            attributes += encode_attribute(_RTA_DST, packed)
        if gateway:
            attributes += encode_attribute(_RTA_GATEWAY, pack_ip(gateway)[1])
        if source:
            attributes += encode_attribute(_RTA_PREFSRC, pack_ip(source)[1])
        if mtu:
            attributes += encode_attribute(_RTA_METRICS, encode_attribute(_RTAX_MTU, struct.pack("=I", mtu)))
        scope = 0 if gateway or family == socket.AF_INET6 else _RT_SCOPE_LINK
        doing = f"add the route to {destination}" + (f" by way of {gateway}" if gateway else "")
        for flags in (0, _RTNH_F_ONLINK):
            head = _RTMSG.pack(family, length, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST, flags)
            try:
                self._netlink.request(
                    _RTM_NEWROUTE, head + attributes, flags=_NLM_F_CREATE | _NLM_F_REPLACE, doing=doing
                )
            except NetlinkError as exc:
                if flags or not gateway or exc.number not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                    raise
            else:
                return

    def find_route(self, address: str) -> Route:
        """
        Find the way to an address, as the kernel would take it now.

        Raises
        ------
        NetlinkError
            If there is none.
        """
        family, packed = pack_ip(address)
        head = _RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        for kind, content in self._netlink.ask(
            _RTM_GETROUTE, head + encode_attribute(_RTA_DST, packed), doing=f"find a route to {address}"
        ):
            if kind == _RTM_NEWROUTE and len(content) >= _RTMSG.size:
                return _parse_route(content, address)
        raise NetlinkError(f"no route to {address}", number=errno.ENETUNREACH)


def parse_prefix(text: str) -> tuple[int, bytes, int]:
    """
    Read an address with the length of its prefix: family, packed address, length.

    Raises
    ------
    OutputError
        If it is none.

    >>> parse_prefix("192.0.2.7/24")[2]
    24
    """
    address, slash, length = text.partition("/")
    family, packed = pack_ip(address)
    bits = len(packed) * 8
    if slash and not (length.isascii() and length.isdecimal() and int(length) <= bits):
        raise OutputError(f"{text!r} has no length of a prefix from 0 to {bits}", where="network")
    return family, packed, int(length) if slash else bits


def pack_ip(text: str) -> tuple[int, bytes]:
    """
    Read an address of IPv4 or IPv6: family and bytes.

    Raises
    ------
    OutputError
        If it is none.
    """
    family = int(socket.AF_INET6 if ":" in text else socket.AF_INET)
    try:
        return family, socket.inet_pton(family, text.partition("%")[0])
    except (OSError, ValueError):
        raise OutputError(f"{text!r} is no address", where="network") from None


def parse_mac(text: str) -> bytes:
    """Read a hardware address; empty if it is none."""
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return b""


def format_mac(content: bytes) -> str:
    """Spell a hardware address."""
    return content.hex(":")


def _encode_name(name: str) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) <= _MAX_NAME or "/" in name or any(char.isspace() for char in name):
        raise OutputError(f"{name!r} is no name of an interface: 1 to {_MAX_NAME} characters", where="network")
    return encoded + b"\0"


def _describe_change(up: bool | None, name: str, mtu: int, mac: str, master: int | None) -> str:
    words = [f"rename it to {name}"] if name else []
    words += [f"set the MTU to {mtu}"] if mtu else []
    words += [f"set the hardware address {mac}"] if mac else []
    words += ["make it a member"] if master else []
    words += ["bring it up" if up else "take it down"] if up is not None else []
    return " and ".join(words) or "change an interface"


def _u32(attributes: Attributes, kind: int) -> int:
    value = attributes.get(kind, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0


def _parse_link(content: bytes) -> Link:
    if len(content) < _IFINFO.size:
        raise OutputError(f"an interface of {len(content)} bytes", where="netlink")
    _family, _type, index, flags, _change = _IFINFO.unpack_from(content)
    attributes = parse_attributes(content[_IFINFO.size :])
    info = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    kind = info.get(_IFLA_INFO_KIND, b"").split(b"\0")[0].decode(errors="replace")
    vlan = parse_attributes(info.get(_IFLA_INFO_DATA, b"")).get(_IFLA_VLAN_ID, b"") if kind == "vlan" else b""
    return Link(
        index,
        attributes.get(_IFLA_IFNAME, b"").split(b"\0")[0].decode(errors="surrogateescape"),
        format_mac(attributes.get(_IFLA_ADDRESS, b"")),
        flags,
        _u32(attributes, _IFLA_MTU),
        kind,
        _u32(attributes, _IFLA_LINK),
        _u32(attributes, _IFLA_MASTER),
        int(struct.unpack("=H", vlan)[0]) if len(vlan) == 2 else 0,
        format_mac(attributes.get(_IFLA_PERM_ADDRESS, b"")),
    )


def _parse_address(content: bytes) -> Address | None:
    if len(content) < _IFADDR.size:
        raise OutputError(f"an address of {len(content)} bytes", where="netlink")
    family, length, flags, scope, index = _IFADDR.unpack_from(content)
    attributes = parse_attributes(content[_IFADDR.size :])
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    if (family, len(packed)) not in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        return None
    times = attributes.get(_IFA_CACHEINFO, b"")
    valid = struct.unpack("=IIII", times)[1] if len(times) == 16 else _FOREVER
    return Address(
        index,
        family,
        socket.inet_ntop(family, packed),
        length,
        _u32(attributes, _IFA_FLAGS) or flags,
        scope,
        None if valid == _FOREVER else valid,
    )


def _parse_route(content: bytes, address: str) -> Route:
    family, _dst, _src, _tos, _table, _protocol, _scope, kind, _flags = _RTMSG.unpack_from(content)
    if kind in _RTN_BAD:
        raise NetlinkError(f"the route to {address} is {_RTN_BAD[kind]}", number=errno.ENETUNREACH)
    attributes = parse_attributes(content[_RTMSG.size :])
    size = 16 if family == socket.AF_INET6 else 4

    def read(attribute: int) -> str:
        value = attributes.get(attribute, b"")
        return socket.inet_ntop(family, value) if len(value) == size else ""

    metrics = parse_attributes(attributes.get(_RTA_METRICS, b""))
    return Route(
        _u32(attributes, _RTA_OIF), read(_RTA_GATEWAY), read(_RTA_PREFSRC), _u32(metrics, _RTAX_MTU), kind == _RTN_LOCAL
    )
