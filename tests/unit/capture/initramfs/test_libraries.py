"""Shared libraries of a tree that is never run: where its own loader would find them."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.initramfs.elf import read_elf, read_undefined_symbols, strip
from postpanic.capture.initramfs.libraries import LibraryFinder
from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import CorruptError, FactAbsentError
from tests.builders.shared_object import make_shared_object

LOADER = "/lib64/ld-linux-x86-64.so.2"


class Tree:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(self, path: str, content: bytes) -> None:
        target = self.directory / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def collect(self, path: str, loader: str = "") -> dict[str, str]:
        finder = LibraryFinder(RootTree(self.directory))
        finder.add(path, loader)
        return {library.name: library.path for library in finder.libraries.values()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree.add(LOADER, make_shared_object(soname="ld-linux-x86-64.so.2"))
    tree.add("/usr/lib/x86_64-linux-gnu/libc.so.6", make_shared_object(needed=["ld-linux-x86-64.so.2"]))
    return tree


def test_what_libraries_need_comes_too_and_the_loader_apart(tree: Tree) -> None:
    tree.add("/usr/bin/tool", make_shared_object(needed=["libone.so.1", "libc.so.6"], interpreter=LOADER))
    tree.add("/usr/lib64/libone.so.1", make_shared_object(needed=["libtwo.so.2", "libc.so.6"]))
    tree.add("/lib/libtwo.so.2", make_shared_object(needed=["libone.so.1"]))
    finder = LibraryFinder(RootTree(tree.directory))
    facts = finder.add("/usr/bin/tool")
    assert facts is not None
    assert facts.interpreter == LOADER
    assert {library.name: library.path for library in finder.libraries.values()} == {
        "libone.so.1": "/usr/lib64/libone.so.1",
        "libtwo.so.2": "/lib/libtwo.so.2",
        "libc.so.6": "/usr/lib/x86_64-linux-gnu/libc.so.6",
    }
    assert list(finder.loaders) == [LOADER]
    assert finder.find_directory() == "/usr/lib/x86_64-linux-gnu"


def test_places_are_searched_in_the_loaders_order(tree: Tree) -> None:
    tree.add("/etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf # more\n")
    tree.add("/etc/ld.so.conf.d/own.conf", b"# ours\n/opt/configured\n")
    for directory in ("/opt/rpath", "/opt/runpath", "/opt/configured", "/usr/lib"):
        tree.add(f"{directory}/libx.so", make_shared_object())
    expected = {
        ("/opt/rpath", ""): "/opt/rpath",
        ("/opt/rpath", "/opt/runpath"): "/opt/runpath",
        ("", "/opt/none:/opt/runpath"): "/opt/runpath",
        ("", ""): "/opt/configured",
    }
    for (rpath, runpath), directory in expected.items():
        tree.add("/p", make_shared_object(needed=["libx.so"], rpath=rpath, runpath=runpath))
        assert tree.collect("/p") == {"libx.so": f"{directory}/libx.so"}


def test_origin_is_where_the_file_really_is(tree: Tree) -> None:
    tree.add("/opt/pkg/core/ext.so", make_shared_object(needed=["libown.so"], runpath="$ORIGIN/../libs"))
    tree.add("/opt/pkg/libs/libown.so", make_shared_object(needed=["libdeep.so"], rpath="${ORIGIN}/deep"))
    tree.add("/opt/pkg/libs/deep/libdeep.so", make_shared_object())
    (tree.directory / "link").symlink_to("/opt/pkg/core")
    assert set(tree.collect("/link/ext.so")) == {"libown.so", "libdeep.so"}


def test_search_path_of_the_program_holds_for_what_it_loads(tree: Tree) -> None:
    tree.add("/opt/lib/libx.so", make_shared_object())
    tree.add("/ext.so", make_shared_object(needed=["libx.so"]))
    tree.add("/python", make_shared_object(rpath="/opt/lib", interpreter=LOADER))
    assert tree.collect("/ext.so", "/python") == {"libx.so": "/opt/lib/libx.so"}
    with pytest.raises(FactAbsentError, match=r"no library libx\.so for x86_64, which /ext\.so needs"):
        tree.collect("/ext.so")


def test_library_of_another_machine_is_not_taken(tree: Tree) -> None:
    tree.add("/p", make_shared_object(needed=["libx.so"], machine="aarch64"))
    tree.add("/lib64/libx.so", make_shared_object(machine="x86_64"))
    tree.add("/lib/libx.so", b"not ELF at all")
    with pytest.raises(FactAbsentError, match="for aarch64"):
        tree.collect("/p")
    tree.add("/usr/lib/aarch64-linux-gnu/libx.so", make_shared_object(machine="aarch64"))
    assert tree.collect("/p") == {"libx.so": "/usr/lib/aarch64-linux-gnu/libx.so"}


def test_library_can_be_replaced_and_then_needs_nothing(tree: Tree) -> None:
    tree.add("/ext.so", make_shared_object(needed=["libblas.so.3", "libc.so.6"]))
    tree.add("/usr/lib/libblas.so.3", make_shared_object(needed=["libgfortran.so.5"]))
    asked = []

    def substitute(name: str, content: bytes) -> bytes | None:
        asked.append((name, len(content)))
        return b"in its place" if "blas" in name else None

    finder = LibraryFinder(RootTree(tree.directory), substitute)
    finder.add("/ext.so")
    assert finder.libraries["libblas.so.3"].content == b"in its place"
    assert set(finder.libraries) == {"libblas.so.3", "libc.so.6", "ld-linux-x86-64.so.2"}
    assert asked[0][1] == (tree.directory / "ext.so").stat().st_size


def test_files_that_are_no_programs(tree: Tree) -> None:
    tree.add("/script", b"#!/bin/sh\n")
    assert LibraryFinder(RootTree(tree.directory)).add("/script") is None
    for damaged in (make_shared_object(needed=["libx.so"])[:100], b"\x7fELF" + bytes(200), b"\x7fELF"):
        tree.add("/damaged", damaged)
        with pytest.raises(CorruptError):
            LibraryFinder(RootTree(tree.directory)).add("/damaged")


def test_configuration_that_includes_itself_ends(tree: Tree) -> None:
    tree.add("/etc/ld.so.conf", b"include /etc/ld.so.conf\n/opt/lib\n")
    tree.add("/opt/lib/libx.so", make_shared_object())
    tree.add("/p", make_shared_object(needed=["libx.so"]))
    assert tree.collect("/p") == {"libx.so": "/opt/lib/libx.so"}


def test_what_lies_behind_the_segments_is_dropped() -> None:
    whole = make_shared_object(needed=["liba.so"], soname="libb.so", undefined=["cblas_ddot", "free"])
    padded = make_shared_object(
        needed=["liba.so"], soname="libb.so", undefined=["cblas_ddot", "free"], sections=b"debug" * 1000
    )
    assert strip(padded) == whole
    assert read_elf(strip(padded), "").needed == ("liba.so",)
    assert read_undefined_symbols(strip(padded), "") == ["cblas_ddot", "free"]


@pytest.mark.parametrize("length", [0, 3, 63, 64, 100, 232])
def test_file_that_is_cut_is_not_cut_further(length: int) -> None:
    cut = make_shared_object(needed=["liba.so"])[:length]
    assert strip(cut) == cut
