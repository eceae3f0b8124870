"""
Which kernel modules devices, file systems and protocols need.

A device of this machine tells the driver that it has. Where that is built into
this kernel, or the capture kernel is another one, the device's alias finds the
module in the capture kernel's index, as modprobe does.

Sources: modules.alias(5), modules.dep(5), modprobe.d(5); ``Documentation/kbuild/modules.rst``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from postpanic.capture.resolve.sysfs import Driver

__all__ = ["ModuleIndex", "choose_driver_modules", "filesystem_modules", "nfs_modules", "read_module_options"]

_INDEX_LIMIT_BYTES = 64 << 20
_OPTIONS_LIMIT_BYTES = 1 << 20
_CONFIG_DIRS = ("lib/modprobe.d", "usr/lib/modprobe.d", "run/modprobe.d", "etc/modprobe.d")

# What a file system asks the kernel for when it is mounted, beside its own module; by alias or by name.
_FILESYSTEM_NEEDS: dict[str, tuple[str, ...]] = {
    "ext2": ("ext2", "ext4", "crc32c", "crc32c_generic"),
    "ext3": ("ext3", "ext4", "crc32c", "crc32c_generic"),
    "ext4": ("ext4", "crc32c", "crc32c_generic"),
    "xfs": ("xfs", "crc32c", "crc32c_generic"),
    "btrfs": ("btrfs", "crc32c", "crc32c_generic", "xxhash64", "xxhash_generic", "sha256", "blake2b-256"),
    "vfat": ("vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"),
}
# Those that only make a checksum faster cost memory, and their own modules more.
_UNWANTED = re.compile(
    r".*_(ssse3|avx2?|ce|neon|arm64|x86_64|mb|intel|pclmul|arm64_ce)|.*padlock.*|qat_.*|ccp.*|caam.*"
)


class ModuleIndex:
    """
    What depmod has written about the modules of one kernel.

    Parameters
    ----------
    directory : Path
        ``lib/modules/RELEASE``.
    """

    def __init__(self, directory: Path) -> None:
        self._exact: dict[str, list[str]] = {}
        self._by_bus: dict[str, list[tuple[str, str]]] = {}
        for line in _read_lines(directory / "modules.alias"):
            words = line.split()
            if len(words) != 3 or words[0] != "alias":
                continue
            self._add(words[1], words[2])

    def find(self, alias: str) -> list[str]:
        """List the modules that claim an alias, in the order of the index; dashes and underscores are the same."""
        found = list(self._exact.get(alias.replace("-", "_"), ()))
        bus = alias.partition(":")[0]
        found += [module for pattern, module in self._by_bus.get(bus, ()) if fnmatch.fnmatchcase(alias, pattern)]
        return list(dict.fromkeys(found))

    def _add(self, pattern: str, module: str) -> None:
        if any(letter in pattern for letter in "*?["):
            self._by_bus.setdefault(pattern.partition(":")[0], []).append((pattern, module))
        else:
            self._exact.setdefault(pattern.replace("-", "_"), []).append(module)


def choose_driver_modules(drivers: Iterable[Driver], index: ModuleIndex, *, same_kernel: bool) -> list[str]:
    """
    Name the modules that the devices need.

    Parameters
    ----------
    same_kernel : bool
        Whether the capture kernel is the one that runs: then a driver that is built in stays so.
    """
    names: list[str] = []
    for driver in drivers:
        if driver.module:
            names.append(driver.module)
        if driver.alias and not (same_kernel and driver.name):
            # Without a driver here there is none that it needs there.
            names += index.find(driver.alias) if driver.name else []
    return list(dict.fromkeys(names))


def filesystem_modules(filesystem: str, index: ModuleIndex) -> list[str]:
    """Name the modules that a file system on a disk may need; a kernel need not have them all."""
    return _by_alias(_FILESYSTEM_NEEDS.get(filesystem, (filesystem,)), index)


def nfs_modules(version: str, index: ModuleIndex) -> list[str]:
    """Name the modules of the NFS client."""
    return _by_alias(("nfs", "nfsv3" if version == "3" else "nfsv4"), index)


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
        for line in _read_lines(path, _OPTIONS_LIMIT_BYTES):
            words = line.split()
            if len(words) > 2 and words[0] == "options":
                name = words[1].replace("-", "_")
                options[name] = f"{options[name]} {' '.join(words[2:])}" if name in options else " ".join(words[2:])
    return options


def _by_alias(needs: Iterable[str], index: ModuleIndex) -> list[str]:
    names: list[str] = []
    for need in needs:
        # A file system goes by its own name, or by fs-NAME.
        names += [
            need,
            *(name for name in index.find(need) if not _UNWANTED.fullmatch(name)),
            *index.find(f"fs-{need}"),
        ]
    return [name.replace("-", "_") for name in dict.fromkeys(names)]


def _read_lines(path: Path, limit_bytes: int = _INDEX_LIMIT_BYTES) -> list[str]:
    try:
        with path.open("rb") as stream:
            return stream.read(limit_bytes).decode(errors="replace").splitlines()
    except OSError:
        return []
