"""
Give drivers to the devices that the plan names, and to no others.

The disk that hung the machine would hang its capture too: drivers probe every
disk that they find. So all buses are told to match nothing by themselves,
before modules are loaded; then each device on the way to a wanted one is
matched by hand, and what turns up below it.

::

    /sys/bus/*/drivers_autoprobe   0
    /sys/bus/BUS/drivers_probe     name of a device

Sources: ``Documentation/ABI/testing/sysfs-bus``, ``drivers/base/bus.c``;
``drivers/scsi/scsi_scan.c`` for the parameter ``scan`` and
``/sys/class/scsi_host/*/scan``; ``drivers/base/core.c`` for ``supplier:*``.
"""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from postpanic.saver.deadlines import Call
from postpanic.saver.plan import DevicePlan

__all__ = ["DeviceBinder"]

PROBE_TIMEOUT_S = 20.0
_PATIENCE_S = 1.0
"""A probe that takes longer goes on by itself: other disks, and the log that is to be saved there, do not wait."""
_MAX_DEPTH = 24
_MAX_DEVICES = 20_000
_MAX_SUPPLIERS = 64

# Devices on these come from a device that has a driver already, and some drivers want them matched at once:
# a network card looks for its PHY's driver while it is probed itself.
_LEFT_ALONE = frozenset({"mdio_bus", "auxiliary", "i2c", "spi", "nvmem", "pci_express", "serial-base", "cpu"})
_SCSI_DEVICE = re.compile(r"[\d*]+:([\d*]+):([\d*]+):([\d*]+)", re.ASCII)
_MANUAL_SCAN = "manual"


