"""
Which kernel modules devices, file systems and protocols need.

A device of this machine tells the driver that it has. Where the capture kernel
is another one than runs here, the device's alias finds the module in that
kernel's index, as modprobe does.

Sources: modules.alias(5), modprobe.d(5); ``Documentation/kbuild/modules.rst``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.resolve.sysfs import Driver

__all__ = ["choose_driver_modules", "filesystem_modules", "nfs_modules", "read_module_options"]

_OPTIONS_LIMIT_BYTES = 1 << 20
_CONFIG_DIRS = ("lib/modprobe.d", "usr/lib/modprobe.d", "run/modprobe.d", "etc/modprobe.d")

# One driver mounts all three (CONFIG_EXT4_USE_FOR_EXT2).
_DRIVERS_OF_FILESYSTEMS = {"ext2": "ext4", "ext3": "ext4"}


def choose_driver_modules(drivers: Iterable[Driver], tree: ModuleTree, *, same_kernel: bool) -> list[str]:
    """
    Name the modules that the devices need.

    Parameters
    ----------
    tree : ModuleTree
        Of the capture kernel.
    same_kernel : bool
        Whether the capture kernel is the one that runs: then a driver that is built in stays so.
    """
    names: list[str] = []
    for driver in drivers:
        if driver.module and (same_kernel or driver.module in tree or driver.module in tree.built_in):
            names.append(driver.module)
        elif driver.name and driver.alias and not same_kernel:
            # What needs no driver here needs none there.
            names += tree.find_by_modalias(driver.alias)
    return list(dict.fromkeys(names))


def filesystem_modules(filesystem: str) -> list[str]:
    """Name the module of a file system on a disk; what that needs in its turn it says itself."""
    return [_DRIVERS_OF_FILESYSTEMS.get(filesystem, filesystem)]


def nfs_modules(version: str) -> list[str]:
    """Name the modules of the NFS client: that of the protocol's version is asked for when it is mounted."""
    return ["nfs", "nfsv3" if version == "3" else "nfsv4"]


def read_module_options(root: Path) -> dict[str, str]:
    """
    Read the parameters that modprobe would give to modules: ``options NAME WORDS``.

    A file hides one of the same name in a directory of less weight; the files
    count in the order of their names.
    """
    files: dict[str, Path] = {}
    for directory in _CONFIG_DIRS:
        for path in sorted((root / directory).glob("*.conf")):
            files[path.name] = path
    options: dict[str, str] = {}
    for _, path in sorted(files.items()):
        for line in _read_lines(path):
            words = line.split()
            if len(words) > 2 and words[0] == "options":
                name = words[1].replace("-", "_")
                options[name] = f"{options[name]} {' '.join(words[2:])}" if name in options else " ".join(words[2:])
    return options


def _read_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            return stream.read(_OPTIONS_LIMIT_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
