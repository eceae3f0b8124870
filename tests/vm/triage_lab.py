"""
Many small crashes: scenarios whose truth is known, for judging what triage says of them.

::

    python -m tests.vm.triage_lab KERNEL [SCENARIO...]    make dumps, say where they are
    python -m tests.vm.triage_lab --list

One machine a kernel is booted, brought to work and kept as it stands. A
scenario takes that state up, gets a disk with its modules and programs, and
crashes; what stands in for the capture kernel says so and halts, and the memory
is read from outside, by the header that the kernel made for ``/proc/vmcore``.
So each costs seconds. Only the filtered dump and the console are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe, find_entry, hold_lock
from postpanic.rehearse.disks import make_empty_disk, make_ext4_disk
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import MachineConfig
from tests.vm import guest, physical_memory
from tests.vm.kernel_modules import CROSS_TOOLS, build_modules
from tests.vm.lab import FAILURE, KERNELS, Crash, Lab, Recipe, default_cache_dir, hold_machine
from tests.vm.triage_machine import KeptMachine
from tests.vm.triage_truth import Truth, list_truths

__all__ = ["TriageDump", "TriageLab"]

BASE_DIR = guest.SCENARIOS_DIR / "triage-base"
MEMORY_MIB = 512
CPUS = 2
COMMAND_LINE = "console=ttyS0 no_timer_check crashkernel=32M"
MODULES = (
    *("virtio_net", "loop", "dummy", "overlay", "nf_tables", "nft_ct", "tun", "veth", "bridge", "8021q"),
    *("fuse", "vfat", "dm_mod"),
)
JOB_BYTES, JOB_START_BYTES = 16 << 20, 1 << 20
DISK_BYTES = 48 << 20
STAND_TIMEOUT_S = 90.0
# To be counted up when states are kept, or memory is taken, in another way than before.
MAKING = 1
CAPTURED = r"^lab: captured .*elfcorehdr=(0x[0-9a-f]+).*lab-end"
# Offsets of the boot protocol's header: Documentation/arch/x86/boot.rst.
_SETUP_SECTORS, _INIT_SIZE, _ENTRY = 0x1F1, 0x260, 0x200


@dataclass(frozen=True)
class TriageDump:
    """A crash whose truth is known."""

    truth: Truth
    kernel: str
    dump: Path
    console: Path


class TriageLab:
    """
    Makes the dumps of scenarios, or finds them in the cache.

    Parameters
    ----------
    lab : Lab
        Of which kernels and cache are.
    """

    architecture = ""
    """Debian's name of it; empty: the host's."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cache_dir = lab.cache_dir
        self._holds_machine = False

    @contextlib.contextmanager
    def holding_machine(self) -> Iterator[None]:
        """Wait for the right to run a guest, and keep it for all that is crashed meanwhile."""
        if self._holds_machine:
            yield
            return
        with hold_machine(self.cache_dir):
            self._holds_machine = True
            try:
                yield
            finally:
                self._holds_machine = False

    def has(self, truth: Truth, key: str) -> bool:  # noqa: ARG002 - others leave some out
        """Tell whether a scenario is a crash with a kernel."""
        return True

    def fetch_kernel(self, key: str) -> Kernel:
        """Return a kernel by its key."""
        return self.lab.fetch_kernel(key)

    def choose_suites(self, key: str) -> tuple[str, ...]:
        """Tell where a kernel is from."""
        return KERNELS[key].suites

    def find(self, truth: Truth, key: str) -> TriageDump | None:
        """Return a scenario's dump if it is in the cache."""
        if truth.recipe:
            kernel = self.fetch_kernel(key)
            recipe = Recipe.choose(key, truth.recipe)
            there = find_entry(self.cache_dir / "dumps", self.lab.name(recipe, kernel, "vmcore"))
            return self.crash(truth, key) if there else None
        entry = find_entry(self.cache_dir / "triage", self._name(truth, key))
        return self._describe(truth, key, entry) if entry else None

    def crash(self, truth: Truth, key: str) -> TriageDump:
        """Return the dump of a scenario, from the cache or by crashing a machine now."""
        if truth.recipe:
            crash: Crash = self.lab.crash(Recipe.choose(key, truth.recipe))
            return TriageDump(truth, key, crash.filtered, crash.console)

        def build(target: Path) -> None:
            started = time.monotonic()
            self._crash_now(truth, key, target)
            self.lab.say(f"{key} {truth.name}: {time.monotonic() - started:.1f} s")

        entry = build_once(self.cache_dir / "triage", self._name(truth, key), build)
        return self._describe(truth, key, entry)

    def build_modules(self, truths: Iterable[Truth], key: str) -> None:
        """Build the modules of several scenarios at once."""
        kernel = self.fetch_kernel(key)
        with hold_lock(self.cache_dir / "triage-modules" / f".{key}.lock"):
            place = self.cache_dir / "triage-modules"
            wanted: dict[str, Path] = {}
            for truth in truths:
                entries = {self._module_entry(kernel, path): path for path in truth.module_sources}
                # All of a scenario, or none: some use what others of it have.
                if not all(find_entry(place, name) for name in entries):
                    wanted |= entries
            if not wanted:
                return
            sources = list(wanted.values())
            with tempfile.TemporaryDirectory() as directory:
                words = (self.choose_suites(key), self.cache_dir, Path(directory), self.architecture)
                built = build_modules(sources, kernel, *words)
                for source, module in zip(sources, built, strict=True):
                    run([find_program(f"{CROSS_TOOLS[self.architecture]}strip"), "--strip-debug", module])
                    build_once(place, self._module_entry(kernel, source), partial(_copy_into, module))

    def _describe(self, truth: Truth, key: str, entry: Path) -> TriageDump:
        return TriageDump(truth, key, entry / "dump.kdump", entry / "console.log")

    def _name(self, truth: Truth, key: str) -> str:
        kernel = self.fetch_kernel(key)
        recipe = {
            "base": self._name_base(kernel, truth.boot),
            "files": [[path.name, digest_file(path)] for path in truth.sources],
            "iops": truth.disk_iops,
            "making": MAKING,
        }
        return f"{kernel.release}-{truth.name}-{digest_recipe(recipe)}"

    def _name_base(self, kernel: Kernel, boot: str) -> str:
        recipe = {
            "kernel": [kernel.package, kernel.version],
            "boot": boot,
            "image": self._digest_image(kernel),
            "machine": self.describe_machine(),
            "making": MAKING,
        }
        return f"{kernel.release}-{digest_recipe(recipe)}"

    def _module_entry(self, kernel: Kernel, source: Path) -> str:
        return f"{kernel.release}-{source.stem}-{digest_file(source)[:20]}"

    def describe_machine(self) -> list[object]:
        """Return all that decides what the machine is like, besides its image."""
        return [MEMORY_MIB, CPUS, COMMAND_LINE, JOB_BYTES, DISK_BYTES]

    def make_image(self, kernel: Kernel) -> ImageTree:
        """Make the machine's initramfs."""
        programs = guest.build_programs(self.cache_dir)
        act = build_program(self.cache_dir, BASE_DIR / "act.c")
        image = make_base_image(kernel, find_program("busybox", hint="install busybox-static"), act, MODULES)
        for name in guest.PROGRAMS:
            image.add_file(f"bin/{name}", programs / name, 0o755)
        image.add_file("init", BASE_DIR / "init.sh", 0o755)
        image.add_bytes("lib/capture", _assemble_capture(kernel, self.cache_dir))
        # An initramfs that is never unpacked; kexec_file_load() refuses an empty one.
        image.add_bytes("lib/capture.initrd", bytes(4096))
        return image

    def start_machine(self, config: MachineConfig, directory: Path) -> KeptMachine:
        """Return the machine of a configuration, not running yet."""
        return KeptMachine(config, directory, watch=self.lab.watch)

    def make_config(self, kernel: Kernel, boot: str, directory: Path, more: tuple[str, ...]) -> MachineConfig:
        """Describe the machine; the directory has its ``initrd``."""
        return MachineConfig(
            kernel=kernel.image,
            initrd=directory / "initrd",
            command_line=f"{COMMAND_LINE} {boot}".strip(),
            memory_mib=MEMORY_MIB,
            cpus=CPUS,
            network=True,
            extra=more,
        )

    @cache  # noqa: B019 - of few kernels, by a lab that lives as long as its caller
    def _digest_image(self, kernel: Kernel) -> str:
        return self.make_image(kernel).digest()

    def _stand(self, kernel: Kernel, boot: str) -> Path:
        """Return a directory with the state of a machine at work: ``state``, ``disk.img``, ``initrd``."""

        def build(target: Path) -> None:
            started = time.monotonic()
            (target / "initrd").write_bytes(self.make_image(kernel).encode())
            job = make_empty_disk(target / "job.img", JOB_BYTES)
            disk = make_ext4_disk(target / "disk.img", DISK_BYTES)
            config = self.make_config(kernel, boot, target, (*_attach(job, 0), *_attach(disk, 1)))
            with self.start_machine(config, target) as machine:
                machine.wait_for("^lab: standing", timeout_s=STAND_TIMEOUT_S, failure=FAILURE)
                machine.keep_state(target / "state")
            for name in ("job.img", "qemu.log"):
                (target / name).unlink(missing_ok=True)
            self.lab.say(f"{kernel.release} {boot}: stands after {time.monotonic() - started:.1f} s")

        return build_once(self.cache_dir / "triage-states", self._name_base(kernel, boot), build)

    def _crash_now(self, truth: Truth, key: str, target: Path) -> None:
        kernel = self.fetch_kernel(key)
        self.build_modules([truth], key)
        with self.holding_machine():
            state = self._stand(kernel, truth.boot)
            with tempfile.TemporaryDirectory(dir=self.cache_dir) as directory:
                work = Path(directory)
                job = self._make_job(truth, kernel, work / "job.img")
                throttled = f",throttling.iops-total={truth.disk_iops}" if truth.disk_iops else ""
                disks = (*_attach(job, 0), *_attach(state / "disk.img", 1, f",snapshot=on{throttled}"))
                config = self.make_config(
                    kernel, truth.boot, state, (*disks, "-incoming", f"exec:cat {state / 'state'}")
                )
                with self.start_machine(config, target) as machine:
                    machine.take_up()
                    self.take_memory(machine, truth.timeout_s, work / "vmcore")
                run([sys.executable, "-m", "postpanic", "filter", "-d", "31", work / "vmcore", target / "dump.kdump"])
        (target / "qemu.log").unlink(missing_ok=True)

    def take_memory(self, machine: KeptMachine, timeout_s: float, vmcore: Path) -> None:
        """Wait until the machine has crashed, and write its memory."""
        found = machine.wait_for(CAPTURED, timeout_s=timeout_s, failure=FAILURE)
        memory = vmcore.with_name("memory")
        machine.copy_memory(memory)
        physical_memory.write_vmcore(memory, int(found[1], 16), vmcore)
        memory.unlink()

    def _make_job(self, truth: Truth, kernel: Kernel, path: Path) -> Path:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(truth.directory / "run.sh", "run.sh")
            for source in truth.module_sources:
                name = f"{source.stem}.ko"
                archive.add(self.cache_dir / "triage-modules" / self._module_entry(kernel, source) / name, name)
            for source in truth.program_sources:
                archive.add(build_program(self.cache_dir, source, self.architecture), source.stem)
        make_empty_disk(path, JOB_BYTES)
        with path.open("r+b") as stream:
            stream.seek(JOB_START_BYTES)
            stream.write(buffer.getvalue())
            stream.truncate(JOB_BYTES)
        return path


