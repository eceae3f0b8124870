"""Run as root in a guest: networks that only a kernel with all its modules can have, and servers of NFS."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from postpanic.capture.network import plan_network
from postpanic.errors import PostpanicError
from postpanic.saver.network.setup import set_up_network
from postpanic.saver.plan import InterfacePlan, NetworkPlan, NfsPlan, RoutePlan
from postpanic.saver.targets.nfs import NfsTarget

NAME = "node-20260131-235959"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def is_there(address: str) -> bool:
    """Whether a machine refuses connections, as one does that is there and has no server; a bond takes its time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address, 9999), 5).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            time.sleep(0.5)
            continue
        return True
    return False


def set_up(plan: NetworkPlan) -> None:
    try:
        set_up_network(plan, say, root=Path("/tmp/root"))  # noqa: S108
    except PostpanicError as exc:
        say(f"ERROR {exc}")


def check_card() -> None:
    """Use a card of QEMU's, which has DHCP and announces a prefix."""
    card = next(path for path in Path("/sys/class/net").iterdir() if (path / "device").exists())
    mac = (card / "address").read_text().strip()
    place = "/".join((card / "device").resolve().parts[3:-1]) + "/virtio*"
    say(f"{card.name} {mac} {place}")
    # Its place alone is enough, its address alone too.
    set_up(NetworkPlan(interfaces=(InterfacePlan(name="net7", sysfs_path=place, method="dhcp"),)))
    run("ip address change 10.0.2.15/24 dev net7 valid_lft 86400 preferred_lft 86400")
    found = plan_network(["10.0.2.2"])
    say(f"MODULES {' '.join(sorted(found.modules))}")
    say(f"PATHS {found.sysfs_paths == (place,)}")
    expected = InterfacePlan(name="net7", mac=mac, sysfs_path=place, method="dhcp")
    say(f"PLAN {found.plan.interfaces == (expected,)} {found.plan.interfaces}")
    run("ip address flush dev net7")
    set_up(NetworkPlan(interfaces=(InterfacePlan(name="net8", mac=mac, method="auto6"),), wait_s=20))


def check_bond() -> None:
    """Make a VLAN on a bond, whose other end is in another namespace."""
    run("ip netns add other")
    for number in (0, 1):
        run(f"ip link add a{number} type veth peer name b{number} netns other")
        run(f"ip link set a{number} address 52:54:00:00:00:0{number + 1}")
        run(f"ip link set a{number} name wrong{number}")
    there = "ip -n other"
    run(f"{there} link add bond1 type bond mode active-backup miimon 100")
    for number in (0, 1):
        run(f"{there} link set b{number} master bond1")
    run(f"{there} link set bond1 up")
    run(f"{there} link add link bond1 name vlan5 type vlan id 5")
    run(f"{there} link set vlan5 up")
    run(f"{there} address add 192.0.2.1/24 dev vlan5")
    macs = ("52:54:00:00:00:01", "52:54:00:00:00:02")
    options = (("mode", "active-backup"), ("miimon", "100"), ("fail_over_mac", "none"), ("primary", "a0"))
    plan = NetworkPlan(
        interfaces=(
            InterfacePlan(name="a0", mac=macs[0]),
            InterfacePlan(name="a1", mac=macs[1]),
            InterfacePlan(name="bond0", kind="bond", mac=macs[0], members=("a0", "a1"), bond_options=options, mtu=1480),
            InterfacePlan(
                name="bond0.5",
                kind="vlan",
                parent="bond0",
                vlan_id=5,
                method="static",
                addresses=("192.0.2.7/24",),
                routes=(RoutePlan(destination="198.51.100.0/24", gateway="192.0.2.1"),),
            ),
        )
    )
    set_up(plan)
    say(f"REACHED {is_there('192.0.2.1')}")
    set_up(plan)
    say(f"REACHED {is_there('192.0.2.1')}")
    found = plan_network(["198.51.100.9"]).plan
    by_name = {interface.name: interface for interface in found.interfaces}
    say(f"CHAIN {[interface.name for interface in found.interfaces]}")
    say(f"MODULES {plan_network(['198.51.100.9']).modules}")
    say(f"MEMBERS {[by_name[name].mac for name in ('a0', 'a1')]}")
    say(f"BOND {by_name['bond0'].bond_options}")
    say(f"VLAN {by_name['bond0.5']}")
    run(f"{there} link set b0 down")
    time.sleep(1)
    say(f"REACHED {is_there('192.0.2.1')}")
    # What was found brings it up anew, from nothing.
    run("ip link delete bond0.5")
    run("ip link delete bond0")
    set_up(replace(found, wait_s=10))
    say(f"REACHED {is_there('192.0.2.1')}")


def check_nfs() -> None:
    """Save to the server of the same kernel, by all versions; then it goes away."""
    for version in ("3", "4.0", "4.1", "4.2"):
        plan = NfsPlan(server="localhost", export="/srv/export", path="/dumps", version=version, timeout_s=30.0)
        target = NfsTarget(plan)
        try:
            target.open(NAME)
            options = next(line for line in Path("/proc/mounts").read_text().splitlines() if ":/srv" in line).split()[3]
            target.put("vmcore-dmesg.txt", version.encode())
            sink = target.open_dump("vmcore")
            sink.write_at(0, [b"x" * 5_000_000])
            sink.write_at(100, [version.encode()])
            digest = sink.finish()
            target.commit()
            say(f"NFS {version} {digest.size_bytes} {target.place} vers={version in options} soft={'soft' in options}")
            say(f"ROOM {target.room_bytes()}")
        except PostpanicError as exc:
            say(f"ERROR {version} {exc} {exc.hint}")
        target.close()
    for export, path in (("/srv/nothing", "/dumps"), ("/srv/export", "/dumps")):
        target = NfsTarget(NfsPlan(server="localhost", export=export, path=path, version="4.2", timeout_s=6.0))
        started = time.monotonic()
        try:
            target.open(NAME)
            sink = target.open_dump("vmcore")
            sink.write_at(0, [b"x" * 1_000_000])
            sink.flush()
            run("rpc.nfsd 0")
            started = time.monotonic()
            sink.write_at(0, [b"y" * 5_000_000])
            sink.flush()
            say("NO ERROR")
        except PostpanicError as exc:
            say(f"GONE {exc} after {'long' if time.monotonic() - started > 30 else 'a while'}")
        target.close()
    target = NfsTarget(NfsPlan(server="localhost", export="/srv/export", version="3", timeout_s=6.0))
    try:
        target.open(NAME)
    except PostpanicError as exc:
        say(f"REFUSED {exc}")
    target.close()


if __name__ == "__main__":
    {"card": check_card, "bond": check_bond, "nfs": check_nfs}[sys.argv[1]]()
