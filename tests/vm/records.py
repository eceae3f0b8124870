"""
Evidence that real kernels leave without a dump: pstore records of every backend, netconsole's packets, consoles.

::

    python -m tests.vm.records NAME [KERNEL]    make it, print where it is

A machine with nothing but a listener, a backend and a serial console crashes,
is reset (which its memory and its disks outlive), and its kernel shows what it
finds. What comes out is kept by the digest of its recipe, as dumps are.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shutil
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.errors import PostpanicError
from postpanic.process import find_program
from postpanic.rehearse.cache import build_once, digest_recipe
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine, MachineConfig, scale_timeout
from postpanic.rehearse.store import PackageStore
from postpanic.rehearse.tarballs import unpack_files
from tests.vm import guest
from tests.vm.gdbstub import poke, poke_physical
from tests.vm.host_disk import SUITES, resolve_packages
from tests.vm.kernel_modules import build_module
from tests.vm.lab import Lab, default_cache_dir, hold_machine
from tests.vm.packets import Packet, read_packets
from tests.vm.recipes import KERNELS

__all__ = ["CORRECTED", "FATAL", "RAMOOPS", "RECORDS", "Evidence", "RecordRecipe", "make_evidence"]

COMMAND_LINE = "console=ttyS0 no_timer_check panic=0"
BASE_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "configfs", "netconsole", "dummy", "efivarfs", "qemu_fw_cfg")
COLLECTED_OFFSET = 64 << 10
OUTPUT_SIZE_BYTES = 32 << 20
DRIVER_DISK_SIZE_BYTES = 1 << 20
FIRMWARE = ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
BOOT_TIMEOUT_S = 60.0
CRASH_TIMEOUT_S = 30.0
QUIET_S = 1.5
LISTENERS = 3
# The section type of compressed kernel messages (drivers/acpi/apei/erst.c), 4f118707-04dd-4055-b5dd-956d34ddfac6.
PANIC_RECORD = uuid.UUID("4f118707-04dd-4055-b5dd-956d34ddfac6").bytes_le
FAILURE = r"^lab: failed:.*|end Kernel panic - not syncing: No working init.*"


@dataclass(frozen=True)
class RamoopsArea:
    """
    Where ramoops keeps its zones, and how large they are.

    Attributes
    ----------
    paddr, size_bytes : int
        The area, which the kernel is told to leave alone.
    record_size, console_size, ftrace_size, pmsg_size : int
        Bytes; ``ftrace_size`` is shared by the CPUs.
    ecc : int
        Bytes of parity for a block of 128; 1 means 16.
    """

    paddr: int = 0x10000000
    size_bytes: int = 0x80000
    record_size: int = 0x10000
    console_size: int = 0x20000
    ftrace_size: int = 0x10000
    pmsg_size: int = 0x10000
    ecc: int = 1

    @property
    def options(self) -> str:
        """The module's parameters."""
        sizes = " ".join(f"{name}={getattr(self, name):#x}" for name in _SIZES)
        return f"mem_address={self.paddr:#x} mem_size={self.size_bytes:#x} {sizes} ecc={self.ecc} max_reason=2"


_SIZES = ("record_size", "console_size", "ftrace_size", "pmsg_size")
RAMOOPS = RamoopsArea()


@dataclass(frozen=True)
class InjectedError:
    """A machine check as QEMU's monitor takes it: where, and the bank's registers."""

    cpu: int
    bank: int
    status: int
    mcgstatus: int
    address: int
    misc: int

    @property
    def words(self) -> str:
        """The words of the monitor's command ``mce``."""
        return f"{self.cpu} {self.bank} {self.status:#x} {self.mcgstatus:#x} {self.address:#x} {self.misc:#x}"


