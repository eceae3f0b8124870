"""The programs that make boot loaders' files read ours: grub-mkconfig, u-boot-update, kernel-install, ukify."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from postpanic.capture.bootloader.bls import set_environment
from postpanic.capture.bootloader.detect import choose_loaders, detect_loaders
from postpanic.capture.bootloader.model import BootEntry
from postpanic.capture.bootloader.record import apply_plans, leave, undo
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.host import Host
from postpanic.errors import PostpanicError
from postpanic.process import find_program, run
from postpanic.rehearse.cache import digest_recipe
from postpanic.rehearse.packages import Archive, Package
from postpanic.rehearse.store import Bundle, PackageStore
from tests.builders.boot_trees import DEBIAN_DEFAULTS, UBUNTU_CLOUD, UBUNTU_KDUMP
from tests.vm import host_disk
from tests.vm.lab import Lab

SYSTEM_PACKAGES = (
    *("bash", "coreutils", "dash", "findutils", "gettext-base", "grep", "mawk", "perl-base", "sed", "util-linux"),
    *("grub-common", "grub2-common", "linux-base", "systemd", "u-boot-menu"),
    # What these are linked with; what else they depend on is not needed here.
    *("libacl1", "libattr1", "libblkid1", "libbrotli1", "libc6", "libcrypt1", "libdevmapper1.02.1", "libefiboot1"),
    *("libefivar1", "libfreetype6", "libfuse3-3", "libgcc-s1", "libgmp10", "liblzma5", "libmount1", "libpcre2-8-0"),
    *("libpng16-16", "libselinux1", "libtinfo6", "libudev1", "libuuid1", "zlib1g"),
)
UKIFY_PACKAGES = ("python3-pefile", "systemd-boot-efi", "systemd-ukify")
# It looks for the disk that a directory is on, and this directory is on none.
PROBE = """\
#!/bin/sh
case "$*" in
*target=device*) echo /dev/vda1 ;;
*target=fs_uuid*) echo 6f0cb1c4-6a39-4d8e-9d29-5a6f63bfa1d7 ;;
*target=fs*) echo ext2 ;;
*target=partuuid*) echo 01234567-01 ;;
*target=compatibility_hint*) echo hd0,msdos1 ;;
*target=drive*) echo "(hd0,msdos1)" ;;
esac
"""
RELEASE = "6.1.0-56-cloud-amd64"


def resolve_named(archive: Archive, wanted: str) -> Bundle:
    """Find packages, and nothing that they depend on."""
    names = wanted.split()
    found = {one.name: Package(one.name, one.version) for one in archive.find("|".join(map(re.escape, names)))}
    parts = tuple(found[name] for name in sorted(names))
    return Bundle(Package("loaders", digest_recipe([f"{one.name} {one.version}" for one in parts])), parts)


@pytest.fixture(scope="module")
def base(crash_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a Debian system that has the boot loaders' programs."""
    if os.geteuid() != 0:
        pytest.skip("only root may chroot")
    try:
        _, tree = PackageStore(crash_lab.cache_dir, "unpacked").fetch(
            host_disk.SUITES, " ".join(SYSTEM_PACKAGES), resolve_named
        )
    except PostpanicError as exc:
        pytest.skip(f"the packages cannot be had: {exc}")
    root = tmp_path_factory.mktemp("base") / "root"
    host_disk.merge_usr(tree, root)
    host_disk._finish_tree(root)
    (root / "etc/hostname").write_text("host\n")
    return root


@pytest.fixture
def system(base: Path, tmp_path: Path) -> Path:
    root = tmp_path / "system"
    # What nobody writes to needs no copy.
    shutil.copytree(base / "usr", root / "usr", symlinks=True, copy_function=os.link)
    shutil.copytree(base, root, symlinks=True, dirs_exist_ok=True, ignore=_ignore_usr)
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    (root / "usr/sbin/grub-probe").unlink()
    put(root, "usr/sbin/grub-probe", PROBE, mode=0o755)
    put(root, "etc/fstab", "UUID=6f0cb1c4-6a39-4d8e-9d29-5a6f63bfa1d7 / ext4 defaults 0 1\n")
    for name in (f"vmlinuz-{RELEASE}", f"initrd.img-{RELEASE}"):
        put(root, f"boot/{name}", "")
    return root


def _ignore_usr(directory: str, names: list[str]) -> list[str]:
    return ["usr"] if Path(directory).name == "root" and "usr" in names and "etc" in names else []