class DeviceBinder:
    """
    Matches devices with drivers by a plan.

    Call :meth:`hold_back` before modules are loaded and after each one: a bus
    may be in a module. Call :meth:`bind` whenever something may have turned up.

    Parameters
    ----------
    plan : DevicePlan
        In its paths a ``*`` stands for a number that is another one after each boot:
        ``pci0000:00/0000:00:05.0/virtio*/host*/target*:0:1/*:0:1:0``.
    sysfs : Path
        Where it is mounted.
    timeout_s : float
        For each driver's probe; one that takes longer is taken for hung, and told.
    """

    def __init__(self, plan: DevicePlan, *, sysfs: Path = Path("/sys"), timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._plan = plan
        self._sysfs = sysfs
        self._timeout_s = timeout_s
        self._paths = [_split(path) for path in plan.sysfs_paths]
        self._tried: dict[Path, frozenset[str]] = {}
        self._scanned: set[tuple[Path, str]] = set()
        self._failures: list[str] = []
        self._pending: dict[Path, Call[object]] = {}
        self._lock = threading.Lock()

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each; a device that hangs is named here."""
        return list(self._failures)

    @property
    def pending(self) -> list[str]:
        """Names of devices whose probe has not come to an end."""
        return [place.name for place in list(self._pending)]

    def hold_back(self) -> None:
        """Let no bus match devices with drivers by itself; does nothing where the plan wants all."""
        if self._plan.bind_all:
            return
        with suppress(OSError):
            for bus in sorted((self._sysfs / "bus").iterdir()):
                if bus.name not in _LEFT_ALONE:
                    _write(bus / "drivers_autoprobe", "0")
        if any(_find_scsi_address(parts) for parts in self._paths):
            # Hosts of SCSI ask every address they have, unless told which: it hangs where one does.
            _write(self._sysfs / "module/scsi_mod/parameters/scan", _MANUAL_SCAN)

    def bind(self) -> int:
        """
        Match what the plan names and what is below it, as far as it is there.

        Returns
        -------
        int
            How many devices have got a driver by this.
        """
        if self._plan.bind_all:
            return 0
        # Several targets look for their devices at the same time.
        with self._lock:
            self._look_after_pending()
            bound = 0
            for parts in self._paths:
                for place in self._walk(parts, (self._sysfs / "devices").resolve()):
                    bound += self._bind_tree(place)
            return bound

    def wait(self, deadline_s: float | None = None) -> list[str]:
        """
        Bind until all that the plan names is there, and has a driver.

        Parameters
        ----------
        deadline_s : float, optional
            How long to wait; without it what the plan says.

        Returns
        -------
        list of str
            The paths that are not there.
        """
        end = time.monotonic() + (self._plan.wait_s if deadline_s is None else deadline_s)
        while True:
            self.bind()
            root = (self._sysfs / "devices").resolve()
            missing = [
                path
                for path, parts in zip(self._plan.sysfs_paths, self._paths, strict=True)
                if not any(_match(parts, root))
            ]
            if not missing or time.monotonic() >= end:
                return missing
            time.sleep(0.1)

    def _walk(self, parts: list[str], root: Path) -> list[Path]:
        """Go down a path, matching each component; return the places where it ends."""
        places = [root]
        for number, part in enumerate(parts):
            upcoming: list[Path] = []
            for place in places:
                upcoming += _find_children(place, part)
            for place in upcoming:
                self._match_one(place)
                self._scan(place, parts[number:])
                self._match_usb_interfaces(place)
            places = upcoming
        return places

    def _bind_tree(self, top: Path) -> int:
        """Match a device and all below it, as often as there is something new."""
        bound = 0
        for _ in range(_MAX_DEPTH):
            before = bound
            for device in _list_devices(top):
                bound += self._match_one(device)
            if bound == before:
                break
        return bound

    def _match_one(self, device: Path) -> bool:
        """Match one device, unless it has a driver, or has been tried with those that there are."""
        subsystem = _read_link(device / "subsystem")
        bus = self._sysfs / "bus" / subsystem
        if not subsystem or (device / "driver").exists() or not (bus / "drivers_probe").exists():
            return False
        drivers = _list_names(bus / "drivers")
        if self._tried.get(device) == drivers:
            return False
        self._tried[device] = drivers
        for supplier in self._find_suppliers(device):
            self._match_one(supplier)
        self._probe(bus, device)
        return (device / "driver").exists()

    def _probe(self, bus: Path, device: Path) -> None:
        self._write(bus / "drivers_probe", device.name, place=device, doing=f"the driver's probe of {device.name}")

    def _write(self, file: Path, text: str, *, place: Path, doing: str) -> None:
        """Write to a file of sysfs on a thread of its own, and wait for it no longer than it is worth."""
        if place in self._pending:
            return
        call: Call[object] = Call(lambda: file.write_text(text), doing=doing)
        self._pending[place] = call
        call.wait(min(_PATIENCE_S, self._timeout_s))
        self._look_after_pending()

    def _look_after_pending(self) -> None:
        """Take note of what has come to an end, or never will."""
        for place, call in list(self._pending.items()):
            if not call.is_over:
                if call.age_s >= self._timeout_s and not call.is_given_up:
                    call.is_given_up = True
                    self._failures.append(f"{call.doing} takes longer than {self._timeout_s:g} s, left behind")
                continue
            del self._pending[place]
            if call.error is not None:
                reason = (getattr(call.error, "strerror", None) or str(call.error)).lower()
                self._failures.append(f"{call.doing}: {reason}")

    def _find_suppliers(self, device: Path) -> list[Path]:
        """Find what a device needs first: clocks and regulators of small boards."""
        found: list[Path] = []
        with suppress(OSError):
            for link in sorted(device.iterdir()):
                if link.name.startswith("supplier:") and len(found) < _MAX_SUPPLIERS:
                    found.append((link / "supplier").resolve())
        return [supplier for supplier in found if supplier not in self._tried]

    def _scan(self, place: Path, parts: list[str]) -> None:
        """Let a SCSI host look at the one address that the path goes on to."""
        address = _find_scsi_address(parts[1:]) if fnmatchcase(place.name, "host[0-9]*") else None
        scan = place / "scsi_host" / place.name / "scan"
        if address is None or (place, address) in self._scanned or not scan.exists():
            return
        self._scanned.add((place, address))
        self._write(scan, address, place=scan, doing=f"looking for {address} at {place.name}")

    def _match_usb_interfaces(self, place: Path) -> None:
        """Match a hub's interface, which is not on the path: without it nothing behind the hub is seen."""
        if _read_link(place / "subsystem") == "usb":
            for child in _find_children(place, "*:*"):
                self._match_one(child)


def _split(path: str) -> list[str]:
    return [part for part in path.removeprefix("/sys/").removeprefix("devices/").split("/") if part]


def _match(parts: list[str], root: Path) -> list[Path]:
    places = [root]
    for part in parts:
        places = [child for place in places for child in _find_children(place, part)]
    return places


def _find_children(place: Path, part: str) -> list[Path]:
    if "*" not in part:
        child = place / part
        return [child] if part != ".." and child.is_dir() and not child.is_symlink() else []
    try:
        names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [place / name for name in names if fnmatchcase(name, part)]


def _find_scsi_address(parts: list[str]) -> str | None:
    """Find ``CHANNEL TARGET LUN`` in the component of a path that is a SCSI device."""
    for part in parts:
        found = _SCSI_DEVICE.fullmatch(part)
        if found and "*" not in found[1] + found[2] + found[3]:
            return " ".join(found.groups())
    return None


def _list_devices(top: Path) -> list[Path]:
    """List a device and those below it, parents first: directories that have a subsystem."""
    found: list[Path] = []
    upcoming = [(top, 0)]
    while upcoming and len(found) < _MAX_DEVICES:
        place, depth = upcoming.pop(0)
        if (place / "subsystem").is_symlink():
            found.append(place)
        if depth >= _MAX_DEPTH:
            continue
        with suppress(OSError), os.scandir(place) as entries:
            upcoming += sorted(
                (place / entry.name, depth + 1) for entry in entries if entry.is_dir(follow_symlinks=False)
            )
    return found


def _list_names(directory: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in directory.iterdir())
    except OSError:
        return frozenset()


def _read_link(path: Path) -> str:
    """Give the last component of what a link points to."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write to a file of sysfs; one that is not there, or takes nothing, is of no use to us."""
    with suppress(OSError):
        path.write_text(text)
