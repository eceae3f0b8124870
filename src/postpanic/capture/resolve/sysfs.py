"""
Devices of this machine in sysfs: what they are below, which drivers have them, what they are stacked on.

Sources: ``Documentation/ABI/testing/sysfs-devices``, ``sysfs-bus-pci``, ``sysfs-class-devlink`` (``supplier:…``);
``drivers/md/dm-ioctl.c`` for the prefixes of ``dm/uuid``; ``Documentation/admin-guide/sysfs-rules.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Driver", "Stack", "find_drivers", "find_stack", "list_places", "list_stacks", "read_value", "stable_path"]

_DEPTH_LIMIT = 64
_DEVICES_LIMIT = 256

# Names in which numbers are given in the order in which things turn up; each with how to write it whatever they are.
_COUNTED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"virtio\d+"), "virtio*"),
    (re.compile(r"ata\d+"), "ata*"),
    (re.compile(r"host\d+"), "host*"),
    (re.compile(r"target\d+(:\d+:\d+)"), r"target*\1"),
    (re.compile(r"\d+(:\d+:\d+:\d+)"), r"*\1"),
    (re.compile(r"usb\d+"), "usb*"),
    (re.compile(r"([\w-]+)\.\d+\.auto"), r"\1.*.auto"),
    (re.compile(r"\d+(-[\d.]+(:[\d.]+)?)"), r"*\1"),
)
# What is below these is named by no place: a path ends before them.
_ENDS = re.compile(
    r"virtual|block|net|nvme|nvme\d+|nvme-subsystem|mmc_host|mtd|ndbus\d+|ub\d+|dax|vport-.*|rport-.*|port-.*|session\d+"
)

_MAPPED = {
    "LVM-": ("LVM", "a logical volume"),
    "CRYPT-": ("LUKS", "an encrypted volume"),
    "mpath-": ("multipath", "a multipath device"),
    "part": ("multipath", "a partition of a multipath device"),
    "DMRAID-": ("md", "a RAID of the firmware"),
    "VERITY-": ("device mapper", "a verity device"),
}


@dataclass(frozen=True)
class Driver:
    """
    The driver of one device.

    Attributes
    ----------
    device : Path
        Its directory below ``/sys/devices``.
    name : str
        ``virtio_blk``; empty if the device has none.
    module : str
        Empty if the driver is built in.
    alias : str
        ``virtio:d00000002v00001AF4``: by this modules are found.
    """

    device: Path
    name: str
    module: str
    alias: str


@dataclass(frozen=True)
class Stack:
    """
    Something that lies between a block device and the disks, which the capture image cannot put together.

    Attributes
    ----------
    kind : str
        ``LVM``, ``LUKS``, ``md``, ``multipath``, ``iSCSI``, ``loop`` …
    description : str
        For messages: ``dm-0 is a logical volume``.
    """

    kind: str
    description: str


def read_value(path: Path) -> str:
    """Read a small file of sysfs; empty if it is not there."""
    try:
        with path.open("rb") as stream:
            return stream.read(4096).decode(errors="replace").strip()
    except OSError:
        return ""


def find_drivers(device: Path, sysfs: Path) -> list[Driver]:
    """
    List the drivers of a device and of all that is above it, from the top down, and of what supplies them.

    Parameters
    ----------
    device : Path
        Below ``/sys/devices``.
    """
    found: dict[Path, Driver] = {}

    def visit(start: Path) -> None:
        if len(found) > _DEVICES_LIMIT:
            return
        for directory in _list_upwards(start, sysfs):
            if directory in found:
                continue
            driver = _read_driver(directory)
            if driver is not None:
                found[directory] = driver
            for supplier in _list_suppliers(directory):
                if supplier not in found:
                    visit(supplier)

    visit(device.resolve())
    return sorted(found.values(), key=lambda one: (len(one.device.parts), str(one.device)))


def list_places(device: Path, sysfs: Path) -> list[Path]:
    """
    List the directories in sysfs by which a block or network device hangs on the machine.

    A namespace of NVMe that several controllers may have is nobody's child: the
    controllers are what it hangs on.
    """
    device = device.resolve()
    for directory in _list_upwards(device, sysfs):
        if directory.parent.name == "nvme-subsystem":
            names = sorted(name for name in _list(directory) if re.fullmatch(r"nvme\d+", name))
            return [(directory / name).resolve() for name in names] or [device]
    return [device]


def stable_path(device: Path, sysfs: Path) -> str:
    """
    Give the part of a device's place below ``/sys/devices`` that is the same after each boot.

    A ``*`` stands for numbers that are not. Empty for what hangs on nothing
    (``virtual/…``).
    """
    try:
        parts = device.resolve().relative_to((sysfs / "devices").resolve()).parts
    except ValueError:
        return ""
    kept: list[str] = []
    for part in parts:
        if _ENDS.fullmatch(part):
            break
        kept.append(_spell_component(part))
    # A whole bus, or all of the platform's devices, is no place.
    return "/".join(kept) if len(kept) > 1 or not kept or not re.fullmatch(r"pci.*|platform", kept[0]) else ""


def _spell_component(name: str) -> str:
    for pattern, replacement in _COUNTED:
        match = pattern.fullmatch(name)
        if match is not None:
            return match.expand(replacement)
    return name


def find_stack(device: Path, sysfs: Path) -> Stack | None:
    """Tell what a block device is made of, if the saver cannot make it again; None for disks and their partitions."""
    directory = device.resolve()
    if read_value(directory / "partition"):
        directory = directory.parent
    name = directory.name
    if name.startswith("dm-"):
        uuid = read_value(directory / "dm/uuid")
        label = read_value(directory / "dm/name") or name
        for prefix, (kind, what) in _MAPPED.items():
            if uuid.startswith(prefix):
                return Stack(kind, f"{label} is {what}")
        return Stack("device mapper", f"{label} is a device of the device mapper")
    if (directory / "md").is_dir():
        return Stack("md", f"{name} is a RAID ({read_value(directory / 'md/level') or 'md'})")
    if "/session" in str(directory) and any((sysfs / "class/iscsi_session").glob("session*")):
        return Stack("iSCSI", f"{name} is a disk of iSCSI")
    for prefix, kind in (("loop", "loop"), ("zram", "zram"), ("bcache", "bcache"), ("nbd", "nbd"), ("drbd", "drbd")):
        if re.fullmatch(rf"{prefix}\d+", name):
            return Stack(kind, f"{name} is a device of {kind}")
    return Stack("rbd", f"{name} is an image of Ceph") if re.fullmatch(r"rbd\d+", name) else None


def list_stacks(device: Path, sysfs: Path) -> list[Stack]:
    """List all that lies between a block device and the disks, from the top down."""
    found: list[Stack] = []
    seen: set[Path] = set()
    upcoming = [device.resolve()]
    while upcoming and len(seen) < _DEVICES_LIMIT:
        place = upcoming.pop(0)
        if place in seen:
            continue
        seen.add(place)
        stack = find_stack(place, sysfs)
        if stack is not None:
            found.append(stack)
        whole = place.parent if read_value(place / "partition") else place
        upcoming += [(whole / "slaves" / name).resolve() for name in sorted(_list(whole / "slaves"))]
    return found


def _read_driver(directory: Path) -> Driver | None:
    alias = read_value(directory / "modalias")
    driver = directory / "driver"
    if not driver.exists():
        return Driver(directory, "", "", alias) if alias else None
    module = driver / "module"
    name = driver.resolve().name
    return Driver(directory, name, module.resolve().name if module.exists() else "", alias)


def _list_upwards(device: Path, sysfs: Path) -> Iterator[Path]:
    top = (sysfs / "devices").resolve()
    for _ in range(_DEPTH_LIMIT):
        if device == top or not device.is_relative_to(top):
            return
        yield device
        device = device.parent


def _list_suppliers(directory: Path) -> list[Path]:
    """List what a device cannot work without, clocks and regulators: ``supplier:…`` are links to links."""
    return [
        (directory / name / "supplier").resolve()
        for name in _list(directory)
        if name.startswith("supplier:") and (directory / name / "supplier").exists()
    ]


def _list(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []
