"""
Sockets: family, type, state, and the addresses of both ends.

``struct sock`` begins the structure of each family (``struct inet_sock``,
``struct unix_sock``, ``struct netlink_sock``, ``struct packet_sock``), as in the
kernel's ``inet_sk()``, ``unix_sk()``, ``nlk_sk()`` and ``pkt_sk()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drgn import Object, cast
from drgn.helpers.linux.net import SOCK_INODE

from postpanic.analysis.cells import decode
from postpanic.analysis.network.devices import device_name, ipv4_text, ipv6_text, read_devices

__all__ = ["End", "Socket", "file_socket", "read_socket"]

# include/linux/socket.h
_FAMILIES = (
    *("UNSPEC", "UNIX", "INET", "AX25", "IPX", "APPLETALK", "NETROM", "BRIDGE", "ATMPVC", "X25", "INET6", "ROSE"),
    *("DECnet", "NETBEUI", "SECURITY", "KEY", "NETLINK", "PACKET", "ASH", "ECONET", "ATMSVC", "RDS", "SNA", "IRDA"),
    *("PPPOX", "WANPIPE", "LLC", "IB", "MPLS", "CAN", "TIPC", "BLUETOOTH", "IUCV", "RXRPC", "ISDN", "PHONET"),
    *("IEEE802154", "CAIF", "ALG", "NFC", "VSOCK", "KCM", "QIPCRTR", "SMC", "XDP", "MCTP"),
)
# include/linux/net.h
_TYPES = {1: "STREAM", 2: "DGRAM", 3: "RAW", 4: "RDM", 5: "SEQPACKET", 6: "DCCP", 10: "PACKET"}
# include/net/tcp_states.h; sockets that are not TCP's have ESTABLISHED, CLOSE and LISTEN.
_STATES = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"),
    *("LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV", "BOUND_INACTIVE"),
)
# include/uapi/linux/net.h, socket_state
_SOCKET_STATES = ("FREE", "UNCONNECTED", "CONNECTING", "CONNECTED", "DISCONNECTING")
# include/uapi/linux/netlink.h
_NETLINK = {
    0: "ROUTE",
    2: "USERSOCK",
    3: "FIREWALL",
    4: "SOCK_DIAG",
    5: "NFLOG",
    6: "XFRM",
    7: "SELINUX",
    8: "ISCSI",
    9: "AUDIT",
    10: "FIB_LOOKUP",
    11: "CONNECTOR",
    12: "NETFILTER",
    15: "KOBJECT_UEVENT",
    16: "GENERIC",
    18: "SCSITRANSPORT",
    19: "ECRYPTFS",
    20: "RDMA",
    21: "CRYPTO",
    22: "SMC",
}
# include/uapi/linux/if_ether.h
_ETHER_TYPES = {0x0003: "ALL", 0x0800: "IP", 0x0806: "ARP", 0x8100: "8021Q", 0x86DD: "IPV6", 0x88CC: "LLDP"}

_MAX_UNIX_NAME = 108


@dataclass(frozen=True, slots=True)
class End:
    """One end of a socket, as far as its family has such a thing."""

    address: str = ""
    """IP address, path, ``@name`` of an abstract one, netlink protocol, packet protocol."""
    port: int | None = None
    """Port of TCP and UDP; port ID of netlink."""
    detail: str = ""
    """What is shown in place of address and port where they are not all."""

    @property
    def text(self) -> str:
        """The end as crash shows it: ``ADDRESS-PORT``."""
        return self.detail or (self.address if self.port is None else f"{self.address}-{self.port}")


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket."""

    socket: int
    """``struct socket *``."""
    sock: int
    """``struct sock *``."""
    family: str
    type: str
    protocol: int
    state: str
    inode: int
    source: End
    destination: End


def file_socket(file: Object) -> Object | None:
    """Return the ``struct socket *`` of a ``struct file *``; None if it is another kind of file."""
    if file.f_inode.i_mode.value_() >> 12 & 0o17 != 0o14:
        return None
    return cast("struct socket *", file.private_data.read_())


