"""
Find a block device again, whatever name it has this time.

What the kernel tells of all devices (sysfs) narrows the choice down first;
only what is left is read, all of it at once, so that a device that hangs costs
the others little: it is left alone, and named when nothing else is found.

Sources: ``Documentation/ABI/stable/sysfs-block``; ``block/partitions/{efi,msdos}.c``
and UEFI 2.10, chapter 5, for the UUIDs of partitions; ``drivers/scsi/scsi_sysfs.c``
(wwid, vpd_pg80), ``drivers/nvme/host/sysfs.c``.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from postpanic.errors import OutputError
from postpanic.saver.deadlines import Call, call_with_deadline
from postpanic.saver.plan import BlockPlan
from postpanic.saver.superblocks import Superblock, read_at, read_superblock

__all__ = ["BlockDevice", "BlockFinder", "describe_plan", "list_block_devices"]

_Found = TypeVar("_Found")

READ_TIMEOUT_S = 10.0
_POLL_S = 0.2
_PATIENCE_S = 1.0
"""For devices that take their time, when another one fits already."""
_SECTOR_BYTES = 512
_MAX_SHOWN = 8
_GPT_LIMIT_BYTES = 1 << 20

# Opening these takes seconds, or is of no use: ram, fd, loop without a file, sr, mtdblock.
_IGNORED_MAJORS = frozenset({1, 2, 11, 31})


@dataclass(frozen=True)
class BlockDevice:
    """
    A block device that has a driver.

    Attributes
    ----------
    name : str
        The kernel's: ``vda1``.
    path : Path
        Its node: ``/dev/vda1``.
    sysfs : Path
        Its directory below ``/sys/devices``.
    disk : str
        The name of the whole disk.
    partition : int
        0 is the whole disk.
    """

    name: str
    path: Path
    sysfs: Path
    disk: str
    size_bytes: int
    partition: int = 0
    is_read_only: bool = False

    @property
    def disk_sysfs(self) -> Path:
        """The directory of the whole disk."""
        return self.sysfs.parent if self.partition else self.sysfs


def list_block_devices(sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[BlockDevice]:
    """List the block devices that have a medium, by name; touches none of them."""
    found: list[BlockDevice] = []
    try:
        names = sorted(entry.name for entry in (sysfs / "class/block").iterdir())
    except OSError:
        return []
    for name in names:
        directory = (sysfs / "class/block" / name).resolve()
        major = _read(directory / "dev").partition(":")[0]
        sectors = _read(directory / "size")
        if not major.isdigit() or not sectors.isdigit() or int(sectors) == 0 or int(major) in _IGNORED_MAJORS:
            continue
        if _read(directory / "hidden") == "1":
            # A path to a namespace of NVMe that has several; it has no node.
            continue
        number = _read(directory / "partition")
        partition = int(number) if number.isdigit() else 0
        found.append(
            BlockDevice(
                name=name,
                # A ! in sysfs is a / in /dev: cciss/c0d0.
                path=dev / name.replace("!", "/"),
                sysfs=directory,
                disk=directory.parent.name if partition else name,
                size_bytes=int(sectors) * _SECTOR_BYTES,
                partition=partition,
                is_read_only=_read(directory / "ro") == "1",
            )
        )
    return found


class BlockFinder:
    """
    Finds block devices by a plan.

    Parameters
    ----------
    poll : callable, optional
        Called before each look: binds what has turned up meanwhile.
    sysfs, dev : Path
        Where they are mounted.
    read_timeout_s : float
        For the first bytes of a device; one that takes longer is taken for hung.
    """

    def __init__(
        self,
        poll: Callable[[], object] | None = None,
        *,
        sysfs: Path = Path("/sys"),
        dev: Path = Path("/dev"),
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._poll = poll
        self._sysfs = sysfs
        self._dev = dev
        self._read_timeout_s = read_timeout_s
        self._calls: dict[str, Call[Superblock | str]] = {}

    def find(self, plan: BlockPlan, *, wait_s: float = 0.0, where: str = "") -> BlockDevice:
        """
        Find the device of a plan, and wait for it.

        Parameters
        ----------
        where : str
            The target, for messages.

        Raises
        ------
        OutputError
            If it does not turn up, or more than one fits; says what there is.
        """
        devices = self.find_all(plan, wait_s=wait_s, where=where)
        if len(devices) > 1:
            names = ", ".join(device.name for device in devices)
            raise OutputError(f"more than one block device has {describe_plan(plan)}: {names}", where=where)
        return devices[0]

    def find_all(self, plan: BlockPlan, *, wait_s: float = 0.0, where: str = "") -> list[BlockDevice]:
        """
        Find all devices of a plan: a file system may be on several.

        Raises
        ------
        OutputError
            If there is none in time; says what there is.
        """
        if plan == BlockPlan() or plan == BlockPlan(partition=plan.partition):
            raise OutputError("nothing is said of the block device that is wanted", where=where)
        # Not lasting: what was found on a device may have changed since, by us.
        self._calls = {key: call for key, call in self._calls.items() if not call.is_over}
        deadline = time.monotonic() + wait_s
        while True:
            if self._poll is not None:
                self._poll()
            devices = [device for device in list_block_devices(self._sysfs, self._dev) if self._fits(device, plan)]
            for device in devices:
                self._begin_reading(device, plan)
            is_settled = self._settle()
            found = [device for device in devices if self._matches(device, plan)]
            if found:
                return found
            if is_settled and time.monotonic() >= deadline:
                raise OutputError(self._explain(plan, wait_s), where=where)
            time.sleep(_POLL_S)

    def read_superblock(self, device: BlockDevice) -> Superblock:
        """
        Read what is on a device.

        Raises
        ------
        OutputError
            If it cannot be read, or does not answer.
        """

        def call() -> Superblock:
            return _read_device(device.path, lambda fd: read_superblock(fd, device.size_bytes))

        try:
            return call_with_deadline(call, self._read_timeout_s, doing=f"reading {device.name}")
        except OSError as exc:
            raise OutputError(f"cannot read {device.path}: {(exc.strerror or str(exc)).lower()}") from exc

    def _fits(self, device: BlockDevice, plan: BlockPlan) -> bool:
        """Tell whether a device may be meant, by what can be known without touching it."""
        if plan.serial or plan.sysfs_path:
            if device.partition != plan.partition:
                return False
            if plan.serial and _squeeze(plan.serial) not in _read_serials(device):
                return False
            if plan.sysfs_path and not _is_below(device, plan.sysfs_path, self._sysfs):
                return False
        if plan.name and plan.name.removeprefix("/dev/") not in _names(device):
            return False
        if plan.part_label and _read_uevent(device).get("PARTNAME", "") != plan.part_label:
            return False
        if plan.part_uuid and not device.partition:
            return False
        # Of a disk that is part of something else the something else is wanted: multipath, RAID.
        return not ((plan.uuid or plan.label) and _has_holders(device))

    def _begin_reading(self, device: BlockDevice, plan: BlockPlan) -> None:
        if plan.uuid or plan.label:
            self._begin(f"superblock {device.name}", device.path, lambda fd: read_superblock(fd, device.size_bytes))
        # Since Linux 6.9 the kernel tells.
        if plan.part_uuid and "PARTUUID" not in _read_uevent(device):
            text = _read(device.disk_sysfs / "queue/logical_block_size")
            block_bytes = int(text) if text.isdigit() else _SECTOR_BYTES
            path = self._dev / device.disk.replace("!", "/")
            self._begin(f"table {device.name}", path, lambda fd: _read_table(fd, block_bytes, device.partition))

    def _begin(self, key: str, path: Path, read: Callable[[int], Superblock | str]) -> None:
        """Read from a device, unless that is done or being done; what failed is tried again: it may not be ready."""
        call = self._calls.get(key)
        if call is None or call.error is not None:
            self._calls[key] = Call(lambda: _read_device(path, read), doing=f"reading {path.name}")

    def _settle(self) -> bool:
        """Wait a little for all that is being read; tell whether nothing more is to be expected."""
        end = time.monotonic() + _PATIENCE_S
        for call in self._calls.values():
            if not call.is_given_up:
                call.wait(max(min(end - time.monotonic(), self._read_timeout_s - call.age_s), 0))
                call.is_given_up = not call.is_over and call.age_s >= self._read_timeout_s
        return all(call.is_over or call.is_given_up for call in self._calls.values())

    def _result(self, key: str) -> Superblock | str | None:
        call = self._calls.get(key)
        return call.results[0] if call is not None and call.is_over and call.results else None

    def _matches(self, device: BlockDevice, plan: BlockPlan) -> bool:
        """Tell whether a device that may be meant is, by what was read from it."""
        if plan.part_uuid:
            found = _read_uevent(device).get("PARTUUID") or self._result(f"table {device.name}")
            if not isinstance(found, str) or found.lower() != plan.part_uuid.lower():
                return False
        if not plan.uuid and not plan.label:
            return True
        superblock = self._result(f"superblock {device.name}")
        return (
            isinstance(superblock, Superblock)
            and (not plan.uuid or superblock.uuid.lower() == plan.uuid.lower())
            and (not plan.label or superblock.label == plan.label)
        )

    def _explain(self, plan: BlockPlan, wait_s: float) -> str:
        """Tell what was looked for, and what there is."""
        devices = list_block_devices(self._sysfs, self._dev)
        shown = [self._describe(device) for device in devices[:_MAX_SHOWN]]
        if len(devices) > _MAX_SHOWN:
            shown.append(f"and {len(devices) - _MAX_SHOWN} more")
        waited = f" within {wait_s:g} s" if wait_s else ""
        there = f"there are {', '.join(shown)}" if shown else "there is no block device at all"
        hung = {call.doing for call in self._calls.values() if call.is_given_up and not call.is_over}
        failed = "".join(f"; {doing} takes longer than {self._read_timeout_s:g} s" for doing in sorted(hung))
        return f"no block device with {describe_plan(plan)}{waited}; {there}{failed}"

    def _describe(self, device: BlockDevice) -> str:
        superblock = self._result(f"superblock {device.name}")
        if not isinstance(superblock, Superblock) or not superblock.kind:
            return device.name
        return f"{device.name} ({superblock.kind}{f' {superblock.uuid}' if superblock.uuid else ''})"


def describe_plan(plan: BlockPlan) -> str:
    """Name a device as a plan does: ``UUID=… on partition 1 of serial …``."""
    words = {
        "UUID": plan.uuid,
        "LABEL": plan.label,
        "PARTUUID": plan.part_uuid,
        "PARTLABEL": plan.part_label,
        "serial": plan.serial,
        "path": plan.sysfs_path,
        "name": plan.name,
    }
    parts = [f"{key}={value}" for key, value in words.items() if value]
    if plan.partition:
        parts.append(f"partition {plan.partition}")
    return " ".join(parts)


def _read_device(path: Path, read: Callable[[int], _Found]) -> _Found:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read(fd)
    finally:
        os.close(fd)


def _read(path: Path) -> str:
    """Read a small file of sysfs; empty if it is not there."""
    try:
        with path.open("rb") as stream:
            return stream.read(4096).decode(errors="replace").strip()
    except OSError:
        return ""


def _read_uevent(device: BlockDevice) -> dict[str, str]:
    lines = (line.partition("=") for line in _read(device.sysfs / "uevent").splitlines())
    return {key: value for key, _, value in lines}


def _names(device: BlockDevice) -> tuple[str, ...]:
    mapped = _read(device.sysfs / "dm/name")
    return (device.name, str(device.path).removeprefix("/dev/"), *([f"mapper/{mapped}"] if mapped else []))


def _has_holders(device: BlockDevice) -> bool:
    try:
        return any((device.sysfs / "holders").iterdir())
    except OSError:
        return False


def _squeeze(text: str) -> str:
    """Take blanks out of a serial number, which some tools replace by underscores."""
    return "".join(text.replace("_", " ").split())


def _read_serials(device: BlockDevice) -> set[str]:
    """Collect all that may be meant by a disk's serial number."""
    disk = device.disk_sysfs
    names = ("serial", "device/serial", "device/wwid", "wwid", "device/cid")
    found = {_squeeze(_read(disk / name)) for name in names}
    with suppress(OSError), (disk / "device/vpd_pg80").open("rb") as stream:
        # SPC-4, unit serial number page: four bytes of header.
        found.add(_squeeze(stream.read(256)[4:].decode(errors="replace")))
    mapped = _read(disk / "dm/uuid")
    return (found | {_squeeze(mapped)}) - {""}