# Valid, its count 1, address and MISC valid; a read on memory channel 1, and a page is what the address is exact to.
CORRECTED = InjectedError(0, 9, 0x8C00004000010091, 0x0, 0x1F3A5C40, 0x8C)
# Valid, uncorrected, enabled, the processor's context corrupt; RIPV and MCIP are set.
FATAL = InjectedError(1, 9, 0xBE00000000800091, 0x5, 0x1F3A6C80, 0x8C)


@dataclass(frozen=True)
class RecordRecipe:
    """
    How evidence comes about.

    Attributes
    ----------
    name : str
        What it is, among :data:`RECORDS`.
    kernel : str
        A key of ``KERNELS``.
    scenario : str
        A script of ``scenarios/evidence/``.
    backend : str
        The pstore backend, which decides what the machine has.
    modules : tuple of (str, str)
        The backend's modules with their parameters, in order.
    built : tuple of str
        Modules of our own; loaded unless the scenario does so.
    """

    name: str
    kernel: str
    scenario: str
    backend: str
    modules: tuple[tuple[str, str], ...] = ()
    built: tuple[str, ...] = ()
    cpu: str = "max,la57=off"


def _ramoops(kernel: str) -> RecordRecipe:
    modules = (("ramoops", RAMOOPS.options),)
    return RecordRecipe("ramoops", kernel, "module-null", "ramoops", modules, ("fronts",))


def _efi(kernel: str) -> RecordRecipe:
    return RecordRecipe("efi", kernel, "module-null", "efi", (("efi_pstore", ""),))


def _erst(kernel: str) -> RecordRecipe:
    # Of the maker whose codes for memory errors are in the architecture's manual.
    cpu = "max,la57=off,vendor=GenuineIntel,family=6,model=85,stepping=7"
    return RecordRecipe("erst", kernel, "machine-check", "erst", cpu=cpu)


def _blk(kernel: str) -> RecordRecipe:
    modules = (
        ("pstore_blk", "blkdev=/dev/vdb best_effort=1 kmsg_size=64 max_reason=2"),
        ("block2mtd", "block2mtd=/dev/vdc,65536"),
        ("mtdoops", "mtddev=0 record_size=65536 dump_oops=1"),
    )
    return RecordRecipe("blk", kernel, "both", "blk", modules, ("both",))


RECORDS = {"ramoops": (_ramoops, "6.12"), "efi": (_efi, "6.12"), "erst": (_erst, "6.12"), "blk": (_blk, "6.1-generic")}
"""What there is to be made, and the kernel that it is made with unless another is asked for."""


@dataclass(frozen=True)
class Evidence:
    """
    What a crash left.

    Attributes
    ----------
    recipe : RecordRecipe
    directory : Path
        ``console.log`` (both boots), ``crash.log`` (up to the reset), ``network.pcap``; by backend ``ramoops.img``
        and ``ramoops-damaged.img``, ``vars.fd``, ``erst.img``, ``blk.img`` with ``mtdoops.img``; ``memory.kdump``;
        ``collected/`` with ``pstore/``, ``efivars/`` and ``dmesg`` of the next boot.
    """

    recipe: RecordRecipe
    kernel: Kernel
    directory: Path

    @property
    def console(self) -> bytes:
        """The serial console up to the reset."""
        return (self.directory / "crash.log").read_bytes()

    @property
    def pstore(self) -> Path:
        """What the mounted pstore of the next boot had."""
        return self.directory / "collected" / "pstore"

    @property
    def efivars(self) -> Path:
        return self.directory / "collected" / "efivars"

    @property
    def memory(self) -> Path:
        """The memory right after the panic, as QEMU writes it: kdump format, flattened."""
        return self.directory / "memory.kdump"

    def packets(self, port: int) -> list[Packet]:
        """Return what was sent to a port, in order: 6666 basic, 6667 extended, 6668 with release and user data."""
        return [packet for packet in read_packets(self.directory / "network.pcap") if packet.port == port]


