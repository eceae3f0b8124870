"""
Bring up what the plan says of the network, and nothing else.

::

    find and rename physical ones ─> VLANs, bonds ─> up ─> wait for the link ─> addresses, routes ─> names
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.errors import OutputError, PostpanicError
from postpanic.saver.network.links import Interfaces, Link, LinkFlag
from postpanic.saver.network.making import LinkMaker
from postpanic.saver.network.netlink import Netlink
from postpanic.saver.plan import InterfacePlan, NetworkPlan

__all__ = ["set_up_network"]

_POLL_S = 0.1
_DAD_S = 5.0
"""Looking whether somebody else has an address takes the kernel about 1 s (RFC 4862 §5.4)."""
_MAX_NAMESERVERS = 3
"""More are not asked: resolv.conf(5)."""


def set_up_network(
    plan: NetworkPlan,
    say: Callable[[str], None] = lambda _: None,
    *,
    root: Path = Path("/"),
    sysfs: Path = Path("/sys"),
) -> None:
    """
    Bring the network up; may be called again after a failure.

    Parameters
    ----------
    say : callable
        Is told what is up, and what is not.
    root : Path
        Where ``etc`` is.

    Raises
    ------
    OutputError
        If no interface with an address is up; if only some are not, they are said.
    """
    with Netlink() as netlink:
        _Setup(plan, Interfaces(netlink), say, root, sysfs).run()


@dataclass
class _Setup:
    plan: NetworkPlan
    interfaces: Interfaces
    say: Callable[[str], None]
    root: Path
    sysfs: Path
    nameservers: list[str] = field(default_factory=list)
    failures: dict[str, PostpanicError] = field(default_factory=dict)

    def run(self) -> None:
        plan = self.plan
        self.deadline = time.monotonic() + plan.wait_s
        self.nameservers += plan.nameservers
        self._bring_up_loopback()
        # Names first: a target that needs none of the interfaces that fail must find its server.
        self._write_names()
        maker = LinkMaker(self.interfaces, self.sysfs, self.deadline)
        for interface in plan.interfaces:
            self._attempt(interface, lambda each=interface: self._make(maker, each))  # type: ignore[misc]
        addressed = [interface for interface in plan.interfaces if _has_address(interface)]
        for interface in addressed:
            self._attempt(interface, lambda each=interface: self._configure(each))  # type: ignore[misc]
        self._write_names()
        failed = [interface.name for interface in addressed if interface.name in self.failures]
        if addressed and len(failed) == len(addressed):
            # What a later one needs of an earlier one fails because of that.
            raise next(iter(self.failures.values()))

    def _attempt(self, interface: InterfacePlan, step: Callable[[], None]) -> None:
        if interface.name in self.failures:
            return
        try:
            step()
        except PostpanicError as exc:
            self.failures[interface.name] = OutputError(
                exc.message, where=exc.where or f"network {interface.name}", hint=exc.hint
            )
            self.say(str(self.failures[interface.name]))

    def _make(self, maker: LinkMaker, interface: InterfacePlan) -> None:
        if interface.parent in self.failures:
            raise self.failures[interface.parent]
        working = tuple(name for name in interface.members if name not in self.failures)
        if interface.members and not working:
            raise self.failures[interface.members[0]]
        maker.make(interface, working)

    def _bring_up_loopback(self) -> None:
        for link in self.interfaces.list_links():
            if link.flags & LinkFlag.LOOPBACK and not link.flags & LinkFlag.UP:
                self.interfaces.change_link(link.index, up=True)

    def _configure(self, interface: InterfacePlan) -> None:
        """Wait for the link, and give the interface its addresses and routes."""
        link = self._wait_for_carrier(interface)
        for address in interface.addresses:
            self.interfaces.add_address(link.index, address)
        if interface.addresses:
            self._wait_for_addresses(link, interface.addresses)
        if interface.method == "dhcp":
            self._ask_dhcp(interface, link)
        for route in interface.routes:
            self.interfaces.add_route(link.index, route.destination, gateway=route.gateway, source=route.source)
        if interface.method == "auto6":
            self._wait_for_router(link)
        addresses = [f"{a.text}/{a.prefix_length}" for a in self.interfaces.list_addresses(link.index) if a.is_usable]
        self.say(f"network {interface.name}: up, {', '.join(addresses) or 'no address'}")

    def _wait_for_carrier(self, interface: InterfacePlan) -> Link:
        while True:
            link = self.interfaces.find_link(interface.name)
            if link is None:
                raise OutputError("the interface has gone away")
            if link.has_carrier:
                return link
            if time.monotonic() > self.deadline:
                raise OutputError(
                    f"no link after {self.plan.wait_s:g} s", hint="is the cable in, is the switch's port enabled?"
                )
            time.sleep(_POLL_S)

    def _wait_for_addresses(self, link: Link, wanted: tuple[str, ...]) -> None:
        """Wait until the kernel knows that nobody else has our addresses."""
        names = {address.partition("/")[0] for address in wanted}
        until = time.monotonic() + _DAD_S
        while time.monotonic() < until:
            ours = [address for address in self.interfaces.list_addresses(link.index) if address.text in names]
            for address in ours:
                if address.is_taken:
                    raise OutputError(f"another machine has the address {address.text}")
            if not any(address.is_tentative for address in ours):
                return
            time.sleep(_POLL_S)

    def _ask_dhcp(self, interface: InterfacePlan, link: Link) -> None:
        from postpanic.saver.network.dhcp import acquire_lease
        from postpanic.saver.network.links import parse_mac

        # Another wait: a switch may have needed the first for itself.
        lease = acquire_lease(interface.name, parse_mac(link.mac), timeout_s=self.plan.wait_s)
        if lease.mtu and not interface.mtu and lease.mtu != link.mtu:
            self.interfaces.change_link(link.index, mtu=lease.mtu)
        self.interfaces.add_address(link.index, f"{lease.address}/{lease.prefix_length}")
        # RFC 3442: whoever gives routes gives the default one among them.
        routes = lease.routes or tuple(("default", router) for router in lease.routers[:1])
        for destination, gateway in routes:
            via = "" if gateway == "0.0.0.0" else gateway  # noqa: S104
            self.interfaces.add_route(link.index, destination, gateway=via)
        if not self.plan.nameservers:
            self.nameservers += [server for server in lease.nameservers if server not in self.nameservers]

    def _wait_for_router(self, link: Link) -> None:
        """Wait until the kernel has made an address of what a router says: RFC 4862."""
        until = time.monotonic() + self.plan.wait_s
        while time.monotonic() < until:
            addresses = self.interfaces.list_addresses(link.index)
            if any(address.is_usable and ":" in address.text for address in addresses):
                return
            time.sleep(_POLL_S)
        raise OutputError(f"no IPv6 address after {self.plan.wait_s:g} s: no router announces a prefix")

    def _write_names(self) -> None:
        """Write how names are looked up; from the image only /etc/nsswitch.conf may be missing, which does no harm."""
        etc = self.root / "etc"
        hosts = ["127.0.0.1 localhost", "::1 localhost"] + [f"{address} {name}" for address, name in self.plan.hosts]
        servers = [f"nameserver {server}" for server in self.nameservers[:_MAX_NAMESERVERS]]
        try:
            etc.mkdir(exist_ok=True)
            (etc / "hosts").write_text("\n".join(hosts) + "\n")
            (etc / "resolv.conf").write_text("\n".join([*servers, "options timeout:2 attempts:2"]) + "\n")
        except OSError as exc:
            self.say(f"network: cannot write {etc}: {(exc.strerror or str(exc)).lower()}")


def _has_address(interface: InterfacePlan) -> bool:
    return interface.method != "none" or bool(interface.addresses)
