"""The root disk of a host: Debian's packages, unpacked and put in order without root, with a kernel and its modules."""

from __future__ import annotations

import compileall
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from py_compile import PycInvalidationMode

from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.store import PackageStore, resolve_packages
from tests.vm.lab import Lab

__all__ = [
    "HOST_PACKAGES",
    "ROOT_UUID",
    "SUITES",
    "compile_modules",
    "fetch_root_disk",
    "make_disk",
    "merge_usr",
    "resolve_packages",
]

SUITES = ("bookworm", "bookworm-security")
HOST_PACKAGES = (
    *("base-files", "coreutils", "dash", "grep", "sed", "mount", "util-linux", "hostname", "e2fsprogs"),
    *("kmod", "kexec-tools", "iproute2", "zstd", "xz-utils", "lz4", "bzip2"),
    *("python3", "python3-numpy", "python3-click", "python3-rich", "python3-zstandard"),
)
ROOT_UUID = "6f0cb1c4-6a39-4d8e-9d29-5a6f63bfa1d7"
ROOT_SIZE_BYTES = 3 << 30
FILES = {
    "etc/hostname": "host\n",
    "etc/hosts": "127.0.0.1 localhost host\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/fstab": f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n",
}


def fetch_root_disk(lab: Lab, kernel: Kernel, packages: Iterable[str] = ()) -> Path:
    """Return the host's root disk, from the cache or made now: Debian, a kernel in ``/boot``, its modules."""
    names = sorted({*HOST_PACKAGES, *packages})
    store = PackageStore(lab.cache_dir, "unpacked")
    bundle, tree = store.fetch(SUITES, " ".join(names), resolve_packages)

    def build(target: Path) -> None:
        root = target / "root"
        merge_usr(tree, root)
        _finish_tree(root)
        _install_kernel(root, kernel)
        compile_modules(root, "usr/lib/python3", "usr/lib/python3.11")
        words = ("-O", "has_journal", "-L", "host-root", "-U", ROOT_UUID)
        make_disk(target / "root.img", ROOT_SIZE_BYTES, root, words)
        shutil.rmtree(root)

    recipe = [bundle.entry_name, kernel.package, kernel.version, digest_file(Path(__file__))]
    return build_once(lab.cache_dir / "hosts", f"{kernel.release}-{digest_recipe(recipe)}", build) / "root.img"


def merge_usr(tree: Path, root: Path) -> None:
    """Copy the unpacked packages, ``/bin`` and its like merged into ``/usr``, as every Debian 12 has it."""
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    for entry in sorted(tree.iterdir()):
        if entry.is_dir():
            place = root / "usr" / entry.name if (root / entry.name).is_symlink() else root / entry.name
            shutil.copytree(entry, place, symlinks=True, dirs_exist_ok=True)
    for name in ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info"):
        shutil.rmtree(root / name, ignore_errors=True)


def _finish_tree(root: Path) -> None:
    """Do what maintainers' scripts would have done."""
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "opt/host", "boot", "var/crash", "var/lib", "etc", "mnt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (root / name).write_text(content)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name in ("blas", "lapack"):
        # Of update-alternatives.
        library = libraries / name / f"lib{name}.so.3"
        if library.exists():
            (libraries / library.name).symlink_to(f"{name}/{library.name}")


def _install_kernel(root: Path, kernel: Kernel) -> None:
    shutil.copy(kernel.image, root / "boot" / f"vmlinuz-{kernel.release}")
    for directory in (kernel.modules_dir.parents[2] / "boot", kernel.modules_dir.parents[3] / "boot"):
        for path in directory.glob("config-*"):
            shutil.copy(path, root / "boot")
    modules = root / "usr/lib/modules" / kernel.release
    shutil.copytree(kernel.modules_dir, modules, symlinks=True, ignore=shutil.ignore_patterns("build", "source"))
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    run([loader, "--library-path", libraries, "--argv0", "depmod", root / "usr/bin/kmod", "-b", root, kernel.release])


def compile_modules(root: Path, *names: str, prefix: str = "/") -> None:
    """
    Compile modules as pip and Debian do, if Debian's Python can use what ours makes.

    Parameters
    ----------
    prefix : str
        Where *root* is in the guest.
    """
    if sys.version_info[:2] == (3, 11):
        for name in names:
            mode = PycInvalidationMode.UNCHECKED_HASH
            compileall.compile_dir(root / name, quiet=2, stripdir=str(root), prependdir=prefix, invalidation_mode=mode)


def make_disk(path: Path, size_bytes: int, content: Path, options: Sequence[str] = ("-O", "^has_journal")) -> None:
    """Make a sparse ext4 disk with *content* on it."""
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    owner = "root_owner=0:0,lazy_itable_init=1"
    run([find_program("mke2fs"), "-q", "-F", "-t", "ext4", *options, "-E", owner, "-d", content, path])
