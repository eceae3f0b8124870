"""A machine's /proc, /sys and /dev below a directory, shaped as the kernel shapes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

EXT4_UUID = "6f0cb1c4-6a39-4d8e-9d29-5a6f63bfa1d7"
SWAP_UUID = "0b5fdc4a-55f6-4a3f-8f5b-0e2f7f6f8a11"


class MachineTree:
    """Devices are added from the top down; each gets its driver, its node and its links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = root / "sys/devices"
        for name in ("sys/class/block", "sys/dev/block", "sys/bus", "sys/module", "dev", "proc/self", "etc"):
            (root / name).mkdir(parents=True)
        self.devices.mkdir()
        (root / "etc/hostname").write_text("crashy.example.org\n")
        self._minor = 0
        self._mounts: list[str] = []

    def add_device(
        self, path: str, *, driver: str = "", module: str = "", modalias: str = "", bus: str = "pci"
    ) -> Path:
        """Add a device; its module is built in if *module* is empty."""
        directory = self.devices / path
        directory.mkdir(parents=True, exist_ok=True)
        if modalias:
            (directory / "modalias").write_text(modalias + "\n")
        if driver:
            place = self.root / "sys/bus" / bus / "drivers" / driver
            place.mkdir(parents=True, exist_ok=True)
            (directory / "driver").symlink_to(place)
            if module:
                (self.root / "sys/module" / module).mkdir(exist_ok=True)
                if not (place / "module").exists():
                    (place / "module").symlink_to(self.root / "sys/module" / module)
        return directory

    def add_block(self, path: str, image: Path | None = None, *, partition: int = 0, **files: str) -> Path:
        """Add a block device that holds what a file does; *files* are attributes, ``__`` for a slash."""
        directory = self.devices / path
        directory.mkdir(parents=True)
        name = directory.name
        self._minor += 1
        number = f"254:{self._minor}"
        (directory / "dev").write_text(number + "\n")
        size = image.stat().st_size if image is not None else 1 << 20
        (directory / "size").write_text(f"{size // 512}\n")
        (directory / "holders").mkdir()
        (directory / "uevent").write_text(f"MAJOR=254\nDEVNAME={name}\n")
        if partition:
            (directory / "partition").write_text(f"{partition}\n")
        for attribute, content in files.items():
            place = directory / attribute.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content + "\n")
        (self.root / "sys/class/block" / name).symlink_to(directory)
        (self.root / "sys/dev/block" / number).symlink_to(directory)
        node = self.root / "dev" / name
        if image is not None:
            node.hardlink_to(image)
        else:
            node.write_bytes(bytes(1 << 20))
        return directory

    def mount(self, device: str, directory: str, filesystem: str, *, inside: str = "/", options: str = "rw") -> None:
        """Mount a block device, by its name; or something else, by ``0:N source``."""
        number, _, source = device.partition(" ")
        if not source:
            number = (self.root / "sys/class/block" / device / "dev").read_text().strip()
            source = f"/dev/{device}"
        self._mounts.append(
            f"{30 + len(self._mounts)} 1 {number} {inside} {directory} rw - {filesystem} {source} {options}"
        )
        (self.root / "proc/self/mountinfo").write_text("\n".join(self._mounts) + "\n")


def make_ext4(path: Path, uuid: str = EXT4_UUID, label: str = "") -> Path:
    """Make an image with an ext4 file system, as mke2fs does."""
    with path.open("wb") as stream:
        stream.truncate(4 << 20)
    command = ["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "has_journal", "-U", uuid, "-L", label, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def make_swap(path: Path) -> Path:
    """Make an image with a swap area, as mkswap does."""
    with path.open("wb") as stream:
        stream.truncate(4 << 20)
    subprocess.run(["/sbin/mkswap", "-q", "-U", SWAP_UUID, str(path)], check=True, capture_output=True)
    return path


def make_virtio_machine(root: Path) -> MachineTree:
    """Make a machine with one virtio disk: ext4 on its first partition, mounted as the root, and swap on the second."""
    machine = MachineTree(root)
    pci = "pci0000:00/0000:00:04.0"
    machine.add_device(
        pci, driver="virtio-pci", module="virtio_pci", modalias="pci:v00001AF4d00001001sv0sd2bc01sc00i00"
    )
    machine.add_device(
        f"{pci}/virtio1", driver="virtio_blk", module="virtio_blk", modalias="virtio:d00000002v00001AF4", bus="virtio"
    )
    disk = f"{pci}/virtio1/block/vda"
    machine.add_block(disk, serial="disk-1")
    machine.add_block(f"{disk}/vda1", make_ext4(root / "vda1.img", label="root"), partition=1)
    machine.add_block(f"{disk}/vda2", make_swap(root / "vda2.img"), partition=2)
    machine.mount("vda1", "/", "ext4", options="rw,errors=remount-ro,data=ordered")
    return machine
