"""
What the saver is to do: made when the machine is armed, read when it has crashed.

The plan is one JSON file in the capture image. Everything that can be found
out beforehand is in it (devices, modules, addresses), so that the saver looks
for as little as possible on a bad day. ``docs/configuration.md`` describes the
file that the user writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = [
    "PLAN_PATH",
    "SCHEMA_VERSION",
    "BlockPlan",
    "DevicePlan",
    "FilePlan",
    "FinalAction",
    "HookPlan",
    "HttpPlan",
    "InterfacePlan",
    "NetworkPlan",
    "NfsPlan",
    "RawPlan",
    "RetentionPlan",
    "RoutePlan",
    "SavePlan",
    "SshPlan",
    "TargetPlan",
]

PLAN_PATH = Path("/etc/postpanic/plan.json")

FinalAction = Literal["reboot", "poweroff", "halt", "shell"]
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """
    How to find a block device again, whatever name it gets this time.

    All that is given must fit; at least one is.

    Attributes
    ----------
    uuid, label : str
        Of the file system or swap area on it, as blkid prints them.
    part_uuid, part_label : str
        Of the partition table's entry.
    serial : str
        Of the whole disk (``/sys/block/*/serial``, ``…/device/serial``, ``…/device/wwid``).
    sysfs_path : str
        Below ``/sys/devices``, as far as it is the same after each boot: ``pci0000:00/0000:00:04.0``.
    name : str
        ``vda1``; the weakest, believed only when nothing else is given.
    partition : int
        Number of the partition on the disk that *serial* or *sysfs_path* names; 0 is the whole disk.
    """

    uuid: str = ""
    label: str = ""
    part_uuid: str = ""
    part_label: str = ""
    serial: str = ""
    sysfs_path: str = ""
    name: str = ""
    partition: int = 0


@dataclass(frozen=True, kw_only=True)
class RetentionPlan:
    """What may be deleted once a new dump is safe: the oldest dumps beyond these bounds; 0 is no bound."""

    keep_count: int = 0
    keep_bytes: int = 0
    min_free_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class _CommonPlan:
    """
    What every target has.

    Attributes
    ----------
    name : str
        For messages: ``file /var/crash on UUID=…``.
    dump_levels : tuple of int
        Of makedumpfile's ``-d``; the next one is tried where the dump does not fit.
    compression : str
        ``zstd`` or ``none``.
    limit_bytes : int
        The most that the dump may take; 0 is no limit but the room there is.
    attempts : int
        How often it is tried in all.
    timeout_s : float
        Without any progress, after which it is given up.
    """

    name: str = ""
    dump_levels: tuple[int, ...] = (31,)
    compression: Literal["zstd", "none"] = "zstd"
    compression_level: int | None = None
    limit_bytes: int = 0
    attempts: int = 3
    timeout_s: float = 60.0
    retention: RetentionPlan = RetentionPlan()


@dataclass(frozen=True, kw_only=True)
class FilePlan(_CommonPlan):
    """A directory of a file system on a block device."""

    kind: Literal["file"] = "file"
    device: BlockPlan = BlockPlan()
    filesystem: str = "ext4"
    options: str = ""
    """Of mount(8), as they stand in fstab, those of user space left out."""
    path: str = "/var/crash"
    """In the file system."""


@dataclass(frozen=True, kw_only=True)
class RawPlan(_CommonPlan):
    """
    A block device without a file system, or a swap area.

    Attributes
    ----------
    swap : bool
        Overwrite the device only if there is a swap area on it; else only if nothing known is on it.
    """

    kind: Literal["raw"] = "raw"
    device: BlockPlan = BlockPlan()
    swap: bool = False


@dataclass(frozen=True, kw_only=True)
class NfsPlan(_CommonPlan):
    """A directory of an NFS server, by the kernel's client."""

    kind: Literal["nfs"] = "nfs"
    server: str = ""
    export: str = "/"
    path: str = ""
    """Below the export."""
    version: Literal["3", "4.0", "4.1", "4.2"] = "4.2"
    options: str = ""


@dataclass(frozen=True, kw_only=True)
class SshPlan(_CommonPlan):
    """A directory of an SSH server, by the SFTP protocol; key and host keys are files in the image."""

    kind: Literal["ssh"] = "ssh"
    user: str = "root"
    server: str = ""
    port: int = 22
    path: str = "/var/crash"
    key: str = "/etc/postpanic/ssh/id"
    known_hosts: str = "/etc/postpanic/ssh/known_hosts"


@dataclass(frozen=True, kw_only=True)
class HttpPlan(_CommonPlan):
    """
    A place that takes HTTP PUT.

    Attributes
    ----------
    url : str
        ``{name}`` stands for the dump's directory, ``{file}`` for the file in it.
    mode : str
        ``parts``: one object for each *part_bytes* of the dump; ``range``: one object, parts by ``Content-Range``;
        ``whole``: one request (presigned addresses of object storage), started anew when the connection drops.
    headers : tuple of tuple of str
        Sent with every request: name and value.
    ca_file : str
        Certificates to trust, in the image; empty: none, so https fails.
    """

    kind: Literal["http"] = "http"
    url: str = ""
    mode: Literal["parts", "range", "whole"] = "parts"
    part_bytes: int = 4 << 20
    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str = ""


TargetPlan = FilePlan | RawPlan | NfsPlan | SshPlan | HttpPlan


@dataclass(frozen=True, kw_only=True)
class RoutePlan:
    """A route: ``default`` or a prefix, by way of a gateway or directly."""

    destination: str = "default"
    gateway: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class InterfacePlan:
    """
    A network interface, found by its hardware address or its place, never by a name alone.

    Attributes
    ----------
    name : str
        What it is called here; the host's name for it.
    mac : str
        ``52:54:00:12:34:56``; of physical ones, and to be set on a bond.
    sysfs_path : str
        Below ``/sys/devices``; of physical ones.
    parent, vlan_id
        Of a VLAN.
    members, bond_options
        Of a bond; options by the names in ``/sys/class/net/*/bonding``.
    method : str
        How it gets its addresses; ``none`` for members and parents.
    addresses : tuple of str
        ``192.0.2.7/24``, ``2001:db8::7/64``.
    """

    name: str
    kind: Literal["physical", "vlan", "bond"] = "physical"
    mac: str = ""
    sysfs_path: str = ""
    parent: str = ""
    vlan_id: int = 0
    members: tuple[str, ...] = ()
    bond_options: tuple[tuple[str, str], ...] = ()
    mtu: int = 0
    method: Literal["none", "static", "dhcp", "auto6"] = "none"
    addresses: tuple[str, ...] = ()
    routes: tuple[RoutePlan, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """Interfaces, parents and members before what is made of them; name servers; how long to wait for a link."""

    interfaces: tuple[InterfacePlan, ...] = ()
    nameservers: tuple[str, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()
    """Names that were looked up when the machine was armed: address and name."""
    wait_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """
    Which devices get a driver; all others are left alone: the disk that hung the host must not hang the capture.

    Attributes
    ----------
    sysfs_paths : tuple of str
        Below ``/sys/devices``, down to where numbers are still the same after each boot; what is found below one
        gets its driver too.
    bind_all : bool
        Let the kernel probe everything, where the places are not known.
    wait_s : float
        For devices that take their time.
    """

    sysfs_paths: tuple[str, ...] = ()
    bind_all: bool = False
    wait_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class HookPlan:
    """A program of the image that is run before or after saving; what becomes of it never costs the dump."""

    command: tuple[str, ...]
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class SavePlan:
    """
    All of it.

    Attributes
    ----------
    node : str
        The machine's name, the beginning of the names of its dumps.
    modules : tuple of str
        Files of the image, in the order in which they are loaded, each with its parameters after a space.
    targets : tuple
        Saved to at once.
    fallbacks : tuple
        One after the other, when none of the targets has a dump that can be opened.
    after_success, after_failure : str
        What becomes of the machine.
    buffer_bytes : int
        Bound on the memory of pages in flight; 0 lets the saver choose by the memory that is free.
    timeout_s : float
        Of everything; then the machine is rebooted, whatever state it is in.
    """

    node: str = ""
    modules: tuple[str, ...] = ()
    devices: DevicePlan = DevicePlan(bind_all=True)
    network: NetworkPlan | None = None
    targets: tuple[TargetPlan, ...] = ()
    fallbacks: tuple[TargetPlan, ...] = ()
    before: tuple[HookPlan, ...] = ()
    after: tuple[HookPlan, ...] = ()
    after_success: FinalAction = "reboot"
    after_failure: FinalAction = "reboot"
    threads: int = 1
    buffer_bytes: int = 0
    self_test: bool = True
    feed_watchdogs: bool = True
    timeout_s: float = 3600.0
    schema_version: int = field(default=SCHEMA_VERSION)
