"""The saver's import budget: in the capture kernel each module costs memory, and time before the log is saved."""

from __future__ import annotations

import functools
import json
import sys

import pytest

from postpanic.process import run

LISTING = """\
import sys, json, importlib
sys.path[:] = {path!r}
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""
# PID 1 itself: it must be there when nothing else is.
SUPERVISOR = ("postpanic.saver.init",)
# What saves to a local disk, until the pages are written.
SESSION = ("postpanic.saver.preparation", "postpanic.saver.session", "postpanic.saver.targets.file")
NEVER = {
    "argparse",
    "asyncio",
    "cffi",
    "click",
    "cramjam",
    "drgn",
    "email",
    "http",
    "isal",
    "lzallright",
    "multiprocessing",
}
NEVER |= {"prompt_toolkit", "rich", "ssl", "tarfile", "unittest", "urllib.request", "xml", "zipfile"}


@functools.cache
def modules_of(*names: str) -> set[str]:
    listed = run([sys.executable, "-ISc", LISTING.format(path=sys.path, names=names)])
    modules: list[str] = json.loads(listed.stdout)
    return set(modules)


def test_pid_1_needs_neither_numpy_nor_a_target() -> None:
    loaded = modules_of(*SUPERVISOR)
    assert not {name for name in loaded if name.split(".")[0] == "numpy"}
    assert not {name for name in loaded if name.startswith(("postpanic.pages", "postpanic.kernel", "postpanic.dumps"))}
    assert loaded.isdisjoint(NEVER | {"subprocess", "logging", "tempfile"})
    assert len(loaded) < 110


@pytest.mark.parametrize("name", sorted(NEVER))
def test_saving_to_a_disk_does_without(name: str) -> None:
    assert name not in modules_of(*SUPERVISOR, *SESSION)


def test_what_only_some_targets_need_is_imported_by_them() -> None:
    loaded = modules_of(*SUPERVISOR, *SESSION)
    assert not {name for name in loaded if name.startswith("postpanic.saver.network")}
    for kind in ("http", "nfs", "raw", "ssh"):
        assert f"postpanic.saver.targets.{kind}" not in loaded
    assert not {name for name in loaded if name.startswith(("postpanic.pages.redaction", "postpanic.kernel.debuginfo"))}
