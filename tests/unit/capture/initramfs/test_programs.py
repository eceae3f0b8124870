"""Programs besides Python: libraries, interpreters of scripts, accounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.libraries import LibraryFinder
from postpanic.capture.initramfs.programs import add_account_files, find_programs
from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import FactAbsentError
from tests.builders.shared_object import make_shared_object


@pytest.fixture
def root(tmp_path: Path) -> RootTree:
    files = {
        "usr/bin/ssh": make_shared_object(needed=["libc.so.6"], sections=b"x" * 999),
        "usr/bin/env": make_shared_object(),
        "usr/bin/dash": make_shared_object(),
        "usr/lib/libc.so.6": make_shared_object(),
        "usr/lib/libnss_files.so.2": make_shared_object(needed=["libc.so.6"]),
        "usr/local/bin/hook": b"#!/usr/bin/env dash\necho\n",
        "usr/local/bin/again": b"#!/usr/local/bin/again\n",
        "usr/local/bin/orphan": b"#!/usr/bin/perl -w\n",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return RootTree(tmp_path)


def test_program_by_name_or_path_with_its_libraries(root: RootTree) -> None:
    libraries = LibraryFinder(root)
    found = find_programs(root, ["ssh", "/usr/bin/ssh"], libraries)
    assert list(found) == ["/usr/bin/ssh"]
    assert b"xxx" not in (found["/usr/bin/ssh"] or b"xxx")
    assert list(libraries.libraries) == ["libc.so.6"]


def test_script_brings_what_runs_it(root: RootTree) -> None:
    assert list(find_programs(root, ["hook"], LibraryFinder(root))) == [
        "/usr/bin/dash",
        "/usr/bin/env",
        "/usr/local/bin/hook",
    ]
    assert list(find_programs(root, ["again"], LibraryFinder(root))) == ["/usr/local/bin/again"]


def test_script_in_python_is_run_by_the_images_own(root: RootTree) -> None:
    for line, path in {
        "/usr/bin/python3": "/usr/bin/python3",
        "/opt/bin/python3.12 -I": "/opt/bin/python3.12",
        "/usr/bin/env python3": "/usr/bin/python3",
    }.items():
        (root.directory / "usr/local/bin/hook").write_text(f"#!{line}\nimport json\n")
        assert find_programs(root, ["hook"], LibraryFinder(root))[path] is None


def test_what_is_missing_is_named(root: RootTree) -> None:
    for name, missing in {"nothing": "nothing", "/none": "/none", "orphan": "/usr/bin/perl"}.items():
        with pytest.raises(FactAbsentError, match=f"no program {missing}"):
            find_programs(root, [name], LibraryFinder(root))


def test_old_c_library_gets_its_name_services(root: RootTree) -> None:
    libraries = LibraryFinder(root)
    find_programs(root, ["ssh"], libraries)
    image = ImageTree()
    add_account_files(image, libraries)
    assert {"etc/passwd", "etc/group", "etc/nsswitch.conf"} <= set(image)
    assert "libnss_files.so.2" in libraries.libraries