@dataclass
class _Run:
    """A machine at work on a recipe."""

    lab: Lab
    recipe: RecordRecipe
    kernel: Kernel
    target: Path
    work: Path
    stub: Path
    disks: dict[str, Path] = field(default_factory=dict)


def make_evidence(lab: Lab, name: str, kernel: str = "") -> Evidence:
    """Return evidence, from the cache or by crashing a machine now."""
    make, usual = RECORDS[name]
    recipe = make(kernel or usual)
    found = lab.fetch_kernel(recipe.kernel)

    def build(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target) as work:
            _crash(lab, recipe, found, target, Path(work))

    entry = f"{found.release}-{recipe.name}-{_digest(lab, recipe, found)}"
    return Evidence(recipe, found, build_once(lab.cache_dir / "evidence", entry, build))


def _digest(lab: Lab, recipe: RecordRecipe, kernel: Kernel) -> str:
    sources = [guest.SCENARIOS_DIR / f"{name}.c" for name in recipe.built]
    return digest_recipe(
        {
            "kernel": [kernel.package, kernel.version],
            "recipe": asdict(recipe),
            "words": [COMMAND_LINE, *BASE_MODULES],
            "errors": [CORRECTED.words, FATAL.words],
            "scripts": [path.read_text() for path in (*_scripts(recipe), *sources)],
            "steps": [inspect.getsource(step) for step in _STEPS],
            "programs": guest.build_programs(lab.cache_dir).name,
        }
    )


def _scripts(recipe: RecordRecipe) -> tuple[Path, Path]:
    directory = guest.SCENARIOS_DIR / "evidence"
    return directory / "init.sh", directory / f"{recipe.scenario}.sh"


def _make_initramfs(run: _Run) -> bytes:
    image = ImageTree()
    init, scenario = _scripts(run.recipe)
    image.add_file("init", init, 0o755)
    image.add_file("scenario.sh", scenario)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_program("bin/busybox", find_program("busybox", hint="install busybox-static"))
    image.add_file("bin/crash", guest.build_programs(run.lab.cache_dir) / "crash", 0o755)
    modules = ModuleTree(run.kernel.modules_dir)
    options = dict(run.recipe.modules)
    lines = []
    for name in modules.sort_by_dependency((*BASE_MODULES, *options)):
        image.add_bytes(f"lib/{name}.ko", modules.read(name))
        lines.append(f"{name}.ko {options.get(name, '')}".rstrip())
    for name in run.recipe.built:
        suites = KERNELS[run.recipe.kernel].suites
        module = build_module(guest.SCENARIOS_DIR / f"{name}.c", run.kernel, suites, run.lab.cache_dir, run.work)
        image.add_file(f"lib/{name}.ko", module)
        if name == "fronts":
            lines.append(f"{name}.ko")
    image.add_bytes("lib/load-modules", "".join(f"{line}\n" for line in lines).encode())
    return image.encode()


def _describe(run: _Run) -> MachineConfig:
    initrd = run.work / "initrd"
    initrd.write_bytes(_make_initramfs(run))
    for name, size_bytes in (("out", OUTPUT_SIZE_BYTES), ("b", DRIVER_DISK_SIZE_BYTES), ("c", DRIVER_DISK_SIZE_BYTES)):
        run.disks[name] = run.work / f"{name}.img"
        make_empty_disk(run.disks[name], size_bytes)
    options = COMMAND_LINE
    extra = ["-gdb", f"unix:{run.stub},server=on,wait=off"]
    extra += ["-object", f"filter-dump,id=dump0,netdev=net0,file={run.target / 'network.pcap'}"]
    if run.recipe.backend == "ramoops":
        options += f" memmap={RAMOOPS.size_bytes:#x}${RAMOOPS.paddr:#x}"
    if run.recipe.backend == "erst":
        store = f"memory-backend-file,id=erst0,mem-path={run.work / 'erst'},size=0x10000,share=on"
        extra += ["-object", store, "-device", "acpi-erst,memdev=erst0"]
    if run.recipe.backend == "efi":
        extra += _add_firmware(run)
    return MachineConfig(
        kernel=run.kernel.image,
        initrd=initrd,
        command_line=options,
        disks=tuple(Disk(path) for path in run.disks.values()),
        memory_mib=512,
        cpu=run.recipe.cpu,
        network=True,
        machine="q35" if run.recipe.backend == "efi" else "pc",
        extra=tuple(extra),
    )


