"""
What goes into the guests that are crashed: programs, initramfs, disks.

Everything that decides what a dump looks like is here or in ``scenarios/``:
the dump cache goes by what is in the initramfs, how the disks are made and what
the scenarios say.
"""

from __future__ import annotations

import inspect
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.disks import make_empty_disk, make_ext4_disk
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk

__all__ = [
    "CAPTURE_COMMAND_LINE",
    "LOAD_MODULES",
    "SCENARIOS_DIR",
    "SOURCES",
    "CaptureImage",
    "GuestDisks",
    "build_programs",
    "describe_disks",
    "make_disks",
    "make_initramfs",
    "select_load_modules",
]

SCENARIOS_DIR = Path(__file__).parent / "scenarios"
PROGRAMS = ("load", "crash")
SOURCES = ("init.sh", "machine.sh", *(f"{name}.c" for name in PROGRAMS))
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
LOAD_MODULES = (
    *("virtio_net", "loop", "dummy", "overlay", "xfs", "nf_tables", "nft_ct", "tun", "veth", "bridge", "8021q"),
    *("fuse", "vfat", "btrfs", "dm_mod", "qemu_fw_cfg"),
)
CAPTURE_COMMAND_LINE = "console=ttyS0 no_timer_check irqpoll nr_cpus=1 reset_devices panic=5"
DATA_SIZE_BYTES = 48 << 20
INPUT_SIZE_BYTES = 320 << 20
OUTPUT_SIZE_BYTES = 2 << 30
SWAP_SIZE_BYTES = 64 << 20


@dataclass(frozen=True)
class CaptureImage:
    """An initramfs of the caller's own, and its kernel's command line, to be loaded for the panic."""

    initrd: Path
    command_line: str = CAPTURE_COMMAND_LINE


@dataclass(frozen=True)
class GuestDisks:
    """The four disks, in the order in which the guest sees them."""

    input: Path
    raw: Path
    output: Path
    swap: Path

    def attach(self) -> tuple[Disk, ...]:
        return (Disk(self.input, read_only=True), Disk(self.raw), Disk(self.output), Disk(self.swap))


def build_programs(cache_dir: Path) -> Path:
    """Compile the guest's programs, statically, and return their directory."""
    sources = {name: digest_file(SCENARIOS_DIR / f"{name}.c") for name in PROGRAMS}

    def build(target: Path) -> None:
        compiler = find_program("gcc", hint="install gcc and libc6-dev")
        for name in PROGRAMS:
            source = SCENARIOS_DIR / f"{name}.c"
            run([compiler, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", target / name, source])

    return build_once(cache_dir / "programs", digest_recipe(sources), build)


def make_initramfs(kernel: Kernel, programs: Path) -> ImageTree:
    """Make the initramfs of both kernels, the one that is crashed and the one that saves the dump."""
    image = ImageTree()
    image.add_file("init", SCENARIOS_DIR / "init.sh", 0o755)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_program("bin/busybox", find_program("busybox", hint="install busybox-static"))
    image.add_program("bin/makedumpfile", find_program("makedumpfile"))
    for name in PROGRAMS:
        image.add_file(f"bin/{name}", programs / name, 0o755)
    modules = ModuleTree(kernel.modules_dir)
    # Where ext4 is a module it asks for its checksum by name, when it mounts.
    checksum = ("crc32c_generic",) if "ext4" in modules else ()
    order = modules.sort_by_dependency((*checksum, *BOOT_MODULES))
    for name in order:
        image.add_bytes(f"lib/{name}.ko", modules.read(name))
    image.add_bytes("lib/boot-modules", "".join(f"{name}.ko\n" for name in order).encode())
    return image


def select_load_modules(modules: ModuleTree) -> list[str]:
    """Return the modules that the guest loads once it is up, in order."""
    at_boot = modules.sort_by_dependency(BOOT_MODULES)
    return [name for name in modules.sort_by_dependency(LOAD_MODULES) if name not in at_boot]


def describe_disks() -> list[object]:
    """Return what :func:`make_disks` makes besides the caller's files: its own text and the values that it uses."""
    sizes = (DATA_SIZE_BYTES, INPUT_SIZE_BYTES, OUTPUT_SIZE_BYTES, SWAP_SIZE_BYTES)
    sources = [inspect.getsource(code) for code in (GuestDisks, make_disks, select_load_modules)]
    return [*sources, BOOT_MODULES, LOAD_MODULES, CAPTURE_COMMAND_LINE, sizes]


def make_disks(
    directory: Path,
    kernel: Kernel,
    initrd: Path,
    scenario: str,
    *,
    memory_mib: int,
    capture: CaptureImage | None = None,
) -> GuestDisks:
    """
    Make the guest's disks in *directory*.

    Parameters
    ----------
    scenario : str
        The name of the script in ``scenarios/`` that crashes the machine.
    capture : CaptureImage, optional
        What to load for the panic; without it *initrd* serves there too.
    """
    content = directory / "input"
    (content / "modules").mkdir(parents=True)
    shutil.copy(kernel.image, content / "vmlinuz")
    shutil.copy(capture.initrd if capture else initrd, content / "initrd")
    shutil.copy(SCENARIOS_DIR / "machine.sh", content)
    shutil.copy(SCENARIOS_DIR / f"{scenario}.sh", content / "scenario.sh")
    (content / "capture-command-line").write_text(capture.command_line if capture else CAPTURE_COMMAND_LINE)
    modules = ModuleTree(kernel.modules_dir)
    order = select_load_modules(modules)
    for name in order:
        (content / "modules" / f"{name}.ko").write_bytes(modules.read(name))
    (content / "load-modules").write_text("".join(f"{name}.ko\n" for name in order))
    # One half cannot be compressed, the other half can: as with the files of a real machine.
    noise = random.Random(1)
    with (content / "data").open("wb") as stream:
        for number in range(DATA_SIZE_BYTES >> 20):
            stream.write(noise.randbytes(1 << 19) + (b"line %d of the data\n" % number * 30000)[: 1 << 19])
    disks = GuestDisks(*(directory / f"{name}.img" for name in ("input", "raw", "output", "swap")))
    make_ext4_disk(disks.input, INPUT_SIZE_BYTES, content=content)
    shutil.rmtree(content)
    make_empty_disk(disks.raw, (memory_mib << 20) + (1 << 30))
    make_ext4_disk(disks.output, OUTPUT_SIZE_BYTES)
    make_empty_disk(disks.swap, SWAP_SIZE_BYTES)
    return disks
