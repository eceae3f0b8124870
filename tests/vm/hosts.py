"""
A guest that is a real host: Debian on an ext4 disk, with Python and postpanic in it.

Commands are run in it one after the other, each by a shell of its own; exit
status and output come back. Then the host may be crashed, so that whatever the
commands have armed gets its chance.

::

    results = run_on_host(lab, "6.1", ["postpanic --help", "kexec -p /vmlinuz"])
    with crash_host(lab, "6.12", ["postpanic arm"], directory=tmp_path) as crashed:
        crashed.machine.wait_for(...)
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.process import find_program, run
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine, MachineConfig, scale_timeout
from tests.vm import guest
from tests.vm.host_disk import HOST_PACKAGES, ROOT_UUID, compile_modules, fetch_root_disk, make_disk
from tests.vm.lab import Lab, hold_machine

__all__ = [
    "HOST_DIR",
    "HOST_PACKAGES",
    "ROOT_UUID",
    "CommandResult",
    "CrashedHost",
    "crash_host",
    "fetch_root_disk",
    "read_result",
    "run_on_host",
]

HOST_DIR = Path(__file__).parent / "host"
SOURCE_DIR = Path(__file__).parents[2] / "src"
JOB_ROOM_BYTES = 128 << 20
POSTPANIC = '#!/bin/sh\nPYTHONPATH=/opt/host/src exec python3 -m postpanic "$@"\n'
BOOT_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 30.0
END_TIMEOUT_S = 20.0
FAILURE = r"^host: failed:.*|end Kernel panic - not syncing.*"


@dataclass(frozen=True)
class CommandResult:
    """What a command did on the host."""

    command: str
    status: int
    stdout: str
    stderr: str
    seconds: float
    """By the guest's clock."""


@dataclass(frozen=True)
class CrashedHost:
    """
    A host that has been told to panic.

    Attributes
    ----------
    machine : Machine
        Still running: wait for what the capture kernel prints, then for its end.
    disks : tuple of Path
        Root disk, disk of the commands, those of the caller.
    results : list of CommandResult
        Of the commands before the panic.
    """

    machine: Machine
    disks: tuple[Path, ...]
    results: list[CommandResult]

    @property
    def console(self) -> str:
        return self.machine.read_console()


def run_on_host(
    lab: Lab,
    kernel: str,
    commands: Sequence[str],
    *,
    crashkernel: str = "256M",
    lockdown: str = "",
    options: str = "",
    memory_mib: int = 1024,
    disks: Sequence[Path] = (),
    network: bool = False,
    is_isolated: bool = True,
    packages: Sequence[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    command_timeout_s: float = COMMAND_TIMEOUT_S,
    directory: Path | None = None,
    base: Path | None = None,
    root_device: str = "",
    words: tuple[str, ...] = (),
) -> list[CommandResult]:
    """
    Boot a host, run shell commands in it, and power it off.

    Parameters
    ----------
    kernel : str
        A key of :data:`tests.vm.lab.KERNELS`; image and configuration are in its ``/boot``, modules where they belong.
    commands : sequence of str
        For the host's ``sh``; ``postpanic`` is this work tree's.
    crashkernel, lockdown, options : str
        For the kernel's command line; empty: left out.
    disks : sequence of Path
        More disks, ``/dev/vdc`` and so on.
    network : bool
        Whether there is a network card (``virtio_net`` is a module, not loaded).
    is_isolated : bool
        Whether its network ends there; else this machine's loopback interface is 10.0.2.2.
    packages : sequence of str
        Of Debian, besides :data:`HOST_PACKAGES`; unpacked only, their maintainers' scripts do not run.
    files : mapping
        Path on the host: content, text, or a file or directory of ours.
    command_timeout_s : float
        For each, on an idle machine; status 124 says that it was not enough.
    directory : Path, optional
        Keeps console and disks.
    base : Path, optional
        The root disk, which is copied, instead of the one that :func:`fetch_root_disk` makes.
    root_device : str
        Where its root is, if not on the whole of it: ``/dev/vda1``.
    words : tuple of str
        More words for QEMU.
    """
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="host-", dir=lab.cache_dir)))
        job = _Job(commands, files or {}, command_timeout_s, trigger="")
        host = _Host(lab, lab.fetch_kernel(kernel), directory, job, tuple(disks), tuple(packages), base)
        line = _spell_options(crashkernel, lockdown, f"{options} HOST_ROOT={root_device}" if root_device else options)
        with host.start(line, memory_mib=memory_mib, network=network, is_isolated=is_isolated, words=words) as machine:
            host.wait_done(machine)
            machine.wait_exit(timeout_s=END_TIMEOUT_S)
        return host.read_results()


