"""
The guest of the capture benchmark: Debian 12 from debootstrap and apt, with kdump-tools as Debian configures it.

Built once, as root: a tree in a chroot, made into an ext4 disk; then the disk
is booted once with each of its kernels, so that kdump-tools makes the image of
its capture kernel on the machine where it will be used.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.lab import hold_machine

from postpanic.errors import FactAbsentError, NotReadyError
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe, remove_entry
from postpanic.rehearse.machine import Disk, Machine, MachineConfig
from postpanic.rehearse.packages import HostSource, parse_index_targets, write_sources
from postpanic.rehearse.programs import resolve_libraries
from postpanic.rehearse.store import PackageStore

__all__ = [
    "ARM",
    "COMMAND_LINE",
    "FLAVOURS",
    "MEMORY_MIB",
    "ROOT_UUID",
    "UNARMED",
    "Guest",
    "arm_guest",
    "build_guest",
    "build_memwatch",
    "list_postpanic_files",
    "make_run_disk",
    "spell_command_line",
]

GUEST_DIR = Path(__file__).with_name("debian")
UNIT = GUEST_DIR / "capture-benchmark.service"
SOURCE_DIR = Path(__file__).parents[1] / "src"
SUITES = ("bookworm", "bookworm-security")
BASE_PACKAGES = ("ca-certificates", "systemd-sysv", "udev", "dbus", "kmod", "zstd")
FLAVOUR_PACKAGES = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}
FLAVOURS = tuple(FLAVOUR_PACKAGES)
PACKAGES = (
    *("initramfs-tools", "kdump-tools", "makedumpfile", "kexec-tools"),
    *("python3", "python3-numpy", "python3-zstandard", "python3-click", "python3-rich", "python3-pyelftools"),
)
ROOT_UUID = "5d0d7c0e-2f5b-4f38-9a4b-6a3f5f6f1c12"
ROOT_SIZE_BYTES = 4 << 30
RUN_SIZE_BYTES = 256 << 20
MEMORY_MIB = 1024
# A host with other things to do is late with timer interrupts; the kernel would take that for broken hardware.
COMMAND_LINE = f"root=UUID={ROOT_UUID} ro console=ttyS0 no_timer_check"
UNARMED = "systemd.mask=kdump-tools.service"
ARM = "chmod 755 postpanic && postpanic arm\n"
OFF = "poweroff\nsleep 30\n"
POSTPANIC = '#!/bin/sh\nPYTHONPATH=/opt/run/src exec python3 -B -m postpanic "$@"\n'
FAILURE = r"bench: failed:.*|end Kernel panic - not syncing.*"
PREPARE_TIMEOUT_S = 120.0
FETCH_TIMEOUT_S = 1800.0
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}
_FILES = {
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n",
    "etc/fstab": f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n",
}


@dataclass(frozen=True)
class Guest:
    """
    What can be booted.

    Attributes
    ----------
    directory : Path
        In the cache: ``root.img``, ``boot/``, ``python/`` (Python and the libraries of the guest).
    flavour : str
        Of the kernel: ``cloud`` or ``generic``.
    """

    directory: Path
    flavour: str

    @property
    def root(self) -> Path:
        """The disk; not to be written to."""
        return self.directory / "root.img"

    @property
    def release(self) -> str:
        """Of the kernel, as ``uname -r`` has it."""
        names = sorted(path.name.removeprefix("vmlinuz-") for path in (self.directory / "boot").glob("vmlinuz-*"))
        found = [name for name in names if ("-cloud-" in name) == (self.flavour == "cloud")]
        if not found:
            raise FactAbsentError(f"no {self.flavour} kernel in the guest", where=str(self.directory))
        return found[-1]

    @property
    def kernel(self) -> Path:
        """The image that QEMU loads."""
        return self.directory / "boot" / f"vmlinuz-{self.release}"

    @property
    def initrd(self) -> Path:
        """What Debian made for it."""
        return self.directory / "boot" / f"initrd.img-{self.release}"

    @property
    def modules_dir(self) -> Path:
        """Its modules, as far as a capture on a local disk may want them."""
        return self.directory / "modules" / self.release


def build_guest(cache_dir: Path, flavour: str) -> Guest:
    """
    Return the guest, from the cache or built now.

    Raises
    ------
    NotReadyError
        If it has to be built, and we are not root.
    ProcessError
        If a package cannot be fetched or installed, or the guest does not boot.
    """
    steps = [inspect.getsource(step) for step in (_install, _configure, _keep_files, _make_disk)]
    recipe = [SUITES, BASE_PACKAGES, PACKAGES, FLAVOUR_PACKAGES, ROOT_UUID, _FILES, steps, digest_file(UNIT)]

    def build(target: Path) -> None:
        if os.getuid() != 0:
            raise NotReadyError("the guest is built in a chroot, and we are not root", hint="run it as root, once")
        tree = target / "tree"
        _install(cache_dir, tree)
        _configure(tree)
        _keep_files(tree, target)
        _make_disk(target / "root.img", ROOT_SIZE_BYTES, tree, ("-O", "has_journal", "-L", "guest", "-U", ROOT_UUID))
        shutil.rmtree(tree)
        for name in FLAVOURS:
            _prepare(cache_dir, Guest(target, name))

    return Guest(build_once(cache_dir / "hosts", f"debian-12-{digest_recipe(recipe)}", build), flavour)


def build_memwatch(cache_dir: Path) -> Path:
    """Compile the program that follows how much memory is left."""
    source = GUEST_DIR / "memwatch.c"

    def build(target: Path) -> None:
        compiler = find_program("gcc", hint="install gcc and libc6-dev")
        run([compiler, "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-o", target / "memwatch", source])

    return build_once(cache_dir / "programs", f"memwatch-{digest_file(source)[:20]}", build) / "memwatch"


def arm_guest(cache_dir: Path, guest: Guest) -> Path:
    """
    Return the guest's disk after ``postpanic arm`` has made its image there: it takes minutes, and is done once.

    Raises
    ------
    ProcessError
        If it does not arm itself.
    """

    def build(target: Path) -> None:
        disk = target / "root.img"
        run([find_program("cp"), "--sparse=always", "--reflink=auto", guest.root, disk])
        _boot_once(cache_dir, guest, disk, {**list_postpanic_files(), "arm.sh": ARM, "end.sh": OFF}, UNARMED)

    sources = sorted((SOURCE_DIR / "postpanic").rglob("*.py"))
    recipe = [guest.directory.name, guest.flavour, ARM, [[str(path), digest_file(path)] for path in sources]]
    name = f"debian-12-armed-{guest.flavour}"
    for entry in (cache_dir / "hosts").glob(f"{name}-*"):
        if entry.name != f"{name}-{digest_recipe(recipe)}":
            remove_entry(entry)
    return build_once(cache_dir / "hosts", f"{name}-{digest_recipe(recipe)}", build) / "root.img"


def list_postpanic_files() -> dict[str, str | Path]:
    """Return what a run's disk needs so that there is a ``postpanic`` in the guest."""
    return {"src/postpanic": SOURCE_DIR / "postpanic", "postpanic": POSTPANIC}


