"""How the saver is to find a block device of this machine again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from postpanic.capture.config import DeviceName
from postpanic.capture.resolve.mounts import Mount
from postpanic.capture.resolve.sysfs import Stack, find_stack, list_places, list_stacks, read_value, stable_path
from postpanic.errors import NotReadyError, OutputError
from postpanic.saver.blocks import BlockDevice, BlockFinder, describe_plan, list_block_devices
from postpanic.saver.plan import BlockPlan
from postpanic.saver.superblocks import Superblock

__all__ = ["FoundDevice", "LocalBlocks", "describe_found"]

_BY_TAG = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}
_DIRECTORIES = {directory: tag for tag, directory in _BY_TAG.items()}

_ADVICE = (
    "the capture image opens disks, partitions and btrfs, nothing that is stacked on them; "
    "save to a partition of a disk or to a server, or let the distribution's image open it: "
    '[capture] image = "dracut" or "initramfs-tools"'
)


@dataclass(frozen=True)
class FoundDevice:
    """
    A block device of this machine, and how to find it again.

    Attributes
    ----------
    devices : tuple of BlockDevice
        More than one for a btrfs of several devices.
    plan : BlockPlan
        By which the saver finds it.
    superblock : Superblock
        What is on it.
    """

    devices: tuple[BlockDevice, ...]
    plan: BlockPlan
    superblock: Superblock


class LocalBlocks:
    """
    The block devices of this machine.

    Parameters
    ----------
    root : Path
        Below which /sys and /dev are.
    allows_stacks : bool
        Whether what is between a device and the disks is somebody else's business.
    """

    def __init__(self, root: Path = Path("/"), *, allows_stacks: bool = False) -> None:
        self._allows_stacks = allows_stacks
        self.sysfs = root / "sys"
        self._dev = root / "dev"
        self._finder = BlockFinder(sysfs=self.sysfs, dev=self._dev)
        self.is_offline = not (self.sysfs / "class/block").is_dir()

    def find_by_name(self, name: DeviceName, *, where: str) -> FoundDevice:
        """
        Find the device that the configuration names.

        Raises
        ------
        NotReadyError
            If there is none or more than one, it is one that the saver cannot
            open, or what is on it cannot be read.
        """
        plan, path = self._plan_of(name)
        if self.is_offline:
            # Of another machine's files: what is on its disks is not known here.
            return FoundDevice((), plan if path is None else BlockPlan(name=str(path)), Superblock())
        if path is not None:
            device = self._find_by_path(path, where=where)
            return self._describe(device, (device,), where=where)
        try:
            devices = self._finder.find_all(plan, where=where)
        except OutputError as exc:
            raise NotReadyError(exc.message, where=where, hint=_privilege_hint()) from exc
        for device in devices:
            self._refuse_stack(device, where)
        superblock = self._read_superblock(devices[0], where)
        if len(devices) > 1 and superblock.kind != "btrfs":
            names = ", ".join(device.name for device in devices)
            raise NotReadyError(f"more than one device has {name}: {names}", where=where, hint="name it by PARTUUID")
        # As the user has said it: what else is known may change with his consent.
        return FoundDevice(tuple(devices), plan, superblock)

    def find_by_mount(self, mount: Mount, *, where: str) -> FoundDevice:
        """
        Find the device of a file system that is mounted.

        Raises
        ------
        NotReadyError
            As for :meth:`find_by_name`.
        """
        names = self._list_names(mount)
        devices = [device for device in list_block_devices(self.sysfs, self._dev) if device.name in names]
        if not devices:
            raise NotReadyError(
                f"{mount.directory} is {mount.filesystem} from {mount.source}, no block device of this machine",
                where=where,
                hint=_mount_hint(mount),
            )
        for device in devices:
            self._refuse_stack(device, where)
        return self._describe(devices[0], tuple(devices), where=where)

    def is_found_again(self, found: FoundDevice) -> bool:
        """Tell whether the plan finds the device, and no other, here and now."""
        try:
            devices = self._finder.find_all(found.plan)
        except OutputError:
            return False
        return {device.name for device in devices} == {device.name for device in found.devices}

    def list_places(self, found: FoundDevice) -> list[Path]:
        """List the directories in sysfs whose drivers are needed."""
        return [place for device in found.devices for place in list_places(device.disk_sysfs, self.sysfs)]

    def list_stacks(self, found: FoundDevice) -> list[Stack]:
        """List what is between the devices and their disks."""
        return [stack for device in found.devices for stack in list_stacks(device.sysfs, self.sysfs)]

    def _plan_of(self, name: DeviceName) -> tuple[BlockPlan, Path | None]:
        tag, value = name.tag, name.value
        if tag == "path":
            parts = value.split("/")
            if len(parts) == 5 and parts[2] == "disk" and parts[3] in _DIRECTORIES:
                tag, value = _DIRECTORIES[parts[3]], _decode_udev(parts[4])
        plans = {
            "UUID": BlockPlan(uuid=value),
            "LABEL": BlockPlan(label=value),
            "PARTUUID": BlockPlan(part_uuid=value),
            "PARTLABEL": BlockPlan(part_label=value),
        }
        return (plans[tag], None) if tag in plans else (BlockPlan(), Path(value))

    def _find_by_path(self, path: Path, *, where: str) -> BlockDevice:
        real = (self._dev / path.relative_to("/dev")).resolve()
        for device in list_block_devices(self.sysfs, self._dev):
            if device.path.resolve() == real:
                self._refuse_stack(device, where)
                return device
        raise NotReadyError(f"there is no block device {path}", where=where, hint="lsblk lists those there are")

    def _list_names(self, mount: Mount) -> set[str]:
        """List the devices of a file system, by number, by what was mounted, or by what btrfs says of itself."""
        if mount.filesystem == "btrfs":
            return self._list_btrfs(mount)
        directory = self.sysfs / "dev/block" / mount.device
        return {directory.resolve().name} if directory.exists() else set()

    def _list_btrfs(self, mount: Mount) -> set[str]:
        name = (
            (self._dev / mount.source.removeprefix("/dev/")).resolve().name if mount.source.startswith("/dev/") else ""
        )
        for members in (self.sysfs / "fs/btrfs").glob("*-*/devices"):
            names = {entry.name for entry in members.iterdir()}
            if name in names:
                return names
        return {name} if name else set()

    def _describe(self, device: BlockDevice, devices: tuple[BlockDevice, ...], *, where: str) -> FoundDevice:
        superblock = self._read_superblock(device, where)
        for plan in self._list_plans(device, superblock):
            found = FoundDevice(devices, plan, superblock)
            if self.is_found_again(found):
                return found
        raise NotReadyError(
            f"nothing tells {device.name} from the other block devices, whatever name it gets",
            where=where,
            hint="give it a label, or a partition table with UUIDs",
        )

    def _list_plans(self, device: BlockDevice, superblock: Superblock) -> Iterator[BlockPlan]:
        """List ways to name a device, those first that depend on the fewest things."""
        part_uuid = self._read_part_uuid(device)
        base = BlockPlan(uuid=superblock.uuid)
        if superblock.uuid:
            yield base
        if part_uuid:
            yield replace(base, part_uuid=part_uuid)
        if superblock.label and not superblock.uuid:
            yield BlockPlan(label=superblock.label)
        disk = device.disk_sysfs
        for name in ("serial", "device/serial", "wwid", "device/wwid"):
            if read_value(disk / name):
                yield replace(base, serial=read_value(disk / name), partition=device.partition)
        path = stable_path(disk, self.sysfs)
        if path:
            yield replace(base, sysfs_path=path, partition=device.partition)

    def _read_part_uuid(self, device: BlockDevice) -> str:
        for line in read_value(device.sysfs / "uevent").splitlines():
            if line.startswith("PARTUUID="):
                return line[9:]
        links = self._dev / "disk/by-partuuid"
        try:
            names = sorted(links.iterdir())
        except OSError:
            return ""
        return next((link.name for link in names if link.resolve() == device.path.resolve()), "")

    def _read_superblock(self, device: BlockDevice, where: str) -> Superblock:
        try:
            return self._finder.read_superblock(device)
        except OutputError as exc:
            raise NotReadyError(exc.message, where=where, hint=_privilege_hint()) from exc

    def _refuse_stack(self, device: BlockDevice, where: str) -> None:
        stack = find_stack(device.sysfs, self.sysfs)
        if stack is not None and not self._allows_stacks:
            raise NotReadyError(f"{stack.description} ({stack.kind})", where=where, hint=_ADVICE)


def describe_found(found: FoundDevice) -> str:
    """Name a device and how it will be found: ``vda1, found again by UUID=…``."""
    names = " and ".join(device.name for device in found.devices) or "a device that is not looked for here"
    return f"{names}, found again by {describe_plan(found.plan)}"


def _privilege_hint() -> str:
    return "" if os.geteuid() == 0 else "only root may read what is on a disk"


def _mount_hint(mount: Mount) -> str:
    if mount.filesystem in {"nfs", "nfs4"}:
        server, _, export = mount.source.partition(":")
        return f'write it as kind = "nfs", server = "{server}", export = "{export}"'
    if mount.filesystem == "overlay":
        return "a live system keeps nothing: name a disk's directory, or a server"
    return "name a directory on a disk, or a device"


def _decode_udev(name: str) -> str:
    r"""Undo what udev does to labels in /dev/disk: ``\x20``."""
    parts = name.split("\\x")
    text = parts[0].encode()
    for part in parts[1:]:
        try:
            text += bytes.fromhex(part[:2]) + part[2:].encode()
        except ValueError:
            return name
    return text.decode(errors="replace")
