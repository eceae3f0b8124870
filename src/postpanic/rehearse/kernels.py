"""
Debian's kernels, by name and without root: image, modules and debug information, in a cache.

A :class:`KernelChoice` says which kernel is wanted ("the newest 6.12 of
trixie"); :class:`KernelStore` finds out what that is today, fetches it once,
and keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from postpanic.errors import FactAbsentError
from postpanic.rehearse.cache import build_once, digest_recipe
from postpanic.rehearse.packages import Archive, Package, unpack_some
from postpanic.rehearse.store import Bundle, PackageStore

__all__ = ["DebugInfo", "Kernel", "KernelChoice", "KernelStore"]

_PARTS = re.compile(r"linux-(image|binary|modules)-\d")


@dataclass(frozen=True)
class KernelChoice:
    """
    Which kernel is wanted.

    Attributes
    ----------
    suites : tuple of str
        Where to look.
    pattern : str
        A regular expression for the whole name of the image's package; the
        newest version wins. A metapackage stands for what it depends on.
    architecture : str
        Debian's name of it (``arm64``); empty: the host's.
    """

    suites: tuple[str, ...]
    pattern: str
    architecture: str = ""


@dataclass(frozen=True)
class Kernel:
    """
    A kernel in the cache.

    Attributes
    ----------
    package, version : str
        The image's package.
    release : str
        As ``uname -r`` has it.
    image : Path
        The bootable image.
    modules_dir : Path
        Its ``lib/modules/RELEASE``.
    """

    package: str
    version: str
    release: str
    image: Path
    modules_dir: Path


@dataclass(frozen=True)
class DebugInfo:
    """The debug information of a kernel: its vmlinux, and modules by name."""

    vmlinux: Path
    modules_dir: Path


class KernelStore:
    """
    Kernels of Debian, fetched when first wanted.

    Parameters
    ----------
    directory : Path
        The cache.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fetch(self, choice: KernelChoice) -> Kernel:
        """
        Return the kernel, from the cache when it is there.

        Raises
        ------
        ProcessError
            If it is not in the cache and cannot be fetched.
        FactAbsentError
            If the suites have no such kernel.
        """
        packages = PackageStore(self.directory, "kernels", choice.architecture)
        bundle, entry = packages.fetch(choice.suites, choice.pattern, resolve)
        return _describe(bundle.main, entry)

    def fetch_debug_info(self, choice: KernelChoice, kernel: Kernel, modules: Iterable[str] = ()) -> DebugInfo:
        """
        Return the kernel's debug information, fetching several hundred MB when first wanted.

        Parameters
        ----------
        modules : iterable of str
            The modules whose debug information is wanted too; names without
            one are left out.
        """
        names = sorted({name.replace("-", "_") for name in modules})
        entry_name = f"{kernel.package}-dbg_{kernel.version}_{digest_recipe(names)}"
        archive = PackageStore(self.directory, "kernels", choice.architecture).open_archive(choice.suites)
        package = Package(f"linux-image-{kernel.release}-dbg", kernel.version)

        def want(path: str) -> bool:
            # A regular file in one of these two places, a symbolic link in the other.
            if path.endswith((f"/boot/vmlinux-{kernel.release}", f"/modules/{kernel.release}/vmlinux")):
                return True
            name = path.rsplit("/", 1)[-1].removesuffix(".debug")
            return "/modules/" in path and name.split(".ko", 1)[0].replace("-", "_") in names and ".ko" in name

        def build(target: Path) -> None:
            archive.update()
            downloaded = archive.fetch(package, target)
            unpack_some(downloaded, target, want)
            downloaded.unlink()

        kind = f"debug-{choice.architecture}" if choice.architecture else "debug"
        entry = build_once(self.directory / kind, entry_name.replace(":", "%3a"), build)
        modules_dir = entry / "usr/lib/debug/lib/modules" / kernel.release
        places = (entry / "usr/lib/debug/boot" / f"vmlinux-{kernel.release}", modules_dir / "vmlinux")
        found = [path for path in places if path.is_file()]
        if not found:
            raise FactAbsentError(f"package {package.name}: no vmlinux", where=str(entry))
        return DebugInfo(found[0], modules_dir)


def resolve(archive: Archive, pattern: str) -> Bundle:
    """
    Find the newest kernel whose package matches, and the packages it is split into.

    Up to 6.x one package has image and modules; from 7.x on it is a shell that
    depends on ``linux-binary-`` and ``linux-modules-``.
    """
    image = archive.find(pattern)[-1]
    wanted = [image]
    if not _PARTS.match(image.name):
        wanted = [_find_exact(archive, name) for name in image.depends if _PARTS.match(name)]
        if not wanted:
            raise FactAbsentError(f"package {image.name} {image.version} depends on no kernel")
        image = wanted[0]
    parts = [image, *(_find_exact(archive, name) for name in image.depends if _PARTS.match(name))]
    return Bundle(replace(image, depends=()), tuple(replace(part, depends=()) for part in parts))


def _find_exact(archive: Archive, name: str) -> Package:
    return archive.find(re.escape(name))[-1]


def _describe(image: Package, entry: Path) -> Kernel:
    directories = [path for path in (entry / "usr/lib/modules", entry / "lib/modules") if path.is_dir()]
    releases = [release for path in directories for release in sorted(path.iterdir())]
    if not releases:
        raise FactAbsentError(f"package {image.name}: no lib/modules", where=str(entry))
    modules_dir = releases[0]
    candidates = [modules_dir / "vmlinuz", entry / "boot" / f"vmlinuz-{modules_dir.name}"]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise FactAbsentError(f"package {image.name}: no kernel image", where=str(entry))
    return Kernel(image.name, image.version, modules_dir.name, found[0], modules_dir)
