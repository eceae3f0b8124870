"""Which modules go into the image, of a tree's Python and of ours."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.initramfs.contents import PythonModules, find_python_modules
from postpanic.capture.initramfs.imports import find_imports
from postpanic.capture.initramfs.numpy_parts import choose_numpy_parts, find_used_names
from postpanic.capture.initramfs.python_tree import PythonTree, find_python
from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import FactAbsentError
from postpanic.saver.plan import FilePlan, HttpPlan, NetworkPlan, NfsPlan, SavePlan, SshPlan

MakeRoot = Callable[..., Path]
FROZEN = ("abc", "codecs", "io", "os", "os.path", "posixpath", "site", "stat", "zipimport")
SAVER_TARGETS = "postpanic.saver.targets"


@pytest.fixture(scope="module")
def running() -> PythonTree:
    return find_python(RootTree(Path("/")))


@pytest.fixture(scope="module")
def everything(running: PythonTree) -> PythonModules:
    """Give the modules of a plan with every kind of target."""
    plan = SavePlan(targets=(FilePlan(), SshPlan(), HttpPlan(), NfsPlan()), network=NetworkPlan())
    return find_python_modules(running, plan, https=True)


def test_python_of_a_tree(make_root: MakeRoot) -> None:
    python = find_python(RootTree(make_root(13, "aarch64")))
    assert (python.minor, python.interpreter, python.library) == (13, "/usr/bin/python3.13", "/usr/lib/python3.13")
    assert python.packages == ("/usr/lib/python3/dist-packages",)
    assert python.library_place == "lib/python3.13"
    module = python.find_module("numpy.core._multiarray_umath")
    assert module is not None
    assert module.is_extension
    assert module.path.endswith("_multiarray_umath.cpython-313-aarch64-linux-gnu.so")
    assert python.find_module("sys") is None


def test_running_version_wins_over_a_newer_one(make_root: MakeRoot) -> None:
    make_root(sys.version_info.minor)
    make_root(sys.version_info.minor + 1)
    python = find_python(RootTree(make_root(sys.version_info.minor)))
    assert python.minor == sys.version_info.minor
    assert python.is_running_version


def test_python_without_numpy_is_refused(make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root()
    next(root.rglob("backend_c.*")).unlink()
    with pytest.raises(FactAbsentError, match="without them"):
        find_python(RootTree(root))
    with pytest.raises(FactAbsentError, match="no Python"):
        find_python(RootTree(tmp_path))


def test_numpy_is_cut_to_what_is_used(make_root: MakeRoot) -> None:
    python = find_python(RootTree(make_root()))
    parts = choose_numpy_parts(python, {"unique", "arange"})
    # unique() calls a function of its module, which takes rot90 from numpy.
    assert parts.places == {"rot90": "numpy.lib.function_base", "unique": "numpy.lib.arraysetops"}
    assert "numpy.core._methods" in parts.roots
    assert "numpy.core.nothing" not in parts.roots
    assert parts.is_absent("numpy.core.einsumfunc")
    assert parts.is_absent("numpy.linalg.anything")
    assert not parts.is_absent("numpy.lib.arraysetops")
    assert not choose_numpy_parts(python, {"einsum"}).is_absent("numpy.core.einsumfunc")


def test_used_names_are_those_of_any_alias() -> None:
    tree = ast.parse("import numpy as np, numpy\nnp.unique(x.np)\ndef f(): return numpy.add.reduce(y)\nother.thing")
    assert find_used_names(tree) == {"unique", "add"}


def test_saver_finds_its_modules_in_a_foreign_tree(make_root: MakeRoot) -> None:
    python = find_python(RootTree(make_root()))
    found = find_python_modules(python, SavePlan(targets=(FilePlan(),)))
    assert {"postpanic.saver.init", "postpanic.dumps.kdump.writer", "json", "numpy.core"} <= set(found.sources)
    assert set(found.extensions) == {"_json", "numpy.core._multiarray_umath", "zstandard.backend_c"}
    # What stands in their place imports nothing of this.
    assert not {"dis", "huge", "other", "numpy.lib.npyio", "numpy.random", "postpanic.cli"} & set(found.sources)
    assert b"_CORE = 'numpy.core'" in found.sources["numpy"][0]
    assert found.sources["numpy"][1]
    assert found.importers["postpanic.saver.init"] == ""


def test_entry_that_is_not_there_is_an_error(make_root: MakeRoot) -> None:
    python = find_python(RootTree(make_root()))
    with pytest.raises(FactAbsentError, match=r"no module postpanic\.nothing"):
        find_python_modules(python, SavePlan(), roots=("postpanic.nothing",))


def test_plan_decides_what_comes(running: PythonTree, everything: PythonModules) -> None:
    local = set(find_python_modules(running, SavePlan(targets=(FilePlan(),))).sources)
    assert {f"{SAVER_TARGETS}.file", f"{SAVER_TARGETS}.raw", "hashlib", "struct"} <= local
    assert not {f"{SAVER_TARGETS}.{kind}" for kind in ("http", "nfs", "ssh")} & local
    assert not {"http.client", "ssl", "email", "encodings.idna", "argparse", "asyncio", "unittest"} & local
    assert {f"{SAVER_TARGETS}.ssh", f"{SAVER_TARGETS}.nfs", "encodings.idna"} <= set(everything.sources)
    assert "isal" not in everything.sources
    assert not {name for name in everything.sources if name.split(".")[0] in {"drgn", "rich", "click", "elftools"}}


def test_nothing_that_our_modules_import_is_missing_but_what_is_left_out(
    running: PythonTree, everything: PythonModules
) -> None:
    found = everything
    there = {*found.sources, *found.extensions, *sys.builtin_module_names, *FROZEN}
    missing = set()
    for name, (source, is_package) in found.sources.items():
        if name.split(".")[0] == "postpanic":
            package = name if is_package else name.rpartition(".")[0]
            for wanted in find_imports(ast.parse(source), package, minor=running.minor, functions=True):
                # "from a import b" names a module a.b, or something of a.
                if wanted not in there and wanted.rpartition(".")[0] not in there:
                    missing.add(wanted)
    # Compressed modules are for images that others made, and no dump is opened for analysis there.
    analysis = {name for name in missing if name.startswith("postpanic.analysis.open_dump")}
    assert missing - analysis == {"lzma"}
    assert not {name.split(".")[0] for name in found.extensions} & {"isal", "cramjam", "lzallright"}
