"""Find physical interfaces under whatever name, and make VLANs and bonds out of them."""

from __future__ import annotations

import time
from pathlib import Path

from postpanic.errors import OutputError
from postpanic.saver.network.links import Interfaces, Link, LinkFlag
from postpanic.saver.plan import InterfacePlan

__all__ = ["LinkMaker", "set_ipv6"]

_POLL_S = 0.1
_MADE_OF_OTHERS = frozenset({"vlan", "bond", "bridge", "team", "macvlan", "macvtap", "ipvlan", "ifb", "dummy"})
_BEFORE_MEMBERS, _AFTER_MEMBERS = ("mode",), ("primary", "active_slave")


class LinkMaker:
    """
    Makes interfaces, in the order of a plan.

    Parameters
    ----------
    deadline : float
        Of ``time.monotonic()``, until which physical interfaces may turn up.
    """

    def __init__(self, interfaces: Interfaces, sysfs: Path, deadline: float) -> None:
        self._interfaces = interfaces
        self._sysfs = sysfs
        self._deadline = deadline

    def make(self, plan: InterfacePlan, members: tuple[str, ...]) -> None:
        """
        Make an interface and bring it up; one that is there already is used.

        Parameters
        ----------
        members : tuple of str
            Of a bond: those that are there.

        Raises
        ------
        OutputError
            If it cannot be found or made.
        """
        if plan.kind == "physical":
            link = self._take_physical(plan)
        else:
            link = self._take_made(plan)
        if plan.kind == "bond":
            self._set_options(plan, [option for option in plan.bond_options if option[0] in _BEFORE_MEMBERS])
            rest = [option for option in plan.bond_options if option[0] not in _BEFORE_MEMBERS + _AFTER_MEMBERS]
            self._set_options(plan, rest)
            if plan.mac:
                self._interfaces.change_link(link.index, mac=plan.mac)
            for name in members:
                self._join(name, link)
            self._set_options(plan, [option for option in plan.bond_options if option[0] in _AFTER_MEMBERS])
        if plan.mtu and plan.mtu != link.mtu:
            self._interfaces.change_link(link.index, mtu=plan.mtu)
        set_ipv6(plan.name, is_automatic=plan.method == "auto6")
        self._interfaces.change_link(link.index, up=True)

    def _take_physical(self, plan: InterfacePlan) -> Link:
        """Wait for an interface, and give it its name."""
        while (link := self._find_physical(plan)) is None:
            if time.monotonic() > self._deadline:
                which = " at ".join(part for part in (plan.mac, plan.sysfs_path) if part)
                raise OutputError(f"the network card {which} is not there", hint="is its driver among the modules?")
            time.sleep(_POLL_S)
        if link.name == plan.name:
            return link
        other = self._interfaces.find_link(plan.name)
        if other is not None:
            # The names have changed places since the crash.
            self._interfaces.change_link(other.index, up=False)
            self._interfaces.change_link(other.index, name=f"other{other.index}")
        if link.flags & LinkFlag.UP:
            self._interfaces.change_link(link.index, up=False)
        self._interfaces.change_link(link.index, name=plan.name)
        return link

    def _find_physical(self, plan: InterfacePlan) -> Link | None:
        """Find the interface at the place, with the hardware address, or what fits best."""
        links = [
            link
            for link in self._interfaces.list_links()
            if link.kind not in _MADE_OF_OTHERS and not link.flags & LinkFlag.LOOPBACK
        ]
        here = [link for link in links if plan.sysfs_path and self._is_at(link, plan.sysfs_path)]
        # The address of a member of a bond is the bond's, once it has joined: its name tells then.
        with_mac = [
            link for link in links if plan.mac and (link.mac == plan.mac or (link.master and link.name == plan.name))
        ]
        for candidates in ([link for link in here if link in with_mac], with_mac, here):
            if candidates:
                return next((link for link in candidates if link.name == plan.name), candidates[0])
        if not plan.mac and not plan.sysfs_path:
            return next((link for link in links if link.name == plan.name), None)
        return None

    def _is_at(self, link: Link, sysfs_path: str) -> bool:
        try:
            place = (self._sysfs / "class" / "net" / link.name / "device").resolve()
        except OSError:
            return False
        return _matches(sysfs_path, place.parts)

    def _take_made(self, plan: InterfacePlan) -> Link:
        """Make an interface out of nothing or of its parent, if it is not there yet."""
        link = self._interfaces.find_link(plan.name)
        if link is None:
            parent = self._interfaces.find_link(plan.parent) if plan.parent else None
            if plan.kind == "vlan" and parent is None:
                raise OutputError(f"{plan.parent or 'its parent'} is not there")
            self._interfaces.add_link(
                plan.name, plan.kind, parent=parent.index if parent is not None else 0, vlan_id=plan.vlan_id
            )
            link = self._interfaces.find_link(plan.name)
        if link is None or link.kind != plan.kind:
            raise OutputError(f"{plan.name} is no interface of kind {plan.kind}")
        if plan.kind == "bond" and link.flags & LinkFlag.UP and not self._has_members(link):
            self._interfaces.change_link(link.index, up=False)
        return link

    def _has_members(self, bond: Link) -> bool:
        return any(link.master == bond.index for link in self._interfaces.list_links())

    def _join(self, name: str, bond: Link) -> None:
        member = self._interfaces.find_link(name)
        if member is None:
            raise OutputError(f"{name} is not there")
        if member.master == bond.index:
            return
        if member.flags & LinkFlag.UP:
            # bond_enslave() of drivers/net/bonding wants it down, and brings it up itself.
            self._interfaces.change_link(member.index, up=False)
        self._interfaces.change_link(member.index, master=bond.index)

    def _set_options(self, plan: InterfacePlan, options: list[tuple[str, str]]) -> None:
        """Set options through files (Documentation/networking/bonding.rst); what does not fit the mode is refused."""
        directory = self._sysfs / "class" / "net" / plan.name / "bonding"
        for name, value in options:
            path = directory / name
            try:
                if path.read_text().split()[:1] != value.split()[:1]:
                    path.write_text(value + "\n")
            except OSError as exc:
                if name in _BEFORE_MEMBERS:
                    reason = (exc.strerror or str(exc)).lower()
                    raise OutputError(f"cannot set the bond's {name} to {value}: {reason}") from exc


def _matches(pattern: str, place: tuple[str, ...]) -> bool:
    """Whether a place is one of the plan's or below it; a ``*`` in a name stands for a number that changes."""
    wanted = pattern.strip("/").split("/")
    # What is before it is /sys/devices.
    for start in range(len(place) - len(wanted) + 1):
        if all(_matches_name(one, name) for one, name in zip(wanted, place[start:], strict=False)):
            return True
    return False


def _matches_name(pattern: str, name: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == name
    middle = name[len(before) : len(name) - len(after)]
    return name == before + middle + after and middle.isdecimal()


def set_ipv6(name: str, *, is_automatic: bool, procfs: Path = Path("/proc")) -> None:
    """Let an interface listen to routers, or not; a kernel without IPv6 has none of these files."""
    directory = procfs / "sys" / "net" / "ipv6" / "conf" / name
    # 2: also where packets are forwarded (Documentation/networking/ip-sysctl.rst).
    settings = {
        "accept_ra": "2" if is_automatic else "0",
        "autoconf": "1" if is_automatic else "0",
        "use_tempaddr": "0",
    }
    if is_automatic:
        settings["disable_ipv6"] = "0"
    for key, value in settings.items():
        try:
            (directory / key).write_text(value)
        except OSError:
            continue
