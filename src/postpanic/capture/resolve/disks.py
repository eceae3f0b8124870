"""Targets on disks of this machine: directories and raw devices."""

from __future__ import annotations

import os
from pathlib import Path

from postpanic.capture.config import FileTarget, RawTarget
from postpanic.capture.resolve.blocks import FoundDevice, LocalBlocks, describe_found
from postpanic.capture.resolve.drivers import filesystem_modules
from postpanic.capture.resolve.mounts import Mount, find_place, read_mounts
from postpanic.capture.resolve.needs import Needs
from postpanic.capture.resolve.settings import Settings, retention_of
from postpanic.errors import NotReadyError
from postpanic.saver.plan import FilePlan, RawPlan
from postpanic.saver.superblocks import RAW_DUMP_KIND
from postpanic.units import format_size

__all__ = ["FILESYSTEMS", "LocalDisks"]

FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"})


class LocalDisks:
    """
    Resolves targets on this machine's disks.

    Parameters
    ----------
    root : Path
        Below which /proc, /sys and /dev are.
    allows_stacks : bool
        Whether the image opens LVM and its like.
    """

    def __init__(self, root: Path, *, allows_stacks: bool = False) -> None:
        self._root = root
        self._blocks = LocalBlocks(root, allows_stacks=allows_stacks)
        self._mounts: list[Mount] | None = None

    def resolve_file(self, target: FileTarget, settings: Settings) -> tuple[FilePlan, Needs]:
        """
        Find the device and the directory in its file system.

        Raises
        ------
        NotReadyError
            If the path is on nothing that the saver can open.
        """
        where = f"file {target.path}"
        warnings: list[str] = []
        if target.device is None:
            place = find_place(target.path, self._list_mounts(), self._root, where=where)
            found = self._find_mounted(place.mount, where)
            filesystem, path, options = place.mount.filesystem, place.path, place.options
            warnings += self._check_room(target.path, where)
        else:
            where = f"file {target.path} of {target.device}"
            found = self._blocks.find_by_name(target.device, where=where)
            filesystem, path, options = target.filesystem or found.superblock.kind, target.path, ""
        _check_filesystem(filesystem, found, where)
        plan = FilePlan(
            name=where if target.device else f"{where} on {_device_name(found)}",
            device=found.plan,
            filesystem=filesystem,
            options=options if target.options is None else target.options,
            path=path,
            retention=retention_of(target),
            **settings,
        )
        needs = Needs(
            modules=tuple(filesystem_modules(filesystem)),
            places=tuple(self._blocks.list_places(found)),
            evidence=(f"{where}: {path} of the {filesystem} on {describe_found(found)}{self._describe_stacks(found)}",),
            warnings=(*warnings, *self._warn_of_stacks(found, where)),
        )
        return plan, needs

    def resolve_raw(self, target: RawTarget, settings: Settings) -> tuple[RawPlan, Needs]:
        """
        Find the device, and make sure that it may be overwritten.

        Raises
        ------
        NotReadyError
            If there is something on it that the configuration does not give up.
        """
        where = f"raw {target.device}"
        found = self._blocks.find_by_name(target.device, where=where)
        kind = found.superblock.kind
        if not found.devices:
            kind = "swap" if target.swap else ""
        if target.swap and kind not in {"swap", RAW_DUMP_KIND}:
            raise NotReadyError(
                f"is no swap area: {f'there is {kind} on it' if kind else 'nothing known is on it'}",
                where=where,
                hint="mkswap makes one; without swap = true a device must hold nothing that is known",
            )
        if not target.swap and kind not in {"", RAW_DUMP_KIND}:
            raise NotReadyError(
                f"there is {kind} on it, which a dump would overwrite",
                where=where,
                hint="for a swap area: swap = true; else wipefs, if nothing on it is needed" if kind == "swap" else "",
            )
        needs = Needs(
            places=tuple(self._blocks.list_places(found)),
            evidence=(f"{where}: {describe_found(found)}{self._describe_stacks(found)}",),
        )
        return RawPlan(name=where, device=found.plan, swap=target.swap, **settings), needs

    def _find_mounted(self, mount: Mount, where: str) -> FoundDevice:
        for option in mount.super_options:
            if mount.filesystem == "xfs" and option.startswith(("logdev=", "rtdev=")):
                raise NotReadyError(f"its file system has a part on another device ({option})", where=where)
        return self._blocks.find_by_mount(mount, where=where)

    def _describe_stacks(self, found: FoundDevice) -> str:
        return "".join(f", on {stack.kind}" for stack in self._blocks.list_stacks(found))

    def _warn_of_stacks(self, found: FoundDevice, where: str) -> list[str]:
        if not any(stack.kind == "LUKS" for stack in self._blocks.list_stacks(found)):
            return []
        opens = "the capture kernel opens the encrypted volume only by a key file in its image, or a TPM"
        return [f"{where}: {opens}: nobody is there to type a passphrase"]

    def _list_mounts(self) -> list[Mount]:
        if self._mounts is None:
            self._mounts = read_mounts(self._root)
        return self._mounts

    def _check_room(self, path: str, where: str) -> list[str]:
        """Say when there is hardly any room now."""
        directory = self._root / path.lstrip("/")
        while not directory.is_dir() and directory != directory.parent:
            directory = directory.parent
        try:
            free = os.statvfs(directory)
        except OSError:
            return []
        room = free.f_bavail * free.f_frsize
        return [f"{where}: only {format_size(room)} free"] if room < 256 << 20 else []


def _device_name(found: FoundDevice) -> str:
    plan = found.plan
    for tag, value in (("UUID", plan.uuid), ("LABEL", plan.label), ("PARTUUID", plan.part_uuid)):
        if value:
            return f"{tag}={value}"
    return found.devices[0].name if found.devices else plan.name


def _check_filesystem(filesystem: str, found: FoundDevice, where: str) -> None:
    kind = found.superblock.kind
    if not found.devices and not filesystem:
        raise NotReadyError("the file system on the device is not known", where=where, hint='filesystem = "ext4"')
    if filesystem not in FILESYSTEMS:
        what = f"is {filesystem}" if filesystem else "has no file system that is known"
        known = ", ".join(sorted(FILESYSTEMS))
        name = found.devices[0].name if found.devices else "the device"
        raise NotReadyError(f"{name} {what}, must be one of {known}", where=where)
    if kind and kind != filesystem and not (kind.startswith("ext") and filesystem.startswith("ext")):
        raise NotReadyError(f"there is {kind} on {found.devices[0].name}, not {filesystem}", where=where)
