"""Each boot loader's files, as distributions leave them: found, changed where it counts, put back byte for byte."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from postpanic.capture.bootloader.detect import choose_loaders, detect_loaders, find_rivals
from postpanic.capture.bootloader.model import Plan, drop_repeated
from postpanic.capture.bootloader.record import apply_plans, leave, undo
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.host import Host
from tests.builders.boot_trees import MACHINES, TREES, write_tree

LOADER_OF = {
    "debian-12": "grub",
    "debian-13-kdump": "grub",
    "ubuntu": "grub",
    "suse": "grub",
    "gentoo": "grub",
    "arch-grub": "grub",
    "rhel-9": "bls",
    "rhel-8": "bls",
    "fedora": "bls",
    "arch-systemd-boot": "systemd-boot",
    "debian-systemd-boot": "systemd-boot",
    "extlinux-debian": "extlinux",
    "extlinux-board": "extlinux",
    "alpine": "extlinux",
    "raspberry-pi-os": "cmdline-txt",
    "debian-zipl": "zipl",
    "arch-uki": "uki",
    "dracut-uki": "uki",
    "coreos": "ostree",
}
VALUES = ("1G,high", "256M,low")
WORDS = "crashkernel=1G,high crashkernel=256M,low"
SOURCED = ("debian-12", "debian-13-kdump", "ubuntu", "suse", "gentoo", "arch-grub")
WITHOUT_DROP_INS = ("suse", "gentoo", "arch-grub")


def open_tree(root: Path, name: str) -> BootTree:
    return BootTree(Host(write_tree(root, name), MACHINES.get(name, "x86_64"), "6.1.0"))


def plan(tree: BootTree, values: tuple[str, ...]) -> list[Plan]:
    return [one.loader.plan(tree, values) for one in choose_loaders(detect_loaders(tree))]


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode)
        for path in sorted(root.rglob("*"))
        if path.is_file() and "var/lib/postpanic" not in str(path)
    }


def test_every_tree_is_here() -> None:
    assert set(LOADER_OF) == set(TREES)


@pytest.mark.parametrize("name", sorted(TREES))
def test_found_by_its_files(tmp_path: Path, name: str) -> None:
    tree = open_tree(tmp_path, name)
    chosen = choose_loaders(detect_loaders(tree))
    assert chosen[0].loader.name == LOADER_OF[name]
    assert all(one.evidence.reasons for one in chosen)
    assert chosen[0].entries, "what it would boot is read"


@pytest.mark.parametrize("name", sorted(TREES))
@pytest.mark.parametrize("values", [VALUES, ()])
def test_put_back_byte_for_byte(tmp_path: Path, name: str, values: tuple[str, ...]) -> None:
    tree = open_tree(tmp_path, name)
    before = snapshot(tmp_path)
    plans = plan(tree, values)
    apply_plans(tree, plans, values, leave)
    edits = [edit for one in plans for edit in one.edits]
    after = snapshot(tmp_path)
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert changed == {edit.path.lstrip("/") for edit in edits}, "what was shown, and nothing else"
    if values and name != "coreos":
        assert changed
    assert not any(edit for one in plan(BootTree(tree.host), values) for edit in one.edits), "once is enough"
    undo(BootTree(tree.host), leave)
    assert snapshot(tmp_path) == before
    assert not list((tmp_path / "var/lib/postpanic/bootloader").iterdir())


@pytest.mark.parametrize("name", SOURCED)
@pytest.mark.parametrize("values", [("160M",), VALUES, ()])
def test_a_shell_reads_the_same_out_of_grubs_files(tmp_path: Path, name: str, values: tuple[str, ...]) -> None:
    tree = open_tree(tmp_path, name)
    before = source_grub(tmp_path, with_drop_ins=name not in WITHOUT_DROP_INS)
    apply_plans(tree, plan(tree, values), values, leave)
    rescue, usual = source_grub(tmp_path, with_drop_ins=name not in WITHOUT_DROP_INS)
    words = (rescue + usual).split()
    assert [word for word in words if word.startswith("crashkernel=")] == [f"crashkernel={one}" for one in values]
    others = [word for word in " ".join(before).split() if not word.startswith("crashkernel=")]
    assert [word for word in words if not word.startswith("crashkernel=")] == others


def source_grub(root: Path, *, with_drop_ins: bool) -> tuple[str, str]:
    """Source GRUB's files as grub-mkconfig does, with a real shell."""
    pieces = [
        root / "etc/default/grub",
        *(sorted((root / "etc/default/grub.d").glob("*.cfg")) if with_drop_ins else []),
    ]
    script = "".join(f". {path}\n" for path in pieces)
    script += 'printf \'%s\\n%s\\n\' "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"\n'
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    first, second = shown.split("\n")[:2]
    return f"{first} ", second