def read_socket(socket: Object) -> Socket:
    """
    Read a ``struct socket *``.

    Raises
    ------
    drgn.FaultError
        If it cannot be read.
    LookupError
        If the types of its family are not known.
    """
    sock = socket.sk.read_()
    type_ = int(socket.type.value_())
    inode = int(SOCK_INODE(socket).i_ino.value_())
    state = int(socket.state.value_())
    if not sock:
        name = _SOCKET_STATES[state] if state < len(_SOCKET_STATES) else str(state)
        return Socket(int(socket.value_()), 0, "UNSPEC", _TYPES.get(type_, str(type_)), 0, name, inode, End(), End())
    common = sock.member_("__sk_common")
    number = int(common.skc_family.value_())
    family = _FAMILIES[number] if number < len(_FAMILIES) else str(number)
    source, destination = _ENDS.get(family, _no_ends)(sock)
    return Socket(
        int(socket.value_()),
        int(sock.value_()),
        family,
        _TYPES.get(type_, str(type_)),
        int(sock.sk_protocol.value_()),
        _state_name(family, int(common.skc_state.value_()), state),
        inode,
        source,
        destination,
    )


def _state_name(family: str, sock_state: int, socket_state: int) -> str:
    names, state = (_STATES, sock_state) if family in {"INET", "INET6", "UNIX"} else (_SOCKET_STATES, socket_state)
    return names[state] if state < len(names) else str(state)


def _no_ends(sock: Object) -> tuple[End, End]:  # noqa: ARG001
    return End(), End()


def _swap16(value: int) -> int:
    return (value >> 8 | value << 8) & 0xFFFF


def _ports(sock: Object) -> tuple[int, int]:
    """Source and destination port; both are kept in the order of the network."""
    source = cast("struct inet_sock *", sock).inet_sport.value_()
    return _swap16(int(source)), _swap16(int(sock.member_("__sk_common").skc_dport.value_()))


def _inet_ends(sock: Object) -> tuple[End, End]:
    common = sock.member_("__sk_common")
    source, destination = _ports(sock)
    prog = sock.prog_
    return (
        End(ipv4_text(prog, common.skc_rcv_saddr.address_), source),
        End(ipv4_text(prog, common.skc_daddr.address_), destination),
    )


def _inet6_ends(sock: Object) -> tuple[End, End]:
    common = sock.member_("__sk_common")
    source, destination = _ports(sock)
    prog = sock.prog_
    return (
        End(ipv6_text(prog, common.skc_v6_rcv_saddr.address_), source),
        End(ipv6_text(prog, common.skc_v6_daddr.address_), destination),
    )


def _unix_ends(sock: Object) -> tuple[End, End]:
    peer = cast("struct unix_sock *", sock).peer.read_()
    return End(_unix_name(sock)), _unix_peer(peer) if peer else End()


def _unix_peer(peer: Object) -> End:
    name = _unix_name(peer)
    socket = peer.sk_socket.read_()
    # A peer that has no name of its own is told by its inode.
    return End(name, detail=name or (f"[{int(SOCK_INODE(socket).i_ino.value_())}]" if socket else ""))


def _unix_name(sock: Object) -> str:
    """Return the path of a socket, ``@name`` of an abstract one; empty: it has none."""
    address = cast("struct unix_sock *", sock).addr.read_()
    if not address:
        return ""
    length = min(max(0, int(address.len.value_()) - 2), _MAX_UNIX_NAME)
    # sun_path is behind sun_family, in an array of no length.
    path = sock.prog_.read((address.name.address_ or 0) + 2, length)
    if path.startswith(b"\0"):
        return "@" + decode(path[1:])
    return decode(path.split(b"\0", 1)[0])


def _netlink_ends(sock: Object) -> tuple[End, End]:
    netlink = cast("struct netlink_sock *", sock)
    number = int(sock.sk_protocol.value_())
    name = _NETLINK.get(number, str(number))
    groups = netlink.groups.read_()
    first = int(groups[0].value_()) if groups else 0
    detail = f"groups {first:08x}" if first else ""
    return End(name, int(netlink.portid.value_())), End("", int(netlink.dst_portid.value_()), detail)


def _packet_ends(sock: Object) -> tuple[End, End]:
    packet = cast("struct packet_sock *", sock)
    number = _swap16(int(packet.num.value_()))
    name = _ETHER_TYPES.get(number, f"{number:#06x}")
    index = int(packet.ifindex.value_())
    device = _device_of(sock, index) if index else "any device"
    return End(name, detail=f"{name} on {device}"), End()


def _device_of(sock: Object, index: int) -> str:
    for device in read_devices(sock.member_("__sk_common").skc_net.net.read_(), []):
        if device.ifindex.value_() == index:
            return device_name(device)
    return str(index)


_ENDS: dict[str, Callable[[Object], tuple[End, End]]] = {
    "INET": _inet_ends,
    "INET6": _inet6_ends,
    "UNIX": _unix_ends,
    "NETLINK": _netlink_ends,
    "PACKET": _packet_ends,
}
