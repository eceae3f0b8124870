"""Machines of arm64, emulated: their memory after a panic, as QEMU writes it, filtered by us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.kernels import Kernel, KernelChoice, KernelStore
from postpanic.rehearse.machine import Machine, MachineConfig
from postpanic.rehearse.packages import Archive
from postpanic.rehearse.store import Bundle, PackageStore
from tests.vm.arm64_kernel import LARGE_PAGES as LARGE_PAGES_CONFIG
from tests.vm.arm64_kernel import build_kernel
from tests.vm.lab import Lab, hold_machine

__all__ = [
    "INIT",
    "KERNELS",
    "LARGE_PAGES",
    "MEMORY_MIB",
    "MODULES",
    "Arm64Dump",
    "crashed_machine",
    "fetch_busybox",
    "fetch_dump",
    "fetch_kernel",
    "identify",
]

KERNELS = {
    # Without CONFIG_KALLSYMS_ALL, 48-bit addresses, signed return addresses.
    "6.1": KernelChoice(("bookworm", "bookworm-security"), r"linux-image-cloud-arm64", "arm64"),
    # With it, 52-bit addresses (LPA2).
    "6.12": KernelChoice(("trixie", "trixie-security"), r"linux-image-6\.12\.[^-]*-cloud-arm64", "arm64"),
    # Pages of 16 KiB.
    "6.12-16k": KernelChoice(("trixie", "trixie-security"), r"linux-image-6\.12\.[^-]*-arm64-16k", "arm64"),
    "newest": KernelChoice(("sid",), r"linux-image-cloud-arm64", "arm64"),
}
LARGE_PAGES = "6.12-64k"
"""Pages of 64 KiB and addresses of 52 bits: built here, as Debian has none."""
INIT = Path(__file__).parent / "scenarios/arm64/init.sh"
# The guest tells QEMU where its VMCOREINFO is through the first.
MODULES = ("qemu_fw_cfg", "virtio_pci", "virtio_blk")
MEMORY_MIB = 512
PANIC_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Arm64Dump:
    """A dump at level 31, the console's log beside it."""

    path: Path
    console: Path
    kernel: Kernel


def fetch_kernel(lab: Lab, key: str) -> Kernel:
    """Return a kernel of :data:`KERNELS`, or :data:`LARGE_PAGES`."""
    return (
        build_kernel(lab, LARGE_PAGES_CONFIG) if key == LARGE_PAGES else KernelStore(lab.cache_dir).fetch(KERNELS[key])
    )


def identify(kernel: Kernel) -> list[object]:
    """Tell a kernel from all others, also from one that was built of the same source."""
    return [kernel.package, kernel.version, *([] if any(kernel.modules_dir.iterdir()) else [digest_file(kernel.image)])]


def fetch_dump(lab: Lab, key: str) -> Arm64Dump:
    """Return the dump of a kernel that was crashed by hand, from the cache or made now."""
    kernel = fetch_kernel(lab, key)
    recipe = [*identify(kernel), digest_file(INIT), list(MODULES), MEMORY_MIB, 2]

    def build(target: Path) -> None:
        _crash(lab, kernel, target)

    entry = build_once(lab.cache_dir / "dumps", f"{kernel.release}-arm64-{digest_recipe(recipe)}", build)
    return Arm64Dump(entry / "dump.kdump", entry / "console.log", kernel)


def _crash(lab: Lab, kernel: Kernel, target: Path) -> None:
    from postpanic.cli.app import main

    raw = target / "memory.elf"
    with crashed_machine(lab, kernel, target) as machine:
        machine.dump_memory(raw)
    raw.chmod(0o644)
    assert main(["filter", "-d", "31", str(raw), str(target / "dump.kdump")]) == 0
    raw.unlink()


@contextlib.contextmanager
def crashed_machine(lab: Lab, kernel: Kernel, target: Path, extra: Sequence[str] = ()) -> Iterator[Machine]:
    """Boot a machine that crashes by hand; yield it after its panic. *extra* are more words for QEMU."""
    initrd = target / "initrd"
    initrd.write_bytes(_make_initramfs(lab, kernel).encode())
    config = MachineConfig(
        kernel=kernel.image,
        initrd=initrd,
        command_line="console=ttyAMA0",
        memory_mib=MEMORY_MIB,
        machine="virt,gic-version=3",
        cpu="max,pauth-impdef=on",
        program="qemu-system-aarch64",
        extra=tuple(extra),
    )
    with hold_machine(lab.cache_dir):
        lab.say(f"{kernel.release}: booting an arm64 machine")
        with Machine(config, target, watch=lab.watch, accelerator="tcg") as machine:
            machine.wait_for(r"end Kernel panic - not syncing", timeout_s=PANIC_TIMEOUT_S)
            yield machine
    initrd.unlink()


def fetch_busybox(lab: Lab) -> Path:
    """Return the program that all processes of these machines run."""
    _, entry = PackageStore(lab.cache_dir, "unpacked", "arm64").fetch(("bookworm",), "busybox-static", _resolve)
    return entry / "bin/busybox"


def _make_initramfs(lab: Lab, kernel: Kernel) -> ImageTree:
    image = ImageTree()
    image.add_file("init", INIT, 0o755)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_file("bin/busybox", fetch_busybox(lab), 0o755)
    modules = ModuleTree(kernel.modules_dir)
    order = modules.sort_by_dependency([name for name in MODULES if name in modules])
    for name in order:
        image.add_bytes(f"lib/{name}.ko", modules.read(name))
    image.add_bytes("lib/boot-modules", "".join(f"{name}.ko\n" for name in order).encode())
    return image


def _resolve(archive: Archive, wanted: str) -> Bundle:
    package = archive.find(wanted)[-1]
    return Bundle(package, (package,))
