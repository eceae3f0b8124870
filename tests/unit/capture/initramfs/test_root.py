"""Paths of another system's tree: links stay inside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import FactAbsentError


@pytest.fixture
def root(tmp_path: Path) -> RootTree:
    tree = tmp_path / "root"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/libx.so.1.2").write_text("x")
    (tree / "usr/lib/libx.so.1").symlink_to("libx.so.1.2")
    (tree / "lib").symlink_to("usr/lib")
    (tree / "etc").mkdir()
    (tree / "etc/alternative").symlink_to("/usr/lib/libx.so.1")
    (tree / "usr/lib/chosen").symlink_to("/etc/alternative")
    (tree / "usr/lib/outside").symlink_to("../../../../../../../../secret")
    (tmp_path / "secret").write_text("of the host")
    (tree / "secret").write_text("of the tree")
    (tree / "loop").symlink_to("loop")
    (tree / "gone").symlink_to("/nowhere")
    return RootTree(tree)


@pytest.mark.parametrize("path", ["/lib/libx.so.1", "/usr/lib/libx.so.1.2", "/usr/lib/chosen", "/lib/../lib/chosen"])
def test_links_are_followed_from_this_root(root: RootTree, path: str) -> None:
    assert root.resolve(path) == "/usr/lib/libx.so.1.2"
    assert root.read(path) == b"x"


def test_nothing_leads_out_of_the_tree(root: RootTree) -> None:
    assert root.read("/usr/lib/outside") == b"of the tree"
    assert root.read("/../../secret") == b"of the tree"


@pytest.mark.parametrize("path", ["/loop", "/gone", "/usr/none", "/usr/lib/libx.so.1/below", "/none/../secret"])
def test_what_is_not_there_is_found_nowhere(root: RootTree, path: str) -> None:
    assert root.find(path) is None
    with pytest.raises(FactAbsentError, match="no file"):
        root.read(path)


def test_directories_that_were_merged_into_usr_are_found_without_their_links(tmp_path: Path) -> None:
    (tmp_path / "usr/lib64").mkdir(parents=True)
    (tmp_path / "usr/lib64/ld.so").write_text("loader")
    assert RootTree(tmp_path).read("/lib64/ld.so") == b"loader"
    assert RootTree(tmp_path).resolve("/lib64") == "/usr/lib64"
    assert RootTree(tmp_path).find("/etc/ld.so") is None


def test_directories_are_listed_through_links(root: RootTree) -> None:
    assert list(root.list_names("/lib")) == ["chosen", "libx.so.1", "libx.so.1.2", "outside"]
    assert root.is_directory("/lib")
    assert root.find("/lib") is None
    assert list(root.list_names("/none")) == []
