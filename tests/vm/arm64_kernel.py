"""
Kernels for arm64 as Debian has none: built from Debian's source, once.

They have what an emulated machine needs and nothing else, so that they are
built within minutes: no modules, symbols of data. One has ``kexec_file_load``,
and no types (BTF); the other has pages of 64 KiB, addresses of 52 bits, and types.
"""

from __future__ import annotations

import os
from pathlib import Path

from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.packages import Archive, Package
from postpanic.rehearse.store import Bundle, PackageStore
from tests.vm.host_disk import SUITES
from tests.vm.lab import Lab

__all__ = ["KEXEC_FILE", "LARGE_PAGES", "build_kernel"]

KEXEC_FILE = Path(__file__).parent / "scenarios/arm64/kexec-file.config"
LARGE_PAGES = Path(__file__).parent / "scenarios/arm64/large-pages.config"
COMPILER = "aarch64-linux-gnu-"
# The kernel's own build needs them, and a machine may not have them.
TOOLS = ("bison", "flex", "libfl2", "libsigsegv2", "m4", "pahole", "libdw1", "libelf1", "libelf-dev")
SOURCE = r"linux-source-6\.12"
BUILD_TIMEOUT_S = 7200.0


def build_kernel(lab: Lab, config: Path = KEXEC_FILE) -> Kernel:
    """
    Return the kernel, from the cache or built now, which takes gigabytes of room and minutes.

    Parameters
    ----------
    config : Path
        What it has; the rest is off.

    Raises
    ------
    ProcessError
        If there is no compiler for arm64, or the source cannot be fetched.
    """
    find_program(f"{COMPILER}gcc", hint="install gcc-aarch64-linux-gnu")
    archive = PackageStore(lab.cache_dir, "unpacked", "arm64").open_archive(("trixie", "trixie-security"))
    archive.update()
    source = archive.find(SOURCE)[-1]
    _, tools = PackageStore(lab.cache_dir, "unpacked").fetch(SUITES, " ".join(TOOLS), _resolve_tools)

    def build(target: Path) -> None:
        lab.say(f"building a kernel for arm64 of {source.name} {source.version}")
        tree = target / "source"
        tree.mkdir()
        package = archive.fetch(source, target)
        run([find_program("dpkg-deb"), "-x", package, target / "package"])
        (packed,) = (target / "package/usr/src").glob("linux-source-*.tar.xz")
        run([find_program("tar"), "-xf", packed, "--strip-components=1", "-C", tree], timeout_s=BUILD_TIMEOUT_S)
        _make(tree, tools, f"KCONFIG_ALLCONFIG={config}", "allnoconfig")
        _make(tree, tools, f"-j{os.cpu_count() or 1}", "Image")
        (tree / "arch/arm64/boot/Image").rename(target / "Image")
        (target / "release").write_bytes(_make(tree, tools, "kernelrelease").strip())
        package.unlink()
        for directory in (tree, target / "package"):
            run([find_program("rm"), "-rf", directory])
        (target / "modules").mkdir()

    name = f"linux-6.12-{config.stem}-{digest_recipe([source.version, digest_file(config)])}"
    entry = build_once(lab.cache_dir / "kernels-built", name, build)
    release = (entry / "release").read_text()
    return Kernel(source.name, source.version, release, entry / "Image", entry / "modules")


def _make(tree: Path, tools: Path, *words: str) -> bytes:
    libraries = f"{tools}/usr/lib/{os.uname().machine}-linux-gnu"
    environment = {
        "PATH": f"{tools}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": libraries,
        # Of a program that the kernel builds for its own build; compilers for other machines do not look there.
        "LIBRARY_PATH": libraries,
        "CPATH": f"{tools}/usr/include",
        "BISON_PKGDATADIR": f"{tools}/usr/share/bison",
        "M4": f"{tools}/usr/bin/m4",
    }
    command: list[str | Path] = [find_program("make"), "-s", "ARCH=arm64", f"CROSS_COMPILE={COMPILER}", *words]
    return run(command, cwd=tree, env=environment, timeout_s=BUILD_TIMEOUT_S).stdout


def _resolve_tools(archive: Archive, wanted: str) -> Bundle:
    found = [archive.find(name)[-1] for name in wanted.split()]
    parts = tuple(Package(one.name, one.version) for one in found)
    return Bundle(Package("kernel-tools", digest_recipe([[one.name, one.version] for one in parts])), parts)