def _add_firmware(run: _Run) -> list[str]:
    _, entry = PackageStore(run.lab.cache_dir, "unpacked").fetch(SUITES, "ovmf", resolve_packages)
    code, variables = (entry / "usr/share/OVMF" / name for name in FIRMWARE)
    shutil.copyfile(variables, run.work / "vars")
    return [
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={run.work / 'vars'}"),
    ]


def _crash(lab: Lab, recipe: RecordRecipe, kernel: Kernel, target: Path, work: Path) -> None:
    started = time.monotonic()
    # A socket's path is limited to 107 bytes, a cache directory's is not.
    stub = Path(tempfile.gettempdir()) / f"lab-{os.getpid()}-{time.monotonic_ns():x}.gdb"
    run = _Run(lab, recipe, kernel, target, work, stub)
    config = _describe(run)
    with hold_machine(lab.cache_dir):
        lab.say(f"{kernel.release}: {recipe.name}: booting")
        try:
            with _Machine(config, target, watch=lab.watch) as machine:
                _boot_and_crash(run, machine)
                _collect(run, machine)
        except PostpanicError:
            for name in ("console.log", "qemu.log"):
                if (target / name).exists():
                    shutil.copy(target / name, lab.cache_dir / f"failed-{name}")
            raise
        finally:
            stub.unlink(missing_ok=True)
    (target / "qemu.log").unlink(missing_ok=True)
    lab.say(f"{kernel.release}: {recipe.name}: done after {time.monotonic() - started:.0f} s")


class _Machine(Machine):
    """A machine that can be reset, looked into and struck."""

    def reset_and_go_on(self) -> None:
        self._execute("set-action", {"reboot": "reset"})
        self.reset()

    def save_memory(self, paddr: int, size_bytes: int, path: Path) -> None:
        self._execute("pmemsave", {"val": paddr, "size": size_bytes, "filename": str(path)})

    def order(self, command: str) -> None:
        """Carry out a command of the monitor for people."""
        self._execute("human-monitor-command", {"command-line": command})


def _boot_and_crash(run: _Run, machine: _Machine) -> None:
    machine.wait_for(r"^lab: kernel", timeout_s=BOOT_TIMEOUT_S, failure=FAILURE)
    if run.recipe.scenario == "both":
        machine.wait_for(r"^lab: crashed", timeout_s=CRASH_TIMEOUT_S, failure=FAILURE)
        return
    if run.recipe.scenario == "machine-check":
        _report_errors(machine)
    else:
        asked = machine.wait_for(r"^lab: please poke (\S+) (\S+)", timeout_s=CRASH_TIMEOUT_S, failure=FAILURE)
        poke(run.stub, int(asked[1], 16), bytes.fromhex(asked[2]))
    # A panic out of a machine check may print nothing once the other processors are stopped.
    last = "Kernel Offset:" if run.recipe.scenario == "machine-check" else "end Kernel panic"
    machine.wait_for(last, timeout_s=CRASH_TIMEOUT_S, failure=FAILURE)
    # What the serial console prints last is neither the end of the network's nor of the firmware's.
    if run.recipe.scenario == "module-null":
        _wait_quiet(run.target / "network.pcap", having=b"end Kernel panic", times=LISTENERS)
    if run.recipe.backend == "erst":
        _wait_quiet(run.work / "erst", having=PANIC_RECORD)