def _is_below(device: BlockDevice, path: str, sysfs: Path) -> bool:
    """Tell whether a disk is what a path names, or below it; a ``*`` stands for the numbers of one component."""
    root = (sysfs / "devices").resolve()
    wanted = [part for part in path.removeprefix("/sys/").removeprefix("devices/").split("/") if part]
    places = [device.disk_sysfs]
    subsystem = device.disk_sysfs.parent
    if subsystem.parent.name == "nvme-subsystem":
        # A namespace of NVMe that several controllers may have is nobody's child; its subsystem links to them.
        with suppress(OSError):
            places += [entry.resolve() for entry in subsystem.iterdir() if entry.name.startswith("nvme")]
    for place in places:
        try:
            parts = place.relative_to(root).parts
        except ValueError:
            continue
        if len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


def _read_table(fd: int, block_bytes: int, partition: int) -> str:
    """
    Find a partition's UUID in the disk's table.

    GPT: header in block 1, entries from the block at 72 on, their number and size at 80 and 84; the unique GUID at 16
    of each. MBR: the disk's signature at 440, and the partition's number (``block/partitions/msdos.c``).
    """
    head = read_at(fd, 0, 2 * block_bytes)
    header = head[block_bytes:]
    if header[:8] == b"EFI PART":
        (first,) = struct.unpack_from("<Q", header, 72)
        count, size = struct.unpack_from("<II", header, 80)
        if not 128 <= size <= 4096 or partition > min(count, _GPT_LIMIT_BYTES // size):
            return ""
        entry = read_at(fd, first * block_bytes + (partition - 1) * size, 128)
        a, b, c = struct.unpack_from("<IHH", entry, 16)
        return f"{a:08x}-{b:04x}-{c:04x}-{entry[24:26].hex()}-{entry[26:32].hex()}"
    if head[510:512] != b"\x55\xaa":
        return ""
    (signature,) = struct.unpack_from("<I", head, 440)
    return f"{signature:08x}-{partition:02x}"
