"""
Emulated arm64 machines that have something to do when they are crashed: their memory, filtered and as it is.

::

    python -m tests.vm.arm64_work KERNEL WORK    make it, say where it is
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine, MachineConfig
from tests.vm.arm64 import KERNELS, LARGE_PAGES, fetch_busybox, fetch_kernel, identify
from tests.vm.arm64_memory import translate_some
from tests.vm.extras import make_extra_disk
from tests.vm.guest import SCENARIOS_DIR
from tests.vm.lab import FAILURE, Lab, default_cache_dir, hold_machine
from tests.vm.recipes import Setting
from tests.vm.triage_lab import build_program

__all__ = ["WORKS", "Arm64Work", "Work", "fetch_work"]

MODULES = ("qemu_fw_cfg", "virtio_pci", "virtio_blk", "ext4")
INIT = SCENARIOS_DIR / "arm64/work.sh"
PANICKED = r"end Kernel panic - not syncing"


@dataclass(frozen=True)
class Work:
    """
    What a machine does, and what it has for that.

    Attributes
    ----------
    programs : tuple of str
        Sources in ``scenarios/``, in ``/bin`` of the machine.
    disks_mib : tuple of int
        Empty disks, ``vda`` and on.
    files_mib : int
        Of the host's files, on the disk before those.
    keep : tuple of str
        What remains: ``raw``, ``dump`` (level 31), ``disks``, ``translations`` (QEMU's, of addresses).
    """

    memory_mib: int
    programs: tuple[str, ...] = ()
    disks_mib: tuple[int, ...] = ()
    files_mib: int = 0
    keep: tuple[str, ...] = ("dump",)
    timeout_s: float = 90.0


WORKS = {
    "swapped": Work(512, ("swapped",), (16, 64), keep=("raw", "dump", "disks", "translations")),
    # For benchmarks.
    "many-tasks": Work(2048, ("many",), timeout_s=240.0),
    "filter-load": Work(3072, ("heap",), files_mib=700, keep=("raw",), timeout_s=400.0),
}


@dataclass(frozen=True)
class Arm64Work:
    """What remains of a machine; what was not kept is not there."""

    directory: Path
    kernel: Kernel

    @property
    def raw(self) -> Path:
        """Its memory, as QEMU writes it."""
        return self.directory / "memory.elf"

    @property
    def dump(self) -> Path:
        """The same, filtered at level 31."""
        return self.directory / "dump.kdump"

    @property
    def console(self) -> str:
        """What it said."""
        return (self.directory / "console.log").read_bytes().decode(errors="replace").replace("\r\n", "\n")

    @property
    def translations(self) -> Path:
        """Virtual to physical addresses in JSON, as the emulated CPU 0 translates them; null: not mapped."""
        return self.directory / "translations.json"

    def disk(self, number: int) -> Path:
        """Return one of its disks."""
        return self.directory / f"disk{number}.img"


def fetch_work(lab: Lab, key: str, name: str) -> Arm64Work:
    """
    Return what remains of a machine at work, from the cache or made now.

    Parameters
    ----------
    key : str
        One of :data:`.KERNELS`, or :data:`.LARGE_PAGES`.
    name : str
        One of :data:`WORKS`.
    """
    kernel = fetch_kernel(lab, key)
    work = WORKS[name]
    sources = [SCENARIOS_DIR / f"{program}.c" for program in work.programs]
    scripts = [INIT, _script(name), *sources]
    recipe = [*identify(kernel), repr(work), *map(digest_file, scripts), list(MODULES)]

    def build(target: Path) -> None:
        _crash(lab, kernel, name, target)

    entry = build_once(lab.cache_dir / "dumps", f"{kernel.release}-arm64-{name}-{digest_recipe(recipe)}", build)
    return Arm64Work(entry, kernel)


def _script(name: str) -> Path:
    return SCENARIOS_DIR / f"arm64/{name}.sh"


def _crash(lab: Lab, kernel: Kernel, name: str, target: Path) -> None:
    work, raw = WORKS[name], target / "memory.elf"
    initrd = target / "initrd"
    initrd.write_bytes(_make_image(lab, kernel, name).encode())
    disks = [make_empty_disk(target / f"disk{number}.img", mib << 20) for number, mib in enumerate(work.disks_mib)]
    extra = make_extra_disk(target, kernel, (), Setting(files_mib=work.files_mib), lab.cache_dir)
    # A socket's path is limited to 107 bytes, a cache directory's is not.
    place = Path(tempfile.gettempdir()) / f"lab-arm64-{os.getpid()}.qmp"
    config = MachineConfig(
        kernel=kernel.image,
        initrd=initrd,
        command_line="console=ttyAMA0",
        disks=tuple(Disk(path) for path in ([extra] if extra else []) + disks),
        memory_mib=work.memory_mib,
        machine="virt,gic-version=3",
        cpu="max,pauth-impdef=on",
        program="qemu-system-aarch64",
        extra=("-qmp", f"unix:{place},server=on,wait=off"),
    )
    try:
        with hold_machine(lab.cache_dir):
            lab.say(f"{kernel.release}: an arm64 machine at work ({name})")
            with Machine(config, target, watch=lab.watch, accelerator="tcg") as machine:
                machine.wait_for(PANICKED, timeout_s=work.timeout_s, failure=FAILURE)
                machine.dump_memory(raw)
                raw.chmod(0o644)
                if "translations" in work.keep:
                    translate_some(raw, place, target / "translations.json")
    finally:
        place.unlink(missing_ok=True)
    _keep(work, raw, [*disks] if "disks" not in work.keep else [], extra, initrd)


def _keep(work: Work, raw: Path, disks: list[Path], extra: Path | None, initrd: Path) -> None:
    """Filter the memory, and remove what nobody wants."""
    from postpanic.cli.app import main

    if "dump" in work.keep:
        assert main(["filter", "-q", "-d", "31", str(raw), str(raw.with_name("dump.kdump"))]) == 0
    for path in (*disks, *([extra] if extra else []), initrd, *(() if "raw" in work.keep else (raw,))):
        path.unlink()
    if "raw" in work.keep:
        run([find_program("fallocate"), "--dig-holes", raw])


def _make_image(lab: Lab, kernel: Kernel, name: str) -> ImageTree:
    image = ImageTree()
    image.add_file("init", INIT, 0o755)
    image.add_file("lib/work", _script(name), 0o644)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_file("bin/busybox", fetch_busybox(lab), 0o755)
    for program in WORKS[name].programs:
        built = build_program(lab.cache_dir, SCENARIOS_DIR / f"{program}.c", "arm64")
        image.add_file(f"bin/{program}", built, 0o755)
    modules = ModuleTree(kernel.modules_dir)
    order = modules.sort_by_dependency([module for module in MODULES if module in modules])
    for module in order:
        image.add_bytes(f"lib/{module}.ko", modules.read(module))
    image.add_bytes("lib/boot-modules", "".join(f"{module}.ko\n" for module in order).encode())
    return image


def main(words: list[str] | None = None) -> int:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=[*KERNELS, LARGE_PAGES])
    parser.add_argument("work", choices=list(WORKS))
    chosen = parser.parse_args(words)
    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    print(fetch_work(lab, chosen.kernel, chosen.work).directory)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
