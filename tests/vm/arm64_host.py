"""An arm64 host, emulated: Debian's Python and postpanic on an ext4 disk, armed by ``postpanic arm``, crashed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine, MachineConfig
from postpanic.rehearse.store import PackageStore
from tests.vm.host_disk import ROOT_UUID, SUITES, compile_modules, make_disk, merge_usr, resolve_packages
from tests.vm.lab import Lab, hold_machine

__all__ = ["CrashedHost", "crash_arm64_host"]

PACKAGES = (
    "busybox-static",
    "python3",
    "python3-numpy",
    "python3-click",
    "python3-rich",
    "python3-zstandard",
    "python3-pyelftools",
)
SCENARIOS = Path(__file__).parent / "scenarios/arm64"
SOURCE_DIR = Path(__file__).parents[2] / "src"
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
DISK_BYTES = 2 << 30
JOB_DISK_BYTES = 256 << 20
MEMORY_MIB = 1024
ARM_TIMEOUT_S = 400.0
END_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class CrashedHost:
    """A host whose capture is over: what was printed, and its disk."""

    console: str
    disk: Path

    @property
    def said(self) -> str:
        """What the host's commands printed."""
        return "\n".join(re.findall(r"^host: (.*)$", self.console, re.MULTILINE))


@contextlib.contextmanager
def crash_arm64_host(lab: Lab, kernel: Kernel, directory: Path, *, crashkernel: str = "192M") -> Iterator[CrashedHost]:
    """Boot a host, arm it, crash it; yield when the capture has come to its end."""
    disk = directory / "root.img"
    run([find_program("cp"), "--sparse=always", "--reflink=auto", _fetch_disk(lab, kernel), disk])
    job = _make_job_disk(directory)
    initrd = directory / "initrd"
    initrd.write_bytes(_make_initramfs(lab, kernel).encode())
    config = MachineConfig(
        kernel=kernel.image,
        initrd=initrd,
        command_line=f"console=ttyAMA0 panic=10 crashkernel={crashkernel}",
        disks=(Disk(disk), Disk(job, read_only=True)),
        memory_mib=MEMORY_MIB,
        machine="virt,gic-version=3",
        cpu="max,pauth-impdef=on",
        program="qemu-system-aarch64",
    )
    with hold_machine(lab.cache_dir):
        lab.say(f"{kernel.release}: booting an arm64 host")
        with Machine(config, directory, watch=lab.watch, accelerator="tcg") as machine:
            machine.wait_for(r"^host: crash$", timeout_s=ARM_TIMEOUT_S, failure=r"^host: failed:.*")
            machine.wait_for(r"^postpanic: (rebooting|powering off|halting)", timeout_s=END_TIMEOUT_S)
            machine.wait_exit(timeout_s=30.0)
            console = machine.read_console()
    initrd.unlink()
    job.unlink()
    # A boot would replay the journal.
    run([find_program("e2fsck"), "-fy", disk], check=False)
    yield CrashedHost(console, disk)
    disk.unlink()


def _fetch_tree(lab: Lab) -> tuple[str, Path]:
    bundle, tree = PackageStore(lab.cache_dir, "unpacked", "arm64").fetch(SUITES, " ".join(PACKAGES), resolve_packages)
    return bundle.entry_name, tree


def _fetch_disk(lab: Lab, kernel: Kernel) -> Path:
    name, tree = _fetch_tree(lab)
    recipe = [name, kernel.package, kernel.version, digest_file(Path(__file__))]

    def build(target: Path) -> None:
        root = target / "root"
        merge_usr(tree, root)
        for place in ("proc", "sys", "dev", "run", "tmp", "boot", "var/crash", "etc", "opt", "root"):
            (root / place).mkdir(parents=True, exist_ok=True)
        (root / "etc/fstab").write_text(f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n")
        for path in (kernel.image, *kernel.image.parent.glob("config-*")):
            shutil.copy(path, root / "boot" / path.name)
        shutil.copytree(kernel.modules_dir, root / "usr/lib/modules" / kernel.release, symlinks=True)
        _run_depmod(lab, root, kernel.release)
        compile_modules(root, "usr/lib/python3", "usr/lib/python3.11")
        make_disk(target / "root.img", DISK_BYTES, root, ("-O", "has_journal", "-U", ROOT_UUID))
        shutil.rmtree(root)

    return build_once(lab.cache_dir / "hosts-arm64", digest_recipe(recipe), build) / "root.img"


def _make_job_disk(directory: Path) -> Path:
    """Make the disk of what is tested, which changes more often than the host does."""
    content = directory / "job"
    content.mkdir()
    shutil.copy(SCENARIOS / "host.sh", content)
    shutil.copytree(SOURCE_DIR, content / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    compile_modules(content, "src", prefix="/opt")
    make_disk(directory / "job.img", JOB_DISK_BYTES, content)
    shutil.rmtree(content)
    return directory / "job.img"


def _run_depmod(lab: Lab, root: Path, release: str) -> None:
    """List the modules by the depmod of this machine's architecture, which reads those of all."""
    _, tree = PackageStore(lab.cache_dir, "unpacked").fetch(SUITES, "kmod", resolve_packages)
    places = [tree / place / f"{os.uname().machine}-linux-gnu" for place in ("lib", "usr/lib")]
    loader = next(path for place in places for path in place.glob("ld-linux-*.so.*"))
    libraries = ":".join(map(str, places))
    run([loader, "--library-path", libraries, "--argv0", "depmod", tree / "bin/kmod", "-b", root, release])


def _make_initramfs(lab: Lab, kernel: Kernel) -> ImageTree:
    image = ImageTree()
    image.add_file("init", SCENARIOS / "host-init.sh", 0o755)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_file("bin/busybox", _fetch_tree(lab)[1] / "bin/busybox", 0o755)
    modules = ModuleTree(kernel.modules_dir)
    order = modules.sort_by_dependency([name for name in BOOT_MODULES if name in modules])
    for name in order:
        image.add_bytes(f"lib/{name}.ko", modules.read(name))
    image.add_bytes("lib/boot-modules", "".join(f"{name}.ko\n" for name in order).encode())
    return image