@pytest.mark.parametrize("name", ["rhel-9", "rhel-8", "fedora", "arch-systemd-boot", "debian-systemd-boot", "alpine"])
def test_entries_have_the_words(tmp_path: Path, name: str) -> None:
    tree = open_tree(tmp_path, name)
    apply_plans(tree, plan(tree, VALUES), VALUES, leave)
    if name == "alpine":
        text = (tmp_path / "etc/update-extlinux.conf").read_text()
        assert f'default_kernel_opts="quiet rootfstype=ext4 {WORDS}"\n' in text
        return
    entries = choose_loaders(detect_loaders(BootTree(tree.host)))[0].entries
    assert entries
    assert {entry.values for entry in entries} == {VALUES}


def test_red_hat_8_has_them_in_grubs_environment(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "rhel-8")
    apply_plans(tree, plan(tree, ("256M",)), ("256M",), leave)
    block = (tmp_path / "boot/grub2/grubenv").read_bytes()
    assert len(block) == 1024
    assert b"kernelopts=root=/dev/mapper/rl-root ro crashkernel=256M resume=" in block
    entry = next((tmp_path / "boot/loader/entries").iterdir()).read_text()
    assert "options $kernelopts $tuned_params\n" in entry
    assert "crashkernel=256M rd.lvm" in (tmp_path / "etc/default/grub").read_text()


def test_red_hat_9_needs_no_program(tmp_path: Path) -> None:
    (found,) = plan(open_tree(tmp_path, "rhel-9"), ("256M",))
    assert not found.commands, "entries are read at boot: nothing is to be made"
    assert not any("EFI" in edit.path for edit in found.edits), "the stub stays"


def test_two_loaders_share_one_file(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "arch-uki")
    (tmp_path / "boot/loader/entries").mkdir()
    (tmp_path / "boot/loader/entries/old.conf").write_text("title old\nlinux /vmlinuz-old\noptions ro\n")
    plans = drop_repeated(plan(BootTree(tree.host), ("160M",)))
    assert [one.loader for one in plans] == ["uki", "systemd-boot"]
    apply_plans(tree, plans, ("160M",), leave)
    assert (tmp_path / "etc/kernel/cmdline").read_text() == "root=PARTUUID=14420948 rw quiet crashkernel=160M\n"
    assert "options ro crashkernel=160M\n" in (tmp_path / "boot/loader/entries/old.conf").read_text()
    undo(tree, leave)
    assert (tmp_path / "etc/kernel/cmdline").read_text() == "root=PARTUUID=14420948 rw quiet\n"


def test_who_else_sets_it(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "suse")
    assert find_rivals(tree) == []
    (tmp_path / "etc/sysconfig").mkdir()
    (tmp_path / "etc/sysconfig/kdump").write_text('KDUMP_CRASHKERNEL="auto"\nKDUMP_UPDATE_BOOTLOADER="true"\n')
    (rival,) = find_rivals(tree)
    assert rival.startswith("/etc/sysconfig/kdump: ")