@contextlib.contextmanager
def crash_host(
    lab: Lab,
    kernel: str,
    commands: Sequence[str],
    *,
    directory: Path,
    trigger: str = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
    crashkernel: str = "256M",
    lockdown: str = "",
    options: str = "",
    memory_mib: int = 1024,
    disks: Sequence[Path] = (),
    network: bool = False,
    packages: Sequence[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    command_timeout_s: float = COMMAND_TIMEOUT_S,
) -> Iterator[CrashedHost]:
    """
    Boot a host, run shell commands in it as :func:`run_on_host` does, then crash it by *trigger*, a shell script.

    What is yielded has just been told to panic. The root disk stays mounted as
    a real one does; the disk of the commands is read-only by then.
    """
    job = _Job(commands, files or {}, command_timeout_s, trigger)
    host = _Host(lab, lab.fetch_kernel(kernel), directory, job, tuple(disks), tuple(packages))
    words = _spell_options(crashkernel, lockdown, options)
    with host.start(words, memory_mib=memory_mib, network=network) as machine:
        host.wait_done(machine)
        yield CrashedHost(machine, host.disks, host.read_results())


def _spell_options(crashkernel: str, lockdown: str, options: str) -> str:
    words = ["console=ttyS0 no_timer_check", f"crashkernel={crashkernel}" if crashkernel else ""]
    words += [f"lockdown={lockdown}" if lockdown else "", options]
    return " ".join(word for word in words if word)


@dataclass(frozen=True)
class _Job:
    """What is to be done, as it goes onto the second disk."""

    commands: Sequence[str]
    files: Mapping[str, bytes | str | Path]
    command_timeout_s: float
    trigger: str

    def write(self, directory: Path) -> None:
        for name in ("commands", "files", "bin"):
            (directory / name).mkdir(parents=True)
        for number, command in enumerate(self.commands):
            (directory / "commands" / f"{number:03}").write_text(command + "\n")
        for name, content in self.files.items():
            place = directory / "files" / name.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                (shutil.copytree if content.is_dir() else shutil.copy2)(content, place)
            else:
                place.write_bytes(content.encode() if isinstance(content, str) else content)
        if self.trigger:
            (directory / "trigger").write_text(self.trigger + "\n")
        (directory / "timeout").write_text(f"{scale_timeout(self.command_timeout_s):.0f}\n")
        shutil.copy(HOST_DIR / "run.sh", directory)
        shutil.copytree(SOURCE_DIR, directory / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        compile_modules(directory, "src", prefix="/opt/host")
        program = directory / "bin/postpanic"
        program.write_text(POSTPANIC)
        program.chmod(0o755)


@dataclass(frozen=True)
class _Host:
    lab: Lab
    kernel: Kernel
    directory: Path
    job: _Job
    more_disks: tuple[Path, ...]
    packages: tuple[str, ...]
    base: Path | None = None

    @property
    def disks(self) -> tuple[Path, ...]:
        return (self.directory / "root.img", self.directory / "job.img", *self.more_disks)

    @contextlib.contextmanager
    def start(
        self,
        options: str,
        *,
        memory_mib: int,
        network: bool,
        is_isolated: bool = True,
        words: tuple[str, ...] = (),
    ) -> Iterator[Machine]:
        root, job = self.disks[:2]
        self.directory.mkdir(parents=True, exist_ok=True)
        base = self.base or fetch_root_disk(self.lab, self.kernel, self.packages)
        run([find_program("cp"), "--sparse=always", "--reflink=auto", base, root])
        with tempfile.TemporaryDirectory(prefix="job-", dir=self.directory) as name:
            content = Path(name) / "content"
            self.job.write(content)
            used_bytes = sum(path.stat().st_size for path in content.rglob("*") if path.is_file())
            make_disk(job, used_bytes + JOB_ROOM_BYTES, content)
        initrd = self.directory / "initrd"
        initrd.write_bytes(_build_initramfs(self.kernel))
        config = MachineConfig(
            kernel=self.kernel.image,
            initrd=initrd,
            command_line=options,
            disks=tuple(map(Disk, self.disks)),
            memory_mib=memory_mib,
            network=network,
            is_isolated=is_isolated,
            extra=words,
        )
        with hold_machine(self.lab.cache_dir):
            self.lab.say(f"{self.kernel.release}: booting a host")
            try:
                with Machine(config, self.directory, watch=self.lab.watch) as machine:
                    yield machine
            except PostpanicError as exc:
                kept = self.lab.cache_dir / "failed-console.log"
                with contextlib.suppress(OSError):
                    shutil.copy(self.directory / "console.log", kept)
                    exc.add_note(f"the whole console: {kept}")
                raise

    def wait_done(self, machine: Machine) -> None:
        machine.wait_for(r"^host: kernel ", timeout_s=BOOT_TIMEOUT_S, failure=FAILURE)
        for number in range(len(self.job.commands)):
            machine.wait_for(
                rf"^host: command {number:03} ended", timeout_s=self.job.command_timeout_s + 5, failure=FAILURE
            )
        machine.wait_for(r"^host: done", timeout_s=END_TIMEOUT_S, failure=FAILURE)

    def read_results(self) -> list[CommandResult]:
        with tempfile.TemporaryDirectory(prefix="results-", dir=self.directory) as name:
            run([find_program("debugfs"), "-R", f"rdump /results {name}", self.disks[1]])
            results = Path(name) / "results"
            return [read_result(results / f"{number:03}", line) for number, line in enumerate(self.job.commands)]


def read_result(stem: Path, command: str) -> CommandResult:
    try:
        status, started, ended = stem.with_suffix(".status").read_text().split()
    except (OSError, ValueError) as exc:
        raise FactAbsentError(f"no result of {command!r} on the guest's disk", where=str(stem)) from exc
    stdout, stderr = (stem.with_suffix(ending).read_text(errors="replace") for ending in (".out", ".err"))
    return CommandResult(command, int(status), stdout, stderr, float(ended) - float(started))


def _build_initramfs(kernel: Kernel) -> bytes:
    image = ImageTree()
    image.add_file("init", HOST_DIR / "init.sh", 0o755)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_program("bin/busybox", find_program("busybox"))
    modules = ModuleTree(kernel.modules_dir)
    order = modules.sort_by_dependency(guest.BOOT_MODULES)
    for name in order:
        image.add_bytes(f"lib/{name}.ko", modules.read(name))
    image.add_bytes("lib/boot-modules", "".join(f"{name}.ko\n" for name in order).encode())
    return image.encode()
