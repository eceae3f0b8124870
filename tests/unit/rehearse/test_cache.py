"""The cache: built once, whole or not at all, damage is noticed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from postpanic.rehearse.cache import build_once, digest_recipe, find_entry, hold_all_slots, hold_slot, prune


class Builder:
    def __init__(self, content: bytes = b"content") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        (directory / "deep").mkdir()
        (directory / "deep" / "file").write_bytes(self.content)


def test_second_request_builds_nothing(tmp_path: Path) -> None:
    build = Builder()
    first = build_once(tmp_path / "cache", "entry", build)
    assert build_once(tmp_path / "cache", "entry", build) == first
    assert build.calls == 1
    assert (first / "deep/file").read_bytes() == b"content"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        build_once(tmp_path, "entry", fail)
    assert find_entry(tmp_path, "entry") is None
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def damage_truncate(entry: Path) -> None:
    (entry / "deep/file").write_bytes(b"con")


def damage_change(entry: Path) -> None:
    (entry / "deep/file").write_bytes(b"tnetnoc")


def damage_remove(entry: Path) -> None:
    (entry / "deep/file").unlink()


def damage_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text('{"deep/file": 7}')


def damage_manifest_text(entry: Path) -> None:
    (entry / "manifest.json").write_text("[")


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_change, damage_remove, damage_manifest, damage_manifest_text],
    ids=lambda f: f.__name__,
)
def test_damaged_entry_is_built_again(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    build = Builder()
    entry = build_once(tmp_path, "entry", build)
    damage(entry)
    assert (build_once(tmp_path, "entry", build) / "deep/file").read_bytes() == b"content"
    assert build.calls == 2


def test_other_times_are_no_damage(tmp_path: Path) -> None:
    build = Builder()
    entry = build_once(tmp_path, "entry", build)
    os.utime(entry / "deep/file", (1, 1))
    build_once(tmp_path, "entry", build)
    assert build.calls == 1


def test_remains_of_a_killed_builder_are_removed(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from postpanic.rehearse.cache import build_once
def build(directory):
    (directory / "half").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
build_once(Path(sys.argv[1]), "entry", build)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert list(tmp_path.glob("*/half"))
    build_once(tmp_path, "entry", Builder())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".entry.lock", "entry"]


def test_prune_removes_what_nobody_used(tmp_path: Path) -> None:
    used, unused = (build_once(tmp_path, name, Builder()) for name in ("used", "unused"))
    for entry in (used, unused):
        os.utime(entry / "manifest.json", (1, 1))
    assert find_entry(tmp_path, "used") == used
    assert prune(tmp_path, max_age_s=3600) == ["unused"]
    assert used.exists()
    assert not unused.exists()


def test_recipe_digest_follows_content_not_order() -> None:
    assert digest_recipe({"a": 1, "b": [1, 2]}) == digest_recipe({"b": [1, 2], "a": 1})
    assert digest_recipe({"a": 1}) != digest_recipe({"a": 2})


def test_two_processes_build_once(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from postpanic.rehearse.cache import build_once
root = Path(sys.argv[1])
def build(directory):
    with (root / "calls").open("a") as stream:
        stream.write("x")
    time.sleep(0.3)
    (directory / "file").write_bytes(b"whole")
print((build_once(root / "cache", "entry", build) / "file").read_text())
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert [worker.communicate()[0] for worker in workers] == [b"whole\n"] * 3
    assert (tmp_path / "calls").read_text() == "x"


def wait_until_locked(path: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with path.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        time.sleep(0.01)
    raise AssertionError(f"nobody holds {path}")


def test_whoever_has_waited_longest_gets_the_next_slot(tmp_path: Path) -> None:
    order: list[str] = []

    def work(name: str, is_alone: bool) -> None:
        with hold_all_slots(tmp_path, "slot", 2) if is_alone else hold_slot(tmp_path, "slot", 2):
            order.append(name)
            time.sleep(0.3)

    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(hold_slot(tmp_path, "slot", 2))
        first = threading.Thread(target=work, args=("first", True))
        first.start()
        wait_until_locked(tmp_path / ".slot-line.lock")
        second = threading.Thread(target=work, args=("second", False))
        second.start()
        time.sleep(0.3)
        assert order == []
    first.join(30)
    second.join(30)
    assert order == ["first", "second"]