def test_other_lines_of_extlinux_stay(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "extlinux-board")
    apply_plans(tree, plan(tree, ("160M",)), ("160M",), leave)
    before = str(TREES["extlinux-board"]["boot/extlinux/extlinux.conf"])
    after = (tmp_path / "boot/extlinux/extlinux.conf").read_text()
    assert after == before.replace("115200n8", "115200n8 crashkernel=160M")


def test_u_boots_own_default_is_kept(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "extlinux-debian")
    (found,) = plan(tree, ("160M",))
    assert [command.words for command in found.commands] == [("u-boot-update",)]
    (edit,) = found.edits
    assert edit.path == "/etc/default/u-boot"
    assert edit.after.endswith(b'\nU_BOOT_PARAMETERS="ro quiet crashkernel=160M"\n')
    settings = tmp_path / "etc/u-boot-menu/conf.d/board.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text('U_BOOT_PARAMETERS="ro console=ttyS2"\n')
    (edit,) = plan(BootTree(tree.host), ("160M",))[0].edits
    assert edit.path == "/etc/u-boot-menu/conf.d/board.conf", "the last one settles it"


def test_debian_on_a_raspberry_pi_writes_cmdline_txt_anew(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "raspberry-pi-os")
    hook = tmp_path / "etc/kernel/postinst.d/z50-raspi-firmware"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\n")
    apply_plans(tree, plan(tree, ("160M",)), ("160M",), leave)
    assert (tmp_path / "etc/default/raspi-extra-cmdline").read_text() == "crashkernel=160M\n"
    assert (tmp_path / "boot/firmware/cmdline.txt").read_text().endswith(" rootwait quiet crashkernel=160M\n")
    undo(tree, leave)
    assert not (tmp_path / "etc/default/raspi-extra-cmdline").exists()


def test_zipl_must_be_run(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "debian-zipl")
    (found,) = plan(tree, ("256M",))
    assert [command.words for command in found.commands] == [("zipl",)]
    apply_plans(tree, [found], ("256M",), leave)
    text = (tmp_path / "etc/zipl.conf").read_text()
    assert 'parameters = "root=/dev/dasda1 vmpoff=LOGOFF crashkernel=256M"\n' in text
    assert 'parameters = "root=/dev/dasda1 crashkernel=256M"\n' in text


def test_rpm_ostree_is_told(tmp_path: Path) -> None:
    tree = open_tree(tmp_path, "coreos")
    entry = tmp_path / "boot/loader/entries/ostree-1.conf"
    entry.write_text(entry.read_text().replace(" rw ", " rw crashkernel=300M "))
    (found,) = plan(BootTree(tree.host), ("160M",))
    assert not found.edits
    assert found.commands[0].words == (
        *("rpm-ostree", "kargs", "--delete-if-present=crashkernel=300M", "--append=crashkernel=160M"),
    )
    assert found.undo_commands is not None
    assert found.undo_commands[0].words == (
        *("rpm-ostree", "kargs", "--delete-if-present=crashkernel=160M", "--append=crashkernel=300M"),
    )
    assert found.preview[0][1] == found.preview[0][0].replace("300M", "160M")


def test_unified_images_are_made_anew(tmp_path: Path) -> None:
    arch = open_tree(tmp_path / "arch", "arch-uki")
    (found,) = [one for one in plan(arch, ("160M",)) if one.loader == "uki"]
    assert [command.words for command in found.commands] == [("mkinitcpio", "-P")]
    assert found.edits[0].after == b"root=PARTUUID=14420948 rw quiet crashkernel=160M\n"
    dracut = open_tree(tmp_path / "dracut", "dracut-uki")
    (found,) = plan(dracut, ("160M",))
    assert [command.words for command in found.commands] == [("dracut", "--regenerate-all", "--force")]
    assert b'kernel_cmdline="root=UUID=5c1f quiet crashkernel=160M"' in found.edits[0].after