def put(root: Path, path: str, text: str, mode: int = 0o644) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def run_in(root: Path, *words: str) -> None:
    env = ("/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
    run([find_program("chroot"), root, *env, *words], timeout_s=60.0)


def open_tree(root: Path) -> BootTree:
    return BootTree(Host(root, "x86_64", RELEASE))


def set_values(root: Path, loader: str, values: tuple[str, ...], *, runs: bool = True) -> None:
    tree = open_tree(root)
    (chosen,) = choose_loaders(detect_loaders(tree), loader)
    apply_plans(tree, [chosen.loader.plan(tree, values)], values, lambda words: run_in(root, *words) if runs else None)


def read_entries(root: Path, loader: str) -> list[BootEntry]:
    (chosen,) = choose_loaders(detect_loaders(open_tree(root)), loader)
    return list(chosen.entries)


@pytest.mark.parametrize(
    "files",
    [
        {"kdump-tools.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT crashkernel=384M-:128M"\n'},
        {"50-cloudimg-settings.cfg": UBUNTU_CLOUD, "kdump-tools.cfg": UBUNTU_KDUMP},
        {},
    ],
    ids=["debian-kdump", "ubuntu-cloud", "debian"],
)
def test_grub_makes_entries_with_the_words(system: Path, files: dict[str, str]) -> None:
    put(system, "etc/default/grub", DEBIAN_DEFAULTS)
    shutil.rmtree(system / "etc/default/grub.d", ignore_errors=True)
    for name, text in files.items():
        put(system, f"etc/default/grub.d/{name}", text)
    (system / "boot/grub").mkdir(exist_ok=True)
    run_in(system, "update-grub")
    before = (system / "boot/grub/grub.cfg").read_bytes()
    asked = {entry.values for entry in read_entries(system, "grub")}
    assert (asked == {()}) == (not files)
    for values in (("160M",), ("1G,high", "256M,low"), ()):
        set_values(system, "grub", values)
        entries = read_entries(system, "grub")
        usual = [entry for entry in entries if "recovery" not in entry.title]
        assert len(usual) >= 2, "the first one, and the same below the submenu"
        assert {entry.values for entry in usual} == {values}
        assert {entry.values for entry in entries if entry not in usual} == {()}
        root_word = "root=UUID=" if b"root=UUID=" in before else "root=/dev/vda1"
        assert all(root_word in entry.command_line and " ro " in entry.command_line for entry in entries)
    for _ in range(3):
        undo(open_tree(system), lambda words: run_in(system, *words))
    assert (system / "boot/grub/grub.cfg").read_bytes() == before
    run_in(system, "update-grub")
    assert (system / "boot/grub/grub.cfg").read_bytes() == before, "nothing of ours is left"


@pytest.mark.parametrize("values", [("256M",), ("1G,high", "256M,low"), ()])
def test_grub_editenv_reads_the_environment_block(system: Path, values: tuple[str, ...]) -> None:
    block = "/boot/grub/grubenv"
    (system / "boot/grub").mkdir()
    run_in(system, "grub-editenv", block, "create")
    run_in(
        system, "grub-editenv", block, "set", "kernelopts=root=/dev/mapper/rl-root ro crashkernel=auto quiet ", "a=b"
    )
    place = system / block.lstrip("/")
    place.write_text(set_environment(place.read_text(), values))
    words = " ".join(["ro", *(f"crashkernel={value}" for value in values), "quiet"])
    listed = list_environment(system, block)
    assert listed == [f"kernelopts=root=/dev/mapper/rl-root {words} ", "a=b"]
    run_in(system, "grub-editenv", block, "set", "boot_success=1")
    assert list_environment(system, block) == [*listed, "boot_success=1"]


def list_environment(root: Path, block: str) -> list[str]:
    shown = run([find_program("chroot"), root, "/usr/bin/grub-editenv", block, "list"], timeout_s=60.0).stdout
    return shown.decode().splitlines()


@pytest.mark.parametrize("settled_by", ["nothing", "default", "package", "cmdline"])
def test_u_boot_update_writes_the_words(system: Path, settled_by: str) -> None:
    own = {
        "default": ("etc/default/u-boot", 'U_BOOT_PARAMETERS="ro console=ttyS2"\n'),
        "package": ("usr/share/u-boot-menu/conf.d/board.conf", 'U_BOOT_PARAMETERS="ro console=ttyS2"\n'),
        "cmdline": ("etc/kernel/cmdline", "root=UUID=1 ro console=ttyS2\n"),
    }
    if settled_by in own:
        put(system, *own[settled_by])
    run_in(system, "u-boot-update")
    config = system / "boot/extlinux/extlinux.conf"
    before = config.read_text()
    set_values(system, "extlinux", ("160M",))
    entries = read_entries(system, "extlinux")
    assert len(entries) == 2
    assert {entry.values for entry in entries} == {("160M",)}
    assert config.read_text().replace(" crashkernel=160M", "") == before
    undo(open_tree(system), lambda words: run_in(system, *words))
    assert config.read_text() == before
    run_in(system, "u-boot-update")
    assert config.read_text() == before, "nothing of ours is left"


def test_kernel_install_gives_a_new_kernel_the_words(system: Path) -> None:
    (system / "boot/loader/entries").mkdir(parents=True)
    put(system, "etc/kernel/cmdline", "root=UUID=1 ro quiet\n")
    put(system, "etc/kernel/install.conf", "layout=bls\n")
    put(system, "etc/kernel/entry-token", "debian\n")
    put(system, "etc/machine-id", "5c1f3a9e0a7d4d7c8f5e3a9e8e1d9c11\n")
    (system / "boot/debian").mkdir()
    kernel = f"/boot/vmlinuz-{RELEASE}"
    run_in(system, "kernel-install", "add", RELEASE, kernel)
    (entry,) = read_entries(system, "systemd-boot")
    assert entry.values == ()
    set_values(system, "systemd-boot", ("160M",))
    (entry,) = read_entries(system, "systemd-boot")
    assert (entry.values, entry.command_line[:20]) == (("160M",), "root=UUID=1 ro quiet")
    run_in(system, "kernel-install", "add", "6.2.0", kernel)
    assert {one.values for one in read_entries(system, "systemd-boot")} == {("160M",)}
    assert len(read_entries(system, "systemd-boot")) == 2


def test_ukify_builds_an_addon_that_is_read(crash_lab: Lab, tmp_path: Path) -> None:
    store = PackageStore(crash_lab.cache_dir, "unpacked")
    try:
        _, tree = store.fetch(("trixie", "trixie-security"), " ".join(UKIFY_PACKAGES), resolve_named)
    except PostpanicError as exc:
        pytest.skip(f"the packages cannot be had: {exc}")
    stubs = tree / "usr/lib/systemd/boot/efi"
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree / "usr/lib/python3/dist-packages")}
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/ukify").symlink_to(tree / "usr/bin/ukify")
    images = tmp_path / "boot/efi/EFI/Linux"
    images.mkdir(parents=True)
    (tmp_path / "boot/efi/loader/addons").mkdir(parents=True)

    def ukify(*words: str) -> None:
        run([sys.executable, tree / "usr/bin/ukify", *words], env=env, timeout_s=60.0)

    (tmp_path / "linux").write_bytes(b"MZ" + bytes(4096))
    stub = f"--stub={stubs / 'linuxx64.efi.stub'}"
    image = images / "debian.efi"
    words = ("--cmdline=root=UUID=1 ro quiet", f"--linux={tmp_path / 'linux'}", "--uname=6.12.0", "--efi-arch=x64")
    ukify("build", stub, *words, f"--output={image}")
    (entry,) = read_entries(tmp_path, "uki")
    assert entry.command_line == "root=UUID=1 ro quiet"

    (tmp_path / "usr/bin/ukify").unlink()
    put(tmp_path, "usr/bin/ukify", "#!/usr/bin/python3\n", 0o755)
    tree_before = sorted(path.name for path in (tmp_path / "boot").rglob("*"))

    def build_addon(planned: object) -> None:
        assert isinstance(planned, tuple)
        program, action, cmdline, output = planned
        assert program == "ukify"
        place = f"--output={tmp_path}{output.removeprefix('--output=')}"
        ukify(action, cmdline, place, f"--stub={stubs / 'addonx64.efi.stub'}", "--efi-arch=x64")

    host = open_tree(tmp_path)
    (chosen,) = choose_loaders(detect_loaders(host), "uki")
    apply_plans(host, [chosen.loader.plan(host, ("160M",))], ("160M",), build_addon)
    (entry,) = read_entries(tmp_path, "uki")
    assert entry.command_line == "root=UUID=1 ro quiet crashkernel=160M"
    undo(open_tree(tmp_path), leave)
    assert sorted(path.name for path in (tmp_path / "boot").rglob("*")) == tree_before
