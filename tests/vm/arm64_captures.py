"""
Crashes of arm64 machines, emulated, that our own image captures.

The machine's PID 1 is the one of rehearsals: it loads the capture kernel as
``postpanic arm`` does, verifies the load, and crashes. Both images are made
on whatever machine this is, of packages for arm64 that are unpacked and never
run. On the machine's one disk (``vda``) the dump is saved.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from postpanic.capture.initramfs.image import BuiltImage, ImageRequest, build_image
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.kexec.command_line import CommandLineChanges, build_command_line
from postpanic.rehearse.job import IMAGE_PATH, JOB_PATH, KERNEL_PATH, GuestJob, encode_job
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine, MachineConfig
from postpanic.rehearse.store import PackageStore
from postpanic.saver.plan import BlockPlan, FilePlan, RawPlan
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump
from tests.vm.captures import find_dumps, make_disk, plan_for, read_files
from tests.vm.host_disk import SUITES, resolve_packages
from tests.vm.lab import Lab, hold_machine

__all__ = [
    "COMMAND_LINE",
    "FILE",
    "SWAP",
    "Arm64Capture",
    "build_arm64_image",
    "captured_on_arm64",
    "fetch_python_root",
]

PACKAGES = ("python3", "python3-numpy", "python3-zstandard")
MODULES = ("virtio_pci", "virtio_blk", "ext4")
COMMAND_LINE = build_command_line("console=ttyAMA0", "aarch64", CommandLineChanges(panic_s=5)).text
ENTRY = "postpanic.rehearse.guest"
KEEP = ("postpanic.capture", "postpanic.rehearse", "tarfile", "bz2", "_bz2", "lzma", "_lzma")
MEMORY_MIB = 1024
DISK_MIB = 512
BOOT_TIMEOUT_S = 60.0
END_TIMEOUT_S = 120.0
_ENDED = r"^postpanic: (rebooting|powering off|halting)"


@dataclass(frozen=True)
class Arm64Capture:
    """
    A machine that has crashed, and whose capture is over.

    Attributes
    ----------
    console : str
    saved : Path
        A copy of the directory that the saver left.
    image : BuiltImage
        Of the capture kernel.
    """

    console: str
    saved: Path
    image: BuiltImage

    @property
    def said(self) -> list[str]:
        """What the saver said, in order."""
        return re.findall(r"^postpanic: (.*)$", self.console, re.MULTILINE)

    @property
    def armed(self) -> list[str]:
        """What the machine said before it crashed."""
        return re.findall(r"^rehearsal: (.*)$", self.console, re.MULTILINE)


def fetch_python_root(lab: Lab) -> Path:
    """Return the tree that images are made from: Debian 12's Python for arm64, unpacked."""
    return PackageStore(lab.cache_dir, "unpacked", "arm64").fetch(SUITES, " ".join(PACKAGES), resolve_packages)[1]


FILE = FilePlan(name="file on vda", device=BlockPlan(name="vda"), path="/crash")
SWAP = RawPlan(name="swap on vda", device=BlockPlan(name="vda"), swap=True)
"""For kernels without ext4."""


def build_arm64_image(lab: Lab, kernel: Kernel, target: FilePlan | RawPlan = FILE) -> tuple[ImageRequest, BuiltImage]:
    """Build the capture kernel's image."""
    tree = ModuleTree(kernel.modules_dir)
    request = ImageRequest(
        plan=plan_for(target),  # type: ignore[arg-type]
        modules_dir=kernel.modules_dir,
        modules={name: "" for name in MODULES if name in tree},
        root=fetch_python_root(lab),
        boot_dir=kernel.image.parent,
    )
    return request, build_image(request)


def _fetch_firmware(lab: Lab) -> Path:
    """Return Debian's UEFI for emulated arm64 machines."""
    _, tree = PackageStore(lab.cache_dir, "unpacked", "arm64").fetch(SUITES, "qemu-efi-aarch64", resolve_packages)
    return tree / "usr/share/qemu-efi-aarch64/QEMU_EFI.fd"


@contextlib.contextmanager
def captured_on_arm64(
    lab: Lab,
    kernel: Kernel,
    directory: Path,
    *,
    crashkernel: str = "160M",
    method: str = "auto",
    memory_mib: int = MEMORY_MIB,
    is_efi: bool = False,
    target: FilePlan | RawPlan = FILE,
) -> Iterator[Arm64Capture]:
    """
    Crash a machine of arm64 whose capture kernel has our image; yield when that has come to its end.

    Parameters
    ----------
    is_efi : bool
        Whether it has UEFI and ACPI, as servers do; else it is described by a device tree.
    target : FilePlan or RawPlan
        :data:`FILE` or :data:`SWAP`.
    """
    request, image = build_arm64_image(lab, kernel, target)
    job = GuestJob(machine="aarch64", command_line=COMMAND_LINE, method=method)
    files = {KERNEL_PATH: kernel.image.read_bytes(), IMAGE_PATH: image.data, str(JOB_PATH): encode_job(job)}
    initrd = directory / "initrd"
    initrd.write_bytes(
        build_image(replace(request, compression="none", entry=ENTRY, keep=KEEP, modules={}, files=files)).data
    )
    disk = make_disk(directory / "disk.img", DISK_MIB, kind="swap" if isinstance(target, RawPlan) else "ext4")
    config = MachineConfig(
        kernel=kernel.image,
        initrd=initrd,
        command_line=f"console=ttyAMA0 panic=10 crashkernel={crashkernel}{' acpi=force' if is_efi else ''}",
        disks=(Disk(disk),),
        memory_mib=memory_mib,
        machine="virt,gic-version=3",
        cpu="max,pauth-impdef=on",
        program="qemu-system-aarch64",
        extra=("-bios", str(_fetch_firmware(lab))) if is_efi else (),
    )
    with hold_machine(lab.cache_dir):
        lab.say(f"{kernel.release}: booting an arm64 machine that captures its crash")
        with Machine(config, directory, watch=lab.watch, accelerator="tcg") as running:
            running.wait_for(r"^rehearsal: crash ", timeout_s=BOOT_TIMEOUT_S, failure=r"^rehearsal: failed:.*")
            running.wait_for(_ENDED, timeout_s=END_TIMEOUT_S, failure=r"end Kernel panic - not syncing: Attempted.*")
            running.wait_exit(timeout_s=30.0)
            console = running.read_console()
    initrd.unlink()
    if isinstance(target, RawPlan):
        (raw,) = find_raw_dumps([disk])
        saved = recover_raw_dump(raw, directory / "recovered").directory
    else:
        (name,) = find_dumps(disk)
        saved = read_files(disk, name, directory / "saved")
    yield Arm64Capture(console, saved, image)
    disk.unlink()
