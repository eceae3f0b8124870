"""
A kernel alone, as it comes from its build: a tree of files around it that can be rehearsed.

There is no host yet, only a kernel, what its board looks like and what it is
to be told. What the capture image is made of besides, Python above all, is
Debian's, fetched for the board's architecture and never installed or run here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.config import CONFIG_PATH
from postpanic.capture.host import Host
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.kexec.images import find_release, read_image
from postpanic.errors import NotReadyError, OutputError, PostpanicError, UsageError
from postpanic.rehearse.boards import BOARDS
from postpanic.rehearse.stand_ins import CONTROLLERS
from postpanic.rehearse.store import PackageStore, resolve_packages

__all__ = ["ARCHITECTURES", "BareKernel", "fetch_programs", "find_architecture", "make_bare_host"]

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names of the machines that there are boards for."""
SUITES = ("stable",)
PACKAGES = ("base-files", "openssh-client", "python3", "python3-numpy", "python3-zstandard")
_CONFIG = """\
[capture]
modules = [{modules}]
[[target]]
kind = "file"
path = "/var/crash"
device = "UUID=b0a4dbd3-5f4e-4a53-8f0c-0a7c3c5b7f60"
filesystem = "ext4"
"""
# Of what the machine has; a kernel without modules has it built in, or there is nothing to rehearse.
_BUILT_IN = ("virtio", "virtio_pci", "virtio_blk", "virtio_net", "ext4", "jbd2", "mbcache", "crc16", "e1000e")


@dataclass(frozen=True, kw_only=True)
class BareKernel:
    """
    What is at hand.

    Attributes
    ----------
    machine, release : str
        As ``uname`` would have them.
    content : bytes
        ``bzImage`` or ``Image``. What is packed (gzip, EFI zboot) a board's firmware unpacks, of which the machine
        has none.
    modules_dir : Path, optional
        Its ``lib/modules/RELEASE``; None: everything is built in.
    command_line : str
        What the board's boot loader would tell it.
    """

    machine: str
    release: str
    content: bytes
    modules_dir: Path | None = None
    command_line: str = ""

    @property
    def size_bytes(self) -> int:
        """Of its tree, without the programs."""
        modules = self.modules_dir.rglob("*") if self.modules_dir is not None else ()
        return len(self.content) + sum(path.lstat().st_size for path in modules)

    @classmethod
    def read(
        cls, architecture: str, image: Path, *, modules_dir: Path | None = None, command_line: str = ""
    ) -> BareKernel:
        """
        Read a kernel.

        Parameters
        ----------
        architecture : str
            As ``uname -m`` or Debian has it.

        Raises
        ------
        UsageError
            If there is no machine of this architecture.
        FileFaultError
            If the file is no kernel, or damaged.
        NotReadyError
            If it is for another architecture, nothing that a board starts, or of a release that it does not say;
            or if the modules are of another release.
        """
        machine = find_architecture(architecture)
        found = read_image(image)
        if found.machine != machine:
            raise NotReadyError(
                f"is a kernel of {found.machine or 'another machine'}, not of {machine}", where=str(image)
            )
        BOARDS[machine].check_content(found.content, image)
        release = find_release(found)
        if not release or "/" in release:
            raise NotReadyError("is a kernel that does not say which release it is", where=str(image))
        if modules_dir is not None:
            _check_modules(modules_dir, release)
        return cls(
            machine=machine,
            release=release,
            content=found.content,
            modules_dir=modules_dir,
            command_line=command_line,
        )


def _check_modules(directory: Path, release: str) -> None:
    """Make sure that modules are for a kernel; it would take none of another's."""
    tree = ModuleTree(directory)
    found = next((said for name in tree.names if (said := tree.read_info(name).release)), release)
    if found != release:
        raise NotReadyError(
            f"its modules are of {found}, the kernel is {release}",
            where=str(directory),
            hint="the lib/modules/RELEASE of this very build",
        )


def find_architecture(name: str) -> str:
    """
    Return an architecture as ``uname -m`` has it.

    Raises
    ------
    UsageError
        If there is no board of it.

    >>> find_architecture("arm64"), find_architecture("x86_64")
    ('aarch64', 'x86_64')
    """
    found = {debian: machine for machine, debian in ARCHITECTURES.items()} | {name: name for name in BOARDS}
    if name not in found:
        raise UsageError(f"--arch {name}: must be one of {', '.join(sorted(found))}")
    return found[name]


def fetch_programs(machine: str, cache_dir: Path) -> Path:
    """
    Return a tree with Debian's Python and what else goes into an image, fetched when first wanted.

    Parameters
    ----------
    machine : str
        As ``uname -m`` has it.
    cache_dir : Path
        Where it is kept.

    Raises
    ------
    NotReadyError
        If it is not there and cannot be fetched.
    """
    debian = ARCHITECTURES[machine]
    try:
        store = PackageStore(cache_dir, "unpacked", debian)
        return store.fetch(SUITES, " ".join(PACKAGES), resolve_packages)[1]
    except PostpanicError as exc:
        raise NotReadyError(
            f"Debian's Python for {debian} cannot be fetched: {exc.message}",
            where=exc.where,
            hint="give a tree of the board's root file system: --root TREE",
        ) from exc


def make_bare_host(kernel: BareKernel, programs: Path, root: Path) -> Host:
    """
    Lay a tree out, configured to save to a disk that the machine has.

    Parameters
    ----------
    programs : Path
        Of :func:`fetch_programs`.
    root : Path
        New.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        shutil.copytree(programs, root, symlinks=True)
        for name in ("boot", "etc", "proc", "usr/lib/modules"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "boot" / f"vmlinuz-{kernel.release}").write_bytes(kernel.content)
        modules = root / "usr/lib/modules" / kernel.release
        if kernel.modules_dir is not None:
            shutil.copytree(kernel.modules_dir, modules, symlinks=True)
        else:
            modules.mkdir()
            (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in _BUILT_IN))
        (root / "proc/cmdline").write_text(f"{kernel.command_line}\n")
        drivers = ", ".join(f'"{name}"' for name in _choose_drivers(modules))
        (root / str(CONFIG_PATH).lstrip("/")).write_text(_CONFIG.format(modules=drivers))
    except shutil.Error as exc:
        # It goes on after each file that it cannot copy, and has them all.
        _, path, reason = exc.args[0][0]
        raise OutputError(f"the tree cannot be made: {reason}", where=str(path)) from exc
    except OSError as exc:
        raise OutputError(f"the tree cannot be made: {exc}", where=str(root)) from exc
    return Host(root, kernel.machine, kernel.release, Host.running().is_root)


def _choose_drivers(modules_dir: Path) -> list[str]:
    """Name what is no part of the kernel itself of the first controller that it can drive."""
    tree = ModuleTree(modules_dir)
    for controller in CONTROLLERS.values():
        if all(name in tree or name in tree.built_in for name in controller.modules):
            return [name for name in controller.modules if name in tree]
    return []
