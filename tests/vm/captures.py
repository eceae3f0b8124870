"""
Crashes that our own image captures: a plan, a kernel, disks; what comes out is judged by the caller.

The machine is the lab's, its first four disks are too: ``vda`` what comes in,
``vdb`` raw, ``vdc`` an empty ext4, ``vdd`` swap. Disks of the caller follow as
``vde`` and so on.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from postpanic.capture.initramfs.contents import ENTRY
from postpanic.capture.initramfs.image import BuiltImage, ImageRequest, build_image
from postpanic.capture.kexec.command_line import CommandLineChanges, build_command_line
from postpanic.process import find_program, run
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine
from postpanic.saver.plan import BlockPlan, DevicePlan, FilePlan, HookPlan, SavePlan
from tests.vm import guest
from tests.vm.lab import Lab
from tests.vm.python_root import fetch_python_root
from tests.vm.recipes import Recipe

__all__ = [
    "COMMAND_LINE",
    "MODULES",
    "OUTPUT",
    "Capture",
    "Request",
    "build_capture_image",
    "captured",
    "capturing",
    "find_dumps",
    "make_disk",
    "plan_for",
    "read_files",
    "save_capture",
]

UNTIMED = "no_timer_check"
"""A kernel that looks whether its timer ticks panics on a host that is busy."""
COMMAND_LINE = build_command_line("console=ttyS0", "x86_64", CommandLineChanges(panic_s=5, append=UNTIMED)).text
MODULES = {"virtio_pci": "", "virtio_blk": "", "ext4": ""}
OUTPUT = FilePlan(name="file on vdc", device=BlockPlan(name="vdc"), path="/crash")
END_TIMEOUT_S = 90.0
RAW_HOOK = HookPlan(command=("/bin/crash", "save", "/proc/vmcore", "/dev/vdb"), timeout_s=300.0)
"""Copies the memory as it is, so that what was saved can be compared."""
_ENDED = r"^postpanic: (rebooting|powering off|halting)"


@dataclass(frozen=True)
class Capture:
    """A machine whose capture is over, and its disks."""

    machine: Machine
    disks: guest.GuestDisks
    kernel: Kernel

    @property
    def console(self) -> str:
        return self.machine.read_console()

    @property
    def said(self) -> list[str]:
        """What the saver said, in order."""
        return re.findall(r"^postpanic: (.*)$", self.console, re.MULTILINE)

    def raw_vmcore(self) -> Path:
        """Cut the copy that :data:`RAW_HOOK` made to its size, and return it."""
        found = re.search(r"crash: saved (\d+) bytes", self.console)
        assert found, "the hook that copies the memory has not run"
        with self.disks.raw.open("r+b") as stream:
            stream.truncate(int(found[1]))
        return self.disks.raw


@dataclass(frozen=True)
class Request:
    """What a capture is made of."""

    plan: SavePlan
    kernel: str = "6.1"
    scenario: str = "sysrq-c"
    crashkernel: str = "160M"
    modules: Mapping[str, str] = field(default_factory=lambda: MODULES)
    command_line: str = COMMAND_LINE
    disks: Sequence[Disk] = ()
    words: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    is_isolated: bool = True
    with_raw: bool = False
    programs: Sequence[str] = ()
    https: bool = False
    entry: str = ENTRY


@contextlib.contextmanager
def capturing(lab: Lab, request: Request, directory: Path, *, image: Path | None = None) -> Iterator[Capture]:
    """Crash a machine whose capture kernel has our image, made now or given; yield right after the panic."""
    kernel = lab.fetch_kernel(request.kernel)
    if image is None:
        image = directory / "capture.img"
        image.write_bytes(build_capture_image(lab, request).data)
    recipe = Recipe.choose(request.kernel, request.scenario, options=f"crashkernel={request.crashkernel} {UNTIMED}")
    with lab.crashing_machine(
        recipe,
        kernel,
        directory,
        capture=guest.CaptureImage(image, request.command_line),
        more_disks=request.disks,
        more_words=request.words,
        is_isolated=request.is_isolated,
    ) as (machine, disks):
        yield Capture(machine, disks, kernel)


@contextlib.contextmanager
def captured(
    lab: Lab, request: Request, directory: Path, *, image: Path | None = None, timeout_s: float = END_TIMEOUT_S
) -> Iterator[Capture]:
    """Crash a machine whose capture kernel has our image; yield when that has come to its end."""
    with capturing(lab, request, directory, image=image) as capture:
        capture.machine.wait_for(_ENDED, timeout_s=timeout_s)
        capture.machine.wait_exit(timeout_s=30.0)
        yield capture


def save_capture(lab: Lab, request: Request, image: Path, target: Path) -> None:
    """Crash a machine and keep what the saver left: one dump on the output disk, and the console."""
    with captured(lab, request, target, image=image) as capture:
        (name,) = find_dumps(capture.disks.output)
        copy = read_files(capture.disks.output, name, target / "saved")
    for path in sorted(copy.iterdir()):
        path.rename(target / path.name)
    shutil.rmtree(target / "saved")


def build_capture_image(lab: Lab, request: Request) -> BuiltImage:
    """Build the image of a request; with the tool that copies the memory, if that is asked for."""
    kernel = lab.fetch_kernel(request.kernel)
    plan = request.plan
    files = dict(request.files)
    if request.with_raw:
        files["/bin/crash"] = (guest.build_programs(lab.cache_dir) / "crash").read_bytes()
        plan = replace(plan, after=(*plan.after, RAW_HOOK))
    return build_image(
        ImageRequest(
            plan=plan,
            modules_dir=kernel.modules_dir,
            modules=request.modules,
            root=fetch_python_root(lab),
            boot_dir=kernel.image.parent,
            files=files,
            programs=tuple(request.programs),
            https=request.https,
            entry=request.entry,
        )
    )


def plan_for(*targets: FilePlan, bind_all: bool = True, **words: object) -> SavePlan:
    """Make a plan for a machine of the lab."""
    return replace(
        SavePlan(node="guest", targets=targets, devices=DevicePlan(bind_all=bind_all), timeout_s=300.0),
        **words,  # type: ignore[arg-type]
    )


def make_disk(path: Path, size_mib: int, *words: str, kind: str = "ext4", content: Path | None = None) -> Path:
    """Make a disk image with a file system."""
    with path.open("wb") as stream:
        stream.truncate(size_mib << 20)
    if kind == "ext4":
        more: list[str | Path] = ["-d", content] if content is not None else []
        run([find_program("mke2fs"), "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", *words, *more, path])
    elif kind == "swap":
        run([find_program("mkswap"), *words, path])
    else:
        run([find_program(f"mkfs.{kind}"), *words, path])
    return path


def find_dumps(disk: Path, directory: str = "/crash") -> list[str]:
    """List the directories of dumps on an ext4 disk."""
    listed = run([find_program("debugfs"), "-R", f"ls -p {directory}", disk]).stdout.decode(errors="replace")
    names = [line.split("/")[5] for line in listed.splitlines() if line.count("/") >= 6]
    return sorted(f"{directory}/{name}" for name in names if name not in {".", ".."})


def read_files(disk: Path, directory: str, target: Path) -> Path:
    """Copy a directory out of an ext4 disk, and return the copy."""
    target.mkdir(parents=True, exist_ok=True)
    run([find_program("debugfs"), "-R", f"rdump {directory} {target}", disk])
    return target / directory.rsplit("/", 1)[-1]