def spell_command_line(crashkernel: str, *words: str) -> str:
    """Spell the command line of the guest's kernel."""
    return " ".join((COMMAND_LINE, f"crashkernel={crashkernel}", *words))


def make_run_disk(path: Path, files: Mapping[str, bytes | str | Path]) -> Path:
    """
    Make the disk of a run.

    Parameters
    ----------
    files : mapping
        ``arm.sh`` and ``end.sh``, and what they need: content, or a file or directory of ours.
    """
    with tempfile.TemporaryDirectory(prefix="run-", dir=path.parent) as name:
        content = Path(name) / "content"
        content.mkdir()
        shutil.copy(GUEST_DIR / "run.sh", content)
        for file, what in files.items():
            place = content / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, Path):
                if what.is_dir():
                    shutil.copytree(what, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(what, place)
            else:
                place.write_bytes(what.encode() if isinstance(what, str) else what)
        _make_disk(path, RUN_SIZE_BYTES, content, ("-O", "^has_journal"))
    return path


def _install(cache_dir: Path, tree: Path) -> None:
    """Bootstrap Debian, from the mirrors that the host's apt uses."""
    store = PackageStore(cache_dir, "unpacked")
    _, unpacked = store.fetch(SUITES, "debootstrap", resolve_libraries)
    host = _read_sources()
    sources = write_sources(host, SUITES)
    mirror, keyring = _split_source(sources)
    words: list[str | Path] = [unpacked / "usr/sbin/debootstrap", "--variant=minbase"]
    words += [f"--include={','.join(BASE_PACKAGES)}"]
    words += [f"--keyring={keyring}"] if keyring else []
    environment = {**_ENVIRONMENT, "DEBOOTSTRAP_DIR": str(unpacked / "usr/share/debootstrap")}
    run([*words, SUITES[0], tree, mirror], env=environment, timeout_s=FETCH_TIMEOUT_S)
    if keyring and not (tree / keyring.lstrip("/")).exists():
        (tree / keyring.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(keyring, tree / keyring.lstrip("/"))
    (tree / "etc/apt/sources.list").write_text(sources)
    # Nothing is started in a chroot.
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    _in_chroot(tree, "apt-get", "-q", "update")
    install = ("apt-get", "-q", "-y", "--no-install-recommends", "install")
    _in_chroot(tree, *install, *PACKAGES, *FLAVOUR_PACKAGES.values())
    _in_chroot(tree, "apt-get", "clean")
    policy.unlink()


def _read_sources() -> list[HostSource]:
    listed = run([find_program("apt-get"), "indextargets"], timeout_s=60)
    return parse_index_targets(listed.stdout.decode(errors="replace"))


def _in_chroot(tree: Path, *words: str) -> None:
    run([find_program("chroot"), tree, *words], env=_ENVIRONMENT, timeout_s=FETCH_TIMEOUT_S)


def _split_source(sources: str) -> tuple[str, str]:
    """Return the mirror of the first source, and its keyring."""
    words = sources.splitlines()[0].split()
    keyring = words[1].removeprefix("[signed-by=").removesuffix("]") if words[1].startswith("[") else ""
    return words[2 if keyring else 1], keyring


def _configure(tree: Path) -> None:
    for name, content in _FILES.items():
        (tree / name).write_text(content)
    (tree / "opt/run").mkdir(parents=True, exist_ok=True)
    shutil.copy(UNIT, tree / "etc/systemd/system")
    _in_chroot(tree, "systemctl", "enable", UNIT.name)
    # Without a network there is nothing to update, and a timer that fires in the middle of a run disturbs it.
    timers = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")
    _in_chroot(tree, "systemctl", "mask", *timers)


def _keep_files(tree: Path, target: Path) -> None:
    """Keep what is read on our side: kernels, their images, Python with its libraries, modules."""
    shutil.copytree(tree / "boot", target / "boot", ignore=shutil.ignore_patterns("System.map*"))
    shutil.copytree(tree / "usr/lib/modules", target / "modules", symlinks=True)
    python = target / "python"
    for name in ("usr/bin", "usr/lib/x86_64-linux-gnu", "etc/alternatives"):
        (python / name).mkdir(parents=True)
    copy: list[str | Path] = [find_program("cp"), "-a"]
    run([*copy, *sorted((tree / "usr/bin").glob("python3*")), python / "usr/bin"])
    libraries = [path for path in sorted((tree / "usr/lib/x86_64-linux-gnu").iterdir()) if ".so" in path.name]
    folders = [tree / "usr/lib/x86_64-linux-gnu" / name for name in ("blas", "lapack")]
    run([*copy, *libraries, *folders, python / "usr/lib/x86_64-linux-gnu"])
    run([*copy, *sorted((tree / "usr/lib").glob("python3*")), tree / "usr/lib64", python / "usr"])
    (python / "usr/lib").mkdir(exist_ok=True)
    for path in sorted((python / "usr").glob("python3*")):
        path.rename(python / "usr/lib" / path.name)
    for name in ("bin", "lib", "lib64"):
        (python / name).symlink_to(f"usr/{name}")
    for path in tree.glob("etc/alternatives/lib*"):
        run([*copy, path, python / "etc/alternatives"])
    run([*copy, tree / "etc/ld.so.conf", tree / "etc/ld.so.conf.d", python / "etc"])


def _make_disk(path: Path, size_bytes: int, content: Path, options: Sequence[str]) -> None:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    owner = "root_owner=0:0,lazy_itable_init=1"
    run([find_program("mke2fs"), "-q", "-F", "-t", "ext4", *options, "-E", owner, "-d", content, path])


def _prepare(cache_dir: Path, guest: Guest) -> None:
    """Boot a kernel for the first time; kdump-tools makes its image, and loads it."""
    _boot_once(cache_dir, guest, guest.root, {"arm.sh": ":\n", "end.sh": OFF})


def _boot_once(cache_dir: Path, guest: Guest, root: Path, files: Mapping[str, str | Path], *words: str) -> None:
    """Boot, arm, power off."""
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=cache_dir) as name:
        directory = Path(name)
        disk = make_run_disk(directory / "run.img", files)
        config = MachineConfig(
            kernel=guest.kernel,
            initrd=guest.initrd,
            command_line=spell_command_line("256M", *words),
            disks=(Disk(root), Disk(disk)),
            memory_mib=MEMORY_MIB,
        )
        with hold_machine(cache_dir), Machine(config, directory) as machine:
            machine.wait_for(r"bench: armed", timeout_s=PREPARE_TIMEOUT_S, failure=FAILURE)
            machine.wait_exit(timeout_s=PREPARE_TIMEOUT_S)