def _wait_quiet(path: Path, *, having: bytes = b"", times: int = 1) -> None:
    """Wait until a file that the machine writes has *having* in it so many times, and no more comes."""
    before, since = b"", time.monotonic()
    deadline = since + scale_timeout(CRASH_TIMEOUT_S)
    while before.count(having) < times or time.monotonic() - since < QUIET_S:
        assert time.monotonic() < deadline, f"{path} is never complete"
        content = path.read_bytes()
        if content != before:
            before, since = content, time.monotonic()
        time.sleep(0.1)


def _report_errors(machine: _Machine) -> None:
    """Have the machine report errors of its memory, the second to all processors."""
    machine.wait_for(r"^lab: please check corrected", timeout_s=CRASH_TIMEOUT_S, failure=FAILURE)
    machine.order(f"mce {CORRECTED.words}")
    machine.wait_for(r"^lab: please check fatal", timeout_s=CRASH_TIMEOUT_S, failure=FAILURE)
    machine.order(f"mce -b {FATAL.words}")


def _collect(run: _Run, machine: _Machine) -> None:
    """Keep what the crash left where it is, reset the machine, and take what its kernel finds then."""
    shutil.copyfile(machine.console, run.target / "crash.log")
    if run.recipe.scenario == "module-null":
        machine.dump_memory(run.target / "memory.kdump", form="kdump-zlib")
        (run.target / "memory.kdump").chmod(0o644)
    if run.recipe.backend == "ramoops":
        machine.save_memory(RAMOOPS.paddr, RAMOOPS.size_bytes, run.target / "ramoops.img")
        _damage(run, machine)
    left = {
        "efi": {"vars": "vars.fd"},
        "erst": {"erst": "erst.img"},
        "blk": {"b.img": "blk.img", "c.img": "mtdoops.img"},
    }
    for place, name in left.get(run.recipe.backend, {}).items():
        shutil.copyfile(run.work / place, run.target / name)
    machine.reset_and_go_on()
    machine.wait_for(r"^lab: collected", timeout_s=BOOT_TIMEOUT_S, failure=FAILURE)
    with run.disks["out"].open("rb") as stream:
        stream.seek(COLLECTED_OFFSET)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            unpack_files(archive, run.target / "collected")


def _damage(run: _Run, machine: _Machine) -> None:
    """
    Flip bits in the zones, so that the next boot has something to correct and something to give up on.

    The first record stays as it is. In the second, five bytes of each of two
    blocks are wrong, which sixteen bytes of parity mend. The third is the
    first once more with a block of twelve wrong bytes, which they do not mend;
    the console has one such block too.
    """
    image = bytearray((run.target / "ramoops.img").read_bytes())
    second, third = RAMOOPS.record_size, 2 * RAMOOPS.record_size
    console = RAMOOPS.size_bytes - RAMOOPS.console_size - RAMOOPS.ftrace_size - RAMOOPS.pmsg_size
    image[third : third + RAMOOPS.record_size] = image[: RAMOOPS.record_size]
    places = [second + 12 + 128 * block + 9 * number for block in (1, 3) for number in range(5)]
    places += [zone + 12 + 128 * 2 + 9 * number for zone in (third, console) for number in range(12)]
    for place in places:
        image[place] ^= 0x40
    poke_physical(run.stub, RAMOOPS.paddr, bytes(image[: console + 4096]))
    machine.save_memory(RAMOOPS.paddr, RAMOOPS.size_bytes, run.target / "ramoops-damaged.img")


_STEPS = (_make_initramfs, _describe, _boot_and_crash, _report_errors, _wait_quiet, _collect, _damage)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.vm.records", description="crash real kernels for their evidence")
    parser.add_argument("name", choices=sorted(RECORDS))
    parser.add_argument("kernel", nargs="?", default="", choices=["", *sorted(KERNELS)])
    chosen = parser.parse_args(words)
    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    print(make_evidence(lab, chosen.name, chosen.kernel).directory)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
