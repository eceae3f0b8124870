"""Which loader boots the machine, when there are several, and when there is none that is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from postpanic.capture.bootloader.detect import choose_loaders, detect_loaders, plan_unknown
from postpanic.capture.bootloader.grub import GRUB
from postpanic.capture.bootloader.tree import BootTree, find_machine
from postpanic.capture.bootloader.uki import read_section
from postpanic.capture.host import Host
from postpanic.errors import FileFaultError, NotReadyError, UsageError
from tests.builders.boot_trees import build_uki, efi_text, write_tree


def open_tree(root: Path, *names: str, **files: str | bytes) -> BootTree:
    for name in names:
        write_tree(root, name)
    for name, content in files.items():
        put(root, name.replace("__", "/"), content)
    return BootTree(Host(root, "x86_64", "6.1.0"))


def put(root: Path, path: str, content: str | bytes) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())


def names(tree: BootTree, wanted: str = "") -> list[str]:
    return [one.loader.name for one in choose_loaders(detect_loaders(tree), wanted)]


def test_what_this_boot_went_through_counts(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-12", "arch-systemd-boot")
    assert [one.loader.name for one in detect_loaders(tree)] == ["systemd-boot", "grub"]
    assert names(tree) == ["systemd-boot"], "LoaderInfo says so"
    for path in (tmp_path / "sys/firmware/efi/efivars").iterdir():
        path.unlink()
    put(tmp_path, *next(iter(efi_text("LoaderInfo", "GRUB 2.12").items())))
    assert names(BootTree(tree.host)) == ["grub"]


def test_by_the_command_line_of_this_boot(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-12", "extlinux-board", proc__cmdline="BOOT_IMAGE=/boot/vmlinuz-6.1.0 ro\n")
    assert names(tree) == ["grub"]


def test_several_and_nothing_that_decides(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-12", "extlinux-board")
    with pytest.raises(NotReadyError, match=r"several boot loaders.*grub \(.*extlinux \(") as caught:
        names(tree)
    assert caught.value.hint.startswith("--loader ")
    assert names(tree, "extlinux") == ["extlinux"]
    with pytest.raises(UsageError, match="no boot loader zipl here: found"):
        names(tree, "zipl")


def test_one_that_is_only_installed_is_no_choice(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-12")
    put(tmp_path, "usr/sbin/u-boot-update", "#!/bin/sh\n")
    assert names(tree) == ["grub"]


def test_entries_of_systemd_boot_and_images_belong_together(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "dracut-uki")
    put(tmp_path, "efi/loader/entries/other.conf", "title a\nlinux /a\noptions ro\n")
    assert sorted(names(tree)) == ["systemd-boot", "uki"]


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("boot/refind_linux.conf", "each quoted line"),
        ("boot/limine.conf", "cmdline:"),
        ("boot/armbianEnv.txt", "extra"),
    ],
)
def test_unknown_ones_get_the_line(tmp_path: Path, path: str, where: str) -> None:
    tree = open_tree(tmp_path)
    assert names(tree) == []
    put(tmp_path, path, "x\n")
    (line,) = plan_unknown(tree, ("160M",)).manual
    assert line.startswith(f"/{path}: ")
    assert where in line
    assert line.endswith("crashkernel=160M")


def test_nothing_known_at_all(tmp_path: Path) -> None:
    (line,) = plan_unknown(open_tree(tmp_path), ("1G,high", "72M,low")).manual
    assert line.endswith("crashkernel=1G,high crashkernel=72M,low")


def test_the_right_grub_cfg_is_made(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "suse")
    plan = GRUB.plan(tree, ("160M",))
    assert [command.words for command in plan.commands] == [("grub2-mkconfig", "-o", "/boot/grub2/grub.cfg")]
    # Red Hat 7 keeps it on the firmware's partition.
    shutil.move(tmp_path / "boot/grub2/grub.cfg", tmp_path / "boot/efi/EFI/opensuse/grub.cfg")
    (command,) = GRUB.plan(BootTree(tree.host), ("160M",)).commands
    assert command.words[2] == "/boot/efi/EFI/opensuse/grub.cfg"


def test_without_its_programs_grub_is_said_to_need_them(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-12")
    (tmp_path / "usr/sbin/grub-mkconfig").unlink()
    (tmp_path / "usr/sbin/update-grub").unlink()
    (line,) = GRUB.plan(BootTree(tree.host), ("160M",)).manual
    assert "grub-mkconfig is not installed" in line


def test_an_image_that_came_ready_gets_an_addon(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, boot__efi__EFI__Linux__rhel="")
    put(tmp_path, "boot/efi/EFI/Linux/rhel.efi", build_uki("root=UUID=1 ro"))
    put(tmp_path, "usr/bin/ukify", "#!/usr/bin/python3\n")
    (one,) = choose_loaders(detect_loaders(BootTree(tree.host)))
    assert one.entries[0].command_line == "root=UUID=1 ro"
    plan = one.loader.plan(tree, ("160M",))
    addon = "/boot/efi/loader/addons/postpanic-crashkernel.addon.efi"
    assert plan.commands[0].words == ("ukify", "build", "--cmdline=crashkernel=160M", f"--output={addon}")
    assert plan.commands[0].outputs == (addon,)
    put(tmp_path, addon.lstrip("/"), build_uki("crashkernel=160M"))
    (one,) = choose_loaders(detect_loaders(BootTree(tree.host)))
    assert one.entries[0].values == ("160M",)
    assert one.loader.plan(tree, ("160M",)).is_empty


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 131, 200, 400, 500, 600, 1100])
def test_cut_images_have_no_command_line_and_do_no_harm(tmp_path: Path, length: int) -> None:
    tree = open_tree(tmp_path)
    put(tmp_path, "boot/EFI/Linux/a.efi", build_uki("ro quiet")[:length])
    found = read_section(tree, "/boot/EFI/Linux/a.efi", b".cmdline")
    assert found in (None, b"")


def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-12", "extlinux-board")
    with (tmp_path / "boot/grub/grub.cfg").open("wb") as stream:
        stream.truncate(5 << 20)
    with pytest.raises(FileFaultError, match="more than 4 MiB: no configuration"):
        detect_loaders(tree)
    faults: list[str] = []
    assert [one.loader.name for one in detect_loaders(tree, faults)] == ["extlinux"]
    assert {fault.split(":")[0] for fault in faults} >= {"boot loader grub"}


def test_machine_of_a_tree(tmp_path: Path) -> None:
    assert find_machine(tmp_path) == ""
    put(tmp_path, "usr/bin/sh", b"\x7fELF\2\2" + bytes(12) + b"\0\x16")
    assert find_machine(tmp_path) == "s390x"