def _copy_into(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def _attach(path: Path, number: int, more: str = "") -> tuple[str, ...]:
    drive = f"file={path},format=raw,if=none,id=disk{number},cache=unsafe{more}"
    return ("-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number}")


def build_program(cache_dir: Path, source: Path, architecture: str = "") -> Path:
    """Compile a program of the guest's, statically, for an architecture of :data:`CROSS_TOOLS`."""
    tools = CROSS_TOOLS[architecture]
    hint = f"install gcc-{tools.removesuffix('-')} and libc6-dev-{architecture}-cross" if tools else ""

    def build(target: Path) -> None:
        words = ("-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
        compiler = find_program(f"{tools}gcc", hint=hint or "install gcc and libc6-dev")
        run([compiler, *words, "-o", target / source.stem, source])

    name = f"{source.stem}-{digest_file(source)[:20]}{f'-{architecture}' if architecture else ''}"
    return build_once(cache_dir / "programs", name, build) / source.stem


def _assemble_capture(kernel: Kernel, cache_dir: Path) -> bytes:
    """Return a kernel image as kexec wants it, whose code is ours: the boot header of a real one, and little else."""
    source = BASE_DIR / "capture.S"

    def build(target: Path) -> None:
        run([find_program("gcc"), "-c", "-o", target / "capture.o", source])
        run([find_program("objcopy"), "-O", "binary", "-j", ".text", target / "capture.o", target / "capture"])

    code = (build_once(cache_dir / "programs", f"capture-{digest_file(source)[:20]}", build) / "capture").read_bytes()
    with kernel.image.open("rb") as stream:
        image = bytearray(stream.read(1 << 16))
    setup_bytes = (image[_SETUP_SECTORS] + 1) * 512
    image[_INIT_SIZE : _INIT_SIZE + 4] = struct.pack("<I", 1 << 20)
    del image[setup_bytes + _ENTRY :]
    return bytes(image) + code.ljust(4096, b"\0")


def make_base_image(kernel: Kernel, busybox: Path | None, act: Path, modules: Sequence[str]) -> ImageTree:
    """Make what all machines' initramfs have."""
    image = ImageTree()
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    if busybox is not None:
        image.add_program("bin/busybox", busybox)
    image.add_file("bin/act", act, 0o755)
    tree = ModuleTree(kernel.modules_dir)
    checksum = ("crc32c_generic",) if "ext4" in tree else ()
    order = tree.sort_by_dependency((*checksum, *guest.BOOT_MODULES, *modules))
    for name in order:
        image.add_bytes(f"lib/{name}.ko", tree.read(name))
    image.add_bytes("lib/modules-in-order", "".join(f"{name}.ko\n" for name in order).encode())
    return image


def main(
    words: list[str] | None = None, *, kernels: Sequence[str] = sorted(KERNELS), make: type[TriageLab] = TriageLab
) -> int:
    parser = argparse.ArgumentParser(prog="tests.vm.triage_lab", description="crash a kernel in many ways")
    parser.add_argument("kernel", choices=kernels, nargs="?", default="6.1")
    parser.add_argument("scenarios", nargs="*", help="of scenarios/triage; without any: all")
    parser.add_argument("--list", action="store_true", help="only say what is in the cache")
    parser.add_argument("--watch", action="store_true", help="show the console")
    chosen = parser.parse_args(words)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731, T201
    lab = make(Lab(default_cache_dir(), say=say, watch=say if chosen.watch else None))
    truths = [truth for truth in list_truths() if not chosen.scenarios or truth.name in chosen.scenarios]
    truths = [truth for truth in truths if lab.has(truth, chosen.kernel)]
    failed = 0
    found = {truth.name: lab.find(truth, chosen.kernel) for truth in truths}
    missing = [truth for truth in truths if found[truth.name] is None and not chosen.list]
    # The lab holds a machine of its own for each of its recipes.
    own = [truth for truth in missing if not truth.recipe]
    lab.build_modules(own, chosen.kernel)
    with lab.holding_machine() if own else contextlib.nullcontext():
        failed += sum(not _try(lab, truth, chosen.kernel) for truth in own)
    failed += sum(not _try(lab, truth, chosen.kernel) for truth in missing if truth.recipe)
    for truth in truths:
        dump = lab.find(truth, chosen.kernel)
        if dump:
            print(truth.name, chosen.kernel, dump.dump)  # noqa: T201
    return 1 if failed else 0


def _try(lab: TriageLab, truth: Truth, key: str) -> bool:
    try:
        lab.crash(truth, key)
    except Exception as exc:  # noqa: BLE001 - the others are wanted all the same
        print(f"{truth.name}: {exc}", file=sys.stderr)  # noqa: T201
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
