"""
A kernel for arm64 that has ``kexec_file_load``, as none of Debian's does: built from Debian's source, once.

It has what an emulated machine needs and nothing else, so that it is built
within minutes: no modules, no types (BTF), symbols of data.
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

__all__ = ["build_kernel"]

CONFIG = Path(__file__).parent / "scenarios/arm64/kexec-file.config"
COMPILER = "aarch64-linux-gnu-"
# The kernel's own build needs them, and a machine may not have them.
TOOLS = ("bison", "flex", "libfl2", "libsigsegv2", "m4")
SOURCE = r"linux-source-6\.12"
BUILD_TIMEOUT_S = 7200.0


def build_kernel(lab: Lab) -> Kernel:
    """
    Return the kernel, from the cache or built now, which takes a gigabyte of room and minutes.

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
        _make(tree, tools, f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig")
        _make(tree, tools, f"-j{os.cpu_count() or 1}", "Image")
        (tree / "arch/arm64/boot/Image").rename(target / "Image")
        (target / "release").write_bytes(_make(tree, tools, "kernelrelease").strip())
        package.unlink()
        for directory in (tree, target / "package"):
            run([find_program("rm"), "-rf", directory])
        (target / "modules").mkdir()

    name = f"linux-6.12-kexec-file-{digest_recipe([source.version, digest_file(CONFIG)])}"
    entry = build_once(lab.cache_dir / "kernels-built", name, build)
    release = (entry / "release").read_text()
    return Kernel(source.name, source.version, release, entry / "Image", entry / "modules")


def _make(tree: Path, tools: Path, *words: str) -> bytes:
    environment = {
        "PATH": f"{tools}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{tools}/usr/lib/{os.uname().machine}-linux-gnu",
        "BISON_PKGDATADIR": f"{tools}/usr/share/bison",
        "M4": f"{tools}/usr/bin/m4",
    }
    command: list[str | Path] = [find_program("make"), "-s", "ARCH=arm64", f"CROSS_COMPILE={COMPILER}", *words]
    return run(command, cwd=tree, env=environment, timeout_s=BUILD_TIMEOUT_S).stdout


def _resolve_tools(archive: Archive, wanted: str) -> Bundle:
    found = [archive.find(name)[-1] for name in wanted.split()]
    parts = tuple(Package(one.name, one.version) for one in found)
    return Bundle(Package("kernel-tools", digest_recipe([[one.name, one.version] for one in parts])), parts)
