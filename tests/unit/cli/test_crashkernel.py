"""``postpanic crashkernel`` on trees: what it prints, what it asks for, what it refuses."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from postpanic.cli.app import main
from tests.builders.boot_trees import write_tree


def run(*words: str | Path) -> int:
    return main(["crashkernel", *map(str, words)])


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "var/lib/postpanic" not in str(path)
    }


def test_the_difference_is_shown_then_written_then_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(write_tree(tmp_path, "suse"))
    assert run("set", "256M", "--dry-run", "--root", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "--- /etc/default/grub\n+++ /etc/default/grub\n" in shown
    assert "\n-GRUB_CMDLINE_LINUX_DEFAULT=" in shown
    assert "quiet crashkernel=256M" in shown
    assert shown.endswith("then run: grub2-mkconfig -o /boot/grub2/grub.cfg\n")
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "var").exists()

    assert run("set", "crashkernel=256M", "--root", tmp_path) == 0
    written = capsys.readouterr().out
    assert written.startswith(shown)
    assert written.endswith("to be run in the tree: grub2-mkconfig -o /boot/grub2/grub.cfg\n")
    assert run("--root", tmp_path) == 0
    assert "256M was set in /etc/default/grub, /boot/grub2/grub.cfg" in capsys.readouterr().out
    assert run("set", "256M", "--root", tmp_path) == 0
    assert capsys.readouterr().out == "grub: nothing to change\n"

    assert run("--undo", "-n", "--root", tmp_path) == 0
    assert capsys.readouterr().out.startswith("/etc/default/grub: put back\n")
    assert run("--undo", "--root", tmp_path) == 0
    assert capsys.readouterr().out.startswith("/etc/default/grub: as it was\n")
    assert snapshot(tmp_path) == before
    assert run("--undo", "--root", tmp_path) == 3
    assert "nothing to undo" in capsys.readouterr().err


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, "rhel-9")
    assert run("--json", "--root", tmp_path) == 0
    shown = json.loads(capsys.readouterr().out)
    (loader,) = shown["boot_loaders"]
    assert loader["name"] == "bls"
    assert ["1G-2G:192M,2G-64G:256M,64G-:512M"] in [entry["crashkernel"] for entry in loader["entries"]]
    assert run("set", "1G,high 256M,low", "--json", "--root", tmp_path) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["values"] == ["1G,high", "256M,low"]
    assert {change["path"] for change in done["plans"][0]["changes"]} == set(done["written"])
    assert run("check", "1G-4G:192M,4G-:256M", "--memory", "8G", "--json") == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["size_bytes"], checked["memory_bytes"]) == (256 << 20, 8 << 30)


def test_check_says_what_the_kernel_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "512M-2G:64M,2G-:128M", "--memory", "1G") == 0
    shown = capsys.readouterr().out
    assert "64.0 MiB, by the range from 512.0 MiB to 2.0 GiB of memory" in shown
    assert run("check", "16G-:256M", "--memory", "8G") == 4
    assert "nothing is reserved: none of its ranges has 8.0 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["set", "256MB"], 64, "nothing would be reserved: 'B' after the size"),
        (["set", "256M;reboot"], 64, "not a value of crashkernel="),
        (["set", "64M,hihg"], 64, "nothing would be reserved"),
        (["check"], 64, "check what?"),
        (["check", "1G", "--memory", "lots"], 64, "--memory: 'lots' is not a size"),
        (["show", "256M"], 64, "show takes no value"),
        (["set", "1M", "--undo"], 64, "one at a time"),
        (["--undo", "--shrink", "1M"], 64, "one at a time"),
        (["--shrink", "much"], 64, "--shrink: 'much' is not a size"),
        (["set", "256M", "--loader", "lilo"], 64, "no boot loader lilo here: found grub"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    write_tree(tmp_path, "debian-12")
    tree = [] if words[0] == "--shrink" else ["--root", str(tmp_path)]
    if words[0] == "--shrink" and os.geteuid() != 0:
        pytest.skip("root is told")
    assert run(*words, *tree) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err.splitlines()[0]


def test_a_loader_that_is_not_known_gets_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/refind_linux.conf").write_text('"Boot" "root=/dev/sda2 rw"\n')
    assert run("set", "192M", "--root", tmp_path) == 4
    output = capsys.readouterr()
    assert "by hand: /boot/refind_linux.conf: add to each quoted line of options: crashkernel=192M\n" in output.out
    assert output.err.startswith("error[not-ready]: to be done by hand: /boot/refind_linux.conf")


def test_several_loaders_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, "debian-12")
    write_tree(tmp_path, "arch-systemd-boot")
    assert run("set", "192M", "-n", "--root", tmp_path) == 0
    output = capsys.readouterr()
    assert "+options quiet loglevel=3 crashkernel=192M" in output.out
    assert "warning: boot loader grub is there, too" in output.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 64), ("", 64)])
def test_a_terminal_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, status: int
) -> None:
    before = snapshot(write_tree(tmp_path, "extlinux-board"))
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run("set", "192M", "--root", tmp_path) == status
    assert "Write this? [y/N]" in capsys.readouterr().err
    assert (snapshot(tmp_path) != before) == (status == 0)


def test_an_estimate_of_a_tree_says_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, "debian-12")
    assert run("estimate", "--root", tmp_path) == 0
    output = capsys.readouterr()
    assert "\ncrashkernel=" in output.out
    assert "estimated: no rehearsal says so" in output.out
    assert "so a usual one is counted" in output.err
    assert run("set", "--root", tmp_path, "-q") == 0
    assert "crashkernel=1" in (tmp_path / "etc/default/grub.d/zz-postpanic.cfg").read_text()
