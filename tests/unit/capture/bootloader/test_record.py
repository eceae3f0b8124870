"""What is written can be put back, and is not put back over what others wrote."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from postpanic.capture.bootloader.grub import GRUB
from postpanic.capture.bootloader.record import apply_plans, leave, read_last_record, undo
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.host import Host
from postpanic.errors import FactAbsentError, FileFaultError, NotReadyError, OutputError, PostpanicError, ProcessError
from tests.builders.boot_trees import write_tree

DEFAULTS = "etc/default/grub"
CONFIG = "boot/grub2/grub.cfg"


def open_tree(root: Path) -> BootTree:
    return BootTree(Host(write_tree(root, "suse"), "x86_64", "6.4.0"))


class Maker:
    """Stands for grub2-mkconfig: it makes another grub.cfg each time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: list[tuple[str, ...]] = []

    def __call__(self, words: Sequence[str]) -> None:
        self.runs.append(tuple(words))
        (self.root / CONFIG).write_text(f"### BEGIN /etc/grub.d/ ### {len(self.runs)}\n")


def set_value(tree: BootTree, value: str, run: Maker) -> None:
    apply_plans(tree, [GRUB.plan(tree, (value,))], (value,), run)


def test_the_programs_output_comes_back_too(tmp_path: Path) -> None:
    tree, maker = open_tree(tmp_path), Maker(tmp_path)
    before = (tmp_path / CONFIG).read_bytes(), (tmp_path / DEFAULTS).read_bytes()
    set_value(tree, "160M", maker)
    assert maker.runs == [("grub2-mkconfig", "-o", "/boot/grub2/grub.cfg")]
    outcome = undo(tree, maker)
    assert ((tmp_path / CONFIG).read_bytes(), (tmp_path / DEFAULTS).read_bytes()) == before
    assert outcome.commands == ()
    assert len(maker.runs) == 1, "nothing had to be made"


def test_output_made_anew_since_is_made_again(tmp_path: Path) -> None:
    tree, maker = open_tree(tmp_path), Maker(tmp_path)
    set_value(tree, "160M", maker)
    (tmp_path / CONFIG).write_text("### BEGIN /etc/grub.d/ ### a new kernel\n")
    outcome = undo(tree, maker)
    assert outcome.restored == ("/etc/default/grub",)
    assert outcome.commands == (("grub2-mkconfig", "-o", "/boot/grub2/grub.cfg"),)
    assert len(maker.runs) == 2


def test_what_others_changed_stays(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    set_value(tree, "160M", Maker(tmp_path))
    edited = (tmp_path / DEFAULTS).read_bytes() + b"GRUB_TIMEOUT=1\n"
    (tmp_path / DEFAULTS).write_bytes(edited)
    with pytest.raises(NotReadyError, match="changed since, so that nothing is put back: /etc/default/grub"):
        undo(tree, leave)
    assert (tmp_path / DEFAULTS).read_bytes() == edited
    record = read_last_record(tree)
    assert record is not None
    assert "splash=silent" in (record.directory / record.files[0].backup).read_text(), "what was there is kept"


def test_changes_are_undone_one_after_the_other(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    texts = [(tmp_path / DEFAULTS).read_bytes()]
    for value in ("160M", "192M", "1G"):
        set_value(tree, value, Maker(tmp_path))
        texts.append((tmp_path / DEFAULTS).read_bytes())
    assert len(set(texts)) == 4
    for text in reversed(texts[:-1]):
        undo(tree, leave)
        assert (tmp_path / DEFAULTS).read_bytes() == text
    with pytest.raises(FactAbsentError, match="nothing to undo"):
        undo(tree, leave)


def test_a_program_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    before = (tmp_path / DEFAULTS).read_bytes(), (tmp_path / CONFIG).read_bytes()

    def fail(words: Sequence[str]) -> None:
        assert b"160M" in (tmp_path / DEFAULTS).read_bytes()
        (tmp_path / CONFIG).write_text("half")
        raise ProcessError(f"{words[0]}: exit status 1")

    with pytest.raises(ProcessError):
        apply_plans(tree, [GRUB.plan(tree, ("160M",))], ("160M",), fail)
    assert ((tmp_path / DEFAULTS).read_bytes(), (tmp_path / CONFIG).read_bytes()) == before
    assert read_last_record(tree) is None


def test_undoing_that_was_broken_off_can_go_on(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    before = (tmp_path / DEFAULTS).read_bytes()
    set_value(tree, "160M", Maker(tmp_path))
    (tmp_path / DEFAULTS).write_bytes(before)
    undo(tree, leave)
    assert (tmp_path / DEFAULTS).read_bytes() == before


def test_modes_and_links_stay(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    (tmp_path / DEFAULTS).rename(tmp_path / "etc/sysconfig-grub")
    (tmp_path / DEFAULTS).symlink_to("/etc/sysconfig-grub")
    (tmp_path / "etc/sysconfig-grub").chmod(0o604)
    labels = {}
    with contextlib.suppress(OSError):
        os.setxattr(tmp_path / "etc/sysconfig-grub", "user.postpanic", b"label")
        labels["user.postpanic"] = b"label"
    set_value(tree, "160M", Maker(tmp_path))
    place = tmp_path / "etc/sysconfig-grub"
    assert (tmp_path / DEFAULTS).is_symlink()
    assert b"160M" in place.read_bytes()
    assert place.stat().st_mode & 0o777 == 0o604
    assert {name: os.getxattr(place, name) for name in labels} == labels
    assert not list((tmp_path / "etc").rglob("*.postpanic"))


def test_a_record_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    set_value(tree, "160M", Maker(tmp_path))
    record = tmp_path / "var/lib/postpanic/bootloader/0001/record.json"
    for text in ("", "{", "[]", '{"schema_version": 9}', '{"schema_version": 1, "files": 3}'):
        record.write_text(text)
        with pytest.raises(OutputError, match="what is kept of the last change cannot be read"):
            undo(tree, leave)


def test_nothing_is_written_outside_of_a_tree(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    tree = BootTree(Host(write_tree(root, "debian-12"), "x86_64", "6.1.0"))
    outside.mkdir()
    (root / "etc/default/grub.d").symlink_to(outside)
    with pytest.raises(FileFaultError, match="leads through what is no directory"):
        apply_plans(tree, [GRUB.plan(tree, ("160M",))], ("160M",), leave)
    (root / "etc/default/grub.d").unlink()
    (root / "etc/default/grub.d").symlink_to("/etc/real.d")
    (root / "etc/real.d").mkdir()
    apply_plans(tree, [GRUB.plan(tree, ("160M",))], ("160M",), leave)
    assert [path.name for path in (root / "etc/real.d").iterdir()] == ["zz-postpanic.cfg"]
    record = root / "var/lib/postpanic/bootloader/0001/record.json"
    text = record.read_text()
    for path in ("../../outside/a", "/etc/../../outside/a"):
        record.write_text(text.replace("/etc/default/grub.d/zz-postpanic.cfg", path))
        with pytest.raises(PostpanicError):
            undo(tree, leave)
    assert list(outside.iterdir()) == []
