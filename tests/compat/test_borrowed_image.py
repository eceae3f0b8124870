"""Debian's own mkinitramfs and dracut build images that start the saver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.hooks.borrowed_image import build_with_dracut, build_with_initramfs_tools
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.store import PackageStore
from tests.vm import host_disk
from tests.vm.lab import Lab

PACKAGES = (
    *(
        "base-files",
        "bash",
        "coreutils",
        "cpio",
        "dash",
        "diffutils",
        "dpkg",
        "findutils",
        "grep",
        "gzip",
        "kmod",
        "libc-bin",
    ),
    *("mawk", "mount", "sed", "tar", "udev", "util-linux", "xz-utils", "zstd"),
    *("busybox", "dracut-core", "initramfs-tools", "klibc-utils", "lvm2"),
)


@pytest.fixture(scope="module")
def system(
    crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Give a Debian system that can be run by chroot, and the release of its kernel."""
    if os.geteuid() != 0:
        pytest.skip("only root may chroot")
    kernel = fetch_kernel("6.1")
    bundle, tree = PackageStore(crash_lab.cache_dir, "unpacked").fetch(
        host_disk.SUITES, " ".join(sorted(PACKAGES)), host_disk.resolve_packages
    )

    def build(target: Path) -> None:
        root = target / "root"
        host_disk.merge_usr(tree, root)
        host_disk._finish_tree(root)
        host_disk._install_kernel(root, kernel)

    recipe = [bundle.entry_name, kernel.version, digest_file(Path(host_disk.__file__))]
    cached = build_once(crash_lab.cache_dir / "hosts", f"chroot-{digest_recipe(recipe)}", build) / "root"
    root = tmp_path_factory.mktemp("system") / "root"
    shutil.copytree(cached, root, symlinks=True, ignore=shutil.ignore_patterns("vmlinuz-*"))
    (root / "var/tmp").mkdir(exist_ok=True)
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    return root, kernel.release


def list_image(root: Path, program: str, image: bytes) -> str:
    (root / "mnt/image").write_bytes(image)
    command: list[str | Path] = [
        find_program("chroot"),
        root,
        "/usr/bin/env",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        program,
        "/mnt/image",
    ]
    return run(command, timeout_s=60.0).stdout.decode()


def test_mkinitramfs_puts_the_script_where_it_is_run(system: tuple[Path, str]) -> None:
    root, release = system
    before = sorted((root / "etc").rglob("*"))
    listed = list_image(root, "lsinitramfs", build_with_initramfs_tools(release, modules="most", root=root))
    assert {"scripts/local-premount/postpanic", "scripts/local-premount/ORDER"} <= set(listed.split())
    assert {"usr/sbin/chroot", "usr/bin/chroot"} & set(listed.split())
    assert "usr/sbin/lvm" in listed.split()
    assert sorted((root / "etc").rglob("*")) == before
    assert list((root / "var/tmp").iterdir()) == []


def test_dracut_puts_the_script_where_it_is_run(system: tuple[Path, str]) -> None:
    root, release = system
    image = build_with_dracut(release, root=root, options=("--no-hostonly", "--no-hostonly-cmdline"))
    words = set(list_image(root, "lsinitrd", image).split())
    assert "usr/lib/dracut/hooks/pre-mount/90-postpanic.sh" in words
    assert {"usr/bin/mount", "usr/sbin/chroot"} <= words
    assert list((root / "var/tmp").iterdir()) == []
