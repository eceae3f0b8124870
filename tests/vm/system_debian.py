"""
The disk of a whole Debian host, made without root: partitions, GRUB, systemd, a kernel with Debian's own initramfs.

The packages are unpacked on our side, which makes of the tree what ``dpkg
--unpack`` would leave; in a guest, where there is a root, dpkg configures them
with their maintainers' scripts, and GRUB is installed. Differences from what
debootstrap makes: no preinst has run, all is owned by root, and documentation is
left out.
"""

from __future__ import annotations

import inspect
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.packages import Archive, Package, unpack
from postpanic.rehearse.store import PackageStore
from tests.vm.host_disk import SUITES, compile_modules, merge_usr, resolve_packages
from tests.vm.hosts import run_on_host
from tests.vm.lab import Lab
from tests.vm.system_packages import copy_requirements, list_requirements

__all__ = [
    "BOOT",
    "DEBIAN",
    "ROOT_OFFSET",
    "ROOT_UUID",
    "SystemRecipe",
    "change_in_guest",
    "fetch_system",
    "read_tree",
]

UNIT = Path(__file__).parent / "system/lab-steps.service"
ESSENTIAL = (
    *("base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "dpkg"),
    *("findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "login", "mawk", "ncurses-base"),
    *("ncurses-bin", "perl-base", "sed", "sysvinit-utils", "tar", "util-linux", "usr-is-merged"),
)
BASE = (*ESSENTIAL, "e2fsprogs", "mount", "kmod", "udev", "zstd", "procps", "python3")
BOOT = ("linux-image-cloud-amd64", "initramfs-tools", "grub-pc", "grub-pc-bin", "grub2-common")
# The first of alternatives that we do not want, and what only documentation or questions need.
UNWANTED = re.compile(r"usrmerge|linux-initramfs-tool|cdebconf|libcommon-sense-perl")
UNWANTED_PATHS = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info")
ROOT_UUID = "0f6d2a1e-8c55-4a3a-9d5b-2b6d1f0b7c43"
PY_COMPILE = "usr/lib/python3.11/py_compile.py"
"""By which Python's packages compile modules; in a guest that takes minutes, and here it is done already."""
MACHINE_ID = "7f9d0c1b2a3e4f5061728394a5b6c7d8"
ROOT_OFFSET = 1 << 20
"""Of the partition, in bytes: the first MiB is for partition table and boot loader."""
DISK_SIZE_BYTES = 3 << 30
LABEL = f"label: dos\nstart={ROOT_OFFSET >> 9}, type=83, bootable\n"
HELPER_KERNEL = "6.1"
"""A kernel of the lab; boots the tree while it is not yet a system."""
INSTALL_TIMEOUT_S = 900.0
FILES = {
    "etc/hostname": "whole\n",
    "etc/hosts": "127.0.0.1 localhost whole\n",
    "etc/fstab": f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n",
    "etc/default/grub.d/lab.cfg": (
        'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX="console=ttyS0 no_timer_check"\nGRUB_CMDLINE_LINUX_DEFAULT=""\n'
        'GRUB_TERMINAL=serial\nGRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"\n'
    ),
    "etc/initramfs-tools/conf.d/lab": "MODULES=dep\n",
    # Every package that has something to do with it would have it made again.
    "etc/initramfs-tools/update-initramfs.conf": "update_initramfs=no\n",
}
_CONFIGURE = (
    "export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true; dpkg --force-unsafe-io --configure "
)
CONFIGURE = (
    # We may not have been root.
    "find / -xdev ! -user 0 -exec chown -h 0:0 {} +; chmod 4755 /usr/bin/mount /usr/bin/su; chmod 1777 /tmp",
    # As udev would have it.
    f"mkdir -p /dev/disk/by-uuid && ln -s ../../vda1 /dev/disk/by-uuid/{ROOT_UUID}",
    "printf 'grub-pc grub-pc/install_devices_empty boolean true\\n' >/root/answers",
    # Users and groups come first: nothing depends on them.
    f"{_CONFIGURE} --force-depends base-passwd && {_CONFIGURE} --force-depends base-files",
    "debconf-set-selections /root/answers; rm /root/answers",
    f"{_CONFIGURE} -a",
    f"mv /{PY_COMPILE}.real /{PY_COMPILE}; echo update_initramfs=yes >/etc/initramfs-tools/update-initramfs.conf",
)
FINISH = (
    "grub-install /dev/vda && update-grub",
    "systemctl mask dpkg-db-backup.timer e2scrub_all.timer fstrim.timer getty@tty1 serial-getty@ttyS0",
    "systemctl enable lab-steps.service",
    f"echo {MACHINE_ID} >/etc/machine-id; dpkg --audit; ls -l /boot",
)


@dataclass(frozen=True)
class SystemRecipe:
    """
    What becomes a disk.

    Attributes
    ----------
    name : str
        Of the entry in the cache.
    packages : tuple of str
        Besides those that every system has; their dependencies come with them.
    commands : tuple of str
        In the guest, once the packages are configured.
    unwanted : str
        Packages that come neither as a dependency: an expression.
    """

    name: str
    packages: tuple[str, ...]
    commands: tuple[str, ...]
    unwanted: str = ""


DEBIAN = SystemRecipe("whole-debian", ("systemd", "systemd-sysv", "dbus", *BOOT), FINISH)


def fetch_system(lab: Lab, recipe: SystemRecipe = DEBIAN) -> Path:
    """
    Return the disk of a system, from the cache or made now, which takes minutes. It is not to be written to.

    Raises
    ------
    PostpanicError
        If a package cannot be fetched, or not be configured.
    """
    versions = {name: found.version for name, found in list_requirements().items()}
    steps = [inspect.getsource(step) for step in (unpack_packages, make_partitioned_disk, copy_requirements)]
    # Not the packages' versions: a system that is there is as good as one with the updates of today.
    key = [
        SUITES,
        BASE,
        recipe.packages,
        recipe.unwanted,
        versions,
        recipe.commands,
        CONFIGURE,
        FILES,
        steps,
        digest_file(UNIT),
    ]

    def build(target: Path) -> None:
        archive = PackageStore(lab.cache_dir, "unpacked").open_archive(SUITES)
        archive.update()
        unwanted = re.compile(f"{UNWANTED.pattern}|{recipe.unwanted}" if recipe.unwanted else UNWANTED.pattern)
        bundle = resolve_packages(archive, " ".join((*BASE, *recipe.packages)), unwanted)
        lab.say(f"making the disk of a {recipe.name} host of {len(bundle.parts)} packages")
        root = target / "tree"
        unpack_packages(archive, bundle.parts, root)
        for name, content in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        shutil.copy(UNIT, root / "etc/systemd/system")
        (root / "opt/steps").mkdir(parents=True)
        (root / "opt/host").mkdir(parents=True)
        copy_requirements(root / "opt/postpanic/lib")
        compile_modules(root, "usr/lib/python3", "usr/lib/python3.11", "opt/postpanic/lib")
        (root / PY_COMPILE).rename(root / f"{PY_COMPILE}.real")
        (root / PY_COMPILE).write_text("")
        base = target / "base.img"
        make_partitioned_disk(base, root)
        shutil.rmtree(root)
        change_in_guest(lab, base, target, (*CONFIGURE, *recipe.commands))
        base.unlink()

    return build_once(lab.cache_dir / "hosts", f"{recipe.name}-{digest_recipe(key)}", build) / "root.img"


def change_in_guest(
    lab: Lab,
    base: Path,
    target: Path,
    commands: Sequence[str],
    files: Mapping[str, bytes | str | Path] | None = None,
) -> None:
    """
    Copy a disk into a directory, as ``root.img``, and run commands on it as root: in a guest, where there is one.

    Raises
    ------
    PostpanicError
        If a command fails; ``failed-install.log`` in the cache has what they said.
    """
    results = run_on_host(
        lab,
        HELPER_KERNEL,
        commands,
        crashkernel="",
        base=base,
        root_device="/dev/vda1",
        directory=target,
        files=files,
        command_timeout_s=INSTALL_TIMEOUT_S,
    )
    log = "".join(f"$ {one.command}\n{one.stdout}{one.stderr}= {one.status}, {one.seconds} s\n" for one in results)
    (target / "install.log").write_text(log)
    bad = [one for one in results if one.status]
    if bad:
        shutil.copy(target / "install.log", lab.cache_dir / "failed-install.log")
        raise PostpanicError(f"{bad[0].command}: status {bad[0].status}: {log[-3000:]}")
    for name in ("job.img", "initrd", "qemu.log"):
        (target / name).unlink(missing_ok=True)


def unpack_packages(archive: Archive, parts: Sequence[Package], root: Path) -> None:
    """Make a tree of packages, with the database of dpkg, in which they are unpacked and not configured."""
    with tempfile.TemporaryDirectory(prefix="packages-", dir=root.parent) as name:
        directory = Path(name)
        tree, info = directory / "tree", directory / "info"
        info.mkdir()
        stanzas = []
        for package in archive.fetch_all(parts, directory):
            unpack(package, tree)
            stanzas.append(_register(package, directory, info))
            package.unlink()
        merge_usr(tree, root)
        database = root / "var/lib/dpkg"
        for name in ("info", "updates", "triggers", "alternatives", "parts"):
            (database / name).mkdir(parents=True, exist_ok=True)
        for file in info.iterdir():
            shutil.move(file, database / "info")
        (database / "info/format").write_text("1\n")
        (database / "status").write_text("\n".join(stanzas))
        (database / "available").write_text("")
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "boot", "mnt", "etc/apt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in UNWANTED_PATHS:
        shutil.rmtree(root / name, ignore_errors=True)


def _register(package: Path, directory: Path, info: Path) -> str:
    """Put what a package has for dpkg where dpkg looks for it; return its stanza of the database."""
    control = directory / "control"
    run([find_program("dpkg-deb"), "-e", package, control])
    stanza = (control / "control").read_text()
    name = _read_field(stanza, "Package")
    # deb-md5sums(5), dpkg's infodb: files of packages of which there may be several architectures carry theirs.
    stem = f"{name}:{_read_field(stanza, 'Architecture')}" if _read_field(stanza, "Multi-Arch") == "same" else name
    for file in control.iterdir():
        if file.name != "control":
            shutil.move(file, info / f"{stem}.{file.name}")
    shutil.rmtree(control)
    listed = run([find_program("dpkg-deb"), "--contents", package]).stdout.decode(errors="replace").splitlines()
    paths = (line.split(None, 5)[5].split(" -> ")[0].split(" link to ")[0] for line in listed)
    names = [path.removeprefix(".").rstrip("/") or "/." for path in paths]
    (info / f"{stem}.list").write_text("".join(f"{path}\n" for path in names))
    return stanza.replace("\n", "\nStatus: install ok unpacked\n", 1)


def _read_field(stanza: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", stanza, re.MULTILINE)
    return found[1].strip() if found else ""


def make_partitioned_disk(path: Path, content: Path) -> None:
    """Make a disk with one partition, and a file system on it."""
    with path.open("wb") as stream:
        stream.truncate(DISK_SIZE_BYTES)
    run([find_program("sfdisk"), "--quiet", path], stdin=LABEL.encode())
    options = f"root_owner=0:0,lazy_itable_init=1,offset={ROOT_OFFSET}"
    blocks = f"{(DISK_SIZE_BYTES - ROOT_OFFSET) >> 10}k"
    # What GRUB 2.06 cannot read must not be on: it knows no checksum seed and no large directories.
    features = "has_journal,^metadata_csum_seed,^orphan_file"
    words: list[str | Path] = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        features,
        "-L",
        "whole",
        "-U",
        ROOT_UUID,
        "-E",
        options,
        "-d",
        content,
    ]
    run([find_program("mke2fs"), *words, path, blocks])


def read_tree(disk: Path, path: str, directory: Path) -> Path:
    """
    Copy a directory, or a file, out of a system's disk.

    Raises
    ------
    FactAbsentError
        If it is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run([find_program("debugfs"), "-R", f"rdump {path} {directory}", f"{disk}?offset={ROOT_OFFSET}"])
    found = directory / path.rstrip("/").rsplit("/", 1)[1]
    if not found.exists():
        raise FactAbsentError(f"no {path} on the disk", where=str(disk))
    return found
