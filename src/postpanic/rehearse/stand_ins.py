"""
Disks that stand in for the real targets: the same file system, size and identifiers, and nothing of the content.

They are sparse files. The controller is of the driver that the host's disk has,
where QEMU emulates it; where it does not, the disk is a virtio one, and the
rehearsal says that this controller is not proven.

Sources: QEMU's ``-device help``; the kernel's Kconfig help of each driver;
sfdisk(8); the mkfs programs' manuals.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from postpanic.errors import NotReadyError
from postpanic.process import run
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.requirements import find_needed
from postpanic.saver.plan import BlockPlan, FilePlan, RawPlan

__all__ = ["CONTROLLERS", "Controller", "StandIn", "choose_controller", "make_stand_in", "spell_disks"]

_PARTITION_START_BYTES = 1 << 20
_TABLE_ROOM_BYTES = 2 << 20
_LEAST_BYTES = {"xfs": 300 << 20, "btrfs": 256 << 20}


@dataclass(frozen=True)
class Controller:
    """
    A kind of disk controller.

    Attributes
    ----------
    driver : str
        The kernel module that drives it.
    modules : tuple of str
        All that a kernel needs to reach a disk there.
    bus : tuple of str
        Words for QEMU that make the controller, once.
    disk : str
        The device for each disk, with ``{n}`` for its number.
    """

    driver: str
    modules: tuple[str, ...]
    bus: tuple[str, ...]
    disk: str


CONTROLLERS: dict[str, Controller] = {
    one.driver: one
    for one in (
        Controller("virtio_blk", ("virtio_pci", "virtio_blk"), (), "virtio-blk-pci,drive=disk{n},serial={serial}"),
        Controller("nvme", ("nvme",), (), "nvme,drive=disk{n},serial={serial}"),
        Controller(
            "virtio_scsi",
            ("virtio_pci", "virtio_scsi", "sd_mod"),
            ("-device", "virtio-scsi-pci,id=hba"),
            "scsi-hd,bus=hba.0,drive=disk{n},serial={serial}",
        ),
        Controller(
            "megaraid_sas",
            ("megaraid_sas", "sd_mod"),
            ("-device", "megasas-gen2,id=hba"),
            "scsi-hd,bus=hba.0,drive=disk{n},serial={serial}",
        ),
        Controller(
            "vmw_pvscsi",
            ("vmw_pvscsi", "sd_mod"),
            ("-device", "pvscsi,id=hba"),
            "scsi-hd,bus=hba.0,drive=disk{n},serial={serial}",
        ),
        Controller(
            "ahci",
            ("ahci", "sd_mod"),
            ("-device", "ich9-ahci,id=hba"),
            "ide-hd,bus=hba.{n},drive=disk{n},serial={serial}",
        ),
    )
}


@dataclass(frozen=True)
class StandIn:
    """
    A disk that stands in.

    Attributes
    ----------
    path : Path
        Its image.
    serial : str
        Of the whole disk, as the plan names it, else one of our own.
    form : str
        ``raw``, or ``qcow2`` where it lies over another image.
    """

    path: Path
    serial: str
    form: Literal["raw", "qcow2"] = "raw"


def choose_controller(modules: Iterable[str]) -> Controller | None:
    """
    Return the controller that one of these drivers is for; None: QEMU emulates none of them.

    >>> choose_controller(["ext4", "nvme"]).driver
    'nvme'
    """
    names = {name.replace("-", "_") for name in modules}
    return next((one for driver, one in CONTROLLERS.items() if driver in names), None)


def make_stand_in(plan: FilePlan | RawPlan, size_bytes: int, path: Path) -> StandIn:
    """
    Make a disk for a target.

    Parameters
    ----------
    size_bytes : int
        Of the file system; the disk is larger by its partition table, if there is one.

    Raises
    ------
    NotReadyError
        If there is no program that makes such a file system.
    ProcessError
        If it fails.
    """
    device = plan.device
    serial = "".join(device.serial.split())[:20] or f"rehearsal-{path.stem}"[:20]
    if isinstance(plan, FilePlan):
        size_bytes = max(size_bytes, _LEAST_BYTES.get(plan.filesystem, 64 << 20))
        make_empty_disk(path, size_bytes)
        run(_spell_mkfs(plan.filesystem, device, path))
    else:
        make_empty_disk(path, size_bytes)
        if plan.swap:
            words = ["-U", device.uuid] if device.uuid else []
            words += ["-L", device.label] if device.label else []
            run([find_needed("mkswap", "util-linux"), *words, path])
    if device.part_uuid or device.part_label or device.partition:
        _put_into_partition(device, path)
    return StandIn(path, serial)


def _spell_mkfs(filesystem: str, device: BlockPlan, path: Path) -> list[str | Path]:
    uuid, label = device.uuid, device.label
    if filesystem in {"ext2", "ext3", "ext4"}:
        words: list[str | Path] = [find_needed("mke2fs", "e2fsprogs"), "-q", "-F", "-t", filesystem]
        words += ["-E", "root_owner=0:0,nodiscard"]
        words += ["-U", uuid] if uuid else []
        words += ["-L", label] if label else []
    elif filesystem == "xfs":
        words = [find_needed("mkfs.xfs", "xfsprogs"), "-q", "-f", "-K"]
        words += ["-m", f"uuid={uuid}"] if uuid else []
        words += ["-L", label] if label else []
    elif filesystem == "btrfs":
        words = [find_needed("mkfs.btrfs", "btrfs-progs"), "-q", "-f", "-K"]
        words += ["-U", uuid] if uuid else []
        words += ["-L", label] if label else []
    elif filesystem in {"vfat", "msdos"}:
        words = [find_needed("mkfs.vfat", "dosfstools"), "-F", "32"]
        words += ["-i", uuid.replace("-", "")] if uuid else []
        words += ["-n", label] if label else []
    else:
        raise NotReadyError(f"a stand-in with {filesystem} cannot be made", hint="ext2, ext3, ext4, xfs, btrfs, vfat")
    return [*words, path]


def _put_into_partition(device: BlockPlan, path: Path) -> None:
    """Make the image a disk whose only file system is in the partition that the plan names."""
    content = path.with_suffix(".part")
    path.rename(content)
    size = content.stat().st_size
    make_empty_disk(path, size + _PARTITION_START_BYTES + _TABLE_ROOM_BYTES)
    number = device.partition or 1
    fields = [f"start={_PARTITION_START_BYTES // 512}", f"size={size // 512}", "type=L"]
    fields += [f"uuid={device.part_uuid}"] if device.part_uuid else []
    fields += [f'name="{device.part_label}"'] if device.part_label else []
    script = f"label: gpt\nunit: sectors\n{number} : {', '.join(fields)}\n"
    run([find_needed("sfdisk", "fdisk"), "--quiet", path], stdin=script.encode())
    _copy_sparsely(content, path, _PARTITION_START_BYTES)
    content.unlink()


def _copy_sparsely(source: Path, target: Path, offset: int) -> None:
    with source.open("rb") as reader, target.open("r+b") as writer:
        size = os.fstat(reader.fileno()).st_size
        place = 0
        while place < size:
            try:
                start = os.lseek(reader.fileno(), place, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # nothing but a hole is left
                    return
                raise
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            while start < end:
                chunk = os.pread(reader.fileno(), min(end - start, 1 << 20), start)
                os.pwrite(writer.fileno(), chunk, offset + start)
                start += len(chunk)
            place = end


def spell_disks(controller: Controller, disks: Sequence[StandIn], first: int, drives: Sequence[str] = ()) -> list[str]:
    """
    Spell the words for QEMU that attach disks to a controller.

    Parameters
    ----------
    first : int
        Number of the first, for names that no other disk of the machine has.
    drives : sequence of str
        File and format of each, instead of those that it has.
    """
    words = [*controller.bus]
    for number, disk in enumerate(disks):
        drive = drives[number] if drives else f"file={disk.path},format={disk.form}"
        words += ["-drive", f"{drive},if=none,id=disk{first + number},cache=unsafe"]
        device = controller.disk.replace("hba.{n}", f"hba.{number}")
        words += ["-device", device.format(n=first + number, serial=disk.serial)]
    return words
